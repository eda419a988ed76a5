"""The training and scoring passes of a model on one GPU as CUDA graphs: captured once for each shape, then launched as a whole.

A forward and backward pass launches some hundred small kernels a layer one by one. At half a billion parameters and 16 rows
of 96 tokens that takes several times as long as the kernels themselves. A captured pass reads its tokens, and the gradient in
its result, where they were at its capture, and adds to gradients that stay where they are. Only the layers are captured; head
and loss, whose shapes change with the number of response tokens, run the usual way.

For Llama, Qwen2 and Qwen3 with plain linear layers, in a process that exchanges no gradients: DDP and DeepSpeed hang on the
usual backward pass. Shapes: b rows of S tokens, R and C the same rounded up, N asked places, E width.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignment.cuda_graphs import Recorder, Replay, agree, can_capture, recorder_for, spare_bytes
from evaluation.trunk import is_hooked, is_written_out, product_dtype, read_rows, round_up, states_at

COLUMNS_BY, STEPS = 32, 8  # what C is a multiple of, and how many of it there are at most while it doubles
RUNS_BEFORE = 1  # of a shape, the usual way, before it is captured
FORGET_AFTER = 16  # passes in a row in one precision, after which what was captured in another one goes
MOST_WORK = 5e10
"""Tokens times parameters of a layer, up to which a pass is captured: kernels that do more take longer than their launches.
On an H200 replays are 5 times as fast as launches at 3e10."""

Shape = tuple[int, int, bool]
"""R, C, and whether there is a backward pass."""


def capture_passes(trunks: Sequence[nn.Module], device: torch.device, rows: int, longest: int) -> bool:
    """From now on `states_of` captures the passes of those trunks that can be captured, where it pays for all of them and there is
    room: else of none, for policy and reference are to round alike. Their modules must stay as they are.

    `rows` of `longest` tokens are the room of a micro-batch, which is filled with rows that take `width_of` their length.
    """
    for trunk in trunks:
        release_passes(trunk)
    plain = [trunk for trunk in trunks if can_capture(device) and _is_plain(trunk)]
    width = width_of(longest)
    whole = rows_of(rows, width, rows * longest), width
    for trunk in plain:
        trains = any(parameter.requires_grad for parameter in trunk.parameters())
        held = held_bytes(trunk, torch.bfloat16, [(*whole, trains)])
        if not _pays(trunk, rows * width) or held > spare_bytes(device):
            return False
    for trunk in plain:
        _graphs[trunk] = TrunkGraphs(trunk, device, rows * longest)
    return bool(plain)


def release_passes(trunk: nn.Module) -> None:
    """Undo `capture_passes`."""
    _graphs.pop(trunk, None)


def states_of(trunk: nn.Module, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
    """`states_at`, replayed where `capture_passes` was called for the trunk."""
    graphs = _graphs.get(trunk)
    if graphs is None or torch.is_inference_mode_enabled():
        return states_at(trunk, tokens_bS, wanted_N)
    return graphs.states_at(tokens_bS, wanted_N)


def width_of(length: int) -> int:
    """C: the columns that a row of so many tokens gets in a pass that may be captured."""
    return round_up(length, max(COLUMNS_BY, 2 ** (length - 1).bit_length() // STEPS))


def rows_of(count: int, columns: int, room: int) -> int:
    """R: the rows that so many get in C columns: all that have room, half or a quarter of them, or more quarters where there are more."""
    whole = max(1, room // columns)
    quarter = -(-whole // 4)
    return next((rows for rows in (quarter, -(-whole // 2), whole) if count <= rows), round_up(count, quarter))


def _is_plain(trunk: Any) -> bool:
    """Whether a trunk is written out in evaluation/trunk.py, all of its layers are what they seem, and nothing waits for gradients."""
    if not is_written_out(trunk):
        return False
    parts = [part for layer in trunk.layers for part in (layer.self_attn, layer.mlp)]
    leaves = [trunk.embed_tokens, *(child for part in parts for name, child in part.named_children() if "proj" in name)]
    waits = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in trunk.parameters())
    return not waits and all(type(module) in (nn.Linear, nn.Embedding) and not is_hooked(module) for module in leaves)


def _pays(trunk: Any, tokens: int) -> bool:
    """Whether launches are what a pass over so many tokens waits for."""
    return tokens * sum(parameter.numel() for parameter in trunk.layers[0].parameters()) <= MOST_WORK


def held_bytes(trunk: Any, dtype: torch.dtype, shapes: Sequence[Shape]) -> int:
    """What is held with passes of these shapes, whose products are in `dtype`, by estimate.

    Results of each; what a layer makes on the way in the largest; and of training the activations of all layers, cast weights
    and gradients.
    """
    config = trunk.config
    # float32 residuals and norms, the rest in bf16 or float32; PyTorch has no kernel for grouped heads in float32, and keeps all scores
    grouped = dtype == torch.float32 and config.num_key_value_heads < config.num_attention_heads
    of_token = 40 * config.hidden_size + 16 * config.intermediate_size
    of_pair = 8 * config.num_attention_heads * grouped
    of_layer = [(rows * columns * (of_token + columns * of_pair), trains) for rows, columns, trains in shapes]
    results = 8 * config.hidden_size * sum(rows * columns for rows, columns, _ in shapes)
    held = results + max(size for size, _ in of_layer)
    training = [size for size, trains in of_layer if trains]
    if training:
        held += config.num_hidden_layers * max(training)
        held += sum(2 * p.numel() + p.nbytes * p.requires_grad for p in trunk.parameters())
    return held


class Rows(nn.Module):
    """`read_rows` of a trunk, whose parameters can be swapped for a call."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, tokens_RC: Tensor) -> Tensor:
        """Hidden states (R, C, E)."""
        return read_rows(self.trunk, tokens_RC)


class FixedPass:
    """The passes over R rows of C tokens that can be captured.

    `leaves` stand for the parameters, in the same memory. Autograd has a node for each parameter, which is alive as long as
    any result that depends on it, and adds to the gradient on the stream that it was made on; a capture knows of one stream.
    """

    def __init__(self, shape: Shape, leaves: dict[str, Tensor], device: torch.device) -> None:
        rows, columns, self.trains = shape
        self.leaves = leaves
        self.tokens_RC = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self.slope_RCE: Tensor | None = None
        """Gradient of the loss in the hidden states. 0 until it is set: a backward pass then adds nothing."""
        self.hidden_RCE: Tensor | None = None

    def forward(self, rows: Rows) -> Tensor:
        """Hidden states (R, C, E)."""
        with torch.set_grad_enabled(self.trains):
            self.hidden_RCE = torch.func.functional_call(rows, self.leaves, (self.tokens_RC,))
        if self.trains and self.slope_RCE is None:
            self.slope_RCE = torch.zeros_like(self.hidden_RCE)
        return self.hidden_RCE.detach()

    def backward(self) -> Tensor:
        """Add to the gradients of the leaves; returns the gradient that it began with."""
        assert self.hidden_RCE is not None and self.slope_RCE is not None
        hidden_RCE, self.hidden_RCE = self.hidden_RCE, None
        with torch.autocast(hidden_RCE.device.type, enabled=False):  # as a loop calls it: after the forward pass
            torch.autograd.backward(hidden_RCE, self.slope_RCE)
        return self.slope_RCE

    def capture(self, recorder: Recorder, trunk: Any) -> list[Replay]:
        """Of the forward pass, and the backward pass where there is one."""
        forward = functools.partial(self.forward, Rows(trunk))
        replays = recorder.capture_all([forward, self.backward] if self.trains else [forward])
        self.hidden_RCE = None
        return replays


class Captured:
    """The captured passes of a trunk in one precision: they share a pool of memory, and the gradients that they add to.

    So a backward pass must be replayed before any other of them, and once; one that comes too late is refused.
    """

    def __init__(self, trunk: nn.Module, dtype: torch.dtype, recorder: Recorder) -> None:
        """`dtype`: that of matrix products."""
        self.dtype, self.recorder = dtype, recorder
        self.parameters = list(trunk.parameters())
        self.state = self._state()
        self.leaves = {
            f"trunk.{name}": parameter.detach().requires_grad_(parameter.requires_grad)
            for name, parameter in trunk.named_parameters()
        }
        self.trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.grads: list[Tensor] = []
        """Those of the leaves that are trained; the parameters have them when they are replayed."""
        self.passes: dict[Shape, tuple[FixedPass, list[Replay]]] = {}
        self.runs: Counter[Shape] = Counter()
        self.turn = 0
        """Number of the newest replay, which overwrote what an older forward pass has kept for its backward pass."""

    def _state(self) -> list[tuple[int, bool]]:
        return [(parameter.data_ptr(), parameter.requires_grad) for parameter in self.parameters]

    @property
    def has_moved(self) -> bool:
        """Whether weights are no longer where they were, or other ones are trained."""
        return self._state() != self.state

    def capture_due(self, trunk: Any, tokens_RC: Tensor, trains: bool) -> None:
        """Count a pass, and capture the shapes that have come often enough. RuntimeError where one cannot be captured.

        Where no gradients are under way: the trial of a capture adds to them.
        """
        self.runs[*tokens_RC.shape, trains] += 1
        if any(parameter.grad is not None for parameter in self.trained):
            return
        for shape, runs in self.runs.items():
            if runs <= RUNS_BEFORE or shape in self.passes:
                continue
            if held_bytes(trunk, self.dtype, [*self.passes, shape]) <= self.recorder.room:
                self._capture(trunk, shape, tokens_RC)

    def run(self, trunk: Any, tokens_RC: Tensor, trains: bool) -> Tensor:
        """Hidden states (R, C, E), replayed if this shape is captured. The next replay may overwrite them."""
        shape = (*tokens_RC.shape, trains)
        if shape not in self.passes:
            return read_rows(trunk, tokens_RC)
        fixed, replays = self.passes[shape]
        fixed.tokens_RC.copy_(tokens_RC)
        self.turn += 1
        if trains:
            # A node of autograd needs an input. With the first parameter, the embedding, as that, the gradient of a head
            # that is tied to it waits for the replay; it would be right the other way round, too.
            return _Replayed.apply(self.trained[0], self, fixed, replays)
        return replays[0]()

    def backward(self, turn: int, fixed: FixedPass, replay: Replay, slope_RCE: Tensor) -> None:
        """Replay the backward pass of the forward pass that was replayed as number `turn`."""
        if turn != self.turn:
            raise RuntimeError(
                "a backward pass of PPO on a GPU came after another forward pass of the same model, or a second time: what it "
                "needs is overwritten; call backward() once on the loss of each micro-batch, before the next one"
            )
        self.turn += 1
        assert fixed.slope_RCE is not None
        fixed.slope_RCE.copy_(slope_RCE)
        self._lend_gradients()
        replay()

    def _lend_gradients(self) -> None:
        """Make the gradients those tensors that captured passes add to; they start from what is there."""
        if not self.grads:
            self.grads = [torch.empty_like(parameter) for parameter in self.trained]
            for leaf, grad in zip((x for x in self.leaves.values() if x.requires_grad), self.grads, strict=True):
                leaf.grad = grad
        fresh = []
        for parameter, grad in zip(self.trained, self.grads, strict=True):
            if parameter.grad is None:
                fresh.append(grad)
            elif parameter.grad is not grad:
                grad.copy_(parameter.grad)
            parameter.grad = grad
        if fresh:
            torch._foreach_zero_(fresh)

    def _capture(self, trunk: Any, shape: Shape, tokens_RC: Tensor) -> None:
        """Capture a shape and keep it, if a first replay with other tokens than at the capture gives what the pass gives."""
        if not _is_plain(trunk):
            raise RuntimeError("its layers are not what they were")
        fixed = FixedPass(shape, self.leaves, tokens_RC.device)
        if fixed.trains:
            self._lend_gradients()
        try:
            replays = fixed.capture(self.recorder, trunk)
            self.turn += 1
            places_RC = torch.arange(fixed.tokens_RC.numel(), device=tokens_RC.device).view_as(fixed.tokens_RC)
            fixed.tokens_RC.copy_(tokens_RC.flatten()[places_RC % tokens_RC.numel()])
            if not self._is_right(trunk, fixed, replays):
                raise RuntimeError("its first replay did not give what the pass gives")
        finally:
            for parameter in self.trained if fixed.trains else ():
                parameter.grad = None
        self.passes[shape] = fixed, replays

    def _is_right(self, trunk: Any, fixed: FixedPass, replays: list[Replay]) -> bool:
        """Whether replays give the hidden states, and gradients at both ends of the layers, of the usual way."""
        if not fixed.trains:
            return agree(replays[0](), read_rows(trunk, fixed.tokens_RC), self.dtype)
        with torch.enable_grad():  # it may have become due in a pass without
            expected = read_rows(trunk, fixed.tokens_RC)
        generator = torch.Generator(expected.device).manual_seed(0)
        slope_RCE = torch.randn(expected.shape, generator=generator, device=expected.device, dtype=expected.dtype)
        some = [*self.trained[:2], *self.trained[-2:]]
        with torch.autocast(expected.device.type, enabled=False):
            expected_grads = torch.autograd.grad(expected, some, slope_RCE)
        found = replays[0]().clone()
        for parameter in self.trained:
            parameter.grad = None
        self.backward(self.turn, fixed, replays[1], slope_RCE)
        pairs = [(found, expected), *zip([p.grad for p in some], expected_grads, strict=True)]
        return all(agree(ours, theirs, self.dtype) for ours, theirs in pairs)  # type: ignore[arg-type]


class _Replayed(torch.autograd.Function):
    """A captured forward pass, and its backward pass, which itself adds to the gradients: autograd is given none."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, captured: Captured, fixed: FixedPass, replays: list[Replay]) -> Tensor:
        ctx.captured, ctx.fixed, ctx.replay, ctx.turn = captured, fixed, replays[1], captured.turn
        return replays[0]().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_RCE: Tensor) -> tuple[None, None, None, None]:
        ctx.captured.backward(ctx.turn, ctx.fixed, ctx.replay, slope_RCE)
        return None, None, None, None


class TrunkGraphs:
    """What is captured of a trunk, by precision. After a failure one warning is given, and nothing is captured any more.

    All passes go through `read_rows`, replayed or not, and are filled up alike: else they would round otherwise.
    """

    def __init__(self, trunk: nn.Module, device: torch.device, room: int) -> None:
        """`room`: padded tokens of a micro-batch."""
        # weak: this is the value of an entry that goes with the trunk, its key
        self._trunk, self.device, self.room = weakref.ref(trunk), device, room
        self.by_type: dict[torch.dtype, Captured] = {}
        self.newest, self.streak = torch.float32, 0
        """Precision of the last passes, and how many they were."""
        self.failed = False

    def states_at(self, tokens_bS: Tensor, wanted_N: Tensor) -> Tensor:
        """As evaluation.trunk.states_at."""
        trunk: Any = self._trunk()
        count, columns = tokens_bS.shape
        width = width_of(columns)
        rows = rows_of(count, width, self.room)
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in trunk.parameters())
        if _pays(trunk, rows * width):
            tokens_RC = nn.functional.pad(tokens_bS, (0, width - columns, 0, rows - count))
            hidden_RCE = self._run(trunk, tokens_RC, trains)
        else:
            width, hidden_RCE = columns, read_rows(trunk, tokens_bS)
        return hidden_RCE.flatten(0, 1).index_select(0, wanted_N // columns * width + wanted_N % columns)

    def _run(self, trunk: Any, tokens_RC: Tensor, trains: bool) -> Tensor:
        if not self.failed and can_capture(self.device):
            why = self._capture_due(trunk, tokens_RC, trains)
            if why is None:
                return self.by_type[self.newest].run(trunk, tokens_RC, trains)
            self.failed = True  # and what was captured is gone with the frames that it failed in
            self.by_type.clear()
            warning = f"a pass could not be captured ({why}); training goes on without CUDA graphs, slower"
            print(f"alignkit: warning: {warning}", file=sys.stderr, flush=True)
        return read_rows(trunk, tokens_RC)

    def _capture_due(self, trunk: Any, tokens_RC: Tensor, trains: bool) -> str | None:
        """Why something cannot be captured, if so."""
        try:
            self._for_type(trunk, product_dtype(trunk.norm.weight)).capture_due(trunk, tokens_RC, trains)
        except RuntimeError as error:
            return _reason(error)
        return None

    def _for_type(self, trunk: Any, dtype: torch.dtype) -> Captured:
        self.streak = self.streak + 1 if dtype == self.newest else 1
        self.newest = dtype
        for other in [other for other in self.by_type if other != dtype and self.streak > FORGET_AFTER]:
            del self.by_type[other]
        if dtype not in self.by_type or self.by_type[dtype].has_moved:
            recorder = recorder_for(self.device)
            assert recorder is not None
            self.by_type[dtype] = Captured(trunk, dtype, recorder)
        return self.by_type[dtype]


def _reason(error: BaseException) -> str:
    """The first line of what ended a capture; an error of the capture's own end follows it."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0]


_graphs: weakref.WeakKeyDictionary[nn.Module, TrunkGraphs] = weakref.WeakKeyDictionary()
