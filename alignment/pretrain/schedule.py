"""Warm-up, stable, decay: the learning-rate factor of a step, a pure function of the step."""

from __future__ import annotations

from typing import Literal

DecayShape = Literal["linear", "sqrt"]


def wsd_factor(step: int, steps: int, warmup: int, decay: int, shape: DecayShape = "linear") -> float:
    """Factor in (0, 1] on the learning rate of `step` (0-based) in a run of `steps`.

    (step + 1) / (warmup + 1) rises to 1 over the first `warmup` steps, 1 holds, and over the last `decay` steps the
    factor falls towards 0, which it would reach at step `steps`: linearly (Bergsma et al. 2025, "Straight to Zero",
    arXiv 2502.15938) or as 1 - sqrt(x) (Hägele et al. 2024, arXiv 2405.18392). Where warm-up and decay overlap the
    smaller factor holds.
    """
    factor = min(1.0, (step + 1) / (warmup + 1))
    if step > steps - decay:
        done = (step - (steps - decay)) / decay
        factor = min(factor, 1.0 - (done if shape == "linear" else done**0.5))
    return factor
