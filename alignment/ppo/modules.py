"""The networks of PPO: policy with critic, trained as one module, and the frozen reference.

Shapes: b episodes of S right-padded tokens, N response tokens of all of them, D hidden, V vocabulary (rollout.Batch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.ppo.graphs import states_of
from alignment.ppo.logprobs import give_logprob_head
from alignment.reward.head import keep_head_in_fp32
from launch.runtime import Runtime


class ActorCritic(nn.Module):
    """Policy and critic side by side, so that one engine (and one ZeRO partition) trains both.

    They share no weights; each has its own learning rate.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel | None) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        if critic is not None:
            keep_head_in_fp32(critic.score)

    def forward(
        self, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float, values: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities, entropies (nats) and values of the response tokens, (N,) each; no values without a critic."""
        logprobs_N, entropy_N = response_logprobs(self.policy, tokens_bS, before_N, targets_N, temperature)
        critic = self.critic if values else None
        return logprobs_N, entropy_N, None if critic is None else response_values(critic, tokens_bS, before_N)


class TrunkActorCritic(nn.Module):
    """A policy with a value head on its trunk: one forward pass gives log-probabilities and values."""

    critic = None

    def __init__(self, policy: PreTrainedModel, score: nn.Linear) -> None:
        super().__init__()
        self.policy, self.score = policy, score
        keep_head_in_fp32(score)
        self.value_reaches_trunk = True
        """Whether the value loss has a gradient in the trunk; not while the critic warms up and the policy stands still."""

    def forward(
        self, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float, values: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `ActorCritic`."""
        hidden_ND, logprobs_N, entropy_N = read_response(
            self.policy, tokens_bS, before_N, targets_N, temperature, values
        )
        if not values:
            return logprobs_N, entropy_N, None
        return (
            logprobs_N,
            entropy_N,
            head_values(self.score, hidden_ND if self.value_reaches_trunk else hidden_ND.detach()),
        )


class Reference(nn.Module):
    """A frozen policy that gives log-probabilities."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(False)
        self.eval()

    def forward(self, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of the response tokens, (N,) nats."""
        return response_logprobs(self.policy, tokens_bS, before_N, targets_N, temperature)[0]


def response_logprobs(
    policy: Any, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, in nats, of each response token under softmax(logits / temperature): (N,) each.

    The head runs at the response's positions alone, in blocks of the vocabulary. Models whose logits are more than a linear head pay
    the full (b, S, V).
    """
    return read_response(policy, tokens_bS, before_N, targets_N, temperature, with_hidden=False)[1:]


def read_response(
    policy: Any, tokens_bS: Tensor, before_N: Tensor, targets_N: Tensor, temperature: float, with_hidden: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`response_logprobs`, preceded by the hidden states (N, D) before the tokens (anything, if not `with_hidden`)."""
    if give_logprob_head(policy):
        hidden_ND = hidden_states(policy, tokens_bS, before_N)
        return hidden_ND, *policy.get_output_embeddings()(hidden_ND, targets_N, temperature)
    out = policy(tokens_bS, use_cache=False, output_hidden_states=with_hidden)
    logits_NV = out.logits.flatten(0, 1)[before_N].float() / temperature
    hidden_ND = out.hidden_states[-1].flatten(0, 1)[before_N] if with_hidden else logits_NV
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return hidden_ND, logprobs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1), entropy_N


def response_values(critic: Any, tokens_bS: Tensor, before_N: Tensor) -> Tensor:
    """V(state before token t) of each response token: the critic's head on the hidden state of the token before, (N,)."""
    return head_values(critic.score, hidden_states(critic, tokens_bS, before_N))


def head_values(score: nn.Linear, hidden_ND: Tensor) -> Tensor:
    """A value head's outputs on hidden states: (N,), float32 by `keep_head_in_fp32`.

    The head is called as a module: under ZeRO-3 that is what gathers its weight.
    """
    return score(hidden_ND).squeeze(-1)


def hidden_states(model: Any, tokens_bS: Tensor, before_N: Tensor) -> Tensor:
    """Last hidden states before the response tokens, (N, D); padding stands on the right (checklist item 3)."""
    return states_of(getattr(model, model.base_model_prefix), tokens_bS, before_N)


def place_frozen(module: nn.Module, runtime: Runtime) -> Any:
    """A frozen module ready to run: on its device, or under ZeRO-3 as an inference-only engine with partitioned weights.

    Its arithmetic is that of the trained module, or the KL would hold the difference: in bf16 DeepSpeed keeps the weights
    in it, but no buffers (rotary frequencies), and switches autocast off.
    """
    if runtime.zero_stage != 3:
        module.to(runtime.device)
        if not (runtime.uses_deepspeed and runtime.precision == "bf16"):
            return module
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()
        return torch.autocast(runtime.device.type, enabled=False)(module.forward)
    import deepspeed

    settings = {
        k: v
        for k, v in runtime.accelerator.state.deepspeed_plugin.deepspeed_config.items()
        if k not in ("optimizer", "scheduler")
    }
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    engine.eval()  # returns None
    return engine
