"""What a reward model is worth on held-out pairs, with what length alone explains beside it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alignment.reward.normalise import Array, HeadUpdate
from evaluation.preferences.accuracy import outcomes, pairwise_loss
from evaluation.preferences.length import length_correlation, length_slope
from evaluation.statistics import Estimate, calibration, win_rate


def heldout_report(margins: ArrayLike, token_gaps: ArrayLike, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Accuracy, calibration and length bias of decided pairs, JSON-able.

    `margins` (n,): reward(chosen) - reward(rejected) as Bradley-Terry logits. `token_gaps` (n,): tokens of chosen less
    those of rejected. `prompts`: pairs of one prompt are no independent units, the intervals allow for that. Equal
    rewards, and equal lengths for the length baselines, count one half.
    """
    margins, gaps = np.asarray(margins, dtype=float), np.asarray(token_gaps, dtype=float)
    found: dict[str, Any] = {"eval_pairs": len(margins)}
    for name, values in {"accuracy": margins, "longest_baseline": gaps, "shortest_baseline": -gaps}.items():
        found |= _interval(name, win_rate(outcomes(values), prompts))
    found |= _interval("loss", pairwise_loss(margins, prompts))
    error = calibration(margins, seed, groups=prompts)
    found |= {**_interval("ece", error.error), "ece_plug_in": error.plug_in, "ece_if_calibrated": error.expected}
    slope = length_slope(margins, gaps, prompts)
    if slope is not None:
        found |= _interval("length_slope", slope)
        found["length_correlation"] = length_correlation(margins, gaps)
    found |= {"margin_mean": float(margins.mean()), "margin_std": float(margins.std())}
    return found


def heldout_disturbance(update: HeadUpdate, gap_ND: Array, head_D: Array) -> dict[str, float]:
    """What the shift of a head did to held-out margins: its share of their deviation, and the change of accuracy.

    `gap_ND` are features(chosen) - features(rejected), `head_D` the head before. Empty without held-out pairs; margins
    that do not differ (a single pair) have no deviation to take a share of.
    """
    if not len(gap_ND):
        return {}
    before, added = gap_ND @ head_D, gap_ND @ update.shift_D
    change = outcomes(before + added).mean() - outcomes(before).mean()
    share = {"disturbance_heldout": float(added.std() / before.std())} if before.std() > 0 else {}
    return {**share, "accuracy_change": float(change)}


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    found = {name: estimate.value}
    if estimate.low is not None and estimate.high is not None:
        found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found
