"""What is logged of a rollout: means over its episodes, sequence KL in nats. And what is kept of a held-out one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from alignment.ppo import objectives as ppo
from alignment.ppo.evaluation import PURPOSE, Sample
from alignment.ppo.rollout import Rollout
from alignment.reward.sources.protocol import Episodes
from data.completions import Completion, reference_text

Metrics = dict[str, float]


def sequence_kl(rollout: Rollout, kind: str = "k1") -> float:
    """KL to the reference summed over each response, mean over the global batch, nats."""
    return float(_sequence_kl_B(rollout, kind).mean())


def _sequence_kl_B(rollout: Rollout, kind: str) -> Tensor:
    assert rollout.logprobs_BT is not None and rollout.ref_logprobs_BT is not None
    kl_BT = ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, kind)
    return ppo.on_mask(kl_BT, rollout.mask_BT).sum(1)


def rollout_metrics(rollout: Rollout) -> Metrics:
    """Rewards, KL, length and the critic's fit of a rollout with advantages."""
    assert rollout.rewards_BT is not None
    scores_B = rollout.total_scores_B
    tokens = float(rollout.mask_BT.sum())
    metrics = {
        "reward/score": float(scores_B.mean()),
        "reward/score_std": float(scores_B.std(unbiased=False)),
        "reward/total": _per_episode(rollout.rewards_BT, rollout),
        **{f"reward/{name}": float(values_B.mean()) for name, values_B in rollout.components.items()},
        "kl/k1": sequence_kl(rollout, "k1"),
        "kl/k1_stderr": float(_sequence_kl_B(rollout, "k1").std(unbiased=False)) / math.sqrt(len(rollout)),
        "kl/k3": sequence_kl(rollout, "k3"),
        "rollout/length": tokens / len(rollout),
        "rollout/missing_eos_rate": float(1 - rollout.finished_B.mean()),
        **rollout.logged,
    }
    if rollout.values_BT is not None and rollout.returns_BT is not None:
        variance = ppo.explained_variance(rollout.values_BT, rollout.returns_BT, rollout.mask_BT)
        if not variance.isnan():
            metrics["critic/explained_variance"] = float(variance)
    for phase, seconds in rollout.seconds.items():
        metrics[f"perf/{phase}_seconds"] = seconds
        metrics[f"perf/{phase}_tokens_per_second"] = tokens / seconds
    return metrics


def evaluation_metrics(row: dict[str, Any]) -> Metrics:
    """The numbers of a row of evaluations.jsonl as `eval/NAME`; their intervals stay there."""
    names = [name for name in row if name not in ("step", "n") and not name.endswith(("_ci_low", "_ci_high"))]
    return {f"eval/{name}": float(row[name]) for name in names if isinstance(row[name], (int, float))}


def make_samples(rollout: Rollout, episodes: Episodes, proxy_B: Tensor, gold_B: Tensor | None = None) -> list[Sample]:
    """What is kept of each episode of a held-out rollout; `rollout.groups` are the numbers of the prompts."""
    k1, k3 = (_sequence_kl_B(rollout, kind).tolist() for kind in ("k1", "k3"))
    samples = []
    for i, number in enumerate(rollout.groups):
        completion = Completion(
            id=str(number),
            prompt=episodes.prompts[i],
            text=episodes.completions[i],
            finished=episodes.finished[i],
            prompt_ids=tuple(rollout.prompt_ids[i]),
            completion_ids=tuple(rollout.responses[i]),
            reference=reference_text(rollout.prompts[i].get("reference")),
            origin=PURPOSE,
        )
        gold = None if gold_B is None else float(gold_B[i])
        samples.append(Sample(completion, float(proxy_B[i]), gold, k1[i], k3[i]))
    return samples


def _per_episode(values_BT: Tensor, rollout: Rollout) -> float:
    return float(ppo.on_mask(values_BT, rollout.mask_BT).sum(1).mean())
