"""Decoding by captured steps, with a recorder that replays operations on the CPU as a CUDA graph does on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alignment.cuda_graphs import recorder_for
from alignment.generation import DecodeGraphs, LocalEngine, Sampling
from alignment.generation import graphs as module
from alignment.generation.decoder import Decoder
from alignment.generation.graphs import FixedStep, GraphedDecoder, StepMemory
from alignment.generation.weights import read_weights, rewrite_weights
from alignment.reward.sources.function import FunctionSource
from tests.alignment.ppo_support import run_updates, weights
from tests.op_recorder import Operations, OpRecorder

pytestmark = pytest.mark.usefixtures("without_kernels")  # a recorder on a CPU records PyTorch's operations

MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 1}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 4, "head_dim": 6}),
}
SAMPLING = Sampling(40, 1.0, eos_id=1, pad_id=0)


def make_model(name: str = "llama", seed: int = 0, context: int = 512):
    kind, config, sizes = MODELS[name]
    torch.manual_seed(seed)
    model = kind(
        config(
            vocab_size=29,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=context,
            initializer_range=0.3,
            tie_word_embeddings=False,
            **sizes,
        )
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms: zeros and ones would hide a mistake
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.eval()


def make_prompts(count: int, longest: int = 9, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 29, (n,), generator=generator).tolist() for n in lengths]


def draw(model, prompts, graphs=None, batch_size=8, sampling=SAMPLING, step=0, precision=None):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        engine = LocalEngine(model, batch_size, graphs=graphs)
        return engine.generate(prompts, sampling, 0, "test", step, range(len(prompts)))


def assert_same(ours, plain):
    assert [c.token_ids for c in ours] == [c.token_ids for c in plain]
    ours_T, plain_T = (torch.tensor([value for c in found for value in c.logprobs]) for found in (ours, plain))
    torch.testing.assert_close(ours_T, plain_T, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return make_model()


# ------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("recorder", [None, OpRecorder()], ids=["run", "replayed"])
@torch.inference_mode()
def test_the_fixed_step_equals_the_present_one(name, dtype, recorder):
    """With left padding, over two widths, while rows are dropped; run the usual way, as after a failure, and replayed."""
    weights, prompts, length = read_weights(make_model(name), dtype), make_prompts(13, 11), 150
    graphs = DecodeGraphs(OpRecorder())
    graphs.reserve(weights, 13, 11 + length)
    plain, fixed = Decoder(weights, prompts, length), GraphedDecoder(graphs, prompts, length)
    graphs.recorder = recorder
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(fixed.prefill(), logits := plain.prefill(), rtol=0, atol=0)
    for t in range(length - 1):
        tokens = logits.argmax(0)
        if t in (3, 60, 125):
            done = torch.rand(len(tokens), generator=generator) < 0.3
            size = int((~done).sum()) + 1
            order = plain.keep(done, size)
            assert torch.equal(fixed.keep(done, size), order)
            tokens = tokens[order]
        expected, found = plain.step(tokens).float(), fixed.step(tokens).float()
        assert found.shape == expected.shape
        if dtype == torch.float32:
            torch.testing.assert_close(found.log_softmax(0), expected.log_softmax(0), rtol=0, atol=1e-5)
            assert torch.equal(found.argmax(0), expected.argmax(0))
        else:  # its kernels sum in an order that depends on the width
            torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * float(expected.abs().max()))
        logits = expected
    assert bool(graphs.replays) == (recorder is not None)


def test_the_step_runs_on_one_device_and_waits_for_nothing():
    """On pretended CUDA tensors: a tensor left on the CPU and a look at a value are errors there."""

    def pretend(part):
        """The same weights, as CUDA tensors without contents."""
        tensors = {key: value for key, value in vars(part).items() if isinstance(value, torch.Tensor)}
        return replace(part, **{k: torch.empty(t.shape, dtype=t.dtype, device="cuda") for k, t in tensors.items()})

    def rotary(like, positions):
        return (torch.empty(1, positions.shape[1], weights.head_dim, device="cuda"),) * 2

    for name in MODELS:
        weights = read_weights(make_model(name), torch.bfloat16)
        with FakeTensorMode(), torch.no_grad():
            layers = [pretend(layer) for layer in weights.layers]
            memory = StepMemory(replace(pretend(weights), layers=layers, rotary=rotary), 12, 200)
            logits = FixedStep(memory, 8, 128)()
            assert (logits.shape, logits.device.type, logits.dtype) == ((29, 8), "cuda", torch.bfloat16)
            with pytest.raises(DataDependentOutputException):
                memory.set_inputs(memory.tokens_R[:8], memory.column_1.item())


def test_what_the_present_step_does_could_not_be_captured():
    """The recorder shows it: the column would be that of the capture. Else the tests here would prove nothing."""
    with torch.inference_mode():
        weights, prompts = read_weights(make_model(), torch.float32), make_prompts(4)
        plain, recorded = Decoder(weights, prompts, 20), Decoder(weights, prompts, 20)
        tokens = plain.prefill().argmax(0)
        recorded.prefill()
        with Operations() as operations:
            result = recorded.step(tokens)
        torch.testing.assert_close(result, plain.step(tokens), rtol=0, atol=1e-5)
        operations.replay()
        assert not torch.allclose(result, plain.step(tokens), atol=1e-2)
        with pytest.raises(RuntimeError, match="capturing: nonzero"), Operations():
            recorded.keep(torch.tensor([True, False, False, False]), 3)


def test_shapes_of_steps_are_few():
    with torch.inference_mode():
        memory = StepMemory(read_weights(make_model(), torch.float32), 61, 700)
    shapes = {memory.shape_for(rows, column) for rows in range(1, 62) for column in range(700)}
    assert {rows for rows, _ in shapes} == set(range(8, 65, 8))
    assert {width for _, width in shapes} == {128, 256, 512, 768}
    assert all(memory.shape_for(61, column)[1] > column for column in range(700))
    assert memory.cache.keys.shape[1:4:2] == (64, 768)


# ------------------------------------------------------------------------------------ the engine


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("name", list(MODELS))
def test_the_engine_samples_the_same(name, temperature):
    """Several batches, the last one smaller; rows end and are dropped; prompts repeat."""
    model, sampling = make_model(name), Sampling(150, temperature, 1, 0)
    prompts = make_prompts(20) + make_prompts(7)
    recorder = OpRecorder()
    ours = draw(model, prompts, DecodeGraphs(recorder), 11, sampling)
    assert_same(ours, draw(model, prompts, None, 11, sampling))
    assert recorder.replayed > recorder.captured > 0
    assert temperature == 0 or len({len(c.token_ids) for c in ours}) > 1


def test_greedy_tokens_are_the_same_in_bf16(model):
    prompts, sampling = make_prompts(12), Sampling(30, 0.0, 1, 0)
    recorder = OpRecorder()
    ours = draw(model, prompts, DecodeGraphs(recorder), sampling=sampling, precision="bf16")
    assert recorder.replayed
    assert [c.token_ids for c in ours] == [
        c.token_ids for c in draw(model, prompts, None, sampling=sampling, precision="bf16")
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_are_captured_once_and_see_weights_that_change(precision):
    model, prompts, endless = make_model(), make_prompts(16), Sampling(40, 0.0, -1, 0)
    recorder = OpRecorder()
    graphs = DecodeGraphs(recorder)
    first = draw(model, prompts, graphs, sampling=endless, precision=precision)
    captured, memory = recorder.captured, graphs.memory
    graphs.rest()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    second = draw(model, prompts, graphs, sampling=endless, precision=precision)
    fresh = draw(model, prompts, None, sampling=endless, precision=precision)
    assert [c.token_ids for c in second] == [c.token_ids for c in fresh] != [c.token_ids for c in first]
    assert (recorder.captured, graphs.memory) == (captured, memory) and captured > 0


@pytest.mark.parametrize("change", ["moved", "model", "precision", "longer", "more"])
def test_graphs_are_captured_anew_when_what_they_refer_to_moves(model, change):
    model, prompts, precision = make_model(), make_prompts(8), None
    recorder = OpRecorder()
    graphs = DecodeGraphs(recorder)
    draw(model, prompts, graphs)
    captured = recorder.captured
    if change == "moved":
        model.model.layers[1].mlp.down_proj.weight.data = model.model.layers[1].mlp.down_proj.weight.data * 1.5
    if change == "model":
        model = make_model(seed=1)
    if change == "precision":
        precision = "bf16"
    if change == "longer":
        prompts = make_prompts(8, 200)
    if change == "more":
        prompts = make_prompts(20)
    ours = draw(model, prompts, graphs, 20, precision=precision)
    assert recorder.captured > captured
    plain = draw(model, prompts, None, 20, precision=precision)
    if precision is None:
        assert_same(ours, plain)
    assert [c.token_ids for c in ours] == [c.token_ids for c in plain]


def test_what_a_batch_leaves_in_the_cache_does_not_reach_the_next(model):
    prompts, graphs = make_prompts(8), DecodeGraphs(OpRecorder())
    plain = draw(model, prompts)
    assert_same(draw(model, prompts, graphs), plain)
    with torch.inference_mode():
        graphs.memory.cache.keys.fill_(torch.nan), graphs.memory.cache.values.fill_(torch.inf)
        graphs.memory.starts_R.fill_(100)
    assert_same(draw(model, prompts, graphs), plain)


def test_shapes_of_a_few_steps_are_not_captured(model):
    graphs, endless = DecodeGraphs(recorder := OpRecorder()), Sampling(1 + module.RUNS_BEFORE, 0.0, -1, 0)
    draw(model, make_prompts(4), graphs, sampling=endless)
    assert recorder.captured == 0
    draw(model, make_prompts(4), graphs, sampling=endless)
    assert (recorder.captured, recorder.replayed) == (1, 1 + module.RUNS_BEFORE)  # one of them for the check


def test_memory_of_large_products_never_moves(model):
    """A graph of few rows is captured first; then one of many, and prefills of many tokens."""
    prompts = sorted(make_prompts(64, 60), key=len)
    graphs = DecodeGraphs(OpRecorder())
    with torch.inference_mode():
        graphs.reserve(graphs.read(model, torch.float32), 64, 120)
    addresses = {name: flat.data_ptr() for name, flat in graphs.memory.network.scratch.flat.items()}
    for count in (3, 64, 20):
        assert_same(draw(model, prompts[:count], graphs, 64), draw(model, prompts[:count], None, 64))
    assert addresses == {name: flat.data_ptr() for name, flat in graphs.memory.network.scratch.flat.items()}


def test_little_is_kept_between_rollouts(model):
    prompts = make_prompts(4)
    for room, kept in ((2**40, True), (1000, False)):
        graphs = DecodeGraphs(OpRecorder(room))
        engine = LocalEngine(model, 4, graphs=graphs)
        first = engine.generate(prompts, SAMPLING, 0, "test", 0, range(4))
        graphs.rest()
        assert (graphs.memory is not None) == (graphs.weights is not None) == bool(graphs.replays) == kept
        assert engine.generate(prompts, SAMPLING, 0, "test", 0, range(4)) == first


def test_weights_are_read_again_in_place(model):
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model("qwen2")
        with torch.inference_mode():
            held = read_weights(model, dtype)
            addresses = [part.qkv.data_ptr() for part in held.layers]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        with torch.inference_mode():
            assert rewrite_weights(held, model, dtype)
            fresh = read_weights(model, dtype)
        assert addresses == [part.qkv.data_ptr() for part in held.layers]
        for old, new in zip([held, *held.layers], [fresh, *fresh.layers], strict=True):
            for key, value in vars(new).items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(vars(old)[key], value), key
    assert not rewrite_weights(held, model, torch.float32)


# ------------------------------------------------------------------------------------ where it fails


class Refuses(OpRecorder):
    """Captures some steps, then no more."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def capture(self, step):
        if self.captured == self.after:
            raise RuntimeError("CUDA error: operation not permitted\nCompile with TORCH_USE_CUDA_DSA")
        return super().capture(step)


class Stale(OpRecorder):
    """A graph that has the inputs of its capture, as one with a number of Python in it."""

    def capture(self, step):
        memory = step.memory
        inputs = [t.clone() for t in (memory.tokens_R, memory.column_1)]
        replay = super().capture(step)

        def stale():
            memory.tokens_R.copy_(inputs[0]), memory.column_1.copy_(inputs[1])
            return replay()

        return stale


class Forgets(OpRecorder):
    """Gives the right logits, and does not write all keys."""

    def capture(self, step):
        memory, replay = step.memory, super().capture(step)

        def forgetful():
            result = replay()
            memory.cache.keys[1, :, :, memory.column_1] = 0
            return result

        return forgetful


class Nothing(OpRecorder):
    """A replay that does nothing."""

    def capture(self, step):
        result = super().capture(step)()
        return lambda: result


@pytest.mark.parametrize(
    "recorder, words",
    [
        (Refuses(0), "could not be captured (CUDA error: operation not permitted)"),
        (Refuses(2), "could not be captured (CUDA error: operation not permitted)"),
        (Stale(), "did not give what the step gives"),
        (Forgets(), "did not give what the step gives"),
        (Nothing(), "did not give what the step gives"),
    ],
    ids=["refused", "refused later", "stale", "writes nothing", "does nothing"],
)
def test_a_graph_that_fails_is_said_once_and_done_without(model, recorder, words, capsys):
    """In the batch that it happens in, and in those after it."""
    prompts, graphs = make_prompts(24), DecodeGraphs(recorder)
    for step in range(2):
        assert_same(draw(model, prompts, graphs, step=step), draw(model, prompts, step=step))
        graphs.rest()
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "without CUDA graphs" in said
    assert graphs.recorder is None and not graphs.replays and graphs.memory is None


def test_a_model_that_gives_nan_is_no_fault_of_the_graph(model, capsys):
    broken = make_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    graphs = DecodeGraphs(OpRecorder())
    draw(broken, make_prompts(4), graphs, sampling=Sampling(8, 0.0, 1, 0))
    assert graphs.replays and capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------ in PPO


def test_ppo_captures_a_step_once_and_trains_as_without(make):
    plain, graphed = (make(updates=3, learning_rate=0.01) for _ in range(2))
    recorder = OpRecorder()
    graphed.graphs = DecodeGraphs(recorder)
    assert run_updates(plain) == run_updates(graphed)
    assert torch.equal(weights(plain), weights(graphed))
    assert recorder.captured == len(graphed.graphs.replays) > 0
    if plain.runtime.device.type == "cpu":  # there nothing is held during an update
        assert plain.graphs.weights is plain.graphs.memory is None


@pytest.mark.parametrize("changes", [{"rollouts_ahead": 1}, {"overlap_scoring": True}])
def test_ppo_captures_nothing_while_something_else_may_use_the_device(make, changes):
    def rewards(prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    source = FunctionSource("length", rewards, "f.py:rewards", Path("."))
    source.row_by_row = True  # else overlap_scoring asks it for nothing early
    trainer = make(source=source, updates=2, **changes)
    trainer.graphs = DecodeGraphs(recorder := OpRecorder())
    run_updates(trainer)
    assert recorder.captured == 0


# ------------------------------------------------------------------------------------ on which device


def test_on_the_cpu_nothing_is_captured_or_kept(model):
    engine = LocalEngine(model, 4)
    engine.generate(make_prompts(4), SAMPLING, 0, "test", 0, range(4))
    assert engine.graphs.recorder is engine.graphs.memory is engine.graphs.weights is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_on_a_gpu_replays_sample_what_the_usual_way_does(name, precision, capsys):
    model, prompts = make_model(name).cuda(), make_prompts(30)
    sampling = Sampling(150, 0.0, 1, 0)
    graphs = DecodeGraphs(recorder_for(torch.device("cuda")))
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        ours, plain = (
            [LocalEngine(model, 16, graphs=kept).generate(prompts, sampling, 0, "test", 0, range(30)) for _ in range(2)]
            for kept in (graphs, DecodeGraphs(None))
        )
    if precision == "fp32":
        assert [[c.token_ids for c in rollout] for rollout in ours] == [
            [c.token_ids for c in rollout] for rollout in plain
        ]
    assert graphs.replays and capsys.readouterr().err == ""
