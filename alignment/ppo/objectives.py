"""The mathematics of PPO for language models: pure functions of tensors.

Shapes: B sequences, T response tokens (right-padded). `mask_BT` is 1 on response tokens, EOS included, and 0 on
the padding after them, whose content never matters, be it NaN. Log-probabilities and KL are in nats.

Losses are given for each token. A loss of the minibatch is sum(token_weights * losses), with the weights of the GLOBAL
minibatch: then no micro-batch, rank or accumulation step weighs its tokens differently (checklist item 23).
"""

from __future__ import annotations

import torch
from torch import Tensor

# ---------------------------------------------------------------------------------------------- masked tensors


def on_mask(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is not 0, and 0 elsewhere whatever stands there: NaN * 0 would be NaN."""
    return values.masked_fill(mask == 0, 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1 (any equal shapes); 0 where there is none."""
    return on_mask(values, mask).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1 (population variance) over the masked entries, and to mean 0 if `shift_mean`.

    Give the global batch: whitening each rank's part alone changes the objective. Entries off the mask become 0.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return on_mask(whitened if shift_mean else whitened + mean, mask)


def clip_symmetric(values: Tensor, bound: float | None) -> Tensor:
    """Values (any shape) held within [-bound, bound]: scores or advantages; None leaves them as they are."""
    return values if bound is None else torch.clamp(values, -bound, bound)


def token_weights(mask_BT: Tensor, how: str, max_length: int) -> Tensor:
    """Weight of each token's loss in the loss of a minibatch, (B, T); sum(weights * losses) is the loss.

    `mask_BT` is that of the GLOBAL minibatch; a micro-batch takes its rows of the result.
    `token_mean`: the mean over all tokens (PPO; DAPO, Yu et al. 2025). `sequence_mean`: the mean over sequences of each
    one's token mean (GRPO, Shao et al. 2024): a token of a long response counts less. `constant_length`: the sum over
    tokens over sequences * max_length, the longest response allowed (Dr. GRPO, Liu et al. 2025): neither favours a
    length nor depends on the lengths that happened.
    """
    sequences, length_B1 = len(mask_BT), mask_BT.sum(1, keepdim=True).clamp(min=1)
    if how == "token_mean":
        return mask_BT / mask_BT.sum().clamp(min=1)
    if how == "sequence_mean":
        return mask_BT / (length_B1 * sequences)
    if how == "constant_length":
        return mask_BT / (max_length * sequences)
    raise ValueError(f"loss aggregation {how!r} is not one of token_mean, sequence_mean, constant_length")


# ---------------------------------------------------------------------------------------------- KL and rewards


def log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(p / q) of each token, 0 off the mask: exp of what stands there could overflow and spoil every gradient."""
    return on_mask(logprobs - other_logprobs, mask)


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


def kl_losses(log_ratio_BT: Tensor, kind: str) -> Tensor:
    """KL(policy p || reference q) of each token as a term of the loss, from log p/q with its gradient in log p, (B, T).

    The value is that of `kl_estimate`; the gradient is what matters in a loss, and is another thing. For tokens drawn
    from p (over the vocabulary, at one position):

    - k1: d k1 = d log p, whose mean is 0 whatever q is: it would be noise. So k1 is given k2's gradient.
    - k2: d k2 = log(p/q) d log p, whose mean is the gradient of KL(p || q). The right one for this penalty.
    - k3: d k3 = (1 - q/p) d log p, whose mean is the gradient of KL(q || p), the other direction (GRPO's choice,
      Shao et al. 2024, eq. 4): the two agree to first order near p = q, and k3 pulls without bound where q >> p.

    What a token does to the KL of later tokens is not in it; the KL in the reward has that part. In later epochs the
    tokens are those of the rollout's policy, not of p: as biased as without an importance weight.
    """
    if kind == "k1":
        slope_BT = kl_estimate(log_ratio_BT, torch.zeros_like(log_ratio_BT), "k2")
        return log_ratio_BT.detach() + (slope_BT - slope_BT.detach())
    return kl_estimate(log_ratio_BT, torch.zeros_like(log_ratio_BT), kind)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: -kl_coef * KL everywhere, plus the sequence's score on its last real token (B, T)."""
    rewards_BT = -kl_coef * on_mask(kl_BT, mask_BT)
    last_B = mask_BT.sum(1).long() - 1
    rows_B = torch.arange(len(scores_B), device=scores_B.device)
    rewards_BT[rows_B, last_B] += scores_B
    return rewards_BT


def clip_totals(scores_B: Tensor, tokens_BT: Tensor | None, bound: float | None) -> tuple[Tensor, Tensor | None]:
    """Sequence scores and token rewards (0 off the mask) of episodes whose whole reward is held within [-bound, bound].

    With token rewards all of an episode's are scaled alike, so that who earned what stays the same: to take the excess
    off one token would punish that one.
    """
    if tokens_BT is None or bound is None:
        return clip_symmetric(scores_B, bound), tokens_BT
    total_B = (scores_B + tokens_BT.sum(1)).abs()
    factor_B = torch.where(total_B > bound, bound / total_B, torch.ones_like(total_B))
    return scores_B * factor_B, tokens_BT * factor_B[:, None]


def apply_missing_eos(scores_B: Tensor, finished_B: Tensor, how: str, penalty: float) -> Tensor:
    """Scores of sequences that ended without EOS: `replace`d by -penalty (Ziegler 2019) or with it `subtract`ed (TRL)."""
    if how == "none":
        return scores_B
    changed_B = torch.full_like(scores_B, -penalty) if how == "replace" else scores_B - penalty
    return torch.where(finished_B.bool(), scores_B, changed_B)


def drop_unfinished(tokens_BT: Tensor, finished_B: Tensor, how: str) -> Tensor:
    """Token rewards beside `apply_missing_eos`: where that `replace`s the score, nothing is left of the others either."""
    return tokens_BT * finished_B[:, None] if how == "replace" else tokens_BT


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016): advantages and returns, both (B, T), 0 off the mask.

    A_t = sum_k (gamma lam)^k delta_{t+k},  delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the last real token:
    the episode ends there, and padding neither bootstraps nor contributes. `lam`: one for all, or one each (B,).
    """
    rewards_BT, values_BT = on_mask(rewards_BT, mask_BT), on_mask(values_BT, mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT)
    running_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(running_B)
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask_BT[:, t]
        advantages_BT[:, t] = running_B
        next_value_B = values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


# ---------------------------------------------------------------------------------------------- losses


def policy_losses(
    log_ratio_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of PPO, negated, and whether it is clipped (bool), for each token; both (B, T).

    L = -min(r A, clip(r, 1 - low, 1 + high) A), r = exp(log_ratio) (Schulman et al. 2017; high > low is the "clip-higher"
    of DAPO, Yu et al. 2025). `dual_clip` c > 1 bounds it where A < 0: L = min(L, -c A) (Ye et al. 2020): a token
    that became much more probable although it was bad would otherwise weigh without bound. A token counts as clipped
    where a clipped branch is the active one: it has no gradient then.
    """
    ratio_BT = torch.exp(log_ratio_BT)
    plain_BT = -advantages_BT * ratio_BT
    bounded_BT = -advantages_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    losses_BT, clipped_BT = torch.maximum(plain_BT, bounded_BT), bounded_BT > plain_BT
    if dual_clip is None:
        return losses_BT, clipped_BT
    ceiling_BT = -advantages_BT * dual_clip
    above_BT = (advantages_BT < 0) & (losses_BT > ceiling_BT)
    return torch.where(above_BT, ceiling_BT, losses_BT), clipped_BT | above_BT


def value_losses(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Value loss 0.5 max((V-R)², (V_clip-R)²) and whether it is clipped (bool), for each token; both (B, T).

    V_clip keeps V within `clip` of the value at the time of the rollout (item 22 of the checklist); with None the loss
    is 0.5 (V-R)².
    """
    plain_BT = (values_BT - returns_BT) ** 2
    if clip is None:
        return 0.5 * plain_BT, torch.zeros_like(plain_BT, dtype=torch.bool)
    moved_BT = values_BT - old_values_BT
    bounded_BT = (old_values_BT + moved_BT.clamp(-clip, clip) - returns_BT) ** 2
    clipped_BT = (bounded_BT > plain_BT) & (moved_BT.abs() > clip)  # inside the range they differ by rounding
    return 0.5 * torch.maximum(plain_BT, bounded_BT), clipped_BT


def truncated_importance(
    logprobs_BT: Tensor, sampled_logprobs_BT: Tensor, mask_BT: Tensor, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """min(p_train / p_rollout, cap) of each token, without gradient, and what is logged of it.

    Multiply the policy losses by it when the tokens were drawn by another engine, or at another precision, than the
    one whose `logprobs_BT` are the old ones of the ratio: the draw is then off-policy before the first step (truncated
    importance sampling, Ionides 2008; for LLM rollouts Yao et al. 2025). 1 off the mask.
    Logged, over all tokens of the global batch: mean and largest ratio before truncation, share truncated.
    """
    ratio_BT = log_ratio(logprobs_BT, sampled_logprobs_BT, mask_BT).detach().exp()
    measured = {
        "importance/mean": masked_mean(ratio_BT, mask_BT),
        "importance/max": on_mask(ratio_BT, mask_BT).max(),
        "importance/truncated": masked_mean((ratio_BT > cap).to(ratio_BT), mask_BT),
    }
    return ratio_BT.clamp(max=cap), measured


# ---------------------------------------------------------------------------------------------- what is logged


def ratio_sums(log_ratio_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ratios r = exp(log_ratio): sum over tokens, sum of squares, largest. Sums add up over micro-batches and ranks."""
    ratio_BT = on_mask(log_ratio_BT.detach().exp(), mask_BT)
    return ratio_BT.sum(), ratio_BT.square().sum(), ratio_BT.max()


def effective_sample_share(ratio_sum: float, square_sum: float, tokens: float) -> float:
    """Kish's effective sample size (sum r)² / sum r² as a share of the tokens: 1 for equal ratios, 1/n for one alone."""
    return ratio_sum**2 / (square_sum * tokens)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the masked tokens: 1 for a perfect critic, 0 for a constant one, negative for worse.

    NaN for returns that are all the same up to rounding: there is nothing to explain.
    """
    residual = returns - values
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    if float(spread) <= 1e-12 * float(masked_mean(returns**2, mask)):
        return torch.full_like(spread, torch.nan)
    unexplained = masked_mean((residual - masked_mean(residual, mask)) ** 2, mask)
    return 1 - unexplained / spread
