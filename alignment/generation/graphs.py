"""Decoding on a GPU by CUDA graphs: a step is captured once for each (rows, width) and then launched as a whole.

Run the usual way, a step is some 30 small kernels a layer, and at half a billion parameters launching them one by one
takes longer than they do. A graph replays the very kernels on the very addresses that it was captured with. So a captured step has
fixed shapes, reads what changes from token to token (tokens, column, starts of the rows) out of device memory, attends
over a fixed width of the cache with what is not written masked, and writes to the cache by an index on the device; and
all that it refers to, weights included, stays where it is until the graphs go.

Shapes as in network.py; R the rows of a step: those of the batch rounded up to an eighth of the largest batch; W its width.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignment.cuda_graphs import Recorder, Replay, agree
from alignment.generation.decoder import Decoder
from alignment.generation.network import Network, attend_one, make_cache
from alignment.generation.weights import Weights, copied_bytes, read_weights, rewrite_weights

SIZES = 8  # of R, as many as a batch has while it shrinks
NARROWEST = 128  # W: so many columns, twice as many, ...: at most half of what is attended to is not written yet
RUNS_BEFORE = 5  # of a shape, the usual way, before it is captured: a capture and its check run it as often


class StepMemory:
    """What captured steps read and write, the same for all of them: cache, inputs and large products."""

    def __init__(self, weights: Weights, rows: int, columns: int) -> None:
        """For batches of up to `rows` rows and `columns` columns, prompts and new tokens together."""
        self.granule = -(-rows // SIZES)
        self.rows = -(-rows // self.granule) * self.granule
        self.width = -(-columns // NARROWEST) * NARROWEST
        self.cache = make_cache(weights, self.rows, self.width)
        self.network = Network(weights)
        self.network.reserve(self.rows)
        device = weights.embedding.device
        self.tokens_R = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.starts_R = torch.zeros_like(self.tokens_R)
        self.column_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.columns_S = torch.arange(self.width, device=device)

    def fits(self, weights: Weights, rows: int, columns: int) -> bool:
        """Whether it is over these weights and has room for so many rows and columns."""
        return self.network.weights is weights and rows <= self.rows and columns <= self.width

    def empty(self) -> None:
        """Before a batch. What another left in the cache is masked, but 0 x infinity would not be 0."""
        self.cache.keys.zero_(), self.cache.values.zero_(), self.starts_R.zero_()

    def shape_for(self, rows: int, column: int) -> tuple[int, int]:
        """(R, W) of the step that writes `column`."""
        width = NARROWEST
        while width <= column:
            width *= 2
        return -(-rows // self.granule) * self.granule, min(width, self.width)

    def set_inputs(self, tokens_N: Tensor, column: int) -> None:
        """Of the next step. Rows past those of the batch go on with what they have: nobody reads them."""
        self.tokens_R[: len(tokens_N)] = tokens_N
        self.column_1.fill_(column)

    @property
    def nbytes(self) -> int:
        """Of what is large."""
        return sum(t.nbytes for t in (self.cache.keys, self.cache.values, *self.network.scratch.flat.values()))


class FixedStep:
    """A decoding step of R rows over W columns that can be captured; it can be run the usual way, too, with the same results.

    Run again with the same inputs, it does the same again.
    """

    def __init__(self, memory: StepMemory, rows: int, width: int) -> None:
        self.memory, self.rows, self.width = memory, rows, width
        self.mask: Tensor | None = None

    def __call__(self) -> Tensor:
        """Logits (V, R)."""
        memory, network = self.memory, self.memory.network
        x_ER = network.embed(memory.tokens_R[: self.rows])
        positions_R = memory.column_1 - memory.starts_R[: self.rows]
        rotation = memory.cache.cos.index_select(1, positions_R), memory.cache.sin.index_select(1, positions_R)
        self.mask = self._make_mask()
        for number, layer in enumerate(network.weights.layers):
            x_ER = network.layer(layer, number, x_ER, rotation, self)
        return network.logits(x_ER)

    def _make_mask(self) -> Tensor:
        """(R J, 1, W): minus infinity before a row's first token and after the column that is being written."""
        memory, kv_heads = self.memory, self.memory.network.weights.kv_heads
        columns_W = memory.columns_S[: self.width]
        dead_RW = (columns_W < memory.starts_R[: self.rows].unsqueeze(1)) | (columns_W > memory.column_1)
        mask_RW = torch.zeros(dead_RW.shape, dtype=memory.cache.keys.dtype, device=dead_RW.device)
        mask_RW = mask_RW.masked_fill_(dead_RW, -torch.inf)
        return mask_RW.unsqueeze(1).expand(-1, kv_heads, -1).reshape(-1, 1, self.width)

    def attend(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (H, D, R) -> (H D, R), after key and value are written."""
        memory = self.memory
        keys, values = (cache[number, : self.rows] for cache in (memory.cache.keys, memory.cache.values))
        for cache, new in ((keys, k), (values, v)):
            cache.index_copy_(2, memory.column_1, new.permute(2, 0, 1).unsqueeze(2).to(cache.dtype))
        return attend_one(q, keys[:, :, : self.width], values[:, :, : self.width], self.mask)


class DecodeGraphs:
    """The captured steps of one model and what they refer to. Kept from one rollout to the next, they are captured once.

    A first replay must give what the step gives when it is run the usual way. If it does not, or the capture fails, one
    warning is given, and everything is run the usual way from then on.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        """Without a recorder nothing is captured, and nothing is kept."""
        self.recorder = recorder
        self.clear()

    def clear(self) -> None:
        """Let everything go."""
        self.replays: dict[tuple[int, int], Replay] = {}
        self.runs: Counter[tuple[int, int]] = Counter()
        """Of shapes that have no replay."""
        self.memory: StepMemory | None = None
        self.model: Any = None
        self.weights: Weights | None = None

    def read(self, model: Any, dtype: torch.dtype) -> Weights:
        """The model's present weights; in the memory that the graphs refer to, if it is the model of before."""
        if self.weights is not None and self.model is model and rewrite_weights(self.weights, model, dtype):
            return self.weights
        self.clear()
        weights = read_weights(model, dtype)
        if self.recorder is not None:
            self.model, self.weights = model, weights
        return weights

    def reserve(self, weights: Weights, rows: int, columns: int) -> None:
        """Make room for batches of so many rows and columns; when that moves the cache, the graphs go."""
        if self.recorder is None or (self.memory is not None and self.memory.fits(weights, rows, columns)):
            return
        if self.memory is not None:
            rows, columns = max(rows, self.memory.rows), max(columns, self.memory.width)
        self.replays, self.runs, self.memory = {}, Counter(), None
        self.memory = StepMemory(weights, rows, columns)

    def rest(self) -> None:
        """After a rollout: let everything go that would take too much memory away from what comes now."""
        room = 0 if self.recorder is None else self.recorder.room
        if self.memory is None or self.memory.nbytes + self._copied_bytes() > room:
            self.clear()

    def _copied_bytes(self) -> int:
        return 0 if self.weights is None else copied_bytes(self.weights, self.model)

    def step(self, memory: StepMemory, tokens_N: Tensor, column: int) -> Tensor:
        """Write `tokens_N` at `column`; logits of the next tokens, (V, N), which the next call overwrites."""
        rows, width = shape = memory.shape_for(len(tokens_N), column)
        if shape not in self.replays and self.recorder is not None:
            if self.runs[shape] == RUNS_BEFORE:
                self._capture(FixedStep(memory, rows, width), tokens_N, column)
            self.runs[shape] += 1
        memory.set_inputs(tokens_N, column)
        run = self.replays.get(shape) or FixedStep(memory, rows, width)
        return run()[:, : len(tokens_N)]

    def _capture(self, step: FixedStep, tokens_N: Tensor, column: int) -> None:
        """Capture `step` and keep it, if its first replay gives and writes what `step` does.

        It is captured with other inputs than it is tried with, so one that does not read them again is found out. They
        write to the last column of its width, which is masked until it is written for good.
        """
        assert self.recorder is not None
        memory, shape = step.memory, (step.rows, step.width)
        memory.set_inputs(torch.zeros_like(tokens_N), step.width - 1)
        try:
            replay = self.recorder.capture(step)
        except RuntimeError as error:
            self._give_up(f"a decoding step could not be captured ({str(error).strip().splitlines()[0]})")
            return
        memory.set_inputs(tokens_N, column)
        result = step()
        expected = result.clone()
        written = [cache[:, : step.rows, :, column] for cache in (memory.cache.keys, memory.cache.values)]
        expected_writes = [part.clone() for part in written]
        for part in (result, *written):
            part.zero_()
        found = replay()
        pairs = [(found, expected), *zip(written, expected_writes, strict=True)]
        if all(agree(*pair, precision=pair[1].dtype) for pair in pairs):
            self.replays[shape] = replay
        else:
            self._give_up("the first replay of a captured decoding step did not give what the step gives")

    def _give_up(self, why: str) -> None:
        self.recorder, self.replays = None, {}
        print(f"alignkit: warning: {why}; generation goes on without CUDA graphs, slower", file=sys.stderr, flush=True)


class GraphedDecoder(Decoder):
    """A decoder whose steps are replayed. `reserve` has made room for the batch."""

    def __init__(self, graphs: DecodeGraphs, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        assert graphs.memory is not None
        self.graphs, self.memory = graphs, graphs.memory
        self.memory.empty()
        super().__init__(self.memory.network.weights, prompts, new_tokens, self.memory.cache)
        self._set_starts()

    def _set_starts(self) -> None:
        self.memory.starts_R[: self.rows] = self.starts_N

    def step(self, tokens_N: Tensor) -> Tensor:
        logits_VN = self.graphs.step(self.memory, tokens_N, self.column)
        self.column += 1
        return logits_VN

    def keep(self, done_N: Tensor, size: int) -> Tensor:
        order_N = super().keep(done_N, size)
        self._set_starts()
        return order_N
