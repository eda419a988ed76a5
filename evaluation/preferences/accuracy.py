"""How well a reward model orders preference pairs: accuracy and loss; calibration is `evaluation.statistics`'. Pure.

The margin of a pair is reward(chosen) - reward(rejected), in units of the Bradley-Terry logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from evaluation.options import Ties
from evaluation.statistics import LEVEL, Estimate, clustered_mean, mean
from evaluation.statistics.estimate import as_vector

Answer = tuple[str, bool]
"""What a judge reads of a completion: its text, and whether it ended."""


def outcomes(differences: ArrayLike, ties: Ties = "half") -> NDArray[np.float64]:
    """1 where a difference is positive, 0 where it is negative; zeros count 0.5 ("half") or 0 ("wrong")."""
    d = as_vector(differences, "differences")
    return np.where(d == 0, 0.5 if ties == "half" else 0.0, (d > 0).astype(float))


def duel_outcomes(
    rewards: ArrayLike, other_rewards: ArrayLike, answers: Sequence[Answer], other_answers: Sequence[Answer]
) -> NDArray[np.float64]:
    """Whose answer a judge prefers on each of n prompts: 1 for the first, 0 for the second, 0.5 for neither.

    The same answer is a tie, whatever the last bits of its rewards (n,), which depend on what it was batched with.
    """
    same = [one == other for one, other in zip(answers, other_answers, strict=True)]
    return outcomes(np.where(same, 0.0, np.subtract(rewards, other_rewards)))


def pairwise_loss(margins: ArrayLike, groups: Sequence[object] | None = None, level: float = LEVEL) -> Estimate:
    """Mean Bradley-Terry loss, log(1 + exp(-margin)), in nats: ln 2 = 0.693 for a model that knows nothing."""
    losses = np.logaddexp(0.0, -as_vector(margins, "margins"))
    return mean(losses, level) if groups is None else clustered_mean(losses, groups, level)


def brier_score(margins: ArrayLike, groups: Sequence[object] | None = None, level: float = LEVEL) -> Estimate:
    """Mean (1 - sigmoid(margin))^2: 0.25 for a model that knows nothing."""
    squares = (1 - expit(as_vector(margins, "margins"))) ** 2
    return mean(squares, level) if groups is None else clustered_mean(squares, groups, level)
