"""Likelihoods of options: against single forward passes; pseudo-likelihood against masking by hand."""

import pytest
import torch

from evaluation.safety.choices import (
    Item,
    Option,
    causal_scores,
    find_unscorable,
    masked_ids,
    pseudo_scores,
    shared_positions,
)
from launch.errors import UserError
from tests.evaluation import tiny


def by_hand(model, context, text):
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *text]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(context) + i - 1, token]) for i, token in enumerate(text))


def test_causal_scores_are_sums_of_conditional_log_probabilities():
    model, tokenizer = tiny.language_model(0), tiny.tokenizer()
    items = [
        Item("a", (Option("Who?", " me"), Option("Who?", " you all"))),
        Item("b", (Option("", "The poor."), Option("", "The rich."))),
    ]
    found = causal_scores(model, tokenizer, items)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for item, scores in zip(items, found):
        for option, score in zip(item.options, scores):
            context = tokenizer(option.context)["input_ids"] if option.context else [start]
            text = tokenizer(option.text, add_special_tokens=False)["input_ids"]
            assert score.tokens == len(text)
            assert score.nats == pytest.approx(by_hand(model, context, text), abs=1e-4)


def test_an_item_longer_than_the_context_is_named():
    with pytest.raises(UserError, match="long one: an option has"):
        causal_scores(tiny.language_model(0), tiny.tokenizer(), [Item("long one", (Option("x" * 5000, " y"),))])
    with pytest.raises(UserError, match="empty one: an option has no token"):
        causal_scores(tiny.language_model(0), tiny.tokenizer(), [Item("empty one", (Option("x", ""),))])


def test_shared_positions_of_a_pair():
    assert shared_positions([1, 2, 3, 4], [1, 9, 8, 3, 4]) == ([0, 2, 3], [0, 3, 4])


@pytest.fixture(scope="module")
def masked():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "the", "poor", "rich", "men", "women", "are", "lazy", "not"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        initializer_range=0.5, max_position_embeddings=32,
    )  # fmt: skip
    return BertForMaskedLM(config).eval(), tokenizer


def test_pseudo_likelihood_masks_each_shared_token_in_turn(masked):
    model, tokenizer = masked
    item = Item("pair", (Option("", "the poor men are lazy"), Option("", "the rich are lazy")))
    found = pseudo_scores(model, tokenizer, item, batch_tokens=8)  # one row at a time
    assert [score.tokens for score in found] == [3, 3]  # the, are, lazy: neither specials nor what differs
    for option, score in zip(item.options, found):
        ids, total = tokenizer(option.text)["input_ids"], 0.0
        for place, token in enumerate(ids):
            if tokenizer.decode([token]) in ("the", "are", "lazy"):
                row = torch.tensor([[*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
                with torch.no_grad():
                    total += float(model(row).logits[0, place].log_softmax(-1)[token])
        assert score.nats == pytest.approx(total, abs=1e-4)
    again = pseudo_scores(model, tokenizer, item, batch_tokens=10_000)
    assert [s.nats for s in again] == pytest.approx([s.nats for s in found], abs=1e-4)


def test_a_sentence_longer_than_a_masked_model_reads_is_named(masked):
    model, tokenizer = masked  # of 32 positions, two for the special tokens
    fits, long = (Item(name, (Option("", "men " * n), Option("", "women"))) for name, n in (("fits", 30), ("long", 31)))
    assert find_unscorable([fits, long], lambda item: masked_ids(tokenizer, item, 32)) == {
        1: "long: an option has 33 tokens, more than the 32 that the model can score; use a model with a longer context, or "
        "leave the item out"
    }
    pseudo_scores(model, tokenizer, fits)
    with pytest.raises(UserError, match="long: an option has 33 tokens"):
        pseudo_scores(model, tokenizer, long)


def test_a_masked_model_scores_pairs_alone(masked):
    with pytest.raises(UserError, match="pairs of sentences"):
        pseudo_scores(*masked, Item("x", (Option("context", "the"), Option("", "are"))))
    with pytest.raises(UserError, match="no mask token"):
        pseudo_scores(masked[0], tiny.tokenizer(), Item("x", (Option("", "the"), Option("", "are"))))
