"""A linear detector over spectral features, and the protocol that tests it.

Real and generated images are split in halves by content, so that copies lie on one side. The detector sees the
training halves; every number comes from the other halves. Its threshold is frozen on the training generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from data.images import content_fractions
from evaluation.deepfake import metrics
from evaluation.deepfake.features import spectral_features
from evaluation.deepfake.metrics import (
    average_precision,
    correct_at,
    equal_error_rate,
    roc_auc,
    true_positive_rate_at,
)
from evaluation.statistics import LEVEL, Estimate, bootstrap, proportion
from launch.errors import UserError
from launch.seeding import numpy_generator

Array = NDArray[np.float64]

THRESHOLD = 0.5
"""Probability above which an image counts as generated: the classes weigh the same in training."""
PENALTY = 0.1
"""Inverse strength of the L2 penalty. On 128 images of each of eight GANs, 1 gave a mean AUC of .810, .1 of .815 and
.01 of .823; every coefficient of a DCT of the whole image in place of block means gave .74 to .77."""
FEWEST = 20
"""Images that each half needs."""


@dataclass(frozen=True)
class Halves:
    """Spectral features of the training and of the test half of one set: (N, F) each."""

    train: Array
    test: Array


@dataclass(frozen=True)
class Scored:
    """A detector's scores on images it has not seen: labels (N,) 1 for generated, scores (N,) in [0, 1]."""

    labels: np.ndarray
    scores: Array

    @property
    def real(self) -> Array:
        """Scores of the real images."""
        return self.scores[self.labels == 0]

    @property
    def generated(self) -> Array:
        """Scores of the generated images."""
        return self.scores[self.labels == 1]


def split_halves(images: np.ndarray, name: str) -> Halves:
    """Features of uint8 images (N, C, H, W), halved by content; UserError when a half would be too small."""
    train = content_fractions(images, "detector half") < 0.5
    if min(train.sum(), (~train).sum()) < FEWEST:
        copies = len(images) - len(np.unique(images.reshape(len(images), -1), axis=0))
        raise UserError(
            f"{name}: has {len(images)} images ({copies} of them copies); a detector needs about {4 * FEWEST} different ones"
        )
    features = spectral_features(images)
    return Halves(features[train], features[~train])


def fit_detector(real: Array, generated: Array) -> Pipeline:
    """Logistic regression on standardised features (N, F) and (M, F), both classes weighing the same."""
    features = np.concatenate([real, generated])
    labels = np.repeat([0, 1], [len(real), len(generated)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced"))
    return model.fit(features, labels)


def run_test(detector: Pipeline, real: Array, generated: Array) -> Scored:
    """The detector's probabilities of "generated" on real (N, F) and generated (M, F) features."""
    scores = detector.predict_proba(np.concatenate([real, generated]))[:, 1]
    return Scored(np.repeat([0, 1], [len(real), len(generated)]), scores)


def control_test(real: Halves, seed_name: str = "control") -> Scored:
    """Real against real: half of the real images are called generated. An AUC off .5 means that the protocol leaks."""
    train, test = (content_fractions(part, seed_name) < 0.5 for part in (real.train, real.test))
    detector = fit_detector(real.train[train], real.train[~train])
    return run_test(detector, real.test[test], real.test[~test])


# ---------------------------------------------------------------------------------------------- estimates


def auc_estimate(test: Scored, level: float = LEVEL) -> Estimate:
    """Area under the ROC with DeLong's interval; n counts the images of both classes."""
    return metrics.auc_estimate(test.labels, test.scores, level)


def mean_auc_estimate(tests: Mapping[tuple[str, str], Scored], seed: int, resamples: int = 1000) -> Estimate:
    """Mean area under the ROC over tests {(trained on, tested on): scores}; n counts the images tested, each once.

    The interval answers: how far would other test images move this mean, for these detectors and these generators?
    Detectors are fixed, as in `auc_estimate`; the images are drawn anew, and each set with one draw for all of the
    tests that it is in: every test has the real images, and those of one generator meet every detector.
    """
    sizes = {"": next(iter(tests.values())).real}
    sizes |= {tested_on: test.generated for (_, tested_on), test in tests.items()}
    generator = numpy_generator(seed, "bootstrap mean AUC")
    draws = {name: _resampled_counts(len(scores), resamples, generator) for name, scores in sizes.items()}
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


def _resampled_counts(n: int, resamples: int, generator: np.random.Generator) -> Array:
    """How often each of n images is in each resample of size n: float64 (resamples, n)."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def detector_estimates(test: Scored, seed: int, resamples: int = 1000) -> dict[str, Estimate]:
    """Every metric of one test, with its interval."""

    def resampled(metric: object) -> Estimate:
        def statistic(labels: np.ndarray, scores: np.ndarray) -> Array:
            return np.array([metric(y, s) for y, s in zip(labels, scores, strict=True)])  # type: ignore[operator]

        return bootstrap(statistic, test.labels, test.scores, seed=seed, purpose="detector", resamples=resamples)

    return {
        "auc": auc_estimate(test),
        "ap": resampled(average_precision),
        "eer": resampled(equal_error_rate),
        "tpr_at_1pct_fpr": resampled(lambda y, s: true_positive_rate_at(y, s, 0.01)),
        "accuracy_frozen": proportion(correct_at(test.labels, test.scores, THRESHOLD)),
    }
