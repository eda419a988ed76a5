"""Advantage estimators of the PPO family: one loop, one kind of rollout, the baseline is the choice. Pure.

| name | baseline | advantage of token t | critic | samples per prompt | whitened over the global batch |
|---|---|---|---|---|---|
| gae | critic | sum_k (gamma lam)^k delta_{t+k} | yes | 1 or more | yes |
| grpo | mean of the group | (R - mean) / std of the group, for every t | no | 2 or more | no |
| rloo | mean of the others | R - mean of the group's others, for every t | no | 2 or more | no |
| reinforce++ | mean of the batch | discounted rewards from t on | no | 1 or more | yes |
| reinforce++-baseline | mean of the group | discounted rewards from t on, less the group's mean | no | 2 or more | yes |

R is the sum of an episode's token rewards: its score, less the KL penalty where that is in the reward. The papers put
the KL in the reward for gae, rloo and reinforce++, and in the loss for grpo (k3) and reinforce++-baseline (k2).

Shapes: B episodes of the global batch, T response tokens (right-padded). `groups_B`: the prompt of each episode, any
integers, in any order. What stands off the mask never matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.ppo.objectives import gae, masked_whiten, on_mask
from alignment.ppo.options import EstimatorName


@dataclass(frozen=True)
class EstimatorSettings:
    """What the estimators read; each names those it does not use."""

    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """Lambda of the policy's advantages (gae)."""
    value_lam: float | None = None
    """Lambda of the critic's target; that of the policy when None. VAPO takes 1: a target without bootstrap bias."""
    length_alpha: float | None = None
    """Take lambda = 1 - 1 / (alpha * length) for the policy instead of `lam`; VAPO's alpha is 0.05."""
    group_std: bool = True
    """Divide by the standard deviation of the group (grpo); False is Dr. GRPO."""


Advantages = tuple[Tensor, Tensor | None]
Compute = Callable[[Tensor, Tensor | None, Tensor, Tensor, EstimatorSettings], Advantages]


@dataclass(frozen=True)
class Estimator:
    """An estimator and what it asks of the loop."""

    compute: Compute
    """(rewards_BT, values_BT or None, mask_BT, groups_B, settings) -> (advantages_BT, returns_BT or None)."""
    needs_critic: bool
    needs_groups: bool
    """Needs at least two samples of each prompt."""
    whitens: bool
    """Its advantages are whitened over the tokens of the global batch."""


def length_adaptive_lambda(mask_BT: Tensor, alpha: float) -> Tensor:
    """lambda = 1 - 1 / (alpha * length) for each episode, (B,), at least 0 (VAPO, Yue et al. 2025).

    The weights lambda^k then sum to alpha * length: the reward at the end reaches the first token of a long response
    as well as that of a short one.
    """
    return (1 - 1 / (alpha * mask_BT.sum(1).clamp(min=1))).clamp(min=0)


def compute_gae(
    rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, groups_B: Tensor, settings: EstimatorSettings
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016); lambdas of policy and critic may differ (Yue et al. 2025)."""
    assert values_BT is not None
    adaptive = settings.length_alpha is not None
    lam = length_adaptive_lambda(mask_BT, settings.length_alpha) if adaptive else settings.lam  # type: ignore[arg-type]
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, settings.gamma, lam)
    if settings.value_lam is not None:
        _, returns_BT = gae(rewards_BT, values_BT, mask_BT, settings.gamma, settings.value_lam)
    return advantages_BT, returns_BT


def compute_grpo(
    rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, groups_B: Tensor, settings: EstimatorSettings
) -> Advantages:
    """(R - mean) / std over the group, on every token (Shao et al. 2024, DeepSeekMath, section 4.1.2). Reads `group_std`.

    The deviation is the sample's (n - 1), which the paper leaves open and public implementations take. Without it:
    Dr. GRPO (Liu et al. 2025), as dividing weighs prompts that are almost always or never solved more.
    """
    total_B, size_B = on_mask(rewards_BT, mask_BT).sum(1), group_size(groups_B)
    centred_B = total_B - group_sum(total_B, groups_B) / size_B
    if settings.group_std:
        std_B = (group_sum(centred_B**2, groups_B) / (size_B - 1)).sqrt()
        centred_B = centred_B / (std_B + 1e-4)  # equal rewards differ by 1e-7 in float32: that must not become a signal
    return _on_every_token(centred_B, mask_BT), None


def compute_rloo(
    rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, groups_B: Tensor, settings: EstimatorSettings
) -> Advantages:
    """R less the mean of the group's other episodes, on every token (Kool et al. 2019; Ahmadian et al. 2024). Reads nothing."""
    total_B = on_mask(rewards_BT, mask_BT).sum(1)
    others_B = (group_sum(total_B, groups_B) - total_B) / (group_size(groups_B) - 1)
    return _on_every_token(total_B - others_B, mask_BT), None


def compute_reinforce(
    rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, groups_B: Tensor, settings: EstimatorSettings
) -> Advantages:
    """Discounted rewards from each token on (REINFORCE++, Hu et al. 2025); whitening is its baseline. Reads `gamma`."""
    return discounted_returns(rewards_BT, mask_BT, settings.gamma), None


def compute_reinforce_baseline(
    rewards_BT: Tensor, values_BT: Tensor | None, mask_BT: Tensor, groups_B: Tensor, settings: EstimatorSettings
) -> Advantages:
    """REINFORCE++ whose final reward has the group's mean R taken off (Hu et al. 2025). Reads `gamma`."""
    rewards_BT = on_mask(rewards_BT, mask_BT)
    mean_B = group_sum(rewards_BT.sum(1), groups_B) / group_size(groups_B)
    rows_B = torch.arange(len(mean_B), device=mean_B.device)
    rewards_BT[rows_B, mask_BT.sum(1).long() - 1] -= mean_B
    return discounted_returns(rewards_BT, mask_BT, settings.gamma), None


def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """G_t = sum_k gamma^k r_{t+k}, (B, T): generalised advantages with lambda 1 and no critic."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)[0]


def group_sum(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """For each episode the sum of `values_B` over the episodes of its group, (B,)."""
    names, index_B = torch.unique(groups_B, return_inverse=True)
    return values_B.new_zeros(len(names)).index_add_(0, index_B, values_B)[index_B]


def group_size(groups_B: Tensor) -> Tensor:
    """For each episode the number of episodes of its group, (B,)."""
    _, index_B, counts = torch.unique(groups_B, return_inverse=True, return_counts=True)
    return counts[index_B]


def _on_every_token(advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    return on_mask(advantages_B[:, None].expand(mask_BT.shape), mask_BT)


ESTIMATORS: dict[EstimatorName, Estimator] = {
    "gae": Estimator(compute_gae, needs_critic=True, needs_groups=False, whitens=True),
    "grpo": Estimator(compute_grpo, needs_critic=False, needs_groups=True, whitens=False),
    "rloo": Estimator(compute_rloo, needs_critic=False, needs_groups=True, whitens=False),
    "reinforce++": Estimator(compute_reinforce, needs_critic=False, needs_groups=False, whitens=True),
    "reinforce++-baseline": Estimator(compute_reinforce_baseline, needs_critic=False, needs_groups=True, whitens=True),
}


def estimate_advantages(
    name: EstimatorName,
    rewards_BT: Tensor,
    values_BT: Tensor | None,
    mask_BT: Tensor,
    groups_B: Tensor,
    settings: EstimatorSettings,
) -> Advantages:
    """Advantages of the GLOBAL batch by the estimator of that name, whitened where it asks for it, and the critic's targets.

    ValueError when it needs a critic or groups and is not given them: values None, or a prompt with one episode alone.
    """
    chosen = ESTIMATORS[name]
    if chosen.needs_critic and values_BT is None:
        raise ValueError(f"estimator: {name} needs the values of a critic")
    if chosen.needs_groups and int(group_size(groups_B).min()) < 2:
        raise ValueError(
            f"estimator: {name} needs at least two episodes of each prompt in a batch, and one has only one"
        )
    advantages_BT, returns_BT = chosen.compute(rewards_BT, values_BT, mask_BT, groups_B, settings)
    return (masked_whiten(advantages_BT, mask_BT) if chosen.whitens else advantages_BT), returns_BT


def check_samples(name: EstimatorName, samples_per_prompt: int) -> None:
    """ValueError for a config whose estimator compares the samples of a prompt, and that draws one of each."""
    if ESTIMATORS[name].needs_groups and samples_per_prompt < 2:
        raise ValueError(
            f"samples_per_prompt: {samples_per_prompt}, but estimator {name} compares the samples of one prompt; give 2 or more "
            "(4 to 16 are usual), or choose estimator gae or reinforce++"
        )
