"""All roles of PPO on one base: policy, critic, reference and reward models are LoRA adapters of the same frozen model.

The policy is base + adapter `policy`; the reference base + the SFT adapter that the policy started from, or the bare base
where the SFT model is the base; the critic base + adapter `critic` + value head (or the head on the policy's trunk); each
reward model base + its adapter + its head. One copy of the base is in memory; under ZeRO-3 a part of it on each rank, and
one whole copy for what ranks do by themselves: sampling and reading rewards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.lora.adapted import AdaptedModel
from alignment.ppo.config import PPOConfig
from alignment.ppo.export import critic_state, empty_critic, empty_policy, save_weights
from alignment.ppo.modules import head_values, hidden_states, read_response
from alignment.ppo.roles import Group, learning_groups
from alignment.ppo.samplers import AdapterCopy, PolicyItself, Sampler, WholeCopy
from alignment.reward.head import keep_head_in_fp32
from alignment.reward.model import RewardModel
from evaluation.adapters import Adapter
from evaluation.loading import read_tokenizer
from launch.engine import Engine, check_weights

POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"


class SharedActorCritic(nn.Module):
    """Policy and critic as adapters of one base; `role` reads the response with another adapter, or the bare base."""

    critic = None

    def __init__(self, adapted: AdaptedModel, score: nn.Linear | None) -> None:
        super().__init__()
        self.adapted, self.policy, self.score = adapted, adapted.model, score
        if score is not None:
            keep_head_in_fp32(score)
        self.on_trunk = CRITIC not in adapted.names
        """Whether the value head reads the policy's trunk instead of the critic's."""
        self.value_reaches_trunk = True
        """See TrunkActorCritic."""

    def forward(
        self,
        tokens_bS: Tensor,
        before_N: Tensor,
        targets_N: Tensor,
        temperature: float,
        values: bool = True,
        role: str | None = POLICY,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `ActorCritic`."""
        values = values and self.score is not None
        with self.adapted.acting(role):
            hidden_ND, logprobs_N, entropy_N = read_response(
                self.policy, tokens_bS, before_N, targets_N, temperature, values and self.on_trunk
            )
        if self.score is None or not values:
            return logprobs_N, entropy_N, None
        if not self.on_trunk:
            with self.adapted.acting(CRITIC):
                hidden_ND = hidden_states(self.policy, tokens_bS, before_N)
        elif not self.value_reaches_trunk:
            hidden_ND = hidden_ND.detach()
        return logprobs_N, entropy_N, head_values(self.score, hidden_ND)


class AdapterJudge(nn.Module):
    """A reward model on a base that it shares, with what evaluation/scoring.py reads of a classifier.

    The base is no submodule: freezing the judge must not freeze the policy.
    """

    def __init__(self, adapted: AdaptedModel, name: str, head_1D: Tensor, config: Any) -> None:
        super().__init__()
        self.adapted, self.name, self.config = adapted, name, config
        self.score = nn.Linear(head_1D.shape[1], 1, bias=False)
        self.score.weight.data.copy_(head_1D)

    def base_model(self, **inputs: Any) -> Any:
        """The trunk's output with the judge's adapter."""
        model = self.adapted.model
        with self.adapted.acting(self.name):
            return getattr(model, model.base_model_prefix)(**inputs)


class SharedRoles:
    """As `Roles`, on one base. `local` is the base that is whole on this rank: `trained` itself, but under ZeRO-3."""

    critic = reference = None

    def __init__(
        self,
        trained: AdaptedModel,
        local: AdaptedModel,
        score: nn.Linear | None,
        rewards: dict[str, Adapter],
        tokenizer: PreTrainedTokenizerBase,
        merged_sampler: bool,
    ) -> None:
        self.trained, self.local, self.score, self.rewards = trained, local, score, rewards
        self.tokenizer, self.merged_sampler = tokenizer, merged_sampler

    @property
    def policy(self) -> PreTrainedModel:
        """The base with its adapters, of which the policy's acts."""
        return self.trained.model

    def trunks(self) -> list[nn.Module]:
        """Of the bases, each of which acts in several roles."""
        models = [adapted.model for adapted in (self.trained, self.local)]
        return [getattr(model, model.base_model_prefix) for model in models]

    def module(self) -> nn.Module:
        return SharedActorCritic(self.trained, self.score)

    def parameter_groups(self, config: PPOConfig) -> list[Group]:
        critic = self.trained.parameters(CRITIC) + ([] if self.score is None else [self.score.weight])
        return learning_groups(config, self.trained.parameters(POLICY), critic)

    def place_reference(self, engine: Engine) -> Any:
        role = REFERENCE if REFERENCE in self.trained.names else None

        def reference(tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
            return engine(tokens_bS, before_N, targets_N, temperature, False, role)[0]

        return reference

    def make_sampler(self, engine: Engine, apart: bool = False) -> Sampler:
        """The base itself with the policy's adapter, or a plain copy with the adapter merged in.

        `apart`: the plain copy, since it samples in a thread while the base acts in other roles.
        """
        if self.merged_sampler or apart:
            return WholeCopy(engine, self.policy, self.policy_weights)
        if self.local is self.trained:
            return PolicyItself(self.policy)
        return AdapterCopy(engine, self.trained, self.local, POLICY)

    def policy_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.trained.effective_state(POLICY)

    def judges(self, device: torch.device) -> dict[str, RewardModel]:
        """The reward models that are adapters of the base, by the name in the config."""
        found = {}
        if self.local is not self.trained:
            self.local.model.to(device).requires_grad_(False)
        for (source, adapter), name in zip(self.rewards.items(), reward_names(self.rewards), strict=True):
            assert adapter.head_LD is not None
            tokenizer = read_tokenizer("rewards", source)
            config = copy.deepcopy(self.policy.config)
            config.name_or_path, config.num_labels = source, 1
            config.get_text_config().pad_token_id = tokenizer.pad_token_id
            found[source] = RewardModel(
                AdapterJudge(self.local, name, adapter.head_LD, config).to(device),  # type: ignore[arg-type]
                tokenizer,
            )
        return found

    def save(self, engine: Engine, folder: Path) -> list[Path]:
        """Write merged policy and critic as plain folders, and in `adapter/` below each the adapter itself."""
        trained, main = self.trained, engine.runtime.is_main
        weights = self._collect(engine, lambda: trained.effective_state(POLICY))
        factors = self._collect(engine, lambda: trained.factors(POLICY))
        check_weights(weights, engine.runtime)
        if main:
            save_weights(empty_policy(self.policy), weights, folder)
            trained.save(POLICY, factors, folder / "adapter")
        if self.score is None:
            engine.runtime.barrier()
            return [folder, folder / "adapter"]
        head, below = engine.state_dict_of(self.score)["weight"], folder / "critic"
        if CRITIC in trained.names:
            weights = self._collect(engine, lambda: trained.effective_state(CRITIC))
            factors = self._collect(engine, lambda: trained.factors(CRITIC))
        if main:
            save_weights(empty_critic(self.policy), critic_state(self.policy, weights, head), below)
            trained.save(CRITIC if CRITIC in trained.names else POLICY, factors, below / "adapter", head)
        engine.runtime.barrier()
        return [folder, folder / "adapter", below, below / "adapter"]

    def _collect(self, engine: Engine, read: Callable[[], Iterator[tuple[str, Tensor]]]) -> dict[str, Tensor]:
        """What `read` gives, on the CPU of the main rank; nothing on the others."""
        with engine.gathered(self.policy.parameters()):
            items = read() if engine.runtime.is_main else iter(())
            return {name: value.detach().to("cpu", copy=True) for name, value in items}


def reward_names(rewards: dict[str, Adapter]) -> list[str]:
    """Names of the reward models' adapters."""
    return [f"reward_{number}" for number in range(1, len(rewards) + 1)]
