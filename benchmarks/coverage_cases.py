"""The cases of the coverage simulation: each draws a truth and data from it, and gives the interval and the truth.

Shared by `python -m benchmarks.coverage` (2,000 truths for each case) and by the tests, which take fewer. Parameters
are drawn anew for each truth where that makes sense, so that no case rests on one lucky value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from evaluation import statistics as s
from evaluation.deepfake.metrics import true_positive_rate_estimate
from evaluation.images.frechet import frechet_distance_from_features
from evaluation.images.intervals import (
    cmmd_estimate,
    extrapolated_estimate,
    frechet_estimate,
    inception_estimate,
    kernel_estimate,
    manifold_estimates,
    mind_estimate,
)
from evaluation.images.metrics import cmmd, inception_score, mind, precision_recall_density_coverage, unit_length
from evaluation.statistics import Estimate, auc_difference, auc_estimate, calibration, reliability_bins
from launch.seeding import numpy_generator

Generator = np.random.Generator
Draw = Callable[[Generator], tuple[Estimate, float]]
TRUTH_DRAWS = 20_000
"""Draws whose mean stands for the expected value of a biased score: a hundredth of the interval's error."""


@dataclass(frozen=True)
class Case:
    """One kind of interval under one kind of data; `truth` says what the interval is held against."""

    quantity: str
    name: str
    draw: Draw
    truth: str = "the parameter"


@dataclass(frozen=True)
class Coverage:
    """How often the intervals held the truth, and how the stated errors compare with the estimates' scatter."""

    method: str
    covered: float
    below: float
    above: float
    runs: int
    mean_width: float


def measure(case: Case, runs: int, seed: int = 0) -> Coverage:
    """Draw `runs` truths with data and count."""
    found = [case.draw(numpy_generator(seed, f"coverage {case.quantity} {case.name}", run)) for run in range(runs)]
    limits = np.array([(e.low, e.high) for e, _ in found], dtype=float)
    truth = np.array([t for _, t in found])
    below, above = truth < limits[:, 0], truth > limits[:, 1]
    outside = below | above | np.isnan(limits).any(axis=1)  # an interval that is not there covers nothing
    methods = [e.method for e, _ in found]
    common = max(set(methods), key=methods.count)
    width = float((limits[:, 1] - limits[:, 0])[~np.isnan(limits).any(axis=1)].mean()) if not outside.all() else 0.0
    return Coverage(common, float(1 - outside.mean()), float(below.mean()), float(above.mean()), runs, width)


# ---------------------------------------------------------------------------------------------- shares and means


def proportion(n: int) -> Draw:
    """A share of n, the truth uniform."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        p = g.uniform()
        return s.proportion(g.random(n) < p), p

    return draw


def clustered_proportion(clusters: int, size: int) -> Draw:
    """Flags of `size` samples for each prompt, whose rates scatter (beta, intraclass correlation .2)."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        p = g.uniform(0.1, 0.9)
        rates = g.beta(4 * p, 4 * (1 - p), clusters)
        flags = g.random((clusters, size)) < rates[:, None]
        return s.proportion(flags.ravel(), np.repeat(np.arange(clusters), size).tolist()), p

    return draw


def mean(n: int, sample: Callable[[Generator, int], np.ndarray], truth: float) -> Draw:
    """A mean of n values."""
    return lambda g: (s.mean(sample(g, n)), truth)


def clustered_mean(g: Generator) -> tuple[Estimate, float]:
    """30 prompts with 1 to 8 samples and an effect of their own."""
    sizes = g.integers(1, 9, 30)
    codes = np.repeat(np.arange(30), sizes)
    return s.clustered_mean(g.normal(0, 1, 30)[codes] + g.normal(0, 1, codes.size), codes.tolist()), 0.0


def ratio(log: bool) -> Draw:
    """Nats per byte of 60 documents of very different lengths."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        sizes = g.integers(10, 400, 60).astype(float)
        return s.ratio(sizes * g.gamma(4.0, 0.25, 60), sizes, log=log), 1.0

    return draw


def win_rate(n: int) -> Draw:
    """Wins, ties and losses with Dirichlet(2, 1, 2) rates."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        rates = g.dirichlet([2, 1, 2])
        return s.win_rate_from_counts(*(int(c) for c in g.multinomial(n, rates))), float(rates[0] + rates[1] / 2)

    return draw


def paired_flags(n: int) -> Draw:
    """The difference of two models that are right or wrong on n shared items."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        rates = g.dirichlet([4, 1, 1, 2])
        items = g.choice(4, p=rates, size=n)
        ours, theirs = np.isin(items, (0, 1)).astype(float), np.isin(items, (0, 2)).astype(float)
        return s.paired_difference(ours, theirs).estimate, float(rates[1] - rates[2])

    return draw


def clustered_paired_flags(clusters: int, size: int, rates: tuple[float, ...]) -> Draw:
    """The same on `size` samples for each prompt: rates of (both right, ours alone, theirs alone, none) scatter by prompt.

    Truth and prompts are Dirichlet, the prompts with an intraclass correlation of .2.
    """

    def draw(g: Generator) -> tuple[Estimate, float]:
        truth = g.dirichlet(rates)
        by_prompt = g.dirichlet(np.maximum(4 * truth, 1e-3), clusters)
        items = np.array([g.choice(4, p=p, size=size) for p in by_prompt]).ravel()
        ours, theirs = np.isin(items, (0, 1)).astype(float), np.isin(items, (0, 2)).astype(float)
        labels = np.repeat(np.arange(clusters), size).tolist()
        return s.paired_difference(ours, theirs, clusters=labels).estimate, float(truth[1] - truth[2])

    return draw


def paired_scores(g: Generator) -> tuple[Estimate, float]:
    """A difference of skewed scores on 80 items of unlike difficulty."""
    hard = g.normal(0, 3, 80)
    return s.paired_difference(hard + g.gamma(2.0, 0.5, 80), hard + g.gamma(1.0, 0.5, 80)).estimate, 0.5


# ---------------------------------------------------------------------------------------------- detectors


def auc(positives: int, negatives: int, spread: float) -> Draw:
    """Two normals 0 to 2.5 apart, the generated one with its own spread."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        d = g.uniform(0, 2.5)
        scores = np.concatenate([g.normal(0, 1, negatives), g.normal(d, spread, positives)])
        truth = float(norm.cdf(d / np.hypot(1, spread)))
        return auc_estimate(np.repeat([0, 1], [negatives, positives]), scores), truth

    return draw


def auc_pair(g: Generator) -> tuple[Estimate, float]:
    """Two detectors, 1.0 and 1.4 apart, whose scores of one image correlate by .6."""
    labels = np.repeat([0, 1], [80, 80])
    noise = g.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 160)
    found = auc_difference(labels, noise[:, 0] + 1.4 * labels, noise[:, 1] + labels)
    return found.estimate, float(norm.cdf(1.4 / np.sqrt(2)) - norm.cdf(1 / np.sqrt(2)))


# ---------------------------------------------------------------------------------------------- Bradley-Terry


def bradley_terry(models: int, duels: int, spread: float = 1.0, ties: float = 0.0, copies: int = 1) -> Draw:
    """The strength of the first of some models that all meet, `duels` times each pair.

    A tie has probability 2 `ties` min(p, 1 - p), taken evenly from wins and losses, so that the expected outcome stays
    p. With `copies` each duel is judged that often, mostly alike: a cluster.
    """

    def draw(g: Generator) -> tuple[Estimate, float]:
        strength = g.normal(0, spread, models)
        i, j = (np.repeat(x, duels) for x in np.triu_indices(models, 1))
        p = expit(strength[i] - strength[j])
        tie = ties * 2 * np.minimum(p, 1 - p)  # win p - tie / 2, tie, loss 1 - p - tie / 2: the expected outcome is p
        u = g.random(p.size)
        y = np.where(u < p - tie / 2, 1.0, np.where(u < p + tie / 2, 0.5, 0.0))
        clusters = None
        if copies > 1:
            again = g.random((copies, p.size)) < 0.3  # a copy that is judged anew
            y = np.where(again, (g.random(again.shape) < p).astype(float), y).ravel()
            clusters = np.tile(np.arange(p.size), copies).tolist()
            i, j = np.tile(i, copies), np.tile(j, copies)
        found = s.fit_bradley_terry([f"m{k}" for k in i], [f"m{k}" for k in j], y, clusters)
        return found.strengths()["m0"], float(strength[0] - strength.mean())

    return draw


def league(models: int, prompts: int) -> Draw:
    """The strength of the first of some models that all meet on every prompt, twice.

    On a prompt each model has a quality, its strength and a Gumbel number: the better one wins with the probability of
    Bradley and Terry (Luce 1959), and the duels of a prompt depend on each other. Three in ten are decided by chance anew.
    """

    def draw(g: Generator) -> tuple[Estimate, float]:
        strength = g.normal(0, 1, models)
        i, j = (np.tile(x, 2) for x in np.triu_indices(models, 1))
        quality = strength + g.gumbel(size=(prompts, models))
        y = (quality[:, i] > quality[:, j]).astype(float)
        anew = g.random(y.shape) < 0.3
        y = np.where(anew, g.random(y.shape) < expit(strength[i] - strength[j]), y)
        clusters = np.repeat(np.arange(prompts), i.size).tolist()
        names = [[f"m{k}" for k in np.tile(x, prompts)] for x in (i, j)]
        found = s.fit_bradley_terry(*names, y.ravel(), clusters)
        return found.strengths()["m0"], float(strength[0] - strength.mean())

    return draw


# ---------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Sets:
    """Two sets of features in d dimensions: n generated, m real, shifted apart; `skewed`: products of a nonlinearity."""

    d: int
    n: int
    m: int
    shift: float
    scale: float = 1.0
    skewed: bool = False

    def draw(self, g: Generator) -> tuple[np.ndarray, np.ndarray]:
        """(n, d) and (m, d)."""
        x, y = g.standard_normal((self.n, self.d)) * self.scale + self.shift, g.standard_normal((self.m, self.d))
        if self.skewed:
            mix = np.linalg.qr(numpy_generator(0, "coverage mix").standard_normal((self.d, self.d)))[0]
            x, y = (np.maximum(z @ mix, 0.0) ** 1.5 for z in (x, y))
        return x, y


@cache
def expected_frechet(sets: Sets) -> float:
    """The mean distance over many draws of sets of these sizes: the truth that the interval is for."""
    g = numpy_generator(1, f"coverage truth {sets}")
    draws = TRUTH_DRAWS if sets.d <= 16 else TRUTH_DRAWS // 5
    return float(np.mean([frechet_distance_from_features(*sets.draw(g)) for _ in range(draws)]))


def frechet(**sizes: Any) -> Draw:
    """A Fréchet distance of sets as `Sets`."""
    sets = Sets(**sizes)
    return lambda g: (frechet_estimate(*sets.draw(g), seed=0), expected_frechet(sets))


def kernel(shift: float) -> Draw:
    """A kernel distance, 100 and 80 rows in 5 dimensions; unbiased, so that its truth is that of the populations."""
    return lambda g: (
        kernel_estimate(g.standard_normal((100, 5)) + shift, g.standard_normal((80, 5))),
        expected_kernel(shift),
    )


@cache
def expected_kernel(shift: float) -> float:
    """The squared MMD of N(shift, I) and N(0, I) in 5 dimensions under the cubic kernel, exactly.

    (t + 1)^3 with t = x.y / 5 is a polynomial of total degree 3 in each argument, so that the expectation needs the
    moment tensors up to order 3 alone: E t^k = <E x^(k), E y^(k)> / 5^k.
    """
    d = 5
    eye, one = np.eye(d), np.ones(d)

    def moments(a: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        m = a * one
        third = np.einsum("i,j,k->ijk", m, m, m)
        for spec in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            third = third + np.einsum(spec, m, eye)
        return m, np.outer(m, m) + eye, third

    differences = [p - q for p, q in zip(moments(shift), moments(0.0), strict=True)]
    return float(sum(c * (v**2).sum() / d**k for c, k, v in zip((3, 3, 1), (1, 2, 3), differences, strict=True)))


DIRECTIONS = 40
NEAR = Sets(d=5, n=120, m=150, shift=0.5)
"""The sets of the sliced, the Gaussian-kernel and the extrapolated distance."""
MANIFOLDS = Sets(d=3, n=150, m=150, shift=0.8)


def monge(g: Generator) -> tuple[Estimate, float]:
    """MIND along 40 fixed directions."""
    return mind_estimate(*NEAR.draw(g), seed=0, directions=DIRECTIONS), expected_at_n("mind")


def gaussian_kernel(g: Generator) -> tuple[Estimate, float]:
    """CMMD, whose V-statistic is biased by the numbers of images."""
    return cmmd_estimate(*NEAR.draw(g)), expected_at_n("cmmd")


def extrapolated(g: Generator) -> tuple[Estimate, float]:
    """A Fréchet distance at infinity against that of the distributions themselves, |shift|^2."""
    return extrapolated_estimate(*NEAR.draw(g), seed=0)[1], NEAR.d * NEAR.shift**2


def manifold(name: str) -> Draw:
    """Precision, recall, density or coverage."""
    return lambda g: (manifold_estimates(*MANIFOLDS.draw(g), seed=0)[1][name], expected_manifold()[name])


@cache
def expected_at_n(metric: str) -> float:
    """The mean of MIND or of CMMD over many draws of `NEAR`."""
    g, measures = numpy_generator(1, f"coverage truth {metric}"), {
        "mind": lambda x, y: mind(x, y, 0, DIRECTIONS),
        "cmmd": lambda x, y: cmmd(unit_length(x), unit_length(y)).value,
    }  # fmt: skip
    return float(np.mean([measures[metric](*NEAR.draw(g)) for _ in range(TRUTH_DRAWS // 4)]))


@cache
def expected_manifold() -> dict[str, float]:
    """The mean of each share over many draws of `MANIFOLDS`."""
    g = numpy_generator(1, "coverage truth manifold")
    found = [precision_recall_density_coverage(*MANIFOLDS.draw(g)) for _ in range(TRUTH_DRAWS // 4)]
    return {
        name: float(np.mean([getattr(f, name).mean() for f in found]))
        for name in ("precision", "recall", "density", "coverage")
    }


def inception(g: Generator) -> tuple[Estimate, float]:
    """An Inception Score of 200 images of 8 classes."""
    return inception_estimate(_logits(g), 1, 0), expected_inception()


def _logits(g: Generator) -> np.ndarray:
    return g.standard_normal((200, 8)) + 3 * np.eye(8)[g.integers(0, 8, 200)]


@cache
def expected_inception() -> float:
    """The mean score over many draws of 200 images."""
    g = numpy_generator(1, "coverage truth inception")
    return float(np.mean([inception_score(_logits(g))[0] for _ in range(TRUTH_DRAWS // 4)]))


# ---------------------------------------------------------------------------------------------- rates and calibration


def rate_at_one_percent(negatives: int, positives: int, apart: tuple[float, float], spread: float) -> Draw:
    """The true positive rate at 1 % false positives of two normals, as far apart as a uniform number says."""

    def draw(g: Generator) -> tuple[Estimate, float]:
        d = g.uniform(*apart)
        scores = np.concatenate([g.normal(0, 1, negatives), g.normal(d, spread, positives)])
        found = true_positive_rate_estimate(np.repeat([0, 1], [negatives, positives]), scores, 0.01, seed=0)
        return found, float(norm.sf((norm.isf(0.01) - d) / spread))

    return draw


def calibration_error(pairs: int, factor: float, prompts: int = 0) -> Draw:
    """The calibration error of a reward model whose logits are `factor` times what they should be.

    With `prompts` the pairs are those of so many prompts, each with an effect of its own on who is right.
    """

    def draw(g: Generator) -> tuple[Estimate, float]:
        groups = np.repeat(np.arange(prompts), pairs // prompts).tolist() if prompts else None
        found = calibration(_margins(g, pairs, factor, prompts), seed=0, groups=groups)
        return found.error, 0.0 if factor == 1 else expected_calibration(factor, bool(prompts))

    return draw


def _margins(g: Generator, n: int, factor: float, prompts: int) -> np.ndarray:
    size = np.abs(g.normal(0, 1.5, n))
    effect = np.repeat(g.normal(0, 1, prompts), n // prompts) if prompts else 0.0
    return np.where(g.random(n) < expit(size / factor + effect), size, -size)


@cache
def expected_calibration(factor: float, clustered: bool) -> float:
    """The error on two million pairs."""
    n, g = 2_000_000, numpy_generator(1, f"coverage truth calibration {factor} {clustered}")
    bins = reliability_bins(_margins(g, n, factor, n if clustered else 0))
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n


MILLIONS = "the error of two million pairs"
AT_N = "the expected score at these numbers of images (mean of many draws)"
CASES = [
    Case("proportion", "n = 20", proportion(20)),
    Case("proportion", "n = 200", proportion(200)),
    Case("proportion", "8 prompts of 5 samples", clustered_proportion(8, 5)),
    Case("proportion", "50 prompts of 4 samples", clustered_proportion(50, 4)),
    Case("mean", "normal, n = 10", mean(10, lambda g, n: g.normal(0, 1, n), 0.0)),
    Case("mean", "gamma (skewness 1.4), n = 100", mean(100, lambda g, n: g.gamma(2.0, 1.0, n), 2.0)),
    Case("mean", "30 clusters of 1 to 8", clustered_mean),
    Case("ratio", "60 documents", ratio(log=False)),
    Case("ratio", "60 documents, log scale", ratio(log=True)),
    Case("win rate", "n = 40", win_rate(40)),
    Case("win rate", "n = 200", win_rate(200)),
    Case("paired difference", "right or wrong, n = 50", paired_flags(50)),
    Case("paired difference", "right or wrong, n = 300", paired_flags(300)),
    Case("paired difference", "scores, n = 80", paired_scores),
    Case("paired difference", "right or wrong, 40 prompts of 4", clustered_paired_flags(40, 4, (4, 1, 1, 2))),
    Case("AUC", "40 and 40, equal spread", auc(40, 40, 1.0)),
    Case("AUC", "150 and 60, spread 2", auc(150, 60, 2.0)),
    Case("AUC difference", "80 and 80, correlated detectors", auc_pair),
    Case("Bradley-Terry strength", "5 models, 20 duels a pair", bradley_terry(5, 20)),
    Case("Bradley-Terry strength", "4 models, 8 duels a pair, far apart", bradley_terry(4, 8, spread=2.0)),
    Case("Bradley-Terry strength", "5 models, 30 duels a pair, ties", bradley_terry(5, 30, ties=0.5)),
    Case("Bradley-Terry strength", "5 models, 15 duels a pair, thrice judged", bradley_terry(5, 15, copies=3)),
    Case("Bradley-Terry strength", "5 models, 60 prompts that all meet on", league(5, 60)),
    Case("Bradley-Terry strength", "4 models, 20 prompts that all meet on", league(4, 20)),
    Case("TPR at 1 % FPR", "60 and 60", rate_at_one_percent(60, 60, (1, 1), 1.0)),
    Case("TPR at 1 % FPR", "300 and 200, 0 to 3 apart", rate_at_one_percent(300, 200, (0, 3), 1.0)),
    Case("TPR at 1 % FPR", "1,000 and 300, spread 2", rate_at_one_percent(1000, 300, (0, 3), 2.0)),
    Case("calibration error", "300 pairs, logits twice too large", calibration_error(300, 2.0), MILLIONS),
    Case("calibration error", "300 pairs, logits a quarter too large", calibration_error(300, 1.25), MILLIONS),
    Case("calibration error", "300 pairs, logits half as large", calibration_error(300, 0.5), MILLIONS),
    Case("calibration error", "1,000 pairs, logits twice too large", calibration_error(1000, 2.0), MILLIONS),
    Case("calibration error", "80 prompts of 4 pairs, twice too large", calibration_error(320, 2.0, 80), MILLIONS),
    Case("FID", "16 dimensions, 300 and 300, far", frechet(d=16, n=300, m=300, shift=0.5), AT_N),
    Case("FID", "16 dimensions, 300 and 300, near", frechet(d=16, n=300, m=300, shift=0.1), AT_N),
    Case("FID", "16 dimensions, 300 and 300, equal", frechet(d=16, n=300, m=300, shift=0.0), AT_N),
    Case("FID", "24 dimensions, skewed, 400 and 600", frechet(d=24, n=400, m=600, shift=0.2, scale=1.2, skewed=True), AT_N),
    Case("FID", "64 dimensions, 40 and 60", frechet(d=64, n=40, m=60, shift=0.3), AT_N),
    Case("Inception Score", "200 images, 8 classes", inception, AT_N),
    Case("kernel distance", "5 dimensions, 100 and 80, far", kernel(0.6)),
    Case("CMMD", "5 dimensions, 120 and 150", gaussian_kernel, AT_N),
    Case("MIND", "5 dimensions, 120 and 150", monge, AT_N),
    Case("extrapolated FID", "5 dimensions, 120 and 150", extrapolated, "the distance of the distributions"),
]  # fmt: skip

MISSES = [
    Case("paired difference", "seldom different, 60 prompts of 3", clustered_paired_flags(60, 3, (10, 0.5, 0.5, 5))),
    Case("calibration error", "300 pairs, calibrated", calibration_error(300, 1.0)),
    Case("kernel distance", "5 dimensions, 100 and 80, equal", kernel(0.0)),
    *(
        Case(name, "3 dimensions, 150 and 150", manifold(name), AT_N)
        for name in ("precision", "recall", "density", "coverage")
    ),
]
"""Intervals that are known not to hold their level: measured too, so that nobody has to guess by how much."""
