"""The configuration of PPO. Defaults follow Huang et al. 2024 ("The N+ implementation details of RLHF with PPO")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launch.config import artefact
from launch.stage import StageConfig


@dataclass(kw_only=True)
class PPOConfig(StageConfig):
    """PPO against a reward model, with a KL penalty to the reference."""

    policy: str = artefact()
    """The SFT model that the policy starts from: a folder, or hub:org/name."""
    reference: str | None = artefact(None)
    """The model that the KL penalty holds the policy to; the policy's start when not given."""
    reward: str = artefact()
    """The reward model: a sequence-classification model with one label."""
    critic: str | None = artefact(None)
    """What the critic starts from: a one-label sequence-classification model; the reward model when not given."""
    prompts: str = artefact()
    """Where the prompts come from: a file, a folder, embedded:... or hub:...; `::train` picks a split."""

    updates: int = 100
    """Rollouts to make; each is followed by `epochs` passes over it."""
    batch_size: int = 64
    """Episodes in a rollout, over all processes; a multiple of the number of processes."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimizer steps in each pass."""
    micro_batch_size: int = 16
    """Episodes in one forward and backward pass, on each process."""
    forward_batch_size: int = 32
    """Episodes in one forward-only or generation pass, on each process."""

    max_prompt_tokens: int = 96
    """Longer prompts are left out (never cut), and counted."""
    max_new_tokens: int = 32
    """Longest response."""
    temperature: float = 0.7
    """Temperature of the policy: of sampling and of every log-probability."""
    missing_eos: Literal["none", "replace", "subtract"] = "replace"
    """What happens to the score of a response without EOS: replaced by -penalty, or penalty subtracted."""
    missing_eos_penalty: float = 1.0
    """The penalty of `missing_eos`."""

    kl_coef: float = 0.05
    """Weight of the KL penalty in the reward (the first value, when `kl_target` adapts it)."""
    kl_target: float | None = None
    """Sequence KL in nats that the adaptive controller aims at (Ziegler et al. 2019); fixed weight when not given."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive controller reacts."""
    gamma: float = 1.0
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_clip: float = 0.2
    """Clip range of the value around its value at rollout time."""
    value_coef: float = 0.1
    """Weight of the value loss: it matters for the shared gradient clipping alone, policy and critic share no weights."""
    whiten_rewards: bool = False
    """Scale the token rewards to variance 1 over the global batch, without shifting their mean."""

    learning_rate: float = 3e-6
    """Learning rate of the policy; it falls linearly to 0."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic; that of the policy when not given."""
    critic_warmup: int = 0
    """Updates at the start in which the critic learns and the policy stands still."""
    adam_eps: float = 1e-5
    """Adam's epsilon: 1e-5 as in OpenAI's code; tiny values make the first steps too large."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm (policy and critic together)."""

    def check(self) -> None:
        for name in ("policy", "reward", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; add --{name} PATH")
        for name in (
            "updates",
            "batch_size",
            "epochs",
            "minibatches",
            "micro_batch_size",
            "forward_batch_size",
            "max_new_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1; give a positive integer")
        for name in ("clip", "value_clip", "kl_horizon", "max_grad_norm", "adam_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0; give a positive number")
        for name in ("learning_rate", "kl_coef", "value_coef", "missing_eos_penalty", "critic_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; give 0 or more")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside [0, 1]")
        if self.kl_target is not None and self.kl_target <= 0:
            raise ValueError(
                f"kl_target: {self.kl_target} is not above 0; give nats, or leave it out for a fixed weight"
            )
        if self.critic_learning_rate is not None and self.critic_learning_rate <= 0:
            raise ValueError(
                f"critic_learning_rate: {self.critic_learning_rate} is not above 0; give a positive number"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not above 0; PPO needs a distribution to sample from")
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide batch_size {self.batch_size}; choose a divisor"
            )
