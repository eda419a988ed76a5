"""Sampling: equal to plain greedy generation, and independent of the batch layout."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.generation import Sampling, generate, pick_tokens, positions_of
from alignment.generation.network import _normalise, _normalise_rows
from launch.errors import UserError
from tests.support import save_policy

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(save_policy(tmp_path_factory.mktemp("policy"))).eval()


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(3, 23, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 9, (17,), generator=generator)
    ]


def greedy_by_hand(model, prompt, length):
    """The definition: run the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


def test_a_prefill_hands_over_strides_that_a_gpu_takes(model, monkeypatch):
    """Of one token, what `contiguous` leaves alone are strides that CUDA's kernels refuse ("query is not correctly aligned")."""
    asked = []

    def attention(*parts, **rest):
        asked.extend(part.stride() == torch.empty(part.shape).stride() for part in parts)
        return plain(*parts, **rest)

    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("alignment.generation.decoder.F.scaled_dot_product_attention", attention)
    generate(model, [[5]], Sampling(2, 0.0, eos_id=1, pad_id=0), 0, "test", 0, range(1), 1)
    assert asked and all(asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 5), (3, 16, 7)])
def test_the_norm_of_a_gpu_is_that_of_the_cpu(shape, dtype):
    x, weight = torch.randn(shape).to(dtype), torch.rand(shape[-2], 1)
    torch.testing.assert_close(_normalise_rows(x, weight, 1e-6), _normalise(x, weight, 1e-6), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 17])
def test_b11_greedy_equals_running_the_whole_sequence_each_time(model, prompts, batch_size):
    sampling = Sampling(12, 0.0, eos_id=1, pad_id=0)
    ours = generate(model, prompts, sampling, 0, "test", 0, range(len(prompts)), batch_size)
    with torch.no_grad():
        assert ours == [greedy_by_hand(model, p, 12) for p in prompts]


def test_samples_do_not_depend_on_batch_order_or_company(model, prompts):
    sampling = Sampling(12, 1.0, eos_id=1, pad_id=0)
    indices = list(range(100, 100 + len(prompts)))
    whole = generate(model, prompts, sampling, 7, "test", 5, indices, 17)
    assert generate(model, prompts, sampling, 7, "test", 5, indices, 3) == whole
    backwards = generate(model, prompts[::-1], sampling, 7, "test", 5, indices[::-1], 5)
    assert backwards[::-1] == whole
    assert generate(model, prompts[4:6], sampling, 7, "test", 5, indices[4:6], 2) == whole[4:6]
    assert generate(model, prompts, sampling, 8, "test", 5, indices, 17) != whole
    assert generate(model, prompts, sampling, 7, "test", 6, indices, 17) != whole


def test_completions_end_with_their_first_eos(model, prompts):
    done = generate(model, prompts * 8, Sampling(30, 1.5, 1, 0), 0, "test", 0, range(8 * len(prompts)), 32)
    finished = [c for c in done if c[-1] == 1]
    assert finished and len(finished) < len(done)
    assert all(c.count(1) == (1 if c[-1] == 1 else 0) for c in done)
    assert all(len(c) == 30 for c in done if c[-1] != 1)


def test_pick_tokens_has_the_right_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(40_000, 4)
    uniform = torch.from_numpy(np.random.default_rng(0).random(40_000, dtype=np.float32))
    for temperature in (1.0, 0.5):
        shares = torch.bincount(pick_tokens(logits.t(), temperature, uniform)[0], minlength=4) / 40_000
        expected = torch.softmax(logits[0] / temperature, -1)
        assert torch.allclose(shares, expected, atol=4 * 0.5 / 200)  # four standard errors


def test_pick_tokens_at_the_ends_never_takes_an_impossible_token():
    logits = torch.tensor([[-float("inf"), 0.0, -float("inf")]]).expand(2, 3)
    assert pick_tokens(logits.t(), 1.0, torch.tensor([0.0, 1.0 - 2**-24]))[0].tolist() == [1, 1]


def test_pick_tokens_of_two_equal_ones_in_any_blocks_at_any_uniform():
    """Blocks of 4 tokens; a uniform number below a half is the first token's, one half and more the second's."""
    pairs = list(itertools.combinations(range(16), 2))
    logits = torch.full((16, len(pairs)), -float("inf"))
    for column, pair in enumerate(pairs):
        logits[list(pair), column] = 3.0
    for uniform, which in ((0.0, 0), (0.5 - 2**-25, 0), (0.5, 1), (1 - 2**-24, 1)):
        tokens, logprobs = pick_tokens(logits, 1.0, torch.full((len(pairs),), uniform))
        assert tokens.tolist() == [pair[which] for pair in pairs], uniform
        assert torch.allclose(logprobs, torch.full((len(pairs),), math.log(0.5)))


def test_pick_tokens_at_the_very_end_of_a_block_stays_in_it():
    """Two blocks have the same weights in another order, so one half of all is the end of the first, but for rounding.

    What comes after its last token, the first of the second block, has probability 0.
    """
    columns, width = 2000, 32
    weights = -30 * torch.rand(width, columns, generator=torch.Generator().manual_seed(0))
    nothing = torch.full((1, columns), -float("inf"))
    logits = torch.cat([weights, nothing, weights[1:], nothing, weights[:1], nothing.expand(width**2 - 66, -1)])
    one_by_one = weights.exp().double().cumsum(0)[-1]
    assert (weights.exp().sum(0, dtype=torch.float64) != one_by_one).any()  # there is rounding to go wrong
    tokens, logprobs = pick_tokens(logits, 1.0, torch.full((columns,), 0.5))
    assert logprobs.isfinite().all()
    assert set((tokens // width).tolist()) <= {0, 1}
    torch.testing.assert_close(logprobs, logits.log_softmax(0).gather(0, tokens[None])[0])


def test_positions_of_left_padded_rows():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_prompts_that_do_not_fit_are_named(model):
    with pytest.raises(UserError, match=r"prompt 2 has 60 tokens.*context of 64"):
        generate(model, [[3], [3] * 60], Sampling(10, 1.0, 1, 0), 0, "test", 0, [0, 1], 2)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(model, [[]], Sampling(10, 1.0, 1, 0), 0, "test", 0, [0], 2)
