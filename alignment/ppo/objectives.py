"""The mathematics of PPO for language models: pure functions of tensors.

Shapes: B sequences, T response tokens (right-padded). `mask_BT` is 1 on response tokens, EOS included, and 0 on
the padding after them. Log-probabilities and KL are in nats. Functions named `*_sum` return sums over tokens: the
caller divides by the token count of the GLOBAL minibatch, so that no micro-batch, rank or accumulation step
weighs its tokens differently (checklist item 23).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1 (any equal shapes); 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1 (population variance) over the masked entries, and to mean 0 if `shift_mean`.

    Give the global batch: whitening each rank's part alone changes the objective. Entries off the mask become 0.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens sampled from the policy (Schulman, "Approximating KL").

    k1 = log p/q: unbiased, may be negative. k2 = k1²/2: biased, low variance. k3 = e^-k1 - 1 + k1: unbiased, >= 0.
    """
    k1 = logprobs - ref_logprobs
    if kind == "k1":
        return k1
    if kind == "k2":
        return 0.5 * k1**2
    if kind == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"kl estimator {kind!r} is not one of k1, k2, k3")


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: -kl_coef * KL everywhere, plus the sequence's score on its last real token (B, T)."""
    rewards_BT = -kl_coef * kl_BT * mask_BT
    last_B = mask_BT.sum(1).long() - 1
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, last_B] += scores_B
    return rewards_BT


def apply_missing_eos(scores_B: Tensor, finished_B: Tensor, how: str, penalty: float) -> Tensor:
    """Scores of sequences that ended without EOS: `replace`d by -penalty (Ziegler 2019) or with it `subtract`ed (TRL)."""
    if how == "none":
        return scores_B
    changed_B = torch.full_like(scores_B, -penalty) if how == "replace" else scores_B - penalty
    return torch.where(finished_B.bool(), scores_B, changed_B)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016): advantages and returns, both (B, T), 0 off the mask.

    A_t = sum_k (gamma lam)^k delta_{t+k},  delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the last real token:
    the episode ends there, and padding neither bootstraps nor contributes.
    """
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    running_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(running_B)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask_BT[:, t]
        advantages_BT[:, t] = running_B
        next_value_B = values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def policy_loss_sum(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of PPO (Schulman et al. 2017), negated, and the count of clipped tokens; both summed over tokens.

    L = -sum min(r A, clip(r, 1-c, 1+c) A), r = exp(logp - old logp). A token counts as clipped where the clipped
    branch is the active one.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return (torch.maximum(unclipped, clipped) * mask).sum(), ((clipped > unclipped) * mask).sum()


def value_loss_sum(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped value loss 0.5 max((V-R)², (V_clip-R)²) and the count of clipped tokens; both summed over tokens.

    V_clip keeps V within `clip` of the value at the time of the rollout (item 22 of the checklist).
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    plain, bounded = (values - returns) ** 2, (kept - returns) ** 2
    clipped = (bounded > plain) & ((values - old_values).abs() > clip)  # inside the range they differ by rounding
    return 0.5 * (torch.maximum(plain, bounded) * mask).sum(), (clipped * mask).sum()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the masked tokens: 1 for a perfect critic, 0 for a constant one, negative for worse."""
    residual = returns - values
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    unexplained = masked_mean((residual - masked_mean(residual, mask)) ** 2, mask)
    return 1 - unexplained / spread.clamp(min=1e-12)


@dataclass
class KLController:
    """The KL coefficient: fixed, or adapted so that the sequence KL stays near `target` (Ziegler et al. 2019, eq. 3).

    error = clip(KL / target - 1, -0.2, 0.2);  coef <- coef (1 + error * episodes / horizon). KL is the mean over the
    global batch of the KL summed over each sequence, and `episodes` counts the global batch.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, sequence_kl: float, episodes: int) -> None:
        """Move the coefficient after a rollout; a fixed controller does not move."""
        if self.target is not None:
            error = min(max(sequence_kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * episodes / self.horizon
