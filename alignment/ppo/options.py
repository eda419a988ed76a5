"""Groups of PPO's configuration: evaluation on held-out prompts, vLLM servers, and the monitors of the run's health.

A run that a monitor stopped goes on when its threshold is raised, so that thresholds, actions and patience are
operational: no part of the run's identity. What a roll-back changes in the result is, and belongs to it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from alignment.reward.sources.config import SourceConfig, named_rewards
from launch.addresses import check_url, check_variable
from launch.config import artefact, operational
from launch.ranges import AnyNumber, Count, Positive, PositiveInt, Range

EstimatorName = Literal["gae", "grpo", "rloo", "reinforce++", "reinforce++-baseline"]
Action = Literal["off", "warn", "stop", "rollback"]


@dataclass(kw_only=True)
class EvaluationOptions:
    """When and on what the policy is measured during training."""

    every: Count = 0
    """Updates between evaluations; 0 for none. With any, the policy is also measured before the first update and at the end."""
    prompts: str | None = artefact(None)
    """Held-out prompts, from where `prompts` of a run may come from. Those that are trained on too are left out, and counted."""
    limit: PositiveInt = 256
    """Held-out prompts to measure on: the first by content hash."""
    gold: str | None = artefact(None)
    """A reward model that the policy is not trained against, as judge. The short form of `gold_rewards`."""
    gold_rewards: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources of the judge's reward by name, as in `rewards`. Without a judge the training reward decides."""
    kl_budget: Positive | None = None
    """Sequence KL in nats that the best policy (`best/`) may have: the upper limit of its interval is held to it."""
    lexicon: str | None = artefact(None)
    """A word list, one term on each line, whose rate in the completions is measured."""

    @property
    def judge(self) -> dict[str, SourceConfig]:
        """The sources of the gold reward by name; empty without any."""
        return named_rewards(self.gold, self.gold_rewards) if self.gold or self.gold_rewards else {}

    def check(self) -> None:
        if self.every and not self.prompts:
            raise ValueError("prompts is missing; add --evaluation.prompts PATH, or set every to 0")
        unread = [name for name in ("prompts", "gold", "gold_rewards", "kl_budget", "lexicon") if getattr(self, name)]
        if not self.every and unread:
            raise ValueError(f"{unread[0]}: is not read while every is 0; add --evaluation.every N, or leave it out")
        try:
            _ = self.judge
        except ValueError as error:
            raise ValueError(str(error).replace("rewards", "gold_rewards").replace("reward ", "gold ")) from None


# ---------------------------------------------------------------------------------------------- rollouts


@dataclass(kw_only=True)
class VLLMOptions:
    """vLLM servers that sample in place of this job; see docs/generation.md. Where they are does not belong to the run."""

    url: list[str] = operational([])
    """Addresses of the servers, such as http://host:8000; the samples are shared out to all of them."""
    weights_folder: str = operational("")
    """A folder of this run alone, seen by the trainer and all servers under this path: the policy's weights go through it."""
    token_env: str | None = operational(None)
    """The environment variable that holds the servers' --api-key."""
    concurrency: PositiveInt = operational(64)
    """Requests at a time, on each process; vLLM batches them."""
    timeout_s: Positive = operational(600.0)
    """Seconds to wait for a completion, or for the weights to be loaded, before it is asked for again."""

    def check(self) -> None:
        if not self.url:
            raise ValueError("url: is missing; add --vllm.url http://host:8000")
        for address in self.url:
            check_url("url", address)
        if len(set(self.url)) < len(self.url):
            raise ValueError(f"url: {max(self.url, key=self.url.count)} is given twice; keep one")
        if not self.weights_folder:
            raise ValueError("weights_folder: is missing; name a folder that the trainer and all servers see")
        check_variable("token_env", self.token_env)


# ---------------------------------------------------------------------------------------------- monitors


@dataclass(kw_only=True)
class MonitorOptions:
    """One monitor: it raises an alarm when its number was beyond `threshold` in `patience` updates in a row."""

    action: Action = operational("warn")
    """off; warn: say so; stop: end in order with a checkpoint; rollback: go on from before the fault, with a lower rate."""
    threshold: AnyNumber = operational(0.0)
    """Beyond this the number is a fault."""
    patience: PositiveInt = operational(1)
    """Updates in a row (of evaluations: evaluations in a row) that are faulty before there is an alarm."""


@dataclass(kw_only=True)
class KLOptions(MonitorOptions):
    """The policy has left the reference: `kl/k1` above the threshold, nats of a sequence."""

    threshold: AnyNumber = operational(50.0)


@dataclass(kw_only=True)
class NegativeKLOptions(MonitorOptions):
    """`kl/k1` clearly negative, which no KL is: below -threshold by more than three standard errors. A bug, or other weights."""

    threshold: AnyNumber = operational(0.1)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class EntropyOptions(MonitorOptions):
    """Entropy collapse: `policy/entropy` below this share of that of the first updates."""

    threshold: AnyNumber = operational(0.2)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class LengthOptions(MonitorOptions):
    """Length drift: `rollout/length` over this many times that of the first updates, or under its inverse."""

    threshold: AnyNumber = operational(2.0)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class ExplainedVarianceOptions(MonitorOptions):
    """The critic knows less than a constant: `critic/explained_variance` below the threshold."""

    threshold: AnyNumber = operational(0.0)
    patience: PositiveInt = operational(10)


@dataclass(kw_only=True)
class ClipFractionOptions(MonitorOptions):
    """Steps too large: `policy/clip_fraction` above the threshold."""

    threshold: AnyNumber = operational(0.4)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class GradientOptions(MonitorOptions):
    """Nothing is learned any more: `train/grad_norm` below the threshold."""

    threshold: AnyNumber = operational(1e-10)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class MissingEOSOptions(MonitorOptions):
    """Responses do not end: `rollout/missing_eos_rate` above the threshold."""

    threshold: AnyNumber = operational(0.5)
    patience: PositiveInt = operational(3)


@dataclass(kw_only=True)
class RewardHackingOptions(MonitorOptions):
    """The training reward has risen since the evaluation with the highest gold reward, while the gold reward has clearly
    fallen: the whole interval of its paired change lies below -threshold, in units of the gold reward."""

    threshold: AnyNumber = operational(0.0)


@dataclass(kw_only=True)
class DisagreementOptions(MonitorOptions):
    """The reward is above that of the first updates while the members of an ensemble disagree this many times as much."""

    threshold: AnyNumber = operational(2.0)
    patience: PositiveInt = operational(2)


@dataclass(kw_only=True)
class MonitorsOptions:
    """The monitors of a run's health, each with an action, a threshold and its patience; see docs/ppo.md."""

    kl: KLOptions = field(default_factory=KLOptions)
    kl_negative: NegativeKLOptions = field(default_factory=NegativeKLOptions)
    entropy: EntropyOptions = field(default_factory=EntropyOptions)
    length: LengthOptions = field(default_factory=LengthOptions)
    explained_variance: ExplainedVarianceOptions = field(default_factory=ExplainedVarianceOptions)
    clip_fraction: ClipFractionOptions = field(default_factory=ClipFractionOptions)
    gradient: GradientOptions = field(default_factory=GradientOptions)
    missing_eos: MissingEOSOptions = field(default_factory=MissingEOSOptions)
    reward_hacking: RewardHackingOptions = field(default_factory=RewardHackingOptions)
    disagreement: DisagreementOptions = field(default_factory=DisagreementOptions)

    first_updates: PositiveInt = operational(5)
    """Updates whose means entropy, length and disagreement are compared with."""
    rollback_every: PositiveInt = 10
    """Updates between the checkpoints that a roll-back may return to (kept besides those by time)."""
    rollback_factor: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Factor of the learning rates after each roll-back."""
    rollbacks: Count = operational(2)
    """Roll-backs to make; the next alarm then stops the run."""

    @property
    def each(self) -> dict[str, MonitorOptions]:
        """The monitors that are not off, by name."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: o for name, o in found.items() if isinstance(o, MonitorOptions) and o.action != "off"}

    @property
    def roll_back(self) -> bool:
        """Whether any of them rolls back."""
        return any(options.action == "rollback" for options in self.each.values())
