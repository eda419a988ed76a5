"""Do 95 % intervals hold the truth in 95 % of all cases, and are delta-method errors those of the bootstrap?

    python -m benchmarks.coverage    (about ten minutes on one core; writes benchmarks/results/coverage.json)

For each case of `coverage_cases` 2,000 truths are drawn, data from each, and the intervals that hold their truth are
counted: 93 to 97 % is right (1,900 are expected; chance moves the share by 1 % at most, 2 standard errors). Then the
delta method's standard errors are held against 10,000 bootstrap resamples of the same data: within 3 %. What is known
not to hold its level is measured beside it, with a quarter of the truths. Each row names the code that measured it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import CODE, RESULTS, about
from benchmarks.coverage_cases import CASES, MISSES, Case, Sets, measure
from evaluation import statistics as s
from evaluation.images.frechet import frechet_distance_from_features
from evaluation.images.influence import frechet_influence
from evaluation.safety.correction import DetectorQuality, corrected_rate
from evaluation.statistics import auc_estimate, roc_auc
from launch.files import read_json, write_json
from launch.seeding import numpy_generator

LOW, HIGH = 0.93, 0.97
CLOSE = 0.03
RESAMPLES = 10_000
RUNS = 2000

Row = dict[str, Any]


def bootstrap_error(
    statistic: Callable[..., float], *arrays: np.ndarray, groups: list[np.ndarray] | None = None
) -> float:
    """The spread of a statistic over resamples of the rows; of each group of rows apart, where groups are given."""
    g, n = numpy_generator(2, "coverage bootstrap"), len(arrays[0])
    parts = groups or [np.arange(n)]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([part[g.integers(0, len(part), len(part))] for part in parts])
        drawn.append(statistic(*(a[rows] for a in arrays)))
    return float(np.std(drawn, ddof=1))


def delta_cases() -> dict[str, tuple[float, float]]:
    """name -> (the delta method's standard error, the bootstrap's)."""
    g = numpy_generator(3, "coverage delta")
    sizes = g.integers(20, 400, 1000).astype(float)
    nats = sizes * g.normal(0.9, 0.15, 1000)
    found = {
        "ratio (nats per byte)": (
            error(s.ratio(nats, sizes)),
            bootstrap_error(lambda a, b: a.sum() / b.sum(), nats, sizes),
        )
    }
    found["exp of a mean (perplexity)"] = (
        error(s.exponential(s.mean(nats / sizes))),
        bootstrap_error(lambda a: np.exp(a.mean()), nats / sizes),
    )
    x = g.normal(0, 1, 1000)
    y = 0.6 * x + g.normal(0, 0.8, 1000)

    def from_moments(m: np.ndarray) -> float:
        return float((m[2] - m[0] * m[1]) / np.sqrt((m[3] - m[0] ** 2) * (m[4] - m[1] ** 2)))

    correlation = s.delta_method(from_moments, s.Moments.of(x, y, x * y, x * x, y * y))
    found["correlation"] = (error(correlation), bootstrap_error(lambda a, b: np.corrcoef(a, b)[0, 1], x, y))
    truth, flag = g.random(1000) < 0.3, g.random(1000)
    flag = np.where(truth, flag < 0.8, flag < 0.1)
    f1 = s.delta_method(lambda m: 2 * m[0] / (m[1] + m[2]), s.Moments.of(truth & flag, truth, flag))
    found["F1"] = (error(f1), bootstrap_error(lambda a, b: 2 * (a & b).sum() / (a.sum() + b.sum()), truth, flag))
    found["Rogan-Gladen rate"] = rogan_gladen()
    labels = np.repeat([0, 1], 500)
    scores = labels * 1.0 + g.normal(0, 1, 1000)
    halves = [np.arange(500), np.arange(500, 1000)]
    found["AUC (DeLong)"] = (
        error(auc_estimate(labels, scores)),
        bootstrap_error(roc_auc, labels, scores, groups=halves),
    )
    a, b = Sets(8, 1000, 1200, 0.5, 1.2, skewed=True).draw(g)
    influence = float(np.sqrt(sum(frechet_influence(a, b).variance)))
    rows, sets = np.concatenate([a, b]), [np.arange(1000), np.arange(1000, 2200)]
    found["FID (influence function)"] = (
        influence,
        bootstrap_error(lambda r: frechet_distance_from_features(r[:1000], r[1000:]), rows, groups=sets),
    )
    return found


def error(estimate: s.Estimate) -> float:
    """Its standard error."""
    return float("nan") if estimate.stderr is None else estimate.stderr


def rogan_gladen() -> tuple[float, float]:
    """A detected rate of .3 in 2,000, with sensitivity .8 of 800 and specificity .9 of 900: three binomials."""
    quality = DetectorQuality(s.wilson(640, 800), s.wilson(810, 900))
    found = corrected_rate(s.wilson(600, 2000), quality)
    g = numpy_generator(4, "coverage Rogan-Gladen")
    p, se, sp = (g.binomial(n, q, RESAMPLES) / n for n, q in ((2000, 0.3), (800, 0.8), (900, 0.9)))
    return (float("nan") if found is None else error(found)), float(np.std((p + sp - 1) / (se + sp - 1), ddof=1))


def run_coverage(cases: Sequence[Case], runs: int, only: str) -> list[Row]:
    """The rows of the coverage table."""
    rows = []
    for case in cases:
        if only.lower() not in f"{case.quantity} {case.name}".lower():
            continue
        start = time.perf_counter()
        found = measure(case, runs)
        rows.append(
            {
                "quantity": case.quantity,
                "case": case.name,
                "truth": case.truth,
                **dataclasses.asdict(found),
                "within": LOW <= found.covered <= HIGH,
                "code": CODE,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        mark = "" if rows[-1]["within"] else "  <- outside"
        print(f"{case.quantity:24}{case.name:44}{found.covered:.4f}  {found.method}{mark}", flush=True)
    return rows


def main() -> None:
    """Simulate, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="truths; only with the usual number a result is written")
    parser.add_argument(
        "--only", default="", help="measure the cases whose name holds this, and keep the others of the file"
    )
    options = parser.parse_args()
    path = RESULTS / "coverage.json"
    before = read_json(path) if options.only else {}
    rows = merged(CASES, run_coverage(CASES, options.runs, options.only), before.get("coverage", []))
    measured = run_coverage(MISSES, options.runs // 4, options.only)
    misses = merged(MISSES, measured, before.get("known_not_to_hold", []))
    compared = before["delta_against_bootstrap"]["cases"] if options.only else compare_errors()
    result = {
        "benchmark": "coverage",
        **about(f"python -m benchmarks.coverage --runs {options.runs}"),
        "level": s.LEVEL,
        "coverage": rows,
        "known_not_to_hold": misses,
        "delta_against_bootstrap": {"resamples": RESAMPLES, "cases": compared},
        "all_within": all(r["within"] for r in rows) and all(c["within"] for c in compared.values()),
    }
    if options.runs == RUNS:
        write_json(path, result)
    print("all within" if result["all_within"] else "NOT all within")


def merged(cases: Sequence[Case], rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """The rows of all cases in their order: those measured now, else those of before."""
    known = {(row["quantity"], row["case"]): row for row in [*before, *rows]}
    return [known[c.quantity, c.name] for c in cases if (c.quantity, c.name) in known]


def compare_errors() -> dict[str, Any]:
    """Every delta-method error beside that of the bootstrap."""
    compared = {
        name: {"delta": delta, "bootstrap": boot, "ratio": delta / boot, "within": abs(delta / boot - 1) <= CLOSE}
        for name, (delta, boot) in delta_cases().items()
    }
    for name, entry in compared.items():
        print(f"{name:30} delta {entry['delta']:.5g}  bootstrap {entry['bootstrap']:.5g}  ratio {entry['ratio']:.4f}")
    return compared


if __name__ == "__main__":
    main()
