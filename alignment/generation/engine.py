"""Completions for many prompts: the engine that runs in this process, and what every engine offers.

A token is drawn by inverting the cumulative distribution at one uniform number that belongs to the sample's global
index and its position. So a sample does not depend on the batch, the micro-batch or the rank that it was drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from alignment.cuda_graphs import recorder_for
from alignment.generation.decoder import Decoder
from alignment.generation.forward_loop import generate_batch
from alignment.generation.graphs import DecodeGraphs, GraphedDecoder
from alignment.generation.native import NativeDecoder, decodes_natively
from alignment.generation.prompts import check_lengths
from alignment.generation.sampling import Completion, Sampling, padded_size, pick_tokens
from alignment.generation.weights import Weights, is_supported
from launch.seeding import uniforms

BATCH_SIZES = (
    8  # a batch shrinks in so many steps: each size is a set of shapes, for which oneDNN compiles bf16 products
)
LOOK_EVERY = 8  # tokens between two looks at which rows have ended, where a look waits for the device


class RolloutEngine(Protocol):
    """What makes completions for a trainer."""

    def refresh(self, model: Any) -> None:
        """Take over the present weights of the policy."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        purpose: str,
        step: int,
        sample_indices: Sequence[int],
    ) -> list[Completion]:
        """A completion for each prompt, in their order. `sample_indices` are global: an index has one sample, whoever draws it."""
        ...


class LocalEngine:
    """Samples in this process, `batch_size` rows at a time, which does not change the samples.

    Within autocast the matrix products run in its dtype, as the training forward pass does.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        tell: Callable[[int], Any] = lambda n: None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """`tell` is called with the size of each batch that was sampled. `graphs`: captured steps that outlive the engine."""
        self.batch_size, self.tell = batch_size, tell
        self.graphs = graphs or DecodeGraphs(recorder_for(model.device))
        self.refresh(model)

    def refresh(self, model: Any) -> None:
        self.model = model
        self.weights: Weights | None = None
        if is_supported(model):
            with torch.inference_mode():
                self.weights = self.graphs.read(model, product_dtype(model))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        purpose: str,
        step: int,
        sample_indices: Sequence[int],
    ) -> list[Completion]:
        check_lengths(self.model, prompts, sampling.max_new_tokens)
        order = sorted(
            range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i]))
        )  # little padding; equals meet
        done: dict[int, Completion] = {}
        if self.weights is not None and prompts:
            with torch.inference_mode():
                columns = max(map(len, prompts)) + sampling.max_new_tokens
                self.graphs.reserve(self.weights, min(self.batch_size, len(prompts)), columns)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            noise = None
            if sampling.temperature > 0:
                noise = uniforms(seed, purpose, step, [sample_indices[i] for i in chosen], sampling.max_new_tokens)
            done.update(zip(chosen, self._generate_batch([prompts[i] for i in chosen], sampling, noise), strict=True))
            self.tell(len(chosen))
        return [done[i] for i in range(len(prompts))]

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, uniform_BT: np.ndarray | None
    ) -> list[Completion]:
        if self.weights is None:
            return generate_batch(self.model, prompts, sampling, uniform_BT)
        with torch.inference_mode(), torch.autocast(self.weights.embedding.device.type, enabled=False):
            return decode_batch(self._decoder(prompts, sampling.max_new_tokens), sampling, uniform_BT)

    def _decoder(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Decoder:
        assert self.weights is not None
        if self.graphs.recorder is not None:
            return GraphedDecoder(self.graphs, prompts, new_tokens)
        decoder = NativeDecoder if decodes_natively(self.weights) else Decoder
        return decoder(self.weights, prompts, new_tokens)


def product_dtype(model: Any) -> torch.dtype:
    """The dtype of matrix products: autocast's, where it is on, else that of the weights."""
    weight = model.lm_head.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def decode_batch(decoder: Decoder, sampling: Sampling, uniform_BT: np.ndarray | None) -> list[Completion]:
    """Completions of the decoder's batch. `uniform_BT`: uniform numbers (B, max_new_tokens), or None for greedy."""
    tokens_BT, logprobs_BT = _decode(decoder, sampling, uniform_BT)
    return [
        _until_eos(tokens, logprobs, sampling.eos_id)
        for tokens, logprobs in zip(tokens_BT.tolist(), logprobs_BT.tolist(), strict=True)
    ]


def _decode(decoder: Decoder, sampling: Sampling, uniform_BT: np.ndarray | None) -> tuple[Tensor, Tensor]:
    weights, rows = decoder.weights, decoder.rows
    device, length = weights.embedding.device, sampling.max_new_tokens
    uniform = None if uniform_BT is None else torch.from_numpy(uniform_BT).to(device)
    tokens_BT = torch.full((rows, length), sampling.pad_id, device=device)
    logprobs_BT = torch.zeros((rows, length), device=device)
    rows_N = torch.arange(rows, device=device)
    done_N = torch.zeros(rows, dtype=torch.bool, device=device)
    work = torch.empty(padded_size(weights.head.shape[0]) * rows, device=device)
    granule = max(1, rows // BATCH_SIZES)
    look_every = 1 if device.type == "cpu" else LOOK_EVERY
    logits_VN = decoder.prefill()
    for t in range(length):
        tokens_N, logprobs_N = pick_tokens(
            logits_VN, sampling.temperature, None if uniform is None else uniform[rows_N, t], work
        )
        tokens_BT[rows_N, t], logprobs_BT[rows_N, t] = tokens_N, logprobs_N
        done_N |= tokens_N == sampling.eos_id
        if t == length - 1:
            break
        if (t + 1) % look_every == 0:
            size = -(-int((~done_N).sum()) // granule) * granule
            if size == 0:
                break
            if size < len(rows_N):
                kept_N = decoder.keep(done_N, size)
                tokens_N, rows_N, done_N = tokens_N[kept_N], rows_N[kept_N], done_N[kept_N]
        logits_VN = decoder.step(tokens_N)
    return tokens_BT, logprobs_BT


def _until_eos(tokens: list[int], logprobs: list[float], eos_id: int) -> Completion:
    length = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
    return Completion(tokens[:length], logprobs[:length])


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    purpose: str,
    step: int,
    sample_indices: Sequence[int],
    batch_size: int,
) -> list[list[int]]:
    """Token ids of a completion for each prompt, in their order, under the model's present weights; see `LocalEngine`."""
    completions = LocalEngine(model, batch_size).generate(prompts, sampling, seed, purpose, step, sample_indices)
    return [completion.token_ids for completion in completions]
