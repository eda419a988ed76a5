"""Muon for the hidden matrices and AdamW for the rest, as one optimizer with one state.

torch.optim.Muon is the reference (the tests compare with it), but not used: it iterates in bfloat16, which a CPU without
bfloat16 units emulates. Measured there, one core, a 256 x 256 matrix: 287 ms a step, against 9 ms in float32. Here
the iteration runs in bfloat16 on a GPU and in float32 on a CPU, and matrices of equal shape are stacked into one product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# Odd quintics of the Polar Express (Amsel et al. 2025, arXiv 2505.16932), the best three for singular values in
# [0.01, 1], with their safety factor 1.02 on all but the last: such values end in [0.70, 1.27]. Five steps of Jordan's one quintic
# (3.4445, -4.7750, 2.0315) end in as wide a band, and cost two thirds more.
POLAR_EXPRESS = ((7.832709, -21.43579, 15.10632), (3.571979, -2.569586, 0.486475), (2.671266, -1.985315, 0.453523))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrix of each matrix, roughly: (k, m, n) -> (k, m, n), singular values near 1.

    X <- a X + (b A + c A^2) X with A = X X^T, on the side where A is the smaller.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def update_scale(rows: int, columns: int) -> float:
    """sqrt(max(1, fan_out / fan_in)): Jordan's scaling, so that an update changes the output by a like amount in every shape."""
    return math.sqrt(max(1.0, rows / columns))


class MuonAdamW(torch.optim.Optimizer):
    """Groups whose `algorithm` is "muon" hold matrices (Jordan et al. 2024), the others are AdamW's (arXiv 1711.05101)."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        defaults = {
            "lr": 0.0,
            "algorithm": "adamw",
            "weight_decay": 0.0,
            "momentum": 0.95,
            "betas": (0.9, 0.95),
            "eps": 1e-10,
            "fused": True,  # also tells load_state_dict to put the step counts on the parameters' device
        }
        super().__init__(list(groups), defaults)
        for group in self.param_groups:
            if group["algorithm"] == "muon" and any(p.ndim != 2 for p in group["params"]):
                raise ValueError("Muon takes matrices only")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loop computes the loss"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["algorithm"] == "muon" else self._adamw)(group, parameters)

    def _muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in parameters:
            by_shape.setdefault(p.shape, []).append(p)
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        lr, beta = group["lr"], group["momentum"]
        for shape, equal in by_shape.items():
            gradients = torch.stack([p.grad for p in equal])  # type: ignore[misc]
            momenta = [self.state[p]["momentum"] for p in equal]
            averages = torch.stack(momenta).lerp_(gradients, 1 - beta)
            torch._foreach_copy_(momenta, list(averages))
            looked_ahead = gradients.lerp_(averages, beta)  # Nesterov
            updates = orthogonalise(looked_ahead.bfloat16() if looked_ahead.is_cuda else looked_ahead)
            weights = [p.data for p in equal]
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, list(updates.to(equal[0].dtype)), alpha=-lr * update_scale(*shape))

    def _adamw(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
                self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,  # type: ignore[arg-type]
            [p.grad for p in parameters],  # type: ignore[misc]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
