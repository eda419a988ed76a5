"""How far reward models agree with each other on pairs, and whether their disagreement finds their mistakes. Pure.

Letters: M models, N pairs. Rewards of two models have no common scale, so that margins are divided by each model's own
root mean square before they are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.preferences.accuracy import outcomes

Array = NDArray[np.float64]


def scaled_margins(margins_MN: ArrayLike) -> Array:
    """Margins (M, N) in units of each model's root mean square; a model whose margins are all 0 keeps them."""
    margins = np.asarray(margins_MN, dtype=np.float64)
    if margins.ndim != 2 or margins.shape[0] < 2 or margins.shape[1] == 0 or not np.isfinite(margins).all():
        raise ValueError(f"ensemble: expected finite margins of at least two models, got shape {margins.shape}")
    scale_M1 = np.sqrt((margins**2).mean(axis=1, keepdims=True))
    return margins / np.where(scale_M1 > 0, scale_M1, 1.0)


@dataclass(frozen=True)
class Disagreement:
    """Of N pairs: the models' votes, the mean margin's outcome, the spread of margins, and where all votes are the same."""

    votes_MN: Array
    """1 for the chosen, 0 for the rejected answer, 0.5 for equal rewards."""
    together_N: Array
    """The same by the mean of the scaled margins."""
    spread_N: Array
    """Standard deviation (ddof 1) of the scaled margins over models."""

    @property
    def unanimous_N(self) -> NDArray[np.bool_]:
        """Whether all models give the same vote."""
        return np.asarray((self.votes_MN == self.votes_MN[0]).all(axis=0))


def disagreement(margins_MN: ArrayLike) -> Disagreement:
    """Votes, outcome together, and spread of M models on N pairs, from their margins (M, N)."""
    scaled = scaled_margins(margins_MN)
    votes = np.stack([outcomes(row) for row in scaled])
    return Disagreement(votes, outcomes(scaled.mean(axis=0)), scaled.std(axis=0, ddof=1))
