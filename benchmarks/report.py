"""How long a report takes: to be written, to open in Chromium with 10,000 samples, and to answer what its reader does.

    python -m benchmarks.report    (about a minute; needs playwright and chromium; writes benchmarks/results/report.json)

Two models answer the same prompts, with texts of about 60 and 300 characters. Each figure is the median of five fresh
browser contexts, with the smallest and largest beside it. "Opened" is from the request for the page to the moment when
the first sample stands on it and the browser has painted; the other figures are from an input event to the next paint.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.common import RESULTS, about
from evaluation.schema import EvaluationResult, Judge, Protocol, Subject, metric, write_samples
from evaluation.statistics import win_rate
from evaluation.suites.report import STAGE, ReportConfig
from launch.files import write_json
from launch.seeding import numpy_generator

WORDS = [
    "the",
    "model",
    "returns",
    "a",
    "list",
    "of",
    "items",
    "that",
    "match",
    "given",
    "name",
    "and",
    "raises",
    "an",
    "error",
    "when",
    "none",
    "is",
    "found",
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "chromium")
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
ACTIONS = {
    "filter to wrong": ("viewer-only", "wrong"),
    "filter to disagreement": ("viewer-only", "disagree"),
    "order by difference": ("viewer-order", "gap"),
}


def write_results(root: Path, samples: int) -> None:
    """Two policies judged against a common baseline, with samples."""
    draw = numpy_generator(0, "benchmark report")
    prompts = [f"{number}: {' '.join(draw.choice(WORDS, 12))}" for number in range(samples)]
    theirs = [" ".join(draw.choice(WORDS, 60)) for _ in prompts]
    for name, rate in (("ppo", 0.62), ("dpo", 0.57)):
        won = (draw.random(samples) < rate).astype(float)
        rows = [
            {"id": str(i), "prompt": p, "completion": " ".join(draw.choice(WORDS, 60)), "baseline_completion": t,
             "reward": float(w), "baseline_reward": 0.5, "outcome": float(w), "tokens": 60, "category": WORDS[i % 9]}
            for i, (p, t, w) in enumerate(zip(prompts, theirs, won, strict=True))
        ]  # fmt: skip
        folder = root / name
        folder.mkdir(parents=True)
        entry = metric("win_rate", win_rate(won), "prompts won", higher_is_better=True, unit="share", baseline="sft")
        protocol = Protocol("prompts", "a" * 64, samples, judge=Judge("gold", "b" * 64), baseline="sft")
        subject = Subject(name, "language model", sha256=name[0] * 64)
        EvaluationResult("win-rate", subject, protocol, [entry], samples=write_samples(folder, rows)).save(folder)


def write_report(root: Path, out: Path) -> float:
    """Seconds that the report takes to be written."""
    out.mkdir()
    job = SimpleNamespace(runtime=SimpleNamespace(is_main=True), output_dir=out, say=lambda text: None)
    start = time.perf_counter()
    STAGE.run(ReportConfig(output_dir=str(out), inputs=[str(root)], show=False), job)
    return time.perf_counter() - start


def measure_page(browser: Browser, address: str) -> dict[str, float]:
    """Seconds of one visit."""
    context = browser.new_context(viewport={"width": 1280, "height": 1150})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#viewer-list button")
    page.evaluate(PAINTED)
    found = {"opened with the first sample": time.perf_counter() - start}
    page.select_option("#viewer-b", label="dpo")
    for name, (select, value) in ACTIONS.items():
        found[name] = _timed_choice(page, select, value)
    start = time.perf_counter()
    page.locator("#viewer-list button").nth(5).click()
    page.evaluate(PAINTED)
    found["open a sample"] = time.perf_counter() - start
    start = time.perf_counter()
    page.fill("#viewer-text", "items that match")
    page.evaluate(PAINTED)
    found["find text"] = time.perf_counter() - start
    context.close()
    return found


def _timed_choice(page: Page, select: str, value: str) -> float:
    start = time.perf_counter()
    page.select_option(f"#{select}", value)
    page.evaluate(PAINTED)
    return time.perf_counter() - start


def main() -> None:
    """Write the report, open it, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "runs", Path(folder) / "report"
        write_results(root, options.samples)
        written = write_report(root, out)
        size = (out / "index.html").stat().st_size
        with sync_playwright() as engine:
            browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            version = browser.version
            visits = [measure_page(browser, (out / "index.html").as_uri()) for _ in range(options.runs)]
            browser.close()
    seconds: dict[str, Any] = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name in visits[0]
        for values in [[visit[name] for visit in visits]]
    }
    for name, entry in seconds.items():
        print(f"{name:32}{entry['median']:.3f} s  [{entry['least']:.3f}, {entry['most']:.3f}]")
    record = {
        "benchmark": "report",
        **about(f"python -m benchmarks.report --samples {options.samples} --runs {options.runs}"),
        "samples": options.samples,
        "models": 3,
        "page_mib": round(size / 2**20, 1),
        "seconds_to_write": round(written, 2),
        "seconds": seconds,
        "chromium": version,
    }
    write_json(RESULTS / "report.json", record)


if __name__ == "__main__":
    main()
