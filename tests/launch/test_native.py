"""Kernels against the definition in float64, and against PyTorch's operations; compiling them, once, and doing without."""

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.generation.sampling import pick_tokens
from evaluation.trunk_ops import Layout, add_norm, attend, gated
from launch.native import build, ops

ROOT = Path(__file__).resolve().parents[2]
TYPES = [torch.float32, torch.bfloat16]
ONE_STEP = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""What rounding a result once may change of it; a little more for sums."""


@pytest.fixture(autouse=True, scope="module")
def there_are_kernels():
    if build.library() is None:
        pytest.skip("there is no C++ compiler")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found, exact, factor=4.0):
    assert found.shape == exact.shape
    error = (found.double() - exact).abs().max() if found.numel() else 0
    assert error <= factor * ONE_STEP[found.dtype] * (1 + exact.abs().max() if exact.numel() else 1)


def both(function, exactly, inputs, factor=4.0):
    """Results and gradients of a kernel's function, and those of the definition in float64."""
    results = []
    for call, dtype in ((function, None), (exactly, torch.float64)):
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        outs = call(*leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        slopes = [draw(*out.shape, seed=7 + i).bfloat16().to(out.dtype) for i, out in enumerate(outs)]
        results.append([*outs, *torch.autograd.grad(outs, leaves, slopes)])
    for found, exact in zip(*results, strict=True):
        assert_near(found, exact, factor)


# ---------------------------------------------------------------------------------------------- passes over activations


@pytest.mark.parametrize("width", [1, 7, 16, 50])
@pytest.mark.parametrize("rows", [0, 1, 2, 9])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("delta_dtype", [None, *TYPES])
def test_norm_of_a_sum(rows, width, dtype, delta_dtype):
    def exactly(x, weight, delta=None):
        total = x if delta is None else x + delta
        return total, total * (total.square().mean(-1, keepdim=True) + 0.01).rsqrt() * weight

    inputs = [draw(rows, width), draw(width, seed=1)]
    inputs += [draw(rows, width, seed=2, dtype=delta_dtype)] if delta_dtype else []
    both(lambda x, weight, delta=None: add_norm(x, delta, weight, 0.01, dtype), exactly, inputs, factor=8 + rows)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 33)])
def test_gates(shape, dtype):
    both(
        gated,
        lambda gate, up: gate * torch.sigmoid(gate) * up,
        [5 * draw(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype)],
        factor=8,
    )


def attention_by_definition(q, k, v, cos, sin, scale, lengths):
    """Row by row, head by head."""
    size, half = 2 * cos.shape[1], cos.shape[1]
    heads, kv_heads = q.shape[1] // size, k.shape[1] // size
    outs, start = [], 0

    def turned(x, n):
        first, second, c, s = x[:, :half], x[:, half:], cos[:n].double(), sin[:n].double()
        return torch.cat([first * c - second * s, second * c + first * s], 1)

    for n in lengths:
        by_head = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            shared = head // (heads // kv_heads)
            kept = slice(shared * size, (shared + 1) * size)
            rows = slice(start, start + n)
            scores = scale * turned(q[rows, own], n) @ turned(k[rows, kept], n).T
            future = torch.ones(n, n).triu(1).bool()
            by_head.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[rows, kept])
        outs.append(torch.cat(by_head, 1))
        start += n
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 8), (6, 2, 12), (3, 1, 16), (2, 1, 70)])
@pytest.mark.parametrize("lengths", [[1], [16, 7, 33], [128, 0, 5, 17], [8, 9, 15, 1]], ids=str)
def test_attention_within_rows(dtype, heads, kv_heads, size, lengths):
    columns, tokens = max(lengths), sum(lengths)
    angles = 6 * torch.rand(columns, size // 2, generator=torch.Generator().manual_seed(4))
    places = torch.cat([torch.arange(n) + row * columns for row, n in enumerate(lengths)])
    layout = Layout(len(lengths), columns, None if tokens == len(lengths) * columns else places)
    table = (angles.cos(), angles.sin())
    inputs = [draw(tokens, h * size, seed=i, dtype=dtype) for i, h in enumerate((heads, kv_heads, kv_heads))]
    both(
        lambda q, k, v: attend(q, k, v, *table, 0.3, layout),
        lambda q, k, v: attention_by_definition(q, k, v, *table, 0.3, lengths),
        inputs,
        factor=16,
    )


def test_large_scores_overflow_nothing():
    q, k, v = 1e3 * draw(20, 8), 1e3 * draw(20, 8, seed=1), draw(20, 8, seed=2)
    table = torch.ones(20, 4), torch.zeros(20, 4)
    found = attend(q, k, v, *table, 1.0, Layout(1, 20, None))
    assert_near(found, attention_by_definition(q.double(), k.double(), v.double(), *table, 1.0, [20]), 200)


def test_a_row_does_not_depend_on_its_company_or_on_the_threads():
    table = draw(40, 8).cos(), draw(40, 8).sin()
    packed = [draw(120, 64, seed=i) for i in range(3)]
    whole = attend(*packed, *table, 0.3, Layout(3, 40, None))
    alone = attend(*(x[40:80].clone() for x in packed), *table, 0.3, Layout(1, 40, None))
    assert torch.equal(whole[40:80], alone)
    shorter = attend(*(x[40:60].clone() for x in packed), *table, 0.3, Layout(1, 20, None))
    assert torch.equal(whole[40:60], shorter)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(attend(*packed, *table, 0.3, Layout(3, 40, None)), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_of_a_norm_are_added_over_all_threads(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        x, weight = draw(101, 24), draw(24, seed=1).requires_grad_()
        add_norm(x, None, weight, 1e-6, torch.float32)[1].sum().backward()
    finally:
        torch.set_num_threads(before)
    wide = x.double()
    assert_near(weight.grad, (wide * wide.square().mean(-1, keepdim=True).rsqrt()).sum(0), 20)


def test_not_a_number_stays_one():
    x = draw(3, 16)
    x[1, 5] = math.nan
    weight = torch.ones(16)
    assert add_norm(x, None, weight, 1e-6, torch.bfloat16)[1].isnan().any(1).tolist() == [False, True, False]
    assert gated(x, torch.ones(3, 16)).isnan().sum() == gated(torch.ones(3, 16), x).isnan().sum() == 1
    found = attend(x, x, x, torch.ones(3, 8), torch.zeros(3, 8), 1.0, Layout(1, 3, None))
    assert found.isnan().any(1)[1:].all()  # and of those before, as in any product with a share of 0


# ---------------------------------------------------------------------------------------------- numbers


def exponentials(x):
    """By the kernel that makes -e^l of logits l, when no token is the target."""
    found, n = torch.empty_like(x), len(x)
    none, zero, one = torch.full((n,), -1), torch.zeros(n), torch.ones(n)
    ops.block_slopes(x, found, 1.0, none, 0, zero, zero, one, None)
    return -found


def test_the_exponential_is_right_to_two_units_in_the_last_place():
    x = torch.linspace(-86.9, 88.0, 2_000_003).view(1, -1)
    exact = x.double().exp()
    unit = 2.0 ** (exact.log2().floor() - 23)
    assert ((exponentials(x).double() - exact).abs() / unit).max() < 2
    ends = exponentials(torch.tensor([[-math.inf, -200.0, -87.5, 0.0, math.nan]]))
    assert ends[0, :4].tolist() == [0, 0, 0, 1] and ends[0, 4].isnan()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_bf16_is_rounded_as_pytorch_rounds(numbers):
    """A column of ones has the norm 1, so what comes out is the weight."""
    weight = torch.tensor(numbers)[:, None]
    ones, found = torch.ones_like(weight), torch.empty_like(weight, dtype=torch.bfloat16)
    assert torch.equal(ops.add_norm_columns(ones, None, weight, 0.0, found), weight.bfloat16())


def test_halves_are_rounded_to_the_even_one():
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    bits = (torch.arange(0x3F80, 0x3F90, dtype=torch.int32)[:, None] << 16 | low).flatten()
    weight = bits.view(torch.float32)[:, None].contiguous()
    found = ops.add_norm_columns(torch.ones_like(weight), None, weight, 0.0, torch.empty_like(weight).bfloat16())
    assert torch.equal(found, weight.bfloat16())


# ---------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (40, 64)])
def test_norm_of_columns(shape, dtype):
    x, delta, weight = draw(*shape), draw(*shape, seed=1, dtype=dtype), draw(shape[0], 1, seed=2)
    total = x.double() + delta.double()
    exact = total * (total.square().mean(0) + 0.01).rsqrt() * weight
    found = ops.add_norm_columns(x, delta, weight, 0.01, torch.empty(shape, dtype=dtype))
    assert_near(found, exact)
    assert_near(x, total)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "size"), [(1, 2, 2, 8), (19, 4, 2, 12), (33, 3, 1, 80)])
def test_attention_of_one_new_token(dtype, normed, rows, heads, kv_heads, size):
    width, column, half, total = 24, 17, size // 2, heads + 2 * kv_heads
    qkv = draw(total * size, rows, dtype=dtype)
    keys, values = (draw(rows + 1, kv_heads, width, size, seed=i, dtype=dtype) for i in (1, 2))
    starts = torch.arange(rows) % (column + 1)
    cos, sin = draw(half, rows, seed=3).cos(), draw(half, rows, seed=3).sin()
    norms = (draw(size, seed=4), draw(size, seed=5)) if normed else (None, None)
    expected_keys, expected_values = keys.clone(), values.clone()
    expected = torch.empty(heads * size, rows, dtype=torch.float64)
    for row in range(rows):
        parts = list(qkv[:, row].double().view(total, size))
        for i in range(heads + kv_heads):
            part, norm = parts[i], norms[i >= heads]
            if norm is not None:
                part = part * (part.square().mean() + 0.01).rsqrt() * norm
            first, second, c, s = part[:half], part[half:], cos[:, row], sin[:, row]
            parts[i] = torch.cat([first * c - second * s, second * c + first * s])
        expected_keys[row, :, column] = torch.stack(parts[heads : heads + kv_heads]).to(dtype)
        expected_values[row, :, column] = torch.stack(parts[heads + kv_heads :]).to(dtype)
        for head in range(heads):
            seen = slice(int(starts[row]), column + 1)
            own = head // (heads // kv_heads)
            shares = (expected_keys[row, own, seen].double() @ parts[head] * 0.3).softmax(0)
            expected[head * size : (head + 1) * size, row] = shares @ expected_values[row, own, seen].double()
    out = torch.empty(heads * size, rows, dtype=dtype)
    ops.attend_step(qkv, norms, 0.01, (cos, sin), 0.3, (keys, values), starts, column, out)
    assert_near(keys, expected_keys.double())
    assert torch.equal(values, expected_values)
    assert_near(out, expected, 8)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 2, 37, 1000])
def test_tokens_are_drawn_where_the_cumulative_probability_passes_the_number(size, dtype, monkeypatch):
    logits = 3 * draw(size, 50, dtype=dtype)
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniform[0], uniform[1] = 0, 1 - 2**-53
    log_p = (logits.double() / 0.7).log_softmax(0)
    tokens, logprobs = pick_tokens(logits, 0.7, uniform)
    chosen = log_p.gather(0, tokens[None])[0]
    assert (logprobs - chosen).abs().max() < 1e-5
    before = torch.where(torch.arange(size)[:, None] < tokens, log_p.exp(), 0).sum(0)
    assert (before < uniform + 1e-6).all() and (uniform < before + chosen.exp() + 1e-6).all()
    greedy, of_greedy = pick_tokens(logits, 0.0, None)
    assert torch.equal(greedy, logits.argmax(0))
    assert (of_greedy - logits.double().log_softmax(0).amax(0)).abs().max() < 1e-5
    monkeypatch.setattr(ops, "library", lambda: None)
    assert (pick_tokens(logits, 0.7, uniform)[0] != tokens).sum() <= 1  # where it is a matter of the last bit


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((600, 3), -math.inf)
    logits[[100, 400]] = 0.0
    for number in (0.0, 0.4999, 0.5001, 1 - 2**-53):
        tokens, logprobs = pick_tokens(logits, 1.0, torch.full((3,), number, dtype=torch.float64))
        assert tokens.tolist() == [100 if number < 0.5 else 400] * 3
        assert logprobs.tolist() == pytest.approx([math.log(0.5)] * 3)


# ---------------------------------------------------------------------------------------------- compiling

LOAD = """
import logging, sys
logging.basicConfig(format="%(message)s")
from launch.native import build
first = build.library()
assert build.library() is first
print(first is not None)
"""


def load(folder, **changes):
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "TMPDIR": str(folder)} | changes
    return subprocess.Popen(
        [sys.executable, "-c", LOAD],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def told(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()[-1] == "True", [line for line in err.splitlines() if "kernels" in line]


def write_compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_compiled_once_also_by_several_at_a_time(tmp_path):
    calls = tmp_path / "calls"
    compiler = write_compiler(tmp_path / "compiler", f'echo "$@" >> {calls}\nexec c++ "$@"')
    both_at_once = [load(tmp_path / "cache", CXX=compiler) for _ in range(2)]
    assert [told(process) for process in both_at_once] == [(True, []), (True, [])]
    compiled = [line for line in calls.read_text().splitlines() if "kernels.cpp" in line]
    assert 1 <= len(compiled) <= 2
    kept = list((tmp_path / "cache" / "alignkit").iterdir())
    assert [path.suffix for path in kept] == [".so"]
    assert told(load(tmp_path / "cache", CXX=compiler)) == (True, [])
    assert [line for line in calls.read_text().splitlines() if "kernels.cpp" in line] == compiled


def test_without_a_compiler_one_line_says_so(tmp_path):
    there, lines = told(load(tmp_path, PATH=str(tmp_path), CXX=""))
    assert not there and len(lines) == 1
    assert "there is no C++ compiler" in lines[0] and "ALIGNKIT_NATIVE=0" in lines[0]
    assert told(load(tmp_path, PATH=str(tmp_path), ALIGNKIT_NATIVE="0")) == (False, [])


def test_a_compiler_that_fails_is_quoted(tmp_path):
    """When there is no other one."""
    script = '[ "$1" = --version ] && echo 1 && exit; echo "x.cpp:1: error: no room" >&2; exit 3'
    there, lines = told(load(tmp_path, CXX=write_compiler(tmp_path / "broken", script), PATH="/nowhere"))
    assert not there and len(lines) == 1 and "x.cpp:1: error: no room" in lines[0]
    assert not list(tmp_path.rglob("*.so"))


def test_a_cache_that_cannot_be_written_to_is_not_needed(tmp_path):
    (tmp_path / "file").write_text("")
    assert told(load(tmp_path / "file", TMPDIR=str(tmp_path))) == (True, [])
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_the_numbers_are_right_with_narrower_registers(processor, tmp_path):
    """Compiled for processors of 2003 and 2013, which this one can be."""
    compiler = write_compiler(tmp_path / "compiler", f'exec c++ "$@" -march={processor}')
    chosen = "norm or gates or attention or exponential or overflow or drawn or rounded"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = os.environ | {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    assert list(tmp_path.rglob("*.so")) and int(done.stdout.split(" passed")[0].split()[-1]) > 100


def test_a_file_that_is_empty_is_made_anew(tmp_path):
    assert told(load(tmp_path)) == (True, [])
    (kept,) = tmp_path.rglob("*.so")
    kept.write_bytes(b"")
    assert told(load(tmp_path)) == (True, [])
    assert kept.stat().st_size > 10_000


def test_a_compiler_that_fails_is_followed_by_another(tmp_path):
    assert told(load(tmp_path, CXX=write_compiler(tmp_path / "old", "exit 1"))) == (True, [])


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    (tmp_path / "alignkit").mkdir()
    (tmp_path / "alignkit").chmod(0o777)
    assert told(load(tmp_path)) == (True, [])
    assert not list((tmp_path / "alignkit").iterdir())


def test_results_do_not_hang_on_pytorchs_default_type():
    x, weight = draw(4, 16), torch.ones(16, requires_grad=True)
    expected = add_norm(x, None, weight, 1, torch.float32)[1]
    tokens, logprobs = pick_tokens(draw(30, 4), 1.0, torch.rand(4, dtype=torch.float64))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = add_norm(x, None, weight, 1, torch.float32)[1]
        found.sum().backward()
        assert pick_tokens(draw(30, 4).float(), 1.0, torch.rand(4))[1].dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected) and weight.grad.dtype == tokens.new_empty(0).float().dtype == logprobs.dtype


def test_a_token_is_drawn_alike_whichever_way_the_logits_lie():
    logits, uniform = draw(40, 6), torch.rand(6, dtype=torch.float64)
    for a, b in zip(pick_tokens(logits, 1.0, uniform), pick_tokens(logits.T.contiguous().T, 1.0, uniform), strict=True):
        assert torch.equal(a, b)


def test_tensors_that_the_kernels_do_not_know_are_left_to_pytorch():
    assert ops.takes(draw(2, 3), draw(2, 3).bfloat16())
    assert not ops.takes(draw(2, 3).double())
    assert not ops.takes(draw(2, 3).half())
    assert not ops.takes(draw(2, 3).T)
    assert not ops.takes(torch.empty(2, device="meta"))
