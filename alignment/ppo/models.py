"""The four roles of PPO: policy and critic, trained as one module; reference and reward model, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.generation import positions_of
from alignment.models import load_causal, load_tokenizer, switch_off_dropout
from alignment.reward.model import RewardModel
from evaluation.loading import read_classifier
from launch.errors import UserError
from launch.runtime import Runtime


class ActorCritic(nn.Module):
    """Policy and critic side by side, so that one engine (and one ZeRO partition) trains both.

    They share no weights; each has its own learning rate.
    """

    def __init__(self, policy: PreTrainedModel, critic: PreTrainedModel) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(
        self, tokens_BS: Tensor, mask_BS: Tensor, length: int, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies (nats) and values of the last `length` tokens of each row: three (B, length)."""
        logprobs_BT, entropy_BT = response_logprobs(self.policy, tokens_BS, mask_BS, length, temperature)
        return logprobs_BT, entropy_BT, response_values(self.critic, tokens_BS, mask_BS, length)


def response_logprobs(
    model: Any, tokens_BS: Tensor, mask_BS: Tensor, length: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, in nats, of each of the last `length` tokens under softmax(logits / temperature).

    Rows are left-padded prompt + right-padded response; `mask_BS` is 1 on real tokens. The head runs at the
    response's positions alone. What stands on padding is finite and means nothing.
    """
    out = model(
        tokens_BS,
        attention_mask=mask_BS,
        position_ids=positions_of(mask_BS),
        use_cache=False,
        logits_to_keep=length + 1,
    )
    logits_BTV = out.logits[:, :-1].float() / temperature
    normaliser_BT = torch.logsumexp(logits_BTV, -1)
    chosen_BT = logits_BTV.gather(-1, tokens_BS[:, -length:].unsqueeze(-1)).squeeze(-1)
    entropy_BT = normaliser_BT - (torch.softmax(logits_BTV, -1) * logits_BTV).sum(-1)
    return chosen_BT - normaliser_BT, entropy_BT


def response_values(critic: Any, tokens_BS: Tensor, mask_BS: Tensor, length: int) -> Tensor:
    """V(state before token t) for the last `length` tokens: the critic's head on the hidden state of the token before."""
    body = getattr(critic, critic.base_model_prefix)
    hidden_BSD = body(
        tokens_BS, attention_mask=mask_BS, position_ids=positions_of(mask_BS), use_cache=False
    ).last_hidden_state
    last_BTD = hidden_BSD[:, -length - 1 : -1].to(critic.score.weight.dtype)
    with torch.autocast(last_BTD.device.type, enabled=False):  # in bf16 a value would have 8 bits, as a reward would
        return critic.score(last_BTD).squeeze(-1).float()


@dataclass
class Roles:
    """The models of a PPO run, and the policy's tokenizer."""

    policy: PreTrainedModel
    critic: PreTrainedModel
    reference: PreTrainedModel
    reward: RewardModel
    tokenizer: PreTrainedTokenizerBase


def load_critic(name: str) -> PreTrainedModel:
    """A one-label sequence-classification model whose head `score` gives a value at every token."""
    critic = read_classifier("critic", name, None)
    if not isinstance(getattr(critic, "score", None), nn.Module):
        raise UserError(
            f"critic: {name} has no head named `score`; use a decoder reward model such as `alignkit reward` makes"
        )
    return critic


def load_roles(policy: str, critic: str | None, reference: str | None, reward: str, device: torch.device) -> Roles:
    """Load the four roles in float32; under ZeRO-3 all but the reward model, which no engine runs, are partitioned."""
    tokenizer = load_tokenizer(policy, "policy")
    actor = load_causal(policy, tokenizer, partitioned=True, field="policy")
    frozen = load_causal(reference or policy, tokenizer, partitioned=True, field="reference")
    frozen.eval().requires_grad_(False)
    value_model = load_critic(critic or reward)
    sizes = {"reference": frozen.config.vocab_size, "critic": value_model.config.vocab_size}
    for role, size in sizes.items():  # both read the policy's token ids
        if size != actor.config.vocab_size:
            raise UserError(
                f"{role}: its vocabulary has {size} tokens, the policy's {actor.config.vocab_size}; "
                f"they read the same token ids: give a {role} with the policy's tokenizer"
            )
    judge = RewardModel.from_pretrained(reward, device=device)
    for model in (actor, value_model, frozen):
        switch_off_dropout(model)  # the ratio is 1 at the first step only without it (checklist item 10)
    return Roles(actor, value_model, frozen, judge, tokenizer)


def place_frozen(model: PreTrainedModel, runtime: Runtime) -> Any:
    """A frozen model ready to run: on its device, or under ZeRO-3 as an inference-only engine with partitioned weights."""
    if runtime.zero_stage != 3:
        return model.to(runtime.device)  # type: ignore[arg-type]
    import deepspeed

    settings = {
        k: v
        for k, v in runtime.accelerator.state.deepspeed_plugin.deepspeed_config.items()
        if k not in ("optimizer", "scheduler")
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()  # returns None
    return engine
