import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import train_tokenizer
from evaluation.language.perplexity import (
    DocumentScore,
    Perplexity,
    batch_deviation,
    conditioning,
    perplexity,
    sliding_windows,
)
from launch.errors import UserError
from tests.evaluation import tiny

TEXTS = ["a short one", "x", "a rather longer text, " * 6, "naïve café"]


def as_reference(n, context, stride):
    """(inputs, targets) as token numbers; the prefix is -100."""
    tokens = [-100, *range(n)]
    return [
        (tokens[w.start : w.stop - 1], tokens[w.stop - w.scored : w.stop]) for w in sliding_windows(n, context, stride)
    ]


def test_disjoint_windows_known_answer():
    expected = [
        ([-100, *range(0, 9)], list(range(10))),
        (list(range(9, 19)), list(range(10, 20))),
        (list(range(19, 29)), list(range(20, 30))),
        (list(range(23, 33)), list(range(30, 34))),
    ]
    assert as_reference(34, 10, 10) == expected


def test_overlapping_windows_known_answers():
    by_three, by_one = as_reference(34, 10, 3), as_reference(34, 10, 1)
    assert [t for _, t in by_three] == [list(range(10)), *[[i, i + 1, i + 2] for i in range(10, 34, 3)]]
    assert by_three[1][0] == list(range(2, 12)) and by_three[-1][0] == list(range(23, 33))
    assert [t for _, t in by_one] == [list(range(10)), *[[i] for i in range(10, 34)]]
    assert as_reference(0, 10, 5) == []


@given(st.integers(0, 60), st.integers(1, 12).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))))
def test_each_token_is_scored_once_with_enough_context(n, sizes):
    context, stride = sizes
    windows = as_reference(n, context, stride)
    assert [t for _, targets in windows for t in targets] == list(range(n))
    for number, (inputs, targets) in enumerate(windows):
        assert len(inputs) <= context
        assert number == 0 or len(inputs) - len(targets) + 1 >= context - stride + 1


def uniform_model():
    model = tiny.language_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_uniform_model_has_perplexity_of_its_vocabulary():
    scores = perplexity(uniform_model(), tiny.tokenizer(), TEXTS)
    assert scores.per("token").value == pytest.approx(258, rel=1e-5)
    assert scores.bits_per_byte().value == pytest.approx(math.log2(258), rel=1e-6)  # one token for each byte
    assert scores.per("byte").value == pytest.approx(258, rel=1e-5)
    assert [(d.tokens, d.bytes, d.words) for d in scores.documents] == [
        (10, 10, 2),  # without BOS the first token is given: "a"
        (0, 0, 0),
        (131, 131, 23),
        (11, 11, 2),
    ]


@pytest.mark.parametrize("bos", [False, True])
def test_scores_are_the_sum_of_conditional_log_probabilities(bos):
    """After BOS every token is predicted; without one the first is given, and EOS is never an input."""
    model, tok = tiny.language_model(), tiny.tokenizer.__wrapped__()
    if bos:
        tok.bos_token = "<eos>"
    texts = [TEXTS[0], "ab", "é and more"]
    scores = perplexity(model, tok, texts)
    for text, document in zip(texts, scores.documents):
        ids = [*([257] if bos else []), *tok(text)["input_ids"]]
        logprobs = model(torch.tensor([ids])).logits[0].detach().double().log_softmax(-1)
        exact = -sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1))
        assert document.nats == pytest.approx(exact, rel=1e-6)
        assert document.tokens == document.bytes == len(text.encode()) - (not bos)  # a token is a byte
    assert conditioning(tok) == ("each alone, after BOS" if bos else "each alone, from its second token (no BOS)")


def test_the_first_token_counts_with_all_its_bytes():
    tok = train_tokenizer(["held-out held-out held-out"], 300)
    model = tiny.language_model(vocab_size=len(tok))
    text = "held-out text"
    first = tok.decode(tok(text)["input_ids"][:1])
    assert len(first) > 1
    found = perplexity(model, tok, [text]).documents[0]
    assert (found.bytes, found.words) == (len(text) - len(first), len(text[len(first) :].split()))


def test_single_tokens_have_nothing_to_predict_and_say_so():
    entry = perplexity(tiny.language_model(), tiny.tokenizer(), ["a", "b"]).bits_per_byte()
    assert entry.value is None and "no byte is predicted" in entry.note


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_scores_do_not_depend_on_the_batch(batch_tokens):
    model, tok = tiny.language_model(), tiny.tokenizer()
    reference, other = perplexity(model, tok, TEXTS), perplexity(model, tok, TEXTS, batch_tokens=batch_tokens)
    for a, b in zip(reference.documents, other.documents):
        assert a.nats == pytest.approx(b.nats, abs=1e-5 * max(1, a.tokens))


def markov_model(order_mixing: float):
    """A model whose next token depends on the last token alone: attention and MLP write nothing."""
    model = tiny.language_model(initializer_range=1.0)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.lm_head.weight.data *= order_mixing
    return model


def test_stride_does_not_matter_once_the_context_suffices():
    model, tok = markov_model(0.3), tiny.tokenizer()
    text = ["the model looks one token back, no further, so every window tells it all. " * 2]
    exact = perplexity(model, tok, text, context=64, stride=1).documents[0].nats
    for context, stride in [(64, 32), (10, 10), (10, 3), (1, 1)]:
        assert perplexity(model, tok, text, context, stride).documents[0].nats == pytest.approx(exact, rel=1e-6)


def test_stride_matters_for_a_model_that_looks_back():
    model, tok = tiny.language_model(), tiny.tokenizer()
    values = [perplexity(model, tok, TEXTS[2:3], 16, stride).documents[0].nats for stride in (16, 8, 1)]
    assert len({round(v, 3) for v in values}) == 3


def test_corpus_perplexity_weighs_tokens_not_documents():
    two_and_eight = Perplexity([DocumentScore(10 * math.log(2), 10, 1, 10), DocumentScore(10 * math.log(8), 10, 1, 10)])
    assert two_and_eight.per("token").value == pytest.approx(4.0)
    mean = two_and_eight.per_document()
    assert (mean.name, mean.value, mean.n) == ("mean_document_perplexity", pytest.approx(5.0), 2)
    unequal = Perplexity([DocumentScore(30 * math.log(2), 30, 1, 10), DocumentScore(10 * math.log(32), 10, 1, 10)])
    assert unequal.per("token").value == pytest.approx(4.0)


def test_units_are_consistent_by_identity():
    scores = Perplexity([DocumentScore(50.0, 20, 9, 64), DocumentScore(21.0, 10, 4, 31), DocumentScore(9.0, 3, 2, 11)])
    nats, bpb = 80.0, scores.bits_per_byte().value
    assert bpb == pytest.approx(nats / math.log(2) / 106)
    assert scores.per("byte").value == pytest.approx(2**bpb)
    assert scores.per("word").value == pytest.approx(math.exp(nats / 15))
    names = ["bits_per_byte", "perplexity", "word_perplexity", "byte_perplexity", "mean_document_perplexity"]
    assert [m.name for m in scores.metrics()] == names
    for entry in scores.metrics():
        assert entry.n == 3 and entry.ci_low < entry.value < entry.ci_high and entry.higher_is_better is False


def test_one_document_claims_no_interval():
    assert Perplexity([DocumentScore(5.0, 5, 2, 9)]).bits_per_byte().ci_low is None


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"context": 65}, "context: 65 is more than the model's 64"),
        ({"stride": 65}, "stride: 65 is not between 1 and the context 64"),
        ({"stride": 0}, "stride: 0"),
    ],
)
def test_window_sizes_that_do_not_fit(kwargs, words):
    with pytest.raises(UserError, match=words):
        perplexity(tiny.language_model(), tiny.tokenizer(), ["a"], **kwargs)


def test_a_blank_document_is_named():
    with pytest.raises(UserError, match="document 2 has no tokens"):
        perplexity(tiny.language_model(), tiny.tokenizer(), ["a", ""])


def test_a_document_without_tokens_to_predict_has_no_perplexity_of_its_own():
    scores = Perplexity([DocumentScore(0.0, 0, 0, 0), DocumentScore(math.log(9) * 2, 2, 1, 2)])
    assert scores.per_document().value == pytest.approx(9.0) and scores.per_document().n == 1


def test_every_unit_tells_the_same_nats():
    """bits/byte = log2 of the byte perplexity, and perplexities of words and tokens to the power of their counts agree."""
    scores = perplexity(tiny.language_model(), tiny.tokenizer(), TEXTS)
    tokens, words, size = (sum(getattr(d, u) for d in scores.documents) for u in ("tokens", "words", "bytes"))
    assert scores.per("byte").value == pytest.approx(2 ** scores.bits_per_byte().value)
    total = tokens * math.log(scores.per("token").value)
    assert words * math.log(scores.per("word").value) == pytest.approx(total)
    assert size * math.log(scores.per("byte").value) == pytest.approx(total)


def test_the_change_by_batching_is_measured_and_small_in_fp32():
    model, tok = tiny.language_model(), tiny.tokenizer()
    worst, n = batch_deviation(model, tok, TEXTS, 64)
    assert n == 10 + 0 + 64 + 11 and worst < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = batch_deviation(model, tok, TEXTS, 64)
    assert 0 <= rough < 1.0


def test_a_model_whose_numbers_depend_on_the_batch_is_found_out():
    model, tok = tiny.language_model(), tiny.tokenizer()
    forward = model.forward

    def leaky(input_ids, **named):
        out = forward(input_ids, **named)
        out.logits[..., 0] += len(input_ids)  # as if neighbours were read
        return out

    model.forward = leaky
    assert batch_deviation(model, tok, TEXTS, 64)[0] > 0.1


def test_a_perplexity_beyond_all_numbers_is_said_to_be_so():
    scores = Perplexity([DocumentScore(3000.0, 500, 1, 500)])  # one word of 500 letters
    words = scores.per("word")
    assert words.value is None and words.note == "exp of 3000 nats per word is more than a number can hold"
    assert scores.per("token").value == pytest.approx(math.exp(6))
    assert DocumentScore(3000.0, 2, 1, 2).perplexity is None
