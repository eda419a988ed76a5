"""The models of a PPO run as the trainer takes them: what is trained, the reference, what samples, what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.ppo.config import PPOConfig
from alignment.ppo.export import critic_state, empty_critic, save_weights
from alignment.ppo.modules import ActorCritic, Reference, TrunkActorCritic, place_frozen
from alignment.ppo.samplers import PolicyItself, Sampler, WholeCopy
from alignment.reward.model import RewardModel
from launch.engine import Engine

Group = dict[str, Any]


@dataclass
class Roles:
    """Models of their own, that read the policy's token ids, and its tokenizer. Sources of reward are apart."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    """None in a replay, whose dump has its log-probabilities."""
    tokenizer: PreTrainedTokenizerBase
    score: nn.Linear | None = None
    """A value head on the policy's trunk, in place of `critic`."""

    def module(self) -> nn.Module:
        """What one engine trains."""
        if self.score is not None:
            return TrunkActorCritic(self.policy, self.score)
        return ActorCritic(self.policy, self.critic)

    def trunks(self) -> list[nn.Module]:
        """Of the models that read episodes."""
        models = [model for model in (self.policy, self.critic, self.reference) if model is not None]
        return [getattr(model, model.base_model_prefix) for model in models]

    def parameter_groups(self, config: PPOConfig) -> list[Group]:
        """Parameters of the policy and of critic or value head, each with a learning rate of its own."""
        critic = self.score if self.score is not None else self.critic
        return learning_groups(
            config, list(self.policy.parameters()), [] if critic is None else list(critic.parameters())
        )

    def place_reference(self, engine: Engine) -> Any:
        """`reference(tokens_bS, before_N, targets_N, temperature) -> logprobs_N`."""
        assert self.reference is not None
        return place_frozen(Reference(self.reference), engine.runtime)

    def make_sampler(self, engine: Engine, apart: bool = False) -> Sampler:
        """What samples: the policy itself, or a whole copy under ZeRO-3 (its own parts are spread over the ranks).

        `apart`: a copy everywhere, whose weights are those of the last `sync` while the policy is trained.
        """
        if engine.runtime.zero_stage != 3 and not apart:
            return PolicyItself(self.policy)
        return WholeCopy(engine, self.policy, self.policy_weights)

    def policy_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(key, value) of the policy as a plain model. Under ZeRO-3, within `Engine.gathered`."""
        yield from self.policy.state_dict().items()

    def judges(self, device: torch.device) -> dict[str, RewardModel]:
        """Reward models that these roles hold, by the name in the config: none, each is loaded by itself."""
        return {}

    def save(self, engine: Engine, folder: Path) -> list[Path]:
        """Write the policy and, in `critic/`, the critic, as plain folders; returns them. All ranks call this."""
        engine.export(self.policy, folder)
        below = folder / "critic"
        if self.critic is not None:
            engine.export(self.critic, below)
        elif self.score is not None:
            weights, head = engine.state_dict_of(self.policy), engine.state_dict_of(self.score)
            if engine.runtime.is_main:
                save_weights(empty_critic(self.policy), critic_state(self.policy, weights, head["weight"]), below)
            engine.runtime.barrier()
        else:
            return [folder]
        return [folder, below]


def learning_groups(config: PPOConfig, policy: list[nn.Parameter], critic: list[nn.Parameter]) -> list[Group]:
    """Parameter groups of the optimizer."""
    groups: list[Group] = [{"params": policy, "lr": config.learning_rate, "role": "policy"}]
    if critic:
        groups.append({"params": critic, "lr": config.critic_learning_rate or config.learning_rate, "role": "critic"})
    return groups


def value_head(policy: PreTrainedModel) -> nn.Linear:
    """A value head of zeros on the policy's trunk: every first value is 0.

    A head drawn from N(0, 1/sqrt(D + 1)), as a critic of its own has it, gives values of unit scale that know nothing:
    noise in the first advantages and, through the shared trunk, a random push on the policy. From zeros the trunk gets
    no value gradient until the head has learned something. UserError for a policy without a classifier to save it as.
    """
    empty_critic(policy)
    # ZeRO-3 lays all trained weights into one buffer, which in bf16 no float32 fits into
    head = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False, dtype=policy.dtype)
    nn.init.zeros_(head.weight)
    return head
