"""The four roles of PPO: policy and critic, trained as one module; reference and reward model, frozen.

Shapes: b episodes of S right-padded tokens, N response tokens of all of them, D hidden, V vocabulary (rollout.Batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.models import load_causal, load_tokenizer, switch_off_dropout
from alignment.ppo.config import PPOConfig
from alignment.ppo.logprobs import give_logprob_head
from alignment.reward.head import load_scorer
from evaluation.loading import read_classifier
from launch.errors import UserError
from launch.runtime import Runtime


class ActorCritic(nn.Module):
    """Policy and critic side by side, so that one engine (and one ZeRO partition) trains both.

    They share no weights; each has its own learning rate.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(
        self, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float, values: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities, entropies (nats) and values of the response tokens, (N,) each; no values without a critic."""
        logprobs_N, entropy_N = response_logprobs(self.policy, tokens_bS, before_N, targets_N, temperature)
        critic = self.critic if values else None
        return logprobs_N, entropy_N, None if critic is None else response_values(critic, tokens_bS, before_N)


class Reference(nn.Module):
    """A frozen policy that gives log-probabilities."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy.eval().requires_grad_(False)

    def forward(self, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of the response tokens, (N,) nats."""
        return response_logprobs(self.policy, tokens_bS, before_N, targets_N, temperature)[0]


def response_logprobs(
    policy: Any, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, in nats, of each response token under softmax(logits / temperature): (N,) each.

    The head runs at the response's positions alone, in chunks. Models whose logits are more than a linear head pay
    the full (b, S, V).
    """
    if give_logprob_head(policy):
        hidden_ND = _hidden(policy, tokens_bS, before_N)
        return policy.get_output_embeddings()(hidden_ND, targets_N, temperature)
    logits_NV = policy(tokens_bS, use_cache=False).logits.flatten(0, 1)[before_N].float() / temperature
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1), entropy_N


def response_values(critic: Any, tokens_bS: Tensor, before_N: Tensor) -> Tensor:
    """V(state before token t) of each response token: the critic's head on the hidden state of the token before, (N,)."""
    hidden_ND = _hidden(critic, tokens_bS, before_N)
    with torch.autocast(hidden_ND.device.type, enabled=False):  # in bf16 a value would have 8 bits, as a reward would
        return critic.score(hidden_ND.to(critic.score.weight.dtype)).squeeze(-1).float()


def _hidden(model: Any, tokens_bS: Tensor, before_N: Tensor) -> Tensor:
    """Last hidden states before the response tokens, (N, D).

    Padding stands on the right, where a causal model's real tokens do not see it: no mask, so the attention kernel
    takes its causal path, and positions count from 0 (checklist item 3).
    """
    body = getattr(model, model.base_model_prefix)
    return body(tokens_bS, use_cache=False).last_hidden_state.flatten(0, 1)[before_N]


@dataclass
class Roles:
    """The models of a PPO run that read the policy's token ids, and its tokenizer. Sources of reward are apart."""

    policy: PreTrainedModel
    critic: PreTrainedModel | None
    reference: PreTrainedModel | None
    """None in a replay, whose dump has its log-probabilities."""
    tokenizer: PreTrainedTokenizerBase


def load_roles(config: PPOConfig) -> Roles:
    """Load policy, critic (where the estimator needs one) and reference in float32; under ZeRO-3 partitioned."""
    tokenizer = load_tokenizer(config.policy, "policy")
    actor = load_causal(config.policy, tokenizer, partitioned=True, field="policy")
    frozen = None
    if not config.replay:
        frozen = load_causal(config.reference or config.policy, tokenizer, partitioned=True, field="reference")
    critic = load_critic(config, tokenizer) if config.needs_critic else None
    models = {role: model for role, model in (("reference", frozen), ("critic", critic)) if model is not None}
    for role, model in models.items():
        size = model.config.get_text_config().vocab_size
        if size != actor.config.get_text_config().vocab_size:
            raise UserError(
                f"{role}: its vocabulary has {size} tokens, the policy's {actor.config.get_text_config().vocab_size}; "
                f"they read the same token ids: give a {role} with the policy's tokenizer"
            )
    for model in (actor, *models.values()):
        switch_off_dropout(model)  # the ratio is 1 at the first step only without it (checklist item 10)
    return Roles(actor, critic, frozen, tokenizer)


def load_critic(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A one-label sequence-classification model whose head `score` gives a value at every token."""
    if not config.critic and config.critic_from == "policy":
        return load_scorer(config.policy, tokenizer, config.seed)
    name = config.critic or next(source.model for source in config.sources.values() if source.model)
    critic = read_classifier("critic", name, None)
    if not isinstance(getattr(critic, "score", None), nn.Module):
        raise UserError(
            f"critic: {name} has no head named `score`; use a decoder reward model such as `alignkit reward` makes"
        )
    return critic


def place_frozen(module: nn.Module, runtime: Runtime) -> Any:
    """A frozen module ready to run: on its device, or under ZeRO-3 as an inference-only engine with partitioned weights."""
    if runtime.zero_stage != 3:
        return module.to(runtime.device)
    import deepspeed

    settings = {
        k: v
        for k, v in runtime.accelerator.state.deepspeed_plugin.deepspeed_config.items()
        if k not in ("optimizer", "scheduler")
    }
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    engine.eval()  # returns None
    return engine
