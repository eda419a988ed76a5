"""Batched scoring with plain transformers models: rewards of sequences, log-probabilities of completions.

Rows are right-padded and sorted by length into batches of a token budget. With the attention mask and explicit
positions (or a causal pass that needs neither, trunk.py) a row's numbers do not depend on its neighbours (fp32: to
about 1e-6; tests hold it to 1e-5).

Shapes: B rows of a batch, S padded length, N scored positions of a batch, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encoding import encode_completions, encode_prompts
from data.readers import messages_of
from data.records import Turns
from evaluation.batches import plan_batches
from evaluation.options import BATCH_TOKENS
from evaluation.trunk import reads_packed, states_at
from launch.errors import UserError

LOGITS_PER_BATCH = 2**26  # scored positions times vocabulary: 256 MB in fp32
ROWS_PER_SOFTMAX = 1024  # positions whose logits are cast to fp32 at once

Ids = Sequence[int]
Beat = Callable[[int], object]
"""Called after each batch with its number of rows: a progress display, a watchdog."""


def right_pad(sequences: Sequence[Ids], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids (B, S) of right-padded rows."""
    width = max(map(len, sequences))
    ids_BS = torch.full((len(sequences), width), pad_id)
    mask_BS = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids_BS[row, : len(sequence)] = torch.tensor(sequence)
        mask_BS[row, : len(sequence)] = 1
    positions_BS = torch.arange(width).expand_as(ids_BS)
    tensors = {"input_ids": ids_BS, "attention_mask": mask_BS, "position_ids": positions_BS}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@contextlib.contextmanager
def inference(model: PreTrainedModel) -> Iterator[torch.device]:
    """Inside, the model is in eval mode without gradients; gives its device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        if training:
            model.train()


def context_of(model: PreTrainedModel) -> int | None:
    """The longest row that the model can read, in tokens; None when it has no such limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_context(model: PreTrainedModel, lengths: Sequence[int], what: str) -> None:
    """UserError naming the first row that is empty or longer than the model's context."""
    limit = context_of(model)
    for row, length in enumerate(lengths, 1):
        if length == 0:
            raise UserError(f"{what} {row} has no tokens; remove it or give it text")
        if limit is not None and length > limit:
            raise UserError(
                f"{what} {row} has {length} tokens, more than the model's context of {limit}; "
                "shorten or remove it, or use a model with a longer context"
            )


def check_finite(model: PreTrainedModel, values: Tensor, rows: Sequence[int]) -> None:
    """UserError when a model's numbers for some rows are NaN or infinite."""
    if not values.isfinite().all():
        raise UserError(
            f"{model.config.name_or_path or type(model).__name__}: gives NaN or infinity for row {min(rows) + 1} or its "
            "batch; its weights are damaged, or overflow in this precision: try --precision fp32 or an earlier checkpoint"
        )


def check_token_ids(model: PreTrainedModel, sequences: Sequence[Ids]) -> None:
    """UserError when a token id is not in the model's vocabulary: another tokenizer made it."""
    vocabulary = model.config.get_text_config().vocab_size
    largest = max((max(s, default=0) for s in sequences), default=0)
    if largest >= vocabulary:
        raise UserError(
            f"{model.config.name_or_path or type(model).__name__}: token id {largest} is outside its vocabulary of "
            f"{vocabulary}; score with the model, or one with the same tokenizer, that the tokens were made with"
        )


# ---------------------------------------------------------------------------------------------- rewards


def check_turns(name: str, rows: Any) -> None:
    """UserError unless `rows` is a list (or the like) of texts and chats: of a text alone every letter would be a row."""
    if isinstance(rows, (str, bytes, dict)) or not hasattr(rows, "__len__"):
        raise UserError(f"{name}: a {type(rows).__name__} is not a list of texts; give one entry for each row")
    for number, turns in enumerate(rows):
        if isinstance(turns, list):
            messages_of(turns, f"{name}[{number}]")
        elif not isinstance(turns, str):
            raise UserError(f"{name}[{number}]: {turns!r:.60} is not text; give a text or a list of messages")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turns],
    completions: Sequence[Turns],
    ended: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Token ids of prompts with their completions, as alignkit trains reward models: tokenised apart, joined as ids.

    Text prompts as the tokenizer does by default (with BOS where it adds one), completions without special tokens
    and with the EOS where they `ended` (all, unless given). Messages go through the chat template; what it writes
    after the last EOS is cut. See data/encoding.py: training uses the same functions. UserError for anything that is
    neither text nor messages, and for lists of different lengths.
    """
    check_turns("prompts", prompts)
    check_turns("completions", completions)
    for name, other in (("completions", completions), ("ended", prompts if ended is None else ended)):
        if len(other) != len(prompts):
            raise UserError(f"{name}: {len(prompts)} prompts and {len(other)} {name}; give one for each")
    prompts, completions = list(prompts), list(completions)
    heads = encode_prompts(tokenizer, prompts)
    tails = encode_completions(tokenizer, prompts, completions, ended)
    return [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]


def score_sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Turns],
    completions: Sequence[Turns],
    ended: Sequence[bool] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> Tensor:
    """Rewards (n,) float32 on the CPU of prompts with their completions; see `encode` and `score_ids`."""
    ids = encode(tokenizer, prompts, completions, ended)
    return score_ids(model, ids, batch_tokens, beat)


def check_reward_model(model: PreTrainedModel) -> None:
    """UserError unless the model gives one number for each sequence."""
    if model.config.num_labels != 1:
        name = model.config.name_or_path or type(model).__name__
        raise UserError(
            f"{name}: has {model.config.num_labels} labels, a reward model has one; train one with `alignkit reward`, "
            "or make one with AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        )


def score_ids(
    model: PreTrainedModel, sequences: Sequence[Ids], batch_tokens: int = BATCH_TOKENS, beat: Beat | None = None
) -> Tensor:
    """Rewards (n,) float32 on the CPU of token sequences, from a sequence classifier with one label.

    A decoder is read at the last token of the row as given here. transformers looks for the last token that is not
    the pad token instead, and so reads the wrong one where pad equals EOS, or a pad token is in the text.
    """
    check_reward_model(model)
    lengths = [len(s) for s in sequences]
    check_context(model, lengths, "row")
    rewards = torch.empty(len(sequences))
    with inference(model) as device:
        for batch in plan_batches(lengths, batch_tokens):
            inputs = right_pad([sequences[i] for i in batch], model.config.get_text_config().pad_token_id or 0, device)
            last_B = torch.tensor([lengths[i] - 1 for i in batch], device=device)
            rewards[batch] = _batch_rewards(model, inputs, last_B).float().cpu()
            check_finite(model, rewards[batch], batch)
            if beat:
                beat(len(batch))
    return rewards


def _batch_rewards(model: Any, inputs: dict[str, Tensor], last_B: Tensor) -> Tensor:
    if not hasattr(model, "score"):  # an encoder (BERT and its kin) pools by itself, and honours the mask
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
    trunk, tokens_BS = model.base_model, inputs["input_ids"]
    rows_B = torch.arange(len(last_B), device=last_B.device)
    if isinstance(trunk, nn.Module) and reads_packed(trunk, last_B.device):  # others may need their mask
        last_BD = states_at(trunk, tokens_BS, rows_B * tokens_BS.shape[1] + last_B)
    else:
        last_BD = trunk(**inputs, use_cache=False).last_hidden_state[rows_B, last_B]
    if not isinstance(model.score, nn.Linear):
        return model.score(last_BD)[:, 0]
    return linear_in_fp32(model.score, last_BD)[:, 0]


def linear_in_fp32(head: nn.Linear, hidden: Tensor) -> Tensor:
    """A head's outputs, computed in float32 (or the head's float64) whatever the precision around it.

    In bf16 a reward or value has 8 bits: close answers would tie, and a margin of 0.01 between rewards of 5 would be lost.
    """
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        return nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias)


# ---------------------------------------------------------------------------------------------- log-probabilities


def completion_logprobs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Ids],
    completion_ids: Sequence[Ids],
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> list[Tensor]:
    """Log-probability, in nats, of each completion token given what comes before it: float32 (len(completion),) each.

    The distribution is softmax(logits / temperature). UserError names the row of an empty prompt, or of one that is
    longer with its completion than the context.
    """
    check_context(model, [len(p) for p in prompt_ids], "prompt")
    check_token_ids(model, [*prompt_ids, *completion_ids])
    sequences = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return tail_logprobs(model, sequences, [len(c) for c in completion_ids], temperature, batch_tokens, beat)


def tail_logprobs(
    model: PreTrainedModel,
    sequences: Sequence[Ids],
    counts: Sequence[int],
    temperature: float = 1.0,
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> list[Tensor]:
    """Log-probabilities, in nats, of the last `counts[i]` tokens of each sequence: float32 (counts[i],) on the CPU.

    The output head runs at the scored positions alone (`logits_to_keep`), in batches of at most LOGITS_PER_BATCH
    logits. Softmax is in fp32 whatever the model's precision: bf16 log-probabilities err by up to 0.1 nat.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature} is not positive; a greedy choice has no distribution")
    if any(not 0 <= count < len(s) for count, s in zip(counts, sequences, strict=True)):
        raise ValueError("tail_logprobs: every scored token needs at least one token before it")
    check_context(model, [max(1, len(s) - 1) for s in sequences], "row")  # the last token is predicted, not read
    vocabulary = model.config.get_text_config().vocab_size
    wanted = [i for i, count in enumerate(counts) if count]
    scored: list[Tensor] = [torch.empty(0)] * len(sequences)
    with inference(model) as device:
        for batch in plan_batches(
            [len(sequences[i]) for i in wanted],
            batch_tokens,
            [counts[i] for i in wanted],
            LOGITS_PER_BATCH // vocabulary,
        ):
            rows = [wanted[b] for b in batch]
            sizes = [counts[i] for i in rows]
            logprobs_N = _batch_logprobs(model, [sequences[i] for i in rows], sizes, temperature, device).cpu()
            for i, values in zip(rows, logprobs_N.split(sizes), strict=True):
                scored[i] = values.clone()
                check_finite(model, values, [i])
            if beat:
                beat(len(rows))
    return scored


def _batch_logprobs(
    model: Any, sequences: Sequence[Ids], counts: Sequence[int], temperature: float, device: torch.device
) -> Tensor:
    """The scored log-probabilities of a batch, row after row: (N,)."""
    inputs = right_pad([s[:-1] for s in sequences], 0, device)
    keep_BS = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)  # where the hidden state predicts a scored token
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        keep_BS[row, len(sequence) - 1 - count : len(sequence) - 1] = True
    logits_NV = model(**inputs, use_cache=False, logits_to_keep=keep_BS).logits
    targets_N = torch.tensor([t for s, count in zip(sequences, counts, strict=True) for t in s[-count:]], device=device)
    parts = zip(logits_NV.split(ROWS_PER_SOFTMAX), targets_N.split(ROWS_PER_SOFTMAX), strict=True)
    return torch.cat([_pick_logprobs(logits.float() / temperature, targets) for logits, targets in parts])


def _pick_logprobs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
