"""The protocol of a detector: halves by content, every generator against every other, controls, robustness.

Real and generated images are split in halves by their content, so that copies lie on one side. A detector sees the
training halves; every number comes from the other halves. A part of the training half is kept from what it learns, and its
threshold is chosen there: frozen on the training generator, before any test image is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from data.images import content_fractions
from evaluation.deepfake.detectors.base import Detector, Score
from evaluation.deepfake.metrics import (
    average_precision,
    balanced_accuracy,
    equal_error_rate,
    equal_error_threshold,
    true_positive_rate_estimate,
)
from evaluation.deepfake.perturb import Perturbation
from evaluation.statistics import LEVEL, Calibration, Estimate, bootstrap, calibration, roc, roc_auc
from evaluation.statistics.estimate import no_interval
from evaluation.statistics.resampling import resampled_counts
from launch.errors import UserError
from launch.seeding import numpy_generator, permutation

Array = NDArray[np.float64]

OWN_THRESHOLD = 0.5
"""The threshold of a pretrained classifier, which nothing here trains: more likely generated than not."""
APART = 0.25
"""Share of a training half that the detector does not learn from: its threshold is chosen there."""
FEWEST = 20
"""Images that each half needs."""
FEWEST_APART = 4
"""Images of either kind that a threshold is chosen on, and that a detector learns from."""
UNTRAINED = "(as it is)"
"""What a pretrained detector was trained on, in the matrix."""
CERTAIN = 1e-9
"""Probabilities are kept so far from 0 and 1 where their logit is taken."""


@dataclass(frozen=True)
class Halves:
    """The training and the test half of one set: uint8 images (N, C, H, W) each, or what was prepared of them (N, ...)."""

    train: np.ndarray
    test: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Halves:
        """A function of both halves."""
        return Halves(function(self.train), function(self.test))


@dataclass(frozen=True)
class Scored:
    """A detector's scores on images it has not seen: labels (N,) 1 for generated, scores (N,) in [0, 1]."""

    labels: np.ndarray
    scores: Array

    @classmethod
    def of(cls, real: Array, generated: Array) -> Scored:
        """From the scores of real (N,) and of generated (M,) images."""
        return cls(np.repeat([0, 1], [len(real), len(generated)]), np.concatenate([real, generated]))

    @property
    def real(self) -> Array:
        """Scores of the real images."""
        return self.scores[self.labels == 0]

    @property
    def generated(self) -> Array:
        """Scores of the generated images."""
        return self.scores[self.labels == 1]


Matrix = dict[tuple[str, str], Scored]
"""(trained on, tested on) -> scores."""


def split_halves(images: np.ndarray, name: str) -> Halves:
    """uint8 images (N, C, H, W), halved by content; UserError when a half would be too small."""
    train = content_fractions(images, "detector half") < 0.5
    if min(train.sum(), (~train).sum()) < FEWEST:
        copies = len(images) - len(np.unique(images.reshape(len(images), -1), axis=0))
        raise UserError(
            f"{name}: has {len(images)} images ({copies} of them copies); a detector needs about {4 * FEWEST} different ones"
        )
    return Halves(images[train], images[~train])


def control_test(detector: Detector, real: Halves) -> Scored:
    """Real against real: half of the real images are called generated. An AUC off .5 means that the protocol leaks."""
    rows = real.map(detector.prepare)
    train, test = (content_fractions(part, "control") < 0.5 for part in (real.train, real.test))
    score = detector.fit(rows.train[train], rows.train[~train])
    return Scored.of(score(rows.test[test]), score(rows.test[~test]))


@dataclass(frozen=True)
class Fitted:
    """A detector trained on each generator: name -> scoring function of prepared rows, and threshold of its scores."""

    detector: Detector
    scores: dict[str, Score]
    thresholds: dict[str, float]

    def matrix(self, real: np.ndarray, generated: Mapping[str, np.ndarray]) -> Matrix:
        """Every training generator against every test set: of uint8 images (N, C, H, W) that no detector has seen."""
        real_rows = self.detector.prepare(real)
        rows = {name: self.detector.prepare(images) for name, images in generated.items()}
        found: Matrix = {}
        for trained_on, score in self.scores.items():
            real_scores = score(real_rows)
            found |= {(trained_on, name): Scored.of(real_scores, score(part)) for name, part in rows.items()}
        return found

    def own(self, name: str) -> str:
        """The row of the matrix in which a generator meets the detector trained on it, or the only one there is."""
        return name if self.detector.learns else UNTRAINED


def fit_each(
    detector: Detector, real: np.ndarray, generated: Mapping[str, np.ndarray], beat: Callable[[int], None]
) -> Fitted:
    """Train the detector on every generator's training half apart, always against the same real images.

    Of either kind a part is kept from training, and the threshold chosen on it at the equal error rate.
    """
    if not detector.learns:
        return Fitted(detector, {UNTRAINED: detector.fit(real[:0], real[:0])}, {UNTRAINED: OWN_THRESHOLD})
    kept, rows = kept_apart(real, "real"), detector.prepare(real)
    scores, thresholds = {}, {}
    for step, (name, images) in enumerate(generated.items(), 1):
        theirs_kept, theirs = kept_apart(images, name), detector.prepare(images)
        scores[name] = detector.fit(rows[~kept], theirs[~theirs_kept])
        chosen_on = Scored.of(scores[name](rows[kept]), scores[name](theirs[theirs_kept]))
        thresholds[name] = equal_error_threshold(chosen_on.labels, chosen_on.scores)
        beat(step)
    return Fitted(detector, scores, thresholds)


def kept_apart(images: np.ndarray, name: str) -> np.ndarray:
    """Which images of a training half (N, C, H, W) the threshold is chosen on: bool (N,), copies all on one side."""
    order = content_fractions(images, "detector threshold")
    kept = order <= np.quantile(order, APART)
    if min(kept.sum(), (~kept).sum()) < FEWEST_APART:
        raise UserError(
            f"{name}: its training half has too many copies to choose a threshold on a part; add other images"
        )
    return np.asarray(kept)


def treated(
    fitted: Fitted,
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    treatments: Sequence[Perturbation],
    beat: Callable[[int], None],
) -> dict[Perturbation, Matrix]:
    """The matrix after each treatment of the test images, real and generated alike; detectors saw none of it."""
    found = {}
    for step, treatment in enumerate(treatments, 1):
        changed = {name: treatment(images) for name, images in generated.items()}
        found[treatment] = fitted.matrix(treatment(real), changed)
        beat(step)
    return found


# ---------------------------------------------------------------------------------------------- estimates


def auc_estimate(test: Scored, level: float = LEVEL) -> Estimate:
    """Area under the ROC with DeLong's interval; n counts the images of both classes."""
    return roc.auc_estimate(test.labels, test.scores, level)


def mean_auc_estimate(tests: Mapping[tuple[str, str], Scored], seed: int, resamples: int = 1000) -> Estimate:
    """Mean area under the ROC over tests {(trained on, tested on): scores}; n counts the images tested, each once.

    The interval answers: how far would other test images move this mean, for these detectors and these generators?
    Detectors are fixed, as in `auc_estimate`; the images are drawn anew, and each set with one draw for all of the
    tests that it is in: every test has the real images, and those of one generator meet every detector.
    """
    sizes = {"": next(iter(tests.values())).real}
    sizes |= {tested_on: test.generated for (_, tested_on), test in tests.items()}
    generator = numpy_generator(seed, "bootstrap mean AUC")
    draws = {name: resampled_counts(len(scores), resamples, generator) for name, scores in sizes.items()}
    total = np.zeros(resamples)
    for (_, tested_on), test in tests.items():
        above_RG = np.sign(test.generated[None] - test.real[:, None]) / 2 + 0.5  # 1, or 1/2 where scores are equal
        total += ((draws[""] @ above_RG) * draws[tested_on]).sum(axis=1) / above_RG.size
    value = float(np.mean([roc_auc(test.labels, test.scores) for test in tests.values()]))
    means, n = total / len(tests), sum(map(len, sizes.values()))
    if np.ptp(means) < 1e-12:
        return Estimate(value, n, None, None, None, LEVEL, "none (the same area on every resample)")
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    method = f"bootstrap percentile over test images, detectors fixed, {resamples} resamples"
    return Estimate(value, n, float(means.std(ddof=1)), float(low), float(high), LEVEL, method)


def detector_estimates(test: Scored, threshold: float, seed: int, resamples: int = 1000) -> dict[str, Estimate]:
    """Every metric of one test, with its interval; `threshold` is the frozen one."""

    def resampled(metric: Callable[[np.ndarray, np.ndarray], float]) -> Estimate:
        def statistic(labels: np.ndarray, scores: np.ndarray) -> Array:
            return np.array([metric(y, s) for y, s in zip(labels, scores, strict=True)])

        found = bootstrap(statistic, test.labels, test.scores, seed=seed, purpose="detector", resamples=resamples)
        if found.low == found.high:  # classes that are apart are so in every resample: no proof that they always are
            return no_interval(found.value, found.n, found.level, "the same on every resample")
        return found

    return {
        "auc": auc_estimate(test),
        "ap": resampled(average_precision),
        "eer": resampled(equal_error_rate),
        "tpr_at_1pct_fpr": true_positive_rate_estimate(test.labels, test.scores, 0.01, seed),
        "accuracy_frozen": frozen_accuracy(test, threshold),
    }


def frozen_accuracy(test: Scored, threshold: float, level: float = LEVEL) -> Estimate:
    """Accuracy at the threshold that was frozen on the training generator, real and generated images weighing the same.

    The interval is over test images: the threshold is taken as it is.
    """
    return balanced_accuracy(test.labels, test.scores, threshold, level)


def threshold_rule(detector: Detector) -> str:
    """How the thresholds of a detector are chosen, in words."""
    if not detector.learns:
        return f"{OWN_THRESHOLD:g}, the classifier's own"
    return f"equal error rate on {APART:.0%} of the training half that the detector did not learn from"


def detector_calibration(test: Scored, seed: int) -> Calibration:
    """Whether the probabilities are right as often as they say, where half of the images are generated.

    As many images of the larger class are drawn as the smaller has, since the scores are made for equal classes.
    """
    n = min(len(test.real), len(test.generated))
    real, generated = (
        scores[permutation(len(scores), seed, f"calibration {kind}")[:n]]
        for kind, scores in enumerate((test.real, test.generated))
    )
    margins = np.concatenate([-_logit(real), _logit(generated)])
    return calibration(margins, seed)


def _logit(scores: Array) -> Array:
    return np.asarray(logit(np.clip(scores, CERTAIN, 1 - CERTAIN)))
