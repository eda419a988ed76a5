"""States at a few positions: the same numbers and gradients as the model's own forward pass, and that pass where it must be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from alignment.models import switch_off_dropout
from evaluation import trunk as trunks
from evaluation.trunk import reads_packed, states_at
from evaluation.trunk_ops import Layout, attend, rms_norm, rotate
from launch.attention import take_float32_for_short_rows

pytestmark = pytest.mark.usefixtures("kernels")

KINDS = {"llama": (LlamaConfig, LlamaModel), "qwen2": (Qwen2Config, Qwen2Model), "qwen3": (Qwen3Config, Qwen3Model)}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def attention_as_in_jobs():
    take_float32_for_short_rows()


def make_trunk(kind="llama", **changes):
    settings = dict(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    config, model = KINDS[kind]
    torch.manual_seed(0)
    made = model(config(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or "bias" in name:  # else ones and zeros, which hide a missing factor
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def make_rows(lengths, columns, seed=1):
    """Random tokens, and the last half of each row's places."""
    generator = torch.Generator().manual_seed(seed)
    tokens_bS = torch.randint(1, 50, (len(lengths), columns), generator=generator)
    places = [torch.arange(n // 2, n) + row * columns for row, n in enumerate(lengths)]
    return tokens_bS, torch.cat(places)


def by_forward(trunk, tokens_bS, wanted_N):
    return trunk(tokens_bS, use_cache=False).last_hidden_state.flatten(0, 1)[wanted_N]


def gradients(trunk, states_NE):
    """Of a loss that depends on every number otherwise."""
    generator = torch.Generator().manual_seed(2)
    trunk.zero_grad()
    (states_NE.float() * torch.randn(states_NE.shape, generator=generator)).sum().backward()
    return torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])


SHAPES = {
    "all places": ([24] * 5, 24),
    "natural lengths": ([30, 9, 17, 2, 24, 40, 5, 8], 40),
    "long rows": ([150, 40, 97, 20], 150),
    "several passes": ([120, 60, 100] * 10, 120),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_forward_pass(kind, shape):
    trunk, (tokens_bS, wanted_N) = make_trunk(kind), make_rows(*SHAPES[shape])
    assert reads_packed(trunk, CPU)
    expected, found = by_forward(trunk, tokens_bS, wanted_N), states_at(trunk, tokens_bS, wanted_N)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    of_forward, own = gradients(trunk, expected), gradients(trunk, found)
    assert (own - of_forward).norm() < 1e-5 * of_forward.norm()
    assert own.count_nonzero() == of_forward.count_nonzero()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_it_is_as_near_to_float32_as_the_forward_pass(kind, shape):
    trunk, (tokens_bS, wanted_N) = make_trunk(kind), make_rows(*SHAPES[shape])
    exact = by_forward(trunk, tokens_bS, wanted_N)
    exact_gradients = gradients(trunk, exact)
    with torch.autocast("cpu", torch.bfloat16):
        others = {"forward": by_forward(trunk, tokens_bS, wanted_N), "own": states_at(trunk, tokens_bS, wanted_N)}
    errors = {name: (states - exact).norm() for name, states in others.items()}
    assert 0 < errors["own"] < 1.3 * errors["forward"]
    of_gradients = {name: (gradients(trunk, states) - exact_gradients).norm() for name, states in others.items()}
    assert 0 < of_gradients["own"] < 1.3 * of_gradients["forward"]


def test_weights_in_bf16():
    """As DeepSpeed keeps them, without autocast."""
    tokens_bS, wanted_N = make_rows(*SHAPES["natural lengths"])
    exact = by_forward(make_trunk(), tokens_bS, wanted_N)
    trunk = make_trunk().bfloat16()
    expected, found = by_forward(trunk, tokens_bS, wanted_N), states_at(trunk, tokens_bS, wanted_N)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.3 * (expected - exact).norm()
    exact_trunk = make_trunk()
    of_exact = gradients(exact_trunk, by_forward(exact_trunk, tokens_bS, wanted_N))
    own, of_forward = (gradients(trunk, states).float() for states in (found, expected))
    assert (own - of_exact).norm() < 1.3 * (of_forward - of_exact).norm()


def test_what_stands_after_the_last_place_of_a_row_is_left_out():
    trunk, (lengths, columns) = make_trunk(), SHAPES["natural lengths"]
    seen = []
    trunk.layers[0].self_attn.q_proj.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    tokens_bS, wanted_N = make_rows(lengths, columns)
    changed_bS = tokens_bS.clone()
    for row, length in enumerate(lengths):
        changed_bS[row, length:] = 49
    assert not torch.equal(tokens_bS, changed_bS)
    assert torch.equal(states_at(trunk, tokens_bS, wanted_N), states_at(trunk, changed_bS, wanted_N))
    with torch.autocast("cpu", torch.bfloat16):
        states_at(trunk, tokens_bS, wanted_N)
    assert seen == [sum(lengths)] * 2 + [192]  # in bf16 with some places that make it a multiple of 64


def test_a_pass_with_and_without_gradient_are_the_same_to_the_bit():
    trunk, (tokens_bS, wanted_N) = make_trunk(), make_rows(*SHAPES["several passes"])
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            with torch.no_grad():
                without = states_at(trunk, tokens_bS, wanted_N)
            assert torch.equal(states_at(trunk, tokens_bS, wanted_N).detach(), without)


def test_the_last_layer_goes_on_with_the_asked_places_alone():
    trunk, (tokens_bS, wanted_N) = make_trunk(), make_rows(*SHAPES["all places"])
    seen = []
    for layer in trunk.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    assert reads_packed(trunk, CPU)  # linear layers are called, so what hangs on them acts
    states_at(trunk, tokens_bS, wanted_N)
    assert seen == [120, 120, 60]


def test_products_are_of_few_shapes():
    trunk, seen = make_trunk(), set()
    for layer in trunk.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, inputs, out: seen.add(len(out)))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            states_at(trunk, *make_rows([40, *torch.randint(2, 40, (11,), generator=generator).tolist()], 40))
    assert all(tokens % 64 == 0 for tokens in seen) and len(seen) < 10


def test_adapters_act():
    """Drawn, not trained, they make large states: float32 is off by some 1e-5 whoever computes it, so float64 is the judge."""
    trunk, (tokens_bS, wanted_N) = make_trunk(), make_rows(*SHAPES["natural lengths"])
    plain = states_at(trunk, tokens_bS, wanted_N)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False), trunk)
    assert reads_packed(trunk, CPU)
    expected, found = by_forward(trunk, tokens_bS, wanted_N), states_at(trunk, tokens_bS, wanted_N)
    assert (found - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    of_forward, own = gradients(trunk, expected), gradients(trunk, found)
    exact = gradients(trunk.double(), by_forward(trunk, tokens_bS, wanted_N))
    error = (of_forward - exact).norm()
    assert (own - exact).norm() < 2 * error < 2e-5 * exact.norm()


def hook(trunk):
    trunk.layers[1].register_forward_hook(lambda module, inputs, out: 2 * out)


def replace_forward(trunk):
    norm = trunk.layers[0].input_layernorm
    norm.forward = lambda x: 2 * x


def replace_norm(trunk):
    trunk.norm = torch.nn.RMSNorm(32)


def checkpoint(trunk):
    trunk.gradient_checkpointing_enable()
    trunk.train()


CHANGES = {
    "a hooked layer": ({}, hook),
    "a forward pass of its own": ({}, replace_forward),
    "another norm": ({}, replace_norm),
    "gradient checkpointing": ({}, checkpoint),
    "float64": ({}, lambda trunk: trunk.double()),
    "another activation": ({"hidden_act": "gelu"}, lambda trunk: None),
    "frequencies by length": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}},
        lambda trunk: None,
    ),
    "an attention that sees what follows": ({"is_causal": False}, lambda trunk: None),
    "a layer that sees what follows": ({}, lambda trunk: setattr(trunk.layers[1].self_attn, "is_causal", False)),
    "an activation of its own": ({}, lambda trunk: setattr(trunk.layers[1].mlp, "act_fn", torch.nn.GELU())),
    "another attention": ({"attn_implementation": "eager"}, lambda trunk: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_computes_otherwise_takes_its_own_forward_pass(change):
    settings, apply = CHANGES[change]
    trunk = make_trunk(**settings)
    apply(trunk)
    assert not reads_packed(trunk, CPU)
    tokens_bS, wanted_N = make_rows(*SHAPES["natural lengths"])
    assert torch.equal(states_at(trunk, tokens_bS, wanted_N), by_forward(trunk, tokens_bS, wanted_N))


def test_sliding_attention_dropout_and_other_models_take_their_own_forward_pass():
    sliding = make_trunk("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not reads_packed(sliding, CPU)
    noisy = make_trunk(attention_dropout=0.5)
    assert reads_packed(noisy.eval(), CPU) and not reads_packed(noisy.train(), CPU)
    switch_off_dropout(noisy)
    assert reads_packed(noisy, CPU)
    assert not reads_packed(make_trunk(), torch.device("cuda"))
    other = GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=40)).eval()
    assert not reads_packed(other, CPU)
    tokens_bS, wanted_N = make_rows(*SHAPES["natural lengths"])
    assert torch.equal(states_at(other, tokens_bS, wanted_N), by_forward(other, tokens_bS, wanted_N))


@pytest.mark.parametrize(
    "changes", [{"attention_bias": True, "mlp_bias": True}, {"head_dim": 12}, {"rms_norm_eps": 0.5}], ids=str
)
def test_other_sizes_biases_and_epsilon(changes):
    trunk, (tokens_bS, wanted_N) = make_trunk(**changes), make_rows(*SHAPES["natural lengths"])
    expected, found = by_forward(trunk, tokens_bS, wanted_N), states_at(trunk, tokens_bS, wanted_N)
    assert reads_packed(trunk, CPU)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    of_forward, own = gradients(trunk, expected), gradients(trunk, found)
    assert (own - of_forward).norm() < 1e-5 * of_forward.norm()


def test_hooks_that_are_left_behind_by_a_request_for_all_states_change_nothing():
    trunk, (tokens_bS, wanted_N) = make_trunk(), make_rows(*SHAPES["natural lengths"])
    plain = states_at(trunk, tokens_bS, wanted_N)
    trunk(tokens_bS, output_hidden_states=True)
    assert any(layer._forward_hooks for layer in trunk.layers)
    assert reads_packed(trunk, CPU) and torch.equal(states_at(trunk, tokens_bS, wanted_N), plain)


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_rotary_embeddings_of_other_types(rope):
    parameters = {"rope_type": rope, "factor": 4.0, "rope_theta": 1000.0, "original_max_position_embeddings": 32}
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    trunk, (tokens_bS, wanted_N) = make_trunk(rope_parameters=parameters), make_rows(*SHAPES["long rows"])
    assert reads_packed(trunk, CPU)
    expected = by_forward(trunk, tokens_bS, wanted_N)
    torch.testing.assert_close(states_at(trunk, tokens_bS, wanted_N), expected, atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- packing


@given(st.lists(st.integers(0, 70), min_size=1, max_size=20), st.integers(70, 90), st.sampled_from([1, 64]))
def test_packing_keeps_what_is_needed_in_order(lengths, columns, by):
    if not any(lengths):
        lengths[0] = 1
    wanted_N = torch.tensor([row * columns + n - 1 for row, n in enumerate(lengths) if n])
    layout, place_K = trunks._pack(torch.zeros(len(lengths), columns, dtype=torch.long), wanted_N, by)
    place_N, filler = place_K.split([len(wanted_N), len(place_K) - len(wanted_N)])
    assert len(place_K) % by == 0 and len(filler) < by and not filler.any()
    if layout.index_C is None:
        assert torch.equal(place_N, wanted_N)
        return
    places = layout.index_C.tolist()
    assert places == sorted(set(places)) and places[0] >= 0 and places[-1] < len(lengths) * columns
    assert {row * columns + column for row, n in enumerate(lengths) for column in range(n)} <= set(places)
    assert len(places) % by == 0 and len(places) < sum(lengths) + by
    assert torch.equal(layout.index_C[place_N], wanted_N)


def test_packing_waits_for_something_to_leave_out():
    full, half = torch.arange(1, 9) * 32 - 1, torch.arange(8) * 32 + 15
    tokens_bS = torch.zeros(8, 32, dtype=torch.long)
    assert trunks._pack(tokens_bS, full, 1)[0].index_C is None
    assert trunks._pack(tokens_bS, full - 1, 1)[0].index_C is None  # 8 of 256 places
    assert len(trunks._pack(tokens_bS, half, 1)[0].index_C) == 128


@given(st.lists(st.integers(0, 70), min_size=1, max_size=20))
def test_columns_that_no_row_needs_are_cut(lengths):
    if not any(lengths):
        lengths[0] = 1
    wanted_N = torch.tensor([row * 90 + n - 1 for row, n in enumerate(lengths) if n])
    tokens_bS = torch.arange(len(lengths) * 90).view(-1, 90)
    cut_bS, place_N = trunks._cut_columns(tokens_bS, wanted_N)
    assert max(lengths) <= cut_bS.shape[1] < max(lengths) + 16
    assert torch.equal(cut_bS.flatten()[place_N], wanted_N)


def test_rows_and_passes_without_an_asked_place():
    trunk, (tokens_bS, _) = make_trunk(), make_rows([20] * 120, 40)
    wanted_N = torch.tensor([45, 46, 130, 4000])  # of the second, the fourth and the last but nineteenth row
    expected = by_forward(trunk, tokens_bS, wanted_N)
    torch.testing.assert_close(states_at(trunk, tokens_bS, wanted_N), expected, atol=2e-5, rtol=1e-5)
    assert states_at(trunk, tokens_bS, wanted_N[:0]).shape == (0, 32)
    with pytest.raises(AssertionError, match="ascend"):
        states_at(trunk, tokens_bS, wanted_N.flip(0))


def test_wide_models_are_read_in_larger_passes(monkeypatch):
    trunk, (tokens_bS, wanted_N) = make_trunk(), make_rows([60] * 8, 60)
    passes, plain = [], trunks._read_packed
    monkeypatch.setattr(trunks, "_read_packed", lambda *args: passes.append(len(args[1])) or plain(*args))
    for least, per_feature in ((120, 1), (120, 8), (2048, 8)):
        monkeypatch.setattr(trunks, "TOKENS_PER_PASS", least)
        monkeypatch.setattr(trunks, "TOKENS_PER_FEATURE", per_feature)
        states_at(trunk, tokens_bS, wanted_N)
    assert passes == [2, 2, 2, 2, 4, 4, 8]  # of width 32


@pytest.mark.parametrize("index", [None, torch.tensor([0, 1, 2, 5, 6])])
def test_spread_and_join_are_inverse(index):
    layout = Layout(2, 5, index)
    packed_CX = torch.randn(10 if index is None else 5, 6)
    by_head = layout.spread(packed_CX, 2, torch.float32)
    assert by_head.shape == (2, 2, 5, 3)
    assert torch.equal(layout.join(by_head, torch.float32), packed_CX)
    if index is not None:
        assert torch.equal(by_head[0, 1, 2], packed_CX[2, 3:]) and torch.equal(by_head[1, 0, 0], packed_CX[3, :3])
        assert by_head[0, :, 3:].abs().sum() == 0


# ---------------------------------------------------------------------------------------------- operations


def compare(own, plain, inputs, seed=3):
    """Values and gradients of two functions."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for function in (own, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        out.backward(torch.randn(out.shape, generator=generator.manual_seed(seed)))
        found.append([out.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_rms_norm_against_autograd():
    torch.manual_seed(0)
    inputs = [torch.randn(7, 3, 16), torch.randn(16)]
    compare(lambda x, w: rms_norm(x, w, 1e-3, torch.float32), lambda x, w: F.rms_norm(x, (16,), w, 1e-3), inputs)


def test_a_frozen_norm_gets_no_gradient():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8)
    rms_norm(x, weight, 1e-6, torch.float32).sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("columns", [20, 160])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_against_autograd(kv_heads, columns):
    torch.manual_seed(0)
    rows, size = 3, 8
    angles_SD = torch.arange(columns).unsqueeze(1) / torch.tensor([1.0, 10.0, 100.0, 1000.0])
    cos_SD, sin_SD = angles_SD.cos(), angles_SD.sin()
    inputs = [torch.randn(rows * columns, heads * size) for heads in (4, kv_heads, kv_heads)]

    def plain(*packed):
        q, k, v = (x.view(rows, columns, -1, size).transpose(1, 2) for x in packed)
        turn = torch.cat([angles_SD, angles_SD], 1)
        q, k = (x * turn.cos() + torch.cat([-x[..., 4:], x[..., :4]], -1) * turn.sin() for x in (q, k))
        k, v = (x.repeat_interleave(4 // kv_heads, 1) for x in (k, v))
        scores = 0.4 * q @ k.transpose(2, 3)
        future_SS = torch.ones(columns, columns).triu(1).bool()
        return (scores.masked_fill(future_SS, -torch.inf).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4 * size)

    compare(lambda *packed: attend(*packed, cos_SD, sin_SD, 0.4, Layout(rows, columns, None)), plain, inputs)


def test_rotation_keeps_lengths_and_turns_back():
    x, angles = torch.randn(2, 5, 8), torch.randn(5, 4)
    turned = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, angles.cos(), -angles.sin()), x, atol=1e-6, rtol=1e-5)
    assert (turned - x).abs().max() > 0.1
