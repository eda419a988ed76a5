"""The configuration of PPO. Defaults follow Huang et al. 2024 ("The N+ implementation details of RLHF with PPO")."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from alignment.lora.config import LoraOptions
from alignment.ppo.options import EstimatorName, EvaluationOptions, MonitorsOptions, VLLMOptions
from alignment.reward.sources.config import SourceConfig, named_rewards
from launch.config import artefact, operational
from launch.errors import UserError
from launch.ranges import Count, NotNegative, Positive, PositiveInt, Range, Share
from launch.stage import StageConfig

CRITIC_OPTIONS = (
    *("critic", "critic_from", "critic_learning_rate", "critic_warmup"),
    *("gae_lambda", "value_lambda", "length_alpha", "value_clip", "value_coef"),
)
"""What estimators without a critic do not read."""


@dataclass(kw_only=True)
class SharedLora(LoraOptions):
    """LoRA in all roles of PPO, on one base."""

    merged_sampler: bool = False
    """Sample from a plain copy of the base with the policy's adapter merged in (one more model in memory), not through
    the adapter."""


@dataclass(kw_only=True)
class PPOConfig(StageConfig):
    """PPO and its relatives against one or more sources of reward, with a KL penalty to the reference."""

    # ---------------------------------------------------------------- what is trained, on what
    policy: str = artefact()
    """The SFT model that the policy starts from: a folder, or hub:org/name."""
    reference: str | None = artefact(None)
    """The model that the KL penalty holds the policy to; the policy's start when not given."""
    reward: str | None = artefact(None)
    """The reward model: a sequence-classification model with one label. The short form of `rewards`."""
    rewards: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources of reward by name, added up by their weights: models, ensembles, functions, services, rules."""
    critic: str | None = artefact(None)
    """A saved critic or reward model that the critic starts from, instead of what `critic_from` says; with trunk its
    head is taken."""
    critic_from: Literal["reward", "policy", "trunk"] = "reward"
    """What the critic starts from: the (first) reward model; a copy of the policy with a new head; or it is no model of
    its own but a head on the policy's trunk."""
    lora: SharedLora | None = None
    """Train adapters: policy, critic, reference and reward model on one base (lora.rank, lora.alpha, lora.targets,
    lora.merged_sampler); all weights when not given."""
    prompts: str = artefact()
    """Where the prompts come from: a file, a folder, embedded:... or hub:...; `::train` picks a split."""
    replay: str | None = artefact(None)
    """Rollouts that another run dumped, to train on instead of sampling and scoring: its folder `rollouts`, or one file
    of it. Neither prompts nor a source of reward are needed then, but for the model that the critic starts from."""
    replay_from: str | None = artefact(None)
    """A replay that begins after update 1: the checkpoint of the dumping run from just before, `checkpoints/step-00000002`
    for update 3. Without it the first replayed update starts from `policy` with a new optimizer: another update."""

    # ---------------------------------------------------------------- sizes
    updates: PositiveInt = 100
    """Rollouts to make; each is followed by `epochs` passes over it."""
    batch_size: PositiveInt = 64
    """Episodes in a rollout, over all processes; a multiple of the number of processes."""
    samples_per_prompt: PositiveInt = 1
    """Responses to each prompt; a rollout has batch_size / samples_per_prompt prompts."""
    epochs: PositiveInt = 4
    """Passes over each rollout."""
    minibatches: PositiveInt = 1
    """Optimizer steps in each pass."""
    micro_batch_size: PositiveInt = 16
    """Room of a forward and backward pass on each process, in episodes of the full length; of shorter ones more fit."""
    forward_batch_size: PositiveInt = 32
    """Episodes in one generation pass on each process, and room of a forward-only pass as in `micro_batch_size`. With minibatches 1,
    in bf16 or on a CPU, the passes of scoring go by `micro_batch_size` instead."""

    # ---------------------------------------------------------------- rollouts
    max_prompt_tokens: PositiveInt = 96
    """Longer prompts are left out (never cut), and counted."""
    max_new_tokens: PositiveInt = 32
    """Longest response."""
    temperature: Positive = 0.7
    """Temperature of the policy: of sampling and of every log-probability; 0 would leave no distribution to learn from."""
    vllm: VLLMOptions | None = None
    """Sample on vLLM servers (vllm.url, vllm.weights_folder), corrected by truncated importance weights; in this job when
    not given."""
    missing_eos: Literal["none", "replace", "subtract"] = "replace"
    """What happens to the reward of a response without EOS: replaced by -penalty (rewards of its tokens, too), or penalty
    subtracted."""
    missing_eos_penalty: NotNegative = 1.0
    """The penalty of `missing_eos`."""

    # ---------------------------------------------------------------- rewards and advantages
    estimator: EstimatorName = "gae"
    """Advantage estimator: gae (PPO, with a critic), grpo, rloo, reinforce++ or reinforce++-baseline (without one)."""
    kl_coef: NotNegative = 0.05
    """Weight of the KL penalty (the first value, when `kl_target` adapts it)."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty goes: into the token rewards, or into the policy's loss."""
    kl_kind: Literal["k1", "k2", "k3"] = "k1"
    """Schulman's estimator of the penalty's KL. In the loss k1 has k2's gradient, which is the KL's."""
    kl_target: Positive | None = None
    """Sequence KL in nats that the adaptive controller aims at (Ziegler et al. 2019); fixed weight when not given."""
    kl_horizon: PositiveInt = 10_000
    """Episodes over which the adaptive controller reacts."""
    gamma: Share = 1.0
    """Discount."""
    gae_lambda: Share = 0.95
    """Lambda of generalised advantage estimation."""
    value_lambda: Share | None = None
    """Lambda of the critic's targets; gae_lambda when not given. 1 has no bootstrap bias (VAPO)."""
    length_alpha: Positive | None = None
    """Lambda of each episode is 1 - 1 / (length_alpha * length) instead of gae_lambda (VAPO: 0.05)."""
    group_std: bool = True
    """grpo divides by the standard deviation of the group; false is Dr. GRPO."""
    normalise_scores: bool = False
    """Divide scores by their running standard deviation over all episodes (and take the running mean off). Token rewards
    are divided alike; mean and deviation are those of an episode's whole reward."""
    score_clip: Positive | None = None
    """Scores are held within +- this, after normalising; with token rewards, an episode's whole reward."""
    whiten_rewards: bool = False
    """Scale the token rewards to variance 1 over the global batch, without shifting their mean."""
    advantage_clip: Positive | None = None
    """Advantages are held within +- this, after whitening."""

    # ---------------------------------------------------------------- losses
    clip: Annotated[float, Range(0, 1, above=True)] = 0.2
    """Clip range of the probability ratio: 1 - clip to 1 + clip."""
    clip_high: Positive | None = None
    """Upper end of the range is 1 + clip_high (DAPO's clip-higher); clip when not given."""
    dual_clip: Annotated[float, Range(1, above=True)] | None = None
    """Bound, above 1, on the ratio of tokens with a negative advantage (Ye et al. 2020)."""
    loss_mean: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """How token losses become one: mean over tokens; mean over episodes of their means; sum over max_new_tokens (Dr. GRPO)."""
    entropy_coef: NotNegative = 0.0
    """Weight of the entropy bonus."""
    importance_cap: Positive = 2.0
    """Bound of the truncated importance weight, when responses were sampled by other weights or another engine."""
    value_clip: Positive | None = 0.2
    """Clip range of the value around its value at rollout time; null for none."""
    value_coef: NotNegative = 0.1
    """Weight of the value loss: it matters for the shared gradient clipping alone, unless they share the trunk."""
    ptx_data: str | None = artefact(None)
    """Pretraining or SFT data to mix in (PTX of InstructGPT): pairs, whose completions are learned, or plain text."""
    ptx_coef: NotNegative = 0.05
    """Weight of the PTX loss, nats per token."""
    ptx_batch_size: PositiveInt = 16
    """Rows of `ptx_data` in each optimizer step, over all processes."""

    # ---------------------------------------------------------------- optimization
    learning_rate: NotNegative = 3e-6
    """Learning rate of the policy; it falls linearly to 0."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the critic; that of the policy when not given."""
    critic_warmup: Count = 0
    """Updates at the start in which the critic learns and the policy stands still."""
    adam_eps: Positive = 1e-5
    """Adam's epsilon: 1e-5 as in OpenAI's code; tiny values make the first steps too large."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm (policy and critic together)."""

    # ---------------------------------------------------------------- watching over the run
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    """Evaluation on held-out prompts during training, and the choice of the best policy."""
    monitors: MonitorsOptions = field(default_factory=MonitorsOptions)
    """Monitors of the run's health, which warn, stop or roll back."""

    # ---------------------------------------------------------------- order of work
    overlap_scoring: bool = operational(False)
    """Ask services and rules for rewards while the next responses are being sampled. Models and functions are given all
    episodes of their process at once, as without: no result changes."""
    rollouts_ahead: Literal[0, 1] = 0
    """1 samples the next rollout during the update, from the weights before it (off-policy by one update, corrected by
    truncated importance weights)."""
    cuda_graphs: bool = operational(True)
    """On one GPU launch sampling steps, and the layers' passes, as CUDA graphs where it pays. false: kernel by kernel, slower,
    with less memory; the last bits may differ."""
    dump_rollouts: Literal["none", "jsonl", "parquet"] = operational("none")
    """Write each update's rollout, with all that the update is computed from, to `rollouts/update-000123.jsonl`."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources of reward by name; a replay may have none."""
        if self.replay and not self.reward and not self.rewards:
            return {}
        return named_rewards(self.reward, self.rewards)

    @property
    def needs_critic(self) -> bool:
        """Whether the estimator learns a critic."""
        from alignment.ppo.estimators import ESTIMATORS  # which import torch: `--help` does without

        if self.estimator not in ESTIMATORS:  # a config built in Python, which no command line has looked at
            raise UserError(f"estimator: {self.estimator!r} is not one of {', '.join(ESTIMATORS)}; give one of them")
        return ESTIMATORS[self.estimator].needs_critic

    @property
    def first_pass_is_old(self) -> bool:
        """Whether the first training pass gives the old log-probabilities: it makes them anyway, and nothing needs them before."""
        return self.minibatches == 1 and self.kl_in == "loss" and not self.needs_critic and self.dump_rollouts == "none"

    def check(self) -> None:
        for name in ("policy",) if self.replay else ("policy", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; add --{name} PATH")
        if self.replay_from and not self.replay:
            raise ValueError("replay_from: is not read without a replay; add --replay PATH, or leave it out")
        sources = self.sources
        self._check_batch()
        self._check_controller()
        if self.replay and self.monitors.roll_back:
            raise ValueError(
                "monitors: action rollback makes no sense in a replay, whose rollouts are what they are; choose warn or stop"
            )
        self._check_unread()
        if self.critic_warmup >= self.updates:
            raise ValueError(
                f"critic_warmup: {self.critic_warmup} of {self.updates} updates leave none in which the policy moves; "
                "give fewer, or more updates"
            )
        models = any(source.model for source in sources.values())
        if self.needs_critic and not self.critic and self.critic_from == "reward" and not models:
            raise ValueError(
                "critic_from: reward, but no source of reward is a model; choose policy or trunk, or give --critic PATH"
            )
        trained = {source.model for source in sources.values() if source.model}
        if known := trained.intersection(source.model for source in self.evaluation.judge.values()):
            raise ValueError(
                f"evaluation.gold: the policy is trained against {min(known)}, which is therefore no judge of it; "
                "give another reward model, or none"
            )

    def _check_controller(self) -> None:
        """The adaptive weight moves by a factor of 1 - 0.2 * batch_size / kl_horizon at most: that must be above 0, and so the weight."""
        if self.kl_target is None:
            return
        if self.kl_horizon < self.batch_size:
            raise ValueError(
                f"kl_horizon: {self.kl_horizon} episodes are fewer than those of one rollout (batch_size {self.batch_size}), so the "
                "KL weight would jump; give many times batch_size (10000 is usual)"
            )
        if self.kl_coef == 0:
            raise ValueError(
                "kl_coef: 0 never moves, since kl_target adapts it by factors; give one above 0, or no kl_target"
            )

    def _check_unread(self) -> None:
        """ValueError for an option that nothing reads in this configuration, and that is not its default."""
        unread: list[tuple[bool, str, tuple[str, ...]]] = [
            (not self.needs_critic, f"estimator {self.estimator}, which has no critic", CRITIC_OPTIONS),
            (self.estimator in ("grpo", "rloo"), f"estimator {self.estimator}, which does not discount", ("gamma",)),
            (self.estimator != "grpo", f"estimator {self.estimator}, but by grpo alone", ("group_std",)),
            (self.length_alpha is not None, "length_alpha, which takes its place", ("gae_lambda",)),
            (self.kl_target is None, "a fixed KL weight; add --kl_target NATS", ("kl_horizon",)),
            (self.kl_coef == 0, "a run without a KL penalty (kl_coef 0)", ("kl_kind",)),
            (self.missing_eos == "none", "missing_eos none", ("missing_eos_penalty",)),
            (
                not (self.rollouts_ahead or self.vllm or self.replay),
                "a run whose policy samples for itself; add --rollouts_ahead 1 or --vllm.url URL",
                ("importance_cap",),
            ),
            (not self.ptx_data, "a run without ptx_data; add --ptx_data PATH", ("ptx_coef", "ptx_batch_size")),
        ]
        defaults = {item.name: item.default for item in fields(self)}
        for applies, why, names in unread:
            for name in names if applies else ():
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"{name}: is not read by {why}{', or' if ';' in why else ';'} leave it out")

    def _check_batch(self) -> None:
        from alignment.ppo.estimators import check_samples

        if self.batch_size % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide batch_size {self.batch_size}; choose a divisor"
            )
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt: {self.samples_per_prompt} does not divide batch_size {self.batch_size}; choose a divisor"
            )
        check_samples(self.estimator, self.samples_per_prompt)
