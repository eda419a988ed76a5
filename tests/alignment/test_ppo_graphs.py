"""Captured passes of PPO, on the CPU with a recorder of operations, and on a GPU where there is one: the same numbers as
the model's own forward and backward pass, shapes, what makes them be captured anew or given up."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from transformers import LlamaForCausalLM

from alignment.ppo import graphs as module
from alignment.ppo.graphs import RUNS_BEFORE, capture_passes, held_bytes, rows_of, states_of, width_of
from evaluation.trunk import read_rows, states_at
from tests.alignment.graph_support import Refuses, graphs_of, passes_of
from tests.evaluation.test_trunk import KINDS, by_forward, gradients, make_rows, make_trunk
from tests.op_recorder import OpRecorder

pytestmark = pytest.mark.usefixtures("without_kernels")  # a recorder on a CPU records PyTorch's operations

CPU = torch.device("cpu")
ROWS, ROOM = ([30, 9, 17, 2, 24, 40], 40), (8, 64)
"""6 rows of 40 tokens are 8 of 64 where that is the room."""


def captured_trunk(recorders, kind="llama", **changes):
    trunk = make_trunk(kind, **changes)
    assert capture_passes([trunk], CPU, *ROOM)
    return trunk


def train_once(trunk, tokens_bS, wanted_N):
    """Hidden states and gradients of a pass, whose gradients are wiped out afterwards, as an optimizer step does."""
    found = states_of(trunk, tokens_bS, wanted_N)
    slopes = gradients_of(trunk, found)
    return found.detach(), slopes


def gradients_of(trunk, states_NE):
    generator = torch.Generator().manual_seed(2)
    (states_NE.float() * torch.randn(states_NE.shape, generator=generator)).sum().backward()
    found = torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])
    trunk.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_replays_give_states_and_gradients_of_the_forward_pass(recorders, kind):
    trunk = captured_trunk(recorders, kind)
    for seed in range(RUNS_BEFORE + 3):
        tokens_bS, wanted_N = make_rows(*ROWS, seed)
        found, own = train_once(trunk, tokens_bS, wanted_N)
        expected = by_forward(trunk, tokens_bS, wanted_N)
        torch.testing.assert_close(found, expected.detach(), atol=2e-5, rtol=1e-5)
        of_forward = gradients(trunk, expected)
        trunk.zero_grad(set_to_none=True)
        assert (own - of_forward).norm() < 1e-5 * of_forward.norm()
    [recorder] = recorders
    assert list(passes_of(trunk)) == [(8, 64, True)] and recorder.captured == 2
    assert recorder.replayed == 2 + 2 * 3  # forward and backward: once to see whether it is right, then each time


@given(st.integers(1, 5000))
def test_columns_are_few_and_hardly_more_than_the_length(length):
    columns = width_of(length)
    assert columns % 32 == 0 and length <= columns <= max(length + 31, 1.25 * length)
    assert width_of(columns) == columns
    assert len({width_of(n) for n in range(columns, 2 * columns)}) <= 9


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 64))
def test_rows_are_those_that_have_room_or_parts_of_them(count, width, micro_batch):
    columns = 32 * width
    room = micro_batch * 32 * 16
    rows, whole = rows_of(count, columns, room), max(1, room // columns)
    quarter = -(-whole // 4)
    assert count <= rows < count + max(quarter, whole - -(-whole // 2), 1)
    assert rows * columns <= room or count > whole or whole == 1
    assert len({rows_of(n, columns, room) for n in range(1, whole + 1)}) <= 3


def test_results_of_before_may_still_be_there(recorders):
    trunk = captured_trunk(recorders)
    kept = by_forward(trunk, *make_rows(*ROWS))
    for _ in range(RUNS_BEFORE + 2):
        own = train_once(trunk, *make_rows(*ROWS))[1]
    assert passes_of(trunk) and (own - gradients_of(trunk, kept)).norm() < 1e-5 * own.norm()


def test_the_usual_way_and_replays_are_the_same_to_the_bit(recorders):
    """Both have the rounded shape: the ratio of PPO's first step is 1 whichever of its two passes is replayed."""
    trunk = captured_trunk(recorders)
    tokens_bS, wanted_N = make_rows(*ROWS)
    runs = [train_once(trunk, tokens_bS, wanted_N) for _ in range(RUNS_BEFORE + 2)]
    for states, slopes in runs[1:]:
        assert torch.equal(states, runs[0][0]) and torch.equal(slopes, runs[0][1])
    with torch.no_grad():
        scored = [states_of(trunk, tokens_bS, wanted_N) for _ in range(RUNS_BEFORE + 2)]
    assert all(torch.equal(states, runs[0][0]) for states in scored)
    assert set(passes_of(trunk)) == {(8, 64, True), (8, 64, False)}


def test_gradients_add_up_over_passes_replayed_or_not(recorders):
    """Micro-batches of a step: one of a captured shape, one of another, one of the captured shape."""
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *make_rows(*ROWS))
    assert passes_of(trunk)
    parts = [make_rows(*ROWS, 5), make_rows([20, 7], 20, 6), make_rows(*ROWS, 7)]
    sums = []
    for read in (states_of, states_at):
        for part in parts:
            (read(trunk, *part) ** 2).sum().backward()
        sums.append(torch.cat([p.grad.flatten() for p in trunk.parameters()]))
        trunk.zero_grad(set_to_none=True)
    assert (sums[0] - sums[1]).norm() < 1e-5 * sums[1].norm()


def test_gradients_that_are_there_count_however_they_came_there(recorders):
    """A PTX loss leaves gradients in tensors of its own, and takes them away again."""
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *make_rows(*ROWS))
    alone = train_once(trunk, *make_rows(*ROWS, 8))[1]
    for parameter in trunk.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.testing.assert_close(train_once(trunk, *make_rows(*ROWS, 8))[1], alone + 1)
    torch.testing.assert_close(train_once(trunk, *make_rows(*ROWS, 8))[1], alone, atol=0, rtol=0)


def test_new_weights_in_the_same_place_are_read(recorders):
    trunk = captured_trunk(recorders)
    part = make_rows(*ROWS)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *part)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(train_once(trunk, *part)[0], by_forward(trunk, *part).detach(), atol=2e-5, rtol=1e-5)
    assert recorders[0].captured == 2


@pytest.mark.parametrize("change", ["moved", "frozen", "another is frozen"])
def test_weights_elsewhere_are_captured_anew(recorders, change):
    trunk = captured_trunk(recorders)
    trunk.layers[1].mlp.down_proj.weight.requires_grad_(change != "another is frozen")
    part = make_rows(*ROWS)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *part)
    weight = trunk.layers[1].mlp.up_proj.weight
    if change == "moved":
        weight.data = weight.data * 2
    else:
        weight.requires_grad_(False)
    if change == "another is frozen":
        trunk.layers[1].mlp.down_proj.weight.requires_grad_(True)
    for _ in range(RUNS_BEFORE + 2):
        found, slopes = train_once(trunk, *part)
    expected = by_forward(trunk, *part)
    torch.testing.assert_close(found, expected.detach(), atol=2e-5, rtol=1e-5)
    of_forward = gradients_of(trunk, expected)
    assert (slopes - of_forward).norm() < 1e-5 * of_forward.norm()
    assert len(recorders) == 2 and recorders[1].captured == 2


def test_each_precision_has_its_own_and_one_that_is_not_used_goes(recorders):
    trunk = captured_trunk(recorders)
    part = make_rows(*ROWS)

    def run(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            return train_once(trunk, *part), states_at(trunk, *part).detach()

    for _ in range(RUNS_BEFORE + 2):
        for bf16 in (False, True):
            (found, _), expected = run(bf16)
            torch.testing.assert_close(found, expected, atol=0.1 if bf16 else 2e-5, rtol=1e-5)
    assert set(graphs_of(trunk).by_type) == {torch.float32, torch.bfloat16}
    for _ in range(module.FORGET_AFTER):
        run(True)
    assert set(graphs_of(trunk).by_type) == {torch.bfloat16} and passes_of(trunk, torch.bfloat16)


def test_a_backward_pass_that_comes_too_late_is_refused(recorders):
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *make_rows(*ROWS))
    first, second = (states_of(trunk, *make_rows(*ROWS, seed)) for seed in (1, 2))
    with pytest.raises(RuntimeError, match="before the next one"):
        first.sum().backward()
    second.sum().backward()


def test_a_second_backward_pass_is_refused(recorders):
    """Its activations are gone, which autograd, that has none of them, would not notice."""
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *make_rows(*ROWS))
    loss = states_of(trunk, *make_rows(*ROWS)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_a_pass_whose_backward_pass_never_came_is_forgotten(recorders):
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        expected = train_once(trunk, *make_rows(*ROWS))[1]
    states_of(trunk, *make_rows(*ROWS, 9))  # and an interrupt
    assert torch.equal(train_once(trunk, *make_rows(*ROWS))[1], expected)


def test_another_thread_takes_the_usual_way(recorders, monkeypatch):
    trunk, part, found = captured_trunk(recorders), make_rows(*ROWS), []
    for _ in range(RUNS_BEFORE + 1):
        expected = train_once(trunk, *part)[0]
    replayed = recorders[0].replayed
    monkeypatch.setattr(module, "can_capture", lambda device: threading.current_thread() is threading.main_thread())
    thread = threading.Thread(target=lambda: found.append(states_of(trunk, *part)))
    thread.start(), thread.join()
    assert torch.equal(found[0], expected) and recorders[0].replayed == replayed


def test_a_head_that_is_tied_to_the_embedding_gets_both_gradients(recorders):
    """Over two micro-batches of a step, of which the first is replayed, too."""
    torch.manual_seed(0)
    config = make_trunk().config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    capture_passes([model.model], CPU, *ROOM)
    sums = []
    for read in [states_of] * (RUNS_BEFORE + 2) + [by_forward]:
        for seed in (1, 2):
            tokens_bS, wanted_N = make_rows(*ROWS, seed)
            states = read(model.model, tokens_bS, wanted_N)
            (model.lm_head(states).log_softmax(-1) ** 2).sum().backward()
        sums.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad(set_to_none=True)
    assert passes_of(model.model) and model.lm_head.weight is model.model.embed_tokens.weight
    for found in sums[:-1]:
        assert (found - sums[-1]).norm() < 1e-5 * sums[-1].norm()


def test_a_shape_is_captured_where_gradients_start(recorders):
    """Its trial adds to them: in the middle of a step it waits."""
    trunk = captured_trunk(recorders)
    part = make_rows(*ROWS)
    for _ in range(RUNS_BEFORE + 4):
        states_of(trunk, *part).sum().backward()
    assert not passes_of(trunk)
    trunk.zero_grad(set_to_none=True)
    other = make_rows([9], 9)
    states_of(trunk, *other).sum().backward()
    assert set(passes_of(trunk)) == {(8, 64, True)}


def test_a_shape_may_become_due_in_the_other_kind_of_pass(recorders, capsys):
    """One that trains at the next rollout's scoring, which has no gradients, and one that scores while gradients are there."""
    trunk = captured_trunk(recorders)
    part = make_rows(*ROWS)
    for _ in range(RUNS_BEFORE + 1):
        states_of(trunk, *part).sum().backward()
        with torch.no_grad():
            states_of(trunk, *part)
    assert not passes_of(trunk)
    trunk.zero_grad(set_to_none=True)
    with torch.no_grad():
        found = states_of(trunk, *part)
    assert set(passes_of(trunk)) == {(8, 64, True), (8, 64, False)} and capsys.readouterr().err == ""
    assert torch.equal(train_once(trunk, *part)[0], found)


@pytest.mark.parametrize("limit", ["work", "room"])
def test_what_is_too_large_is_not_captured(recorders, monkeypatch, limit):
    """Where its kernels take the time it is not rounded up either; where it has no room it is, as replays would be."""
    trunk = make_trunk()
    layer = sum(p.numel() for p in trunk.layers[0].parameters())
    if limit == "work":
        monkeypatch.setattr(module, "MOST_WORK", 8 * 64 * layer)
    else:
        weights = sum(6 * p.numel() for p in trunk.parameters())
        recorders.room = weights + 4 * 512 * (40 * 32 + 16 * 44 + 8 * 4 * 64) + 2 * 512 * 8 * 32  # two of 512 tokens
    capture_passes([trunk], CPU, *ROOM)
    large = make_rows([60, 64, 66] * 2, 66)
    for _ in range(RUNS_BEFORE + 2):
        for part in (make_rows(*ROWS), large):
            train_once(trunk, *part)
            with torch.no_grad():
                found = states_of(trunk, *part)
    assert set(passes_of(trunk)) == {(8, 64, False), (8, 64, True)}
    torch.testing.assert_close(found, states_at(trunk, *large), atol=2e-5, rtol=1e-5)
    assert not capture_passes([trunk], CPU, 18, 64)  # a whole micro-batch is too large: nothing is filled up
    assert trunk not in module._graphs


@pytest.mark.parametrize("limit", ["work", "room"])
def test_where_one_model_cannot_be_captured_none_is(recorders, monkeypatch, limit):
    """Policy and reference are to round alike. One that is not written out goes its own way in any case."""
    small, large, other = make_trunk(), make_trunk(num_hidden_layers=9, intermediate_size=99), make_trunk()
    other.layers[0].mlp.up_proj.register_forward_hook(lambda *parts: None)
    assert capture_passes([small, large, other], CPU, *ROOM)
    assert small in module._graphs and large in module._graphs and other not in module._graphs
    if limit == "work":
        layer = sum(p.numel() for p in small.layers[0].parameters())
        monkeypatch.setattr(module, "MOST_WORK", 8 * 64 * layer)
    else:
        recorders.room = held_bytes(small, torch.bfloat16, [(8, 64, True)])
    assert not capture_passes([small, large, other], CPU, *ROOM) and not {small, large} & set(module._graphs)
    assert capture_passes([small, other], CPU, *ROOM) and small in module._graphs


def test_what_is_held_is_of_the_largest_shape_that_trains(recorders):
    trunk = make_trunk()
    small, large, scoring = (4, 32, True), (8, 64, True), (16, 64, False)
    alone = held_bytes(trunk, torch.bfloat16, [large])
    results = 4 * 32 * 8 * 32
    assert held_bytes(trunk, torch.bfloat16, [small, large]) == alone + results
    more = held_bytes(trunk, torch.bfloat16, [scoring, large]) - alone
    assert more == 512 * (40 * 32 + 16 * 44) + 1024 * 8 * 32  # a layer twice as long, and its results
    assert held_bytes(trunk, torch.float32, [large]) == alone + 4 * 512 * 64 * 8 * 4  # grouped heads: the scores
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    assert held_bytes(trunk, torch.bfloat16, [large]) == alone - sum(p.nbytes for p in trunk.parameters())


def test_what_is_not_a_plain_trunk_is_left_alone(recorders):
    adapted, hooked = make_trunk(), make_trunk()
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), adapted)
    hooked.layers[0].mlp.up_proj.register_forward_hook(lambda *parts: None)
    watched = make_trunk()
    watched.norm.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    for trunk in (
        adapted,
        hooked,
        watched,
        make_trunk(layer_types=["sliding_attention"] * 3, kind="qwen2", sliding_window=8),
    ):
        assert not capture_passes([trunk], CPU, *ROOM) and trunk not in module._graphs
    part = make_rows(*ROWS)
    assert torch.equal(states_of(adapted, *part), states_at(adapted, *part))


def test_layers_that_are_changed_later_end_it(recorders, capsys):
    trunk = captured_trunk(recorders)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), trunk)
    for _ in range(RUNS_BEFORE + 1):
        found = train_once(trunk, *make_rows(*ROWS))[0]
    torch.testing.assert_close(found, by_forward(trunk, *make_rows(*ROWS)), atol=2e-5, rtol=1e-5)
    assert "its layers are not what they were" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_captured():
    trunk = make_trunk()
    assert not capture_passes([trunk], CPU, *ROOM) and trunk not in module._graphs


def test_a_trunk_that_is_gone_takes_its_graphs_along(recorders):
    trunk = captured_trunk(recorders)
    for _ in range(RUNS_BEFORE + 1):
        train_once(trunk, *make_rows(*ROWS))
    gone = [weakref.ref(trunk), weakref.ref(graphs_of(trunk)), weakref.ref(trunk.norm.weight)]
    del trunk
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


# ------------------------------------------------------------------------------------ where it fails


class NoMemory(OpRecorder):
    def capture_all(self, steps):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None


class Stale(OpRecorder):
    """A graph that has the tokens of its capture."""

    def capture_all(self, steps):
        fixed = steps[0].func.__self__
        replays = super().capture_all(steps)
        return [lambda: (fixed.tokens_RC.zero_(), replays[0]())[1], *replays[1:]]


class AddsNothing(OpRecorder):
    """A backward pass that leaves the gradients alone."""

    def capture_all(self, steps):
        replays = super().capture_all(steps)
        return [replays[0], lambda: None]


class Twice(OpRecorder):
    """A backward pass that adds twice."""

    def capture_all(self, steps):
        replays = super().capture_all(steps)
        return [replays[0], lambda: (replays[0](), replays[1](), replays[0](), replays[1]())]


@pytest.mark.parametrize(
    "kind, words",
    [
        (Refuses, "could not be captured (CUDA error: operation not permitted)"),
        (NoMemory, "could not be captured (CUDA out of memory)"),
        (Stale, "its first replay did not give what the pass gives"),
        (AddsNothing, "its first replay did not give what the pass gives"),
        (Twice, "its first replay did not give what the pass gives"),
    ],
)
def test_a_pass_that_cannot_be_captured_is_said_once_and_done_without(recorders, monkeypatch, capsys, kind, words):
    monkeypatch.setattr(module, "recorder_for", lambda device: kind())
    trunk = make_trunk()
    capture_passes([trunk], CPU, *ROOM)
    part = make_rows(*ROWS)
    expected = by_forward(trunk, *part)
    of_forward = gradients_of(trunk, expected)
    for _ in range(2 * RUNS_BEFORE + 2):
        found, slopes = train_once(trunk, *part)
        torch.testing.assert_close(found, expected.detach(), atol=2e-5, rtol=1e-5)
        assert (slopes - of_forward).norm() < 1e-5 * of_forward.norm()
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "without CUDA graphs" in said
    assert not graphs_of(trunk).by_type


def test_what_a_failed_capture_held_is_free_before_the_usual_pass(monkeypatch, recorders):
    trunk, alive = captured_trunk(recorders), []

    def fail(self, recorder, trunk):
        self.forward(module.Rows(trunk))
        alive.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def read(trunk, tokens):
        gone.append(not alive or alive[-1]() is None)
        return read_rows(trunk, tokens)

    gone = []
    monkeypatch.setattr(module.FixedPass, "capture", fail)
    train_once(trunk, *make_rows(*ROWS))
    monkeypatch.setattr(module, "read_rows", read)
    train_once(trunk, *make_rows(*ROWS))
    assert len(alive) == 1 and gone[-1]


# ------------------------------------------------------------------------------------ on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_replays_give_what_the_forward_pass_gives(kind, precision, capsys):
    trunk = make_trunk(kind, hidden_size=128, num_attention_heads=4, head_dim=32, initializer_range=0.05).cuda()
    assert capture_passes([trunk], torch.device("cuda"), *ROOM)
    part = [tensor.cuda() for tensor in make_rows(*ROWS)]
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        expected = by_forward(trunk, *part)
        weights_NE = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).cuda()
        results = []
        for read in [by_forward] + [states_of] * (RUNS_BEFORE + 2):
            states = read(trunk, *part)
            (states.float() * weights_NE).sum().backward()
            results.append((states.detach(), torch.cat([p.grad.flatten() for p in trunk.parameters()])))
            trunk.zero_grad(set_to_none=True)
        with torch.no_grad():
            scored = [states_of(trunk, *part) for _ in range(RUNS_BEFORE + 2)]
    near = 1e-4 if precision == "fp32" else 2e-2
    for states, slopes in results[1:]:
        for found, reference in ((states, results[0][0]), (slopes, results[0][1])):
            assert (found - reference).norm() < near * reference.norm()
    assert all(torch.equal(states, results[1][0]) for states in [*scored, *(pair[0] for pair in results[2:])])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert set(passes_of(trunk, dtype)) == {(8, 64, True), (8, 64, False)} and capsys.readouterr().err == ""
