"""What is logged of a rollout: means over its episodes, sequence KL in nats."""

from __future__ import annotations

from torch import Tensor

from alignment.ppo import objectives as ppo
from alignment.ppo.rollout import Rollout

Metrics = dict[str, float]


def sequence_kl(rollout: Rollout, kind: str = "k1") -> float:
    """KL to the reference summed over each response, mean over the global batch, nats."""
    assert rollout.logprobs_BT is not None and rollout.ref_logprobs_BT is not None
    kl_BT = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, kind)
    return _per_episode(kl_BT, rollout)


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Rewards, KL, length and the critic's fit of a rollout with advantages."""
    assert rollout.scores_B is not None and rollout.rewards_BT is not None
    tokens = float(rollout.mask_BT.sum())
    metrics = {
        "reward/score": float(rollout.scores_B.mean()),
        "reward/score_std": float(rollout.scores_B.std(unbiased=False)),
        "reward/total": _per_episode(rollout.rewards_BT, rollout),
        **{f"reward/{name}": float(values_B.mean()) for name, values_B in rollout.components.items()},
        "kl/k1": sequence_kl(rollout, "k1"),
        "kl/k3": sequence_kl(rollout, "k3"),
        "rollout/length": tokens / len(rollout),
        "rollout/missing_eos_rate": float(1 - rollout.finished_B.mean()),
        **rollout.logged,
    }
    if rollout.values_BT is not None and rollout.returns_BT is not None:
        variance = ppo.explained_variance(rollout.values_BT, rollout.returns_BT, rollout.mask_BT)
        metrics["critic/explained_variance"] = float(variance)
    for phase, seconds in rollout.seconds.items():
        metrics[f"perf/{phase}_seconds"] = seconds
        metrics[f"perf/{phase}_tokens_per_second"] = tokens / seconds
    return metrics


def _per_episode(values_BT: Tensor, rollout: Rollout) -> float:
    return float(ppo.on_mask(values_BT, rollout.mask_BT).sum(1).mean())
