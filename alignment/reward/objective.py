"""The pairwise objective of a reward model. Pure.

Shapes: B pairs. `d` is the difference of the two rewards of a pair, chosen minus rejected.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_losses(
    chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None, tie_B: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of each pair in nats under Bradley-Terry, (B,).

    A decided pair costs -log sigmoid(d - margin): Bradley and Terry 1952, with the margin of Touvron et al. 2023
    (Llama 2, eq. 2). A tie (`tie_B` true) counts as half a win and half a loss, -(log sigmoid(d) + log sigmoid(-d))
    / 2, as Chiang et al. 2024 (Chatbot Arena) count it; it is smallest, log 2, at d = 0. Rao and Kupper's and
    Davidson's models say the same about d and add one parameter for how common ties are, which scores do not need.
    """
    difference_B = chosen_B - rejected_B
    decided_B = -F.logsigmoid(difference_B if margin_B is None else difference_B - margin_B)
    if tie_B is None:
        return decided_B
    tied_B = -0.5 * (F.logsigmoid(difference_B) + F.logsigmoid(-difference_B))
    return tied_B.where(tie_B.bool(), decided_B)


def centering_penalty(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """Mean of (r_chosen + r_rejected)^2, a scalar: pulls the rewards of a pair to mean 0 (Eisenstein et al. 2023, eq. 2)."""
    return (chosen_B + rejected_B).square().mean()
