"""Log-probabilities and rewards of continuations whose contexts repeat; what they share runs through the model once.

The choices of a question, the chosen and the rejected answer, the samples of one prompt: each is a context with k
continuations. They become one row, `context | continuation 1 | ... | continuation k`, in which a continuation sees the
context and itself, and its positions go on from the context's. Contexts that begin alike (few-shot examples) have that
beginning run once, and the rest reads its keys and values from the cache. Each row costs shared + own tokens, where
scoring the pairs alone costs k times the context; the numbers are the same up to rounding.

Shapes: B rows, S padded length, P cached tokens, N positions that the head is taken at, M scored tokens, V vocabulary,
D hidden size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluation.batches import plan_batches
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import (
    LOGITS_PER_BATCH,
    ROWS_PER_SOFTMAX,
    Beat,
    Ids,
    check_context,
    check_finite,
    check_reward_model,
    check_token_ids,
    inference,
    linear_in_fp32,
    score_ids,
)

LOG = logging.getLogger(__name__)
SHARED_START = 64
"""Contexts that agree in so many first tokens have what they share run once, through the cache."""
CACHED_PER_TOKEN = 4
"""Cached tokens that take about the memory of one that is being read: keys and values against activations."""
PADDING = -1
"""Segment of padding; the context is segment 0, the k-th continuation of a row segment k."""


@dataclass(frozen=True)
class Continuation:
    """What a model makes of one continuation: the log-probability of each token in nats, and whether greedy decoding gives it."""

    logprobs_T: Tensor
    greedy: bool


@dataclass(frozen=True)
class Row:
    """A context and the numbers of its continuations, of which the first `skip` context tokens lie in the cache."""

    context: tuple[int, ...]
    members: tuple[int, ...]
    skip: int = 0


ReadOut = Callable[[Any, Sequence[Row], dict[str, Any], Sequence[Ids]], dict[int, Any]]
"""What is made of a batch: model, rows, arguments of its forward pass, what is read of each continuation -> results."""


def score_continuations(
    model: PreTrainedModel,
    contexts: Sequence[Ids],
    continuations: Sequence[Ids],
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> list[Continuation]:
    """Log-probabilities of each continuation (token ids) after its context (token ids, at least one). In the order given.

    Equal contexts are found here, so callers give plain pairs. Models whose layers cannot take a mask of rows within
    a row (recurrent ones, ALiBi, windows shorter than the text) are scored pair by pair; see `takes_packed_rows`.
    UserError names the row that is too long, or has no context. `beat` is told the number of continuations.
    """
    check_context(model, [len(c) for c in contexts], "context")
    reads = [c[:-1] for c in continuations]  # the last token is predicted, not read
    lengths = [len(a) + len(b) for a, b in zip(contexts, reads, strict=True)]
    check_context(model, lengths, "row")
    check_token_ids(model, [*contexts, *continuations])
    wanted = [n for n, c in enumerate(continuations) if len(c)]
    read_out = _logprobs_of(continuations)
    packed = takes_packed_rows(model, max(lengths, default=0))
    scored = _run(model, contexts, reads, wanted, packed, read_out, batch_tokens, beat)
    nothing = Continuation(torch.empty(0), True)
    return [scored.get(number, nothing) for number in range(len(contexts))]


def reward_continuations(
    model: PreTrainedModel,
    contexts: Sequence[Ids],
    continuations: Sequence[Ids],
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> Tensor:
    """Rewards (n,) float32 on the CPU of contexts with their continuations, as `score_ids` gives them for the joined rows.

    The chosen and the rejected answer to a prompt cost the prompt once. Encoders, and decoders that cannot take packed
    rows, are scored row by row.
    """
    check_reward_model(model)
    lengths = [len(a) + len(b) for a, b in zip(contexts, continuations, strict=True)]
    check_context(model, [len(c) for c in contexts], "context")
    check_context(model, lengths, "row")
    if not isinstance(getattr(model, "score", None), nn.Linear) or not takes_packed_rows(
        model, max(lengths, default=0)
    ):
        joined = [[*a, *b] for a, b in zip(contexts, continuations, strict=True)]
        return score_ids(model, joined, batch_tokens, beat)
    found = _run(model, contexts, continuations, range(len(contexts)), True, _rewards_of_batch, batch_tokens, beat)
    return torch.tensor([found[number] for number in range(len(contexts))], dtype=torch.float32)


# ---------------------------------------------------------------------------------------------- what shares what


def _plan_rows(contexts: Sequence[Ids], reads: Sequence[Ids], wanted: Sequence[int], budget: int) -> list[Row]:
    """Rows of at most `budget` tokens (but with at least one continuation) for the continuations that are wanted."""
    members: dict[tuple[int, ...], list[int]] = {}
    for number in wanted:
        members.setdefault(tuple(contexts[number]), []).append(number)
    rows = []
    for context, numbers in members.items():
        part: list[int] = []
        size = len(context)
        for number in numbers:
            extra = len(reads[number])
            if part and size + extra > budget:
                rows.append(Row(context, tuple(part)))
                part, size = [], len(context)
            part.append(number)
            size += extra
        rows.append(Row(context, tuple(part)))
    return rows


def _share_starts(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by the beginning of their contexts; the longest common beginning of each family is marked to be skipped.

    Rows that share nothing worth skipping are one list, whose rows are batched by length.
    """
    families: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        families.setdefault(tuple(row.context[:SHARED_START]), []).append(row)
    shared, apart = [], []
    for start, family in families.items():
        # Every row keeps a context token of its own: the head is taken there for the first token of a continuation.
        skip = min(_common_length(family), min(len(row.context) for row in family) - 1)
        if len(start) == SHARED_START and len(family) > 1 and skip >= SHARED_START - 1:
            shared.append([Row(row.context, row.members, skip) for row in family])
        else:
            apart += family
    return [*shared, apart] if apart else shared


def _common_length(family: Sequence[Row]) -> int:
    """Length of the longest common beginning of all contexts: that of the first and the last in dictionary order."""
    first, last = min(row.context for row in family), max(row.context for row in family)
    differs = (n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differs, min(len(first), len(last)))


# ---------------------------------------------------------------------------------------------- running


def _run(
    model: PreTrainedModel,
    contexts: Sequence[Ids],
    reads: Sequence[Ids],
    wanted: Sequence[int],
    packed: bool,
    read_out: ReadOut,
    batch_tokens: int,
    beat: Beat | None,
) -> dict[int, Any]:
    """Number -> result of the continuations that are wanted, packed or pair by pair."""
    rows = _plan_rows(contexts, reads, wanted, batch_tokens if packed else 0)
    found: dict[int, Any] = {}
    for family in _share_starts(rows) if packed else [rows]:
        found |= _run_family(model, family, reads, read_out, batch_tokens, beat)
    return found


def _run_family(
    model: Any,
    rows: Sequence[Row],
    reads: Sequence[Ids],
    read_out: ReadOut,
    batch_tokens: int,
    beat: Beat | None = None,
) -> dict[int, Any]:
    """Number -> result of the continuations of rows that skip the same beginning."""
    skip = rows[0].skip if rows else 0
    tails = [sum(len(reads[m]) for m in row.members) for row in rows]
    lengths = [len(row.context) - skip + tail + skip // CACHED_PER_TOKEN for row, tail in zip(rows, tails, strict=True)]
    cap = LOGITS_PER_BATCH // model.config.get_text_config().vocab_size
    found: dict[int, Any] = {}
    with inference(model) as device:
        cache = None
        if skip:
            start = torch.tensor([rows[0].context[:skip]], device=device)
            cache = model.base_model(input_ids=start, use_cache=True).past_key_values
        for batch in plan_batches(lengths, batch_tokens, [tail + 1 for tail in tails], cap):
            part = [rows[b] for b in batch]
            results = read_out(model, part, _arguments(model, part, reads, cache, device), reads)
            found |= results
            if beat:
                beat(len(results))
    return found


def _arguments(
    model: Any, rows: Sequence[Row], reads: Sequence[Ids], cache: Any, device: torch.device
) -> dict[str, Any]:
    """The arguments of a forward pass over rows; the cache is copied for each of them, since the pass adds to it."""
    inputs: dict[str, Any] = _row_tensors(rows, reads, device)
    single = all(len(row.members) == 1 for row in rows)
    inputs["attention_mask"] = _attention_mask(model, inputs.pop("segments"), rows[0].skip, single)
    if cache is not None:
        inputs["past_key_values"] = copy.deepcopy(cache)
        inputs["past_key_values"].batch_repeat_interleave(len(rows))
    return inputs | {"use_cache": cache is not None}


def _row_tensors(rows: Sequence[Row], reads: Sequence[Ids], device: torch.device) -> dict[str, Tensor]:
    """input_ids, position_ids and segments (B, S) of right-padded rows, without what lies in the cache."""
    columns: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "segments": []}
    for row in rows:
        length = len(row.context)
        ids, positions = list(row.context[row.skip :]), list(range(row.skip, length))
        segments = [0] * (length - row.skip)
        for segment, member in enumerate(row.members, 1):
            size = len(reads[member])
            ids += reads[member]
            positions += range(length, length + size)
            segments += [segment] * size
        for name, values in zip(columns, (ids, positions, segments), strict=True):
            columns[name].append(values)
    width = max(map(len, columns["input_ids"]))
    fill = {"input_ids": 0, "position_ids": 0, "segments": PADDING}
    return {
        name: torch.tensor([values + [fill[name]] * (width - len(values)) for values in table], device=device)
        for name, table in columns.items()
    }


def _attention_mask(model: Any, segments_BS: Tensor, skip: int, single: bool) -> Tensor:
    """Who sees whom: 2D (B, P + S) where causality says it all, else 4D (B, 1, S, P + S).

    Boolean for SDPA. Eager attention adds its mask to the scores: 0 and the most negative number, in the model's dtype.
    """
    rows, width = segments_BS.shape
    device = segments_BS.device
    if single:  # one continuation each: rows are plain text, and models have faster ways for that
        return torch.cat([torch.ones((rows, skip), device=device), segments_BS != PADDING], dim=1).long()
    seen_BSS = torch.ones((width, width), dtype=torch.bool, device=device).tril()
    own_BSS = segments_BS[:, None, :] == segments_BS[:, :, None]
    seen_BSS = seen_BSS & (own_BSS | (segments_BS == 0)[:, None, :])
    past_BSP = torch.ones((rows, width, skip), dtype=torch.bool, device=device)
    mask = torch.cat([past_BSP, seen_BSS], dim=2)[:, None]
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)


# ---------------------------------------------------------------------------------------------- reading out


def _logprobs_of(continuations: Sequence[Ids]) -> ReadOut:
    """A read-out of the log-probabilities of continuations, all of whose tokens but the last are read."""

    def read_out(
        model: Any, rows: Sequence[Row], arguments: dict[str, Any], reads: Sequence[Ids]
    ) -> dict[int, Continuation]:
        ids_BS = arguments["input_ids"]
        keep_BS, index_M, target_M = _scored_positions(rows, continuations, ids_BS.shape[1], ids_BS.device)
        logits_NV = model(**arguments, logits_to_keep=keep_BS).logits
        logprobs_M, greedy_M = _pick(logits_NV, index_M, target_M)
        numbers = [m for row in rows for m in row.members]
        sizes = [len(continuations[m]) for m in numbers]
        parts = zip(numbers, logprobs_M.cpu().split(sizes), greedy_M.cpu().split(sizes), strict=True)
        found = {number: Continuation(values.clone(), bool(greedy.all())) for number, values, greedy in parts}
        for number, scored in found.items():
            check_finite(model, scored.logprobs_T, [number])
        return found

    return read_out


def _scored_positions(
    rows: Sequence[Row], continuations: Sequence[Ids], width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """keep_BS: where the head is taken; index_M: which of these N predicts each scored token; target_M: that token.

    The last context token predicts the first token of every continuation, and is kept once.
    """
    keep_BS = torch.zeros((len(rows), width), dtype=torch.bool)
    index: list[int] = []
    target: list[int] = []
    kept = 0
    for b, row in enumerate(rows):
        last = len(row.context) - row.skip - 1
        size = sum(len(continuations[m]) - 1 for m in row.members)
        keep_BS[b, last : last + 1 + size] = True
        offset = kept + 1
        for member in row.members:
            read = len(continuations[member]) - 1
            index += [kept, *range(offset, offset + read)]
            target += continuations[member]
            offset += read
        kept += 1 + size
    return keep_BS.to(device), torch.tensor(index, device=device), torch.tensor(target, device=device)


def _pick(logits_NV: Tensor, index_M: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (M,) float32 of the targets, and whether each is the likeliest token. Softmax in fp32, by chunks."""
    chunks = logits_NV.split(ROWS_PER_SOFTMAX)
    norm_N = torch.cat([chunk.float().logsumexp(-1) for chunk in chunks])
    best_N = torch.cat([chunk.argmax(-1) for chunk in chunks])
    return logits_NV[index_M, target_M].float() - norm_N[index_M], best_N[index_M] == target_M


def _rewards_of_batch(
    model: Any, rows: Sequence[Row], arguments: dict[str, Any], reads: Sequence[Ids]
) -> dict[int, float]:
    """The rewards at the last token of each continuation; of an empty one, at the context's."""
    places: list[tuple[int, int]] = []
    for b, row in enumerate(rows):
        end = len(row.context) - row.skip - 1
        last = end
        for member in row.members:
            end += len(reads[member])
            places.append((b, end if len(reads[member]) else last))
    hidden_BSD = model.base_model(**arguments).last_hidden_state
    row_M, place_M = torch.tensor(places, device=hidden_BSD.device).T
    rewards_M = linear_in_fp32(model.score, hidden_BSD[row_M, place_M])[:, 0].float().cpu()
    numbers = [m for row in rows for m in row.members]
    check_finite(model, rewards_M, numbers)
    return dict(zip(numbers, rewards_M.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------- which models can


def takes_packed_rows(model: PreTrainedModel, longest: int) -> bool:
    """Whether rows within a row give a model's own numbers, for texts of at most `longest` tokens.

    Attention windows must be longer than the text, since a mask of ours replaces theirs. What a config does not tell
    (recurrent layers, ALiBi, attention that ignores masks) a small trial does: packed against plain.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager") or (window and longest > window):
        return False
    try:
        return _trial(model)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        # a model that does not know such masks, or such a cache: foreign code, which says so in ways of its own
        LOG.info("%s takes no packed rows, so pairs are scored one by one: %r", type(model).__name__, error)
        return False


def _trial(model: PreTrainedModel) -> bool:
    """Whether a row of two continuations after a cached token scores as its pairs do, in the model's own precision."""
    vocabulary = model.config.get_text_config().vocab_size
    context = tuple((7 * i + 1) % vocabulary for i in range(6))
    answers = [[(11 * i + 3) % vocabulary for i in range(4)], [(5 * i + 2) % vocabulary for i in range(3)]]
    together, alone = [Row(context, (0, 1), skip=2)], [Row(context, (0,)), Row(context, (1,))]
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        packed, plain = (_run_family(model, rows, answers, _hidden_of_batch, 1) for rows in (together, alone))
    worst = max(float((packed[i] - plain[i]).abs().max()) for i in (0, 1))
    scale = max(float(plain[i].abs().max()) for i in (0, 1))
    return worst <= (1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05) * scale


def _hidden_of_batch(
    model: Any, rows: Sequence[Row], arguments: dict[str, Any], reads: Sequence[Ids]
) -> dict[int, Tensor]:
    """The body's last hidden states (T, D) of each continuation."""
    hidden_BSD = model.base_model(**arguments).last_hidden_state.float()
    found: dict[int, Tensor] = {}
    for row_SD, row in zip(hidden_BSD, rows, strict=True):
        sizes = [len(reads[m]) for m in row.members]
        start = len(row.context) - row.skip
        found |= dict(zip(row.members, row_SD[start : start + sum(sizes)].split(sizes), strict=True))
    return found
