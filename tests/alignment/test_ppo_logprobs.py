"""Log-probabilities by blocks of the vocabulary: the naive ones, their gradients, and no tensor of batch x time x vocabulary."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen3ForCausalLM,
)

from alignment.generation import LocalEngine, Sampling
from alignment.generation.weights import is_supported
from alignment.ppo import logprobs as module
from alignment.ppo.logprobs import LogprobHead, cut_logits, give_logprob_head, linear_logprobs
from alignment.ppo.modules import response_logprobs
from tests.support import save_policy, tiny_config

pytestmark = pytest.mark.usefixtures("kernels")


def naive(hidden, weight, bias, targets, temperature):
    """The definition, with the whole (N, V) logits."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() / temperature
    if hidden.dtype == torch.float64:
        logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def make_case(n=13, d=8, v=31, dtype=torch.float32, seed=0, bias=True):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()  # noqa: E731
    targets = torch.randint(0, v, (n,), generator=generator)
    return draw(n, d), draw(v, d), draw(v) if bias else None, targets


BUDGETS = [5, 31, 100, 10**6]  # of 13 tokens and 31 columns: 5 by 1, 13 by 2, 13 by 7, all at once


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_against_finite_differences(budget, bias):
    hidden, weight, offset, targets = make_case(n=5, d=3, dtype=torch.float64, bias=bias)
    inputs = (hidden, weight, offset) if bias else (hidden, weight)
    for keep in (slice(None), slice(0, 1), slice(1, 2)):  # both results, log-probabilities alone, entropies alone

        def results(hidden, weight, offset=None):
            return linear_logprobs(hidden, weight, offset, targets, 0.7, budget)[keep]

        assert torch.autograd.gradcheck(results, inputs)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_values_and_gradients_are_the_naive_ones(budget, entropy_coef):
    case = make_case()
    slopes = torch.linspace(-1, 2, 13)
    found, grads = [], []
    for function in (naive, lambda *a: linear_logprobs(*a, budget)):
        logprobs, entropy = function(*case, 0.7)
        loss = (logprobs * slopes).sum() - entropy_coef * entropy.sum() if entropy_coef else (logprobs * slopes).sum()
        found.append((logprobs.detach(), entropy.detach()))
        grads.append(torch.autograd.grad(loss, case[:3]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20), budget=st.integers(1, 700), temperature=st.floats(0.2, 3))
def test_the_cut_does_not_matter(seed, n, budget, temperature):
    case = make_case(n=n, dtype=torch.float64, seed=seed)
    whole, cut = naive(*case, temperature), linear_logprobs(*case, temperature, budget)
    torch.testing.assert_close(cut, whole, atol=1e-12, rtol=1e-10)
    a, b = (torch.autograd.grad(x[0].sum() + 2 * x[1].sum(), case[:3]) for x in (whole, cut))
    torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(0, 300), vocabulary=st.integers(1, 50), budget=st.integers(1, 400), most=st.integers(1, 90))
def test_every_logit_is_in_one_block_within_the_budget(tokens, vocabulary, budget, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOKENS_PER_CHUNK", most)
        cuts = cut_logits(tokens, vocabulary, budget)
    seen = torch.zeros(tokens, vocabulary)
    for rows, blocks in cuts:
        assert rows.stop - rows.start <= most
        for block in blocks:
            seen[rows, block] += 1
            assert seen[rows, block].numel() <= budget
        sizes = [block.stop - block.start for block in blocks]
        assert max(sizes) - min(sizes) <= 1
    assert (seen == 1).all()


def test_far_logits_do_not_overflow():
    hidden, weight = torch.tensor([[1e3], [-1e3]], requires_grad=True), torch.tensor([[1.0], [0.0], [-1.0]])
    logprobs, entropy = linear_logprobs(hidden, weight, None, torch.tensor([0, 0]), 0.5, 100)
    assert logprobs.tolist() == [0.0, -4000.0]
    assert entropy.tolist() == [0.0, 0.0]
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all()


def test_a_weight_that_was_not_gathered_is_an_error():
    hidden, weight, _, targets = make_case()
    with pytest.raises(ValueError, match="has no rows"):
        linear_logprobs(hidden, weight[:0], None, targets, 1.0, 100)


@pytest.mark.parametrize("budget", [5, 10**6])
def test_a_target_outside_of_the_vocabulary_is_an_error(budget):
    hidden, weight, _, _ = make_case(n=2)
    for wrong in (-100, 31):
        with pytest.raises(IndexError, match="out of bounds for 31 tokens"):
            linear_logprobs(hidden, weight, None, torch.tensor([3, wrong]), 1.0, budget)


def test_frozen_weights_and_no_grad():
    hidden, weight, bias, targets = make_case()
    frozen = linear_logprobs(hidden, weight.detach(), bias.detach(), targets, 1.0, 100)
    frozen[0].sum().backward()
    torch.testing.assert_close(
        hidden.grad, torch.autograd.grad(naive(hidden, weight, bias, targets, 1.0)[0].sum(), hidden)[0]
    )
    with torch.no_grad():
        assert not linear_logprobs(hidden, weight, bias, targets, 1.0, 100)[0].requires_grad


def test_backward_twice_gives_the_same():
    """What is kept for the backward pass is not spoilt by it."""
    hidden, weight, bias, targets = make_case()
    for budget in BUDGETS:
        loss = linear_logprobs(hidden, weight, bias, targets, 0.7, budget)[0].sum()
        first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, (hidden, weight)), strict=True))


@pytest.mark.parametrize("budget", BUDGETS)
def test_autocast_runs_products_in_bf16_and_softmax_in_fp32(budget):
    hidden, weight, bias, targets = make_case(n=50, d=64, v=97)
    loss = lambda pair: pair[0].sum() - 0.1 * pair[1].sum()  # noqa: E731
    exact = torch.autograd.grad(loss(naive(hidden, weight, bias, targets, 0.7)), (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = naive(hidden, weight, bias, targets, 0.7)
        ours = linear_logprobs(hidden, weight, bias, targets, 0.7, budget * 97)
    assert ours[0].dtype == ours[1].dtype == torch.float32
    rounded = [x.detach().bfloat16().float() for x in (hidden, weight)]
    products = (rounded[0] @ rounded[1].t()).bfloat16().float()  # what a bf16 product gives
    log_p = torch.log_softmax((products + bias) / 0.7, -1)
    torch.testing.assert_close(ours[0], log_p.gather(-1, targets[:, None])[:, 0], atol=0.1, rtol=0)
    assert (ours[0] - theirs[0]).abs().max() < 0.3  # theirs adds the bias in bf16
    grads = torch.autograd.grad(loss(ours), (hidden, weight, bias))
    for ours_grad, exact_grad, x in zip(grads, exact, (hidden, weight, bias), strict=True):
        assert ours_grad.dtype == x.dtype == torch.float32
        assert (ours_grad - exact_grad).norm() < 0.03 * exact_grad.norm()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max(
            [self.numel, *(x.untyped_storage().nbytes() // 4 for x in tree_leaves(out) if torch.is_tensor(x))]
        )
        return out


@pytest.mark.parametrize("tokens", [1, 63, 64, 130])
def test_in_bf16_products_are_of_few_shapes(tokens, monkeypatch):
    hidden, weight, bias, targets = make_case(n=tokens, d=8, v=40)
    seen, plain = [], module.block_logits
    monkeypatch.setattr(module, "block_logits", lambda *args: seen.append(len(args[0])) or plain(*args))
    whole = linear_logprobs(hidden, weight, bias, targets, 0.7, 10**6)
    with torch.autocast("cpu", torch.bfloat16):
        filled = linear_logprobs(hidden, weight, bias, targets, 0.7, 10**6)
    assert seen == [tokens, -(-tokens // 64) * 64]
    for exact, found in zip(whole, filled, strict=True):
        torch.testing.assert_close(found, exact, atol=0.1, rtol=0)
    of_exact, of_filled = (torch.autograd.grad(pair[0].sum(), (hidden, weight, bias)) for pair in (whole, filled))
    for exact, found in zip(of_exact, of_filled, strict=True):
        assert (found - exact).norm() < 0.02 * exact.norm()


def test_no_tokens_give_no_gradient(monkeypatch):
    monkeypatch.setattr(torch, "empty_like", lambda x, **kinds: torch.full_like(x, torch.nan, **kinds))
    hidden, weight, bias, targets = make_case(n=0)
    logprobs, _ = linear_logprobs(hidden, weight, bias, targets, 0.7, 100)
    for gradient in torch.autograd.grad(logprobs.sum(), (hidden, weight, bias)):
        assert not gradient.any()


def test_no_tensor_of_all_logits_is_made_forward_or_backward():
    n, d, v, budget = 96, 16, 500, 4000
    hidden, weight, bias, targets = make_case(n, d, v)
    largest = {}
    for name, function in (("naive", naive), ("chunked", lambda *a: linear_logprobs(*a, budget))):
        with LargestTensor() as seen:
            logprobs, entropy = function(hidden, weight, bias, targets, 0.7)
            (logprobs.sum() + entropy.sum()).backward()
        largest[name] = seen.numel
    assert largest == {"naive": n * v, "chunked": v * d}  # the weight and its gradient are larger than a block


class LiveBlocks(TorchDispatchMode):
    """Counts the tensors of the size of a block that are alive together."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.seen, self.most = numel, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [weakref.ref(x) for x in tree_leaves(out) if torch.is_tensor(x) and x.numel() == self.numel]
        self.seen = [r for r in (*self.seen, *made) if r() is not None]
        self.most = max(self.most, len({r().data_ptr() for r in self.seen}))
        return out


def test_few_blocks_are_alive_at_once(kernels):
    hidden, weight, _, targets = make_case(80, 16, 500)  # ten blocks of 80 tokens by 50 columns
    with LiveBlocks(4000) as forward:
        logprobs, entropy = linear_logprobs(hidden, weight, None, targets, 0.7, 4000)
    with LiveBlocks(4000) as backward:
        (logprobs.sum() + entropy.sum()).backward()
    assert (forward.most, backward.most) == ((1, 1) if kernels == "native" else (2, 4))


def test_what_is_kept_for_the_backward_pass_is_bounded():
    hidden, weight, bias, targets = make_case(96, 16, 500)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_logprobs(hidden, weight, bias, targets, 0.7, 4000)
    assert sum(kept) == 96 * 16 + 500 * 16 + 500 + 3 * 96  # inputs, and three numbers for each token


# ---------------------------------------------------------------------------------------------- in a model


ROWS = torch.tensor([[5, 6, 7, 8, 9, 1, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 10, 11]])
BEFORE, TARGETS = torch.tensor([2, 3, 4, 13, 14, 15, 16]), torch.tensor([8, 9, 1, 8, 9, 10, 11])


def in_full(model, temperature):
    """Log-probabilities and entropies of TARGETS by the model's own logits."""
    logits = model(ROWS).logits.flatten(0, 1)[BEFORE] / temperature
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(-1, TARGETS[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("tied", [False, True])
def test_in_a_model_as_without_chunks(tmp_path, tied):
    folder = save_policy(tmp_path, tie_word_embeddings=tied)
    plain, ours = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    assert give_logprob_head(ours)
    expected = in_full(plain, 0.7)
    found = response_logprobs(ours, ROWS, BEFORE, TARGETS, 0.7)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    (expected[0].sum() + expected[1].sum()).backward()
    (found[0].sum() + found[1].sum()).backward()
    ours_grads, grads = ({k: p.grad for k, p in m.named_parameters()} for m in (ours, plain))
    assert grads.keys() == ours_grads.keys()
    for name in grads:
        torch.testing.assert_close(ours_grads[name], grads[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_head_is_still_the_models_own(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_policy(tmp_path / "a"))
    logits, names = model(ROWS).logits, list(model.state_dict())
    assert give_logprob_head(model) and give_logprob_head(model)  # again changes nothing
    assert torch.equal(model(ROWS).logits, logits)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert type(again.lm_head) is torch.nn.Linear
    assert torch.equal(again(ROWS).logits, logits)


SHAPE = dict(vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize(
    ("model", "linear"),
    [
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8)), False),
        (lambda: CohereForCausalLM(CohereConfig(**SHAPE)), False),
        (lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)), False),
        (lambda: GraniteForCausalLM(GraniteConfig(**SHAPE)), True),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=2)), True),
    ],
)
def test_models_whose_logits_are_more_than_the_head_are_left_alone(model, linear):
    torch.manual_seed(0)
    built = model().eval()
    assert give_logprob_head(built) is linear
    assert isinstance(built.get_output_embeddings(), LogprobHead) is linear
    with torch.no_grad():
        for a, b in zip(in_full(built, 0.7), response_logprobs(built, ROWS, BEFORE, TARGETS, 0.7), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


TINY = dict(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
DECODER = dict(is_decoder=True, embedding_size=16)


@pytest.mark.parametrize(
    ("kind", "options", "linear"),
    [
        # a dense layer, an activation and a norm stand between the last hidden state and the head
        *((kind, DECODER, False) for kind in ("bert", "roberta", "electra", "roformer", "megatron-bert", "camembert")),
        ("modernbert-decoder", dict(cls_token_id=1, sep_token_id=2, local_attention=16), False),
        ("gpt_neox", {}, True),
        ("opt", dict(ffn_dim=16, word_embed_proj_dim=8), True),
        ("bloom", dict(n_layer=1, n_head=2), True),
        ("phi", {}, True),
    ],
)
def test_what_stands_between_the_base_model_and_the_head_is_not_left_out(kind, options, linear):
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY | options)).eval()
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    assert give_logprob_head(built) is linear
    with torch.no_grad():
        for a, b in zip(in_full(built, 0.7), response_logprobs(built, ROWS, BEFORE, TARGETS, 0.7), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_head_with_a_bias_is_none_that_the_generation_engine_knows():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(initializer_range=0.3)).eval()
    assert is_supported(model)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-50, 50, len(model.lm_head.weight)))
    assert not is_supported(model)
    (drawn,) = LocalEngine(model, 4).generate([[5, 6]], Sampling(1, 0.0, -1, 0), 0, "test", 0, [0])
    assert drawn.token_ids == [len(model.lm_head.weight) - 1]


def test_the_generation_engine_reads_the_head_as_before():
    """Else a run would sample by another path, with other last bits, from its first update on: after a resume, too."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(initializer_range=0.3)).eval()
    before = LocalEngine(model, 4).generate([[5, 6], [7]], Sampling(6, 0.9, 1, 0), 0, "test", 0, [0, 1])
    assert is_supported(model) and give_logprob_head(model) and is_supported(model)
    assert LocalEngine(model, 4).generate([[5, 6], [7]], Sampling(6, 0.9, 1, 0), 0, "test", 0, [0, 1]) == before
