"""`RewardModel`: the plain model's numbers, whatever the batch and the padding; mistakes named."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Qwen3ForSequenceClassification,
)

from alignment.reward.model import RewardModel
from data import train_tokenizer
from evaluation.trunk import states_at
from launch.errors import UserError
from tests.support import ROOT, WORDS, environment, save_policy, save_reward, tiny_config, word_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reward(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [[" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(30)] for _ in range(2)]


def test_scores_are_those_of_the_plain_model_on_prompt_completion_and_eos(folder, texts):
    found = RewardModel.from_pretrained(folder).score(*texts)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), word_tokenizer()
    for prompt, completion, score in zip(*texts, found, strict=True):
        ids = tokenizer(f"{prompt} {completion}")["input_ids"] + [tokenizer.eos_token_id]
        assert score == pytest.approx(float(model(torch.tensor([ids])).logits.detach()), abs=1e-5)
    assert len(set(found)) == 30


def test_scores_do_not_depend_on_the_batch(folder, texts):
    model = RewardModel.from_pretrained(folder)
    together, one_by_one = model.score(*texts), [model.score([p], [c])[0] for p, c in zip(*texts, strict=True)]
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert together == pytest.approx(model.score(*texts, batch_tokens=70), abs=1e-5)


def test_token_scores_do_not_depend_on_the_padding(folder):
    model = RewardModel.from_pretrained(folder)
    rows = [[5, 6, 7, 1], [9, 0, 8], [4, 5, 6, 7, 8, 9, 1]]  # one row has a pad token in its text, and no EOS
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = [float(plain(torch.tensor([row])).logits.detach()) for row in rows]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for i, (row, left) in enumerate(zip(rows, (0, 5, 3), strict=True)):
        ids[i, left : left + len(row)], mask[i, left : left + len(row)] = torch.tensor(row), 1
    found = model.score_tokens(ids, mask, batch_size=2)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_messages_go_through_the_chat_template(tmp_path):
    tokenizer = train_tokenizer(["Return the value of x"] * 3, 300)
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(tiny_config(len(tokenizer), num_labels=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    prompt = [{"role": "user", "content": "x"}]
    assert tokenizer.decode(model.encode([prompt], ["Return"])[0]) == "<|user|>x<|assistant|>Return<|endoftext|>"
    assert len(model.score([prompt, "x"], ["Return", "Return"])) == 2


def test_the_head_stays_in_float32_under_autocast(folder, texts):
    model = RewardModel.from_pretrained(folder)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.tensor([model.score([prompt], [text])[0] for prompt, text in zip(*texts, strict=True)])
        ids = [torch.tensor([row]) for row in model.encode(*texts)]
        last = torch.cat([states_at(model.model.model, row, torch.tensor([row.shape[1] - 1])) for row in ids])
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).sum() > 25  # bf16 heads give bf16 numbers
    expected = last.float() @ model.model.score.weight[0]  # a body in bf16, a head in fp32
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)


def test_an_encoder_serves_as_well(tmp_path):
    config = BertConfig(
        vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1,
        pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    both, alone = model.score(["the", "of and to"], ["of", "in"]), model.score(["the"], ["of"])
    assert both[0] == pytest.approx(alone[0], abs=1e-5)


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"the weights lack score\.weight, it holds a \w+, so this is no trained reward model"
    ):
        RewardModel.from_pretrained(save_policy(tmp_path / "policy"))
    with pytest.raises(UserError, match="the tokenizer has 23 tokens, the model 20"):
        RewardModel.from_pretrained(save_reward(tmp_path / "small", vocab_size=20))
    with pytest.raises(UserError, match="no pad_token_id"):
        RewardModel.from_pretrained(save_reward(tmp_path / "no_pad", pad_token_id=None))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        RewardModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="row 2 has 71 tokens"):
        RewardModel.from_pretrained(folder).score(["the", "the " * 69], ["of", "of"])


@pytest.mark.parametrize(
    ("prompts", "completions", "ended", "message"),
    [
        (["a", "b"], ["c"], None, "completions: 2 prompts and 1 completions; give one for each"),
        ("the of", "and to", None, "prompts: a str is not a list of texts"),
        (["the"], "o", None, "completions: a str is not a list of texts"),
        ((p for p in ["the"]), ["of"], None, "prompts: a generator is not a list"),
        ({"prompt": "the"}, ["of"], None, "prompts: a dict is not a list"),
        (["the", None], ["of", "of"], None, r"prompts\[1\]: None is not text"),
        (["the"], [3], None, r"completions\[0\]: 3 is not text"),
        ([{"role": "user", "content": "x"}], ["of"], None, r"prompts\[0\]: .* is not text; give a text or a list"),
        ([[{"role": "user"}]], ["of"], None, r"prompts\[0\], message 1 has no 'content'"),
        ([["the"]], ["of"], None, r"prompts\[0\], message 1 is"),
        (["the", "of"], ["of", "of"], [True], "ended: 2 prompts and 1 ended; give one for each"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(folder, prompts, completions, ended, message):
    with pytest.raises(UserError, match=message):
        RewardModel.from_pretrained(folder).score(prompts, completions, ended=ended)


def test_lists_of_other_kinds_are_read(folder):
    model = RewardModel.from_pretrained(folder)
    expected = model.score(["the", "of"], ["and", "to"])
    assert model.score(("the", "of"), np.array(["and", "to"])) == pytest.approx(expected, abs=1e-6)
    assert model.score([], []) == []


def test_same_tokenizer(folder):
    model = RewardModel.from_pretrained(folder)
    assert model.same_tokenizer(word_tokenizer())
    assert not model.same_tokenizer(train_tokenizer(["the of"], 300))


def test_importing_is_cheap():
    code = "import sys; from alignment.reward.model import RewardModel; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
