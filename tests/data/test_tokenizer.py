"""Any text survives the tokenizer, padding is never the end token, chats come back from their tokens."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import check_tokenizer, encode_documents, ensure_pad_token, load_documents, train_tokenizer
from data.tokenizer import EOS, PAD, special_tokens
from launch.errors import UserError

CORPUS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog, naïve café 1234"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 285)


@given(text=st.text())
def test_any_text_decodes_to_itself(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert ids.dtype == np.int32 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == text


def test_special_tokens_differ_and_come_first(tokenizer):
    assert tokenizer.convert_tokens_to_ids([PAD, EOS]) == [0, 1] == [tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert tokenizer.bos_token is None and len(tokenizer) == 285
    assert len(train_tokenizer(CORPUS, 1000)) < 300  # the corpus has no more to merge
    with_bos = train_tokenizer(CORPUS, 300, bos=True)
    ids = [with_bos.pad_token_id, with_bos.eos_token_id, with_bos.bos_token_id]
    assert ids == [0, 1, 2] and with_bos("a")["input_ids"][0] == 2
    assert encode_documents(with_bos, ["a"])[0][0] == 2


def test_special_looking_text_is_plain_text(tokenizer):
    """A document that quotes the end token must not end there."""
    (ids,) = encode_documents(tokenizer, [f"a {EOS} <|user|> b"])
    assert (ids[:-1] > 4).all() and tokenizer.decode(ids[:-1]) == f"a {EOS} <|user|> b"


def test_bytes_only_at_the_smallest_size(tokenizer):
    smallest = 256 + len(special_tokens(bos=False))
    by_bytes = train_tokenizer(CORPUS, smallest)
    assert len(by_bytes) == smallest == 261
    text = "naïve café ✓"
    (ids,) = encode_documents(by_bytes, [text])
    assert len(ids) == len(text.encode()) + 1
    assert len(encode_documents(tokenizer, ["the cat"])[0]) < len("the cat")
    with pytest.raises(UserError, match="vocab_size: 260 is below 261"):
        train_tokenizer(CORPUS, 260)


def test_training_is_deterministic_and_ignores_the_order():
    texts = [document.text for document in load_documents("embedded:python-prose")][:60]
    one, other = (train_tokenizer(t, 600).backend_tokenizer.to_str() for t in (texts, texts[::-1]))
    assert one == other


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi?\n"},
    {"role": "assistant", "content": "Hello.  "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "\n"},
]


def read_chat(tokenizer, ids):
    """The messages back from the tokens: split at the role tokens, take the end token off."""
    text = tokenizer.decode(ids)
    parts = re.split(r"<\|(system|user|assistant)\|>", text)[1:]
    return [{"role": r, "content": c.removesuffix(EOS)} for r, c in zip(parts[::2], parts[1::2], strict=True)]


@pytest.mark.parametrize("bos", [False, True])
def test_chat_round_trip(bos):
    tokenizer = train_tokenizer(CORPUS, 300, bos=bos)
    ids = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert read_chat(tokenizer, ids) == CHAT
    assert ids.count(tokenizer.eos_token_id) == 2 and ids[-1] == tokenizer.eos_token_id
    assert (ids[0] == tokenizer.bos_token_id) is bos and (not bos or ids.count(tokenizer.bos_token_id) == 1)


def test_prompt_is_a_prefix_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(CHAT[:3], return_dict=True)["input_ids"]
    answer = tokenizer.encode(CHAT[2]["content"], add_special_tokens=False)
    assert whole == prompt + answer + [tokenizer.eos_token_id]


def test_assistant_mask_covers_answers_and_their_end(tokenizer):
    out = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    trained = [i for i, on in zip(out["input_ids"], out["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(trained) == f"Hello.  {EOS}\n{EOS}"


def test_unknown_role(tokenizer):
    with pytest.raises(Exception, match="role tool is none of system, user, assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_saved_tokenizer_loads_without_alignkit(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the cat café")["input_ids"] == tokenizer("the cat café")["input_ids"]
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    assert loaded.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT, tokenize=False)
    check_tokenizer(loaded)


# ---------------------------------------------------------------------------------------------- foreign tokenizers


def foreign(pad=None, eos="<|end|>", bos=None, extra=()):
    """A word-level tokenizer of another maker with the given special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys([w for w in ("a", "b", "<|end|>", eos, bos, pad, *extra) if w])
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token=eos, bos_token=bos)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos": None}, "no end token"),
        ({}, "no padding token"),
        ({"pad": "<|end|>"}, "the padding token is the eos token"),
        ({"pad": "<s>", "bos": "<s>"}, "the padding token is the bos token"),
    ],
)
def test_check_says_what_to_do(options, message):
    with pytest.raises(UserError, match=message):
        check_tokenizer(foreign(**options))


def test_good_tokenizer_is_left_alone(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    check_tokenizer(tokenizer)
    assert ensure_pad_token(tokenizer) is False and tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize("options", [{}, {"pad": "<|end|>"}, {"pad": "<s>", "bos": "<s>"}])
def test_pad_token_is_added(options):
    mended = foreign(**options)
    size = len(mended)
    assert ensure_pad_token(mended) is True
    assert mended.pad_token == PAD and mended.pad_token_id == size and len(mended) == size + 1
    check_tokenizer(mended)


def test_unused_pad_of_the_vocabulary_is_taken():
    mended = foreign(pad="<|end|>", extra=["<pad>"])
    size = len(mended)
    assert ensure_pad_token(mended) is True
    assert mended.pad_token == "<pad>" and len(mended) == size


def test_no_end_token_cannot_be_mended():
    with pytest.raises(UserError, match=r"no end token; set tokenizer\.eos_token"):
        ensure_pad_token(foreign(eos=None))


@pytest.mark.parametrize("tied", [True, False])
def test_model_gets_a_row_of_average_logit(tied):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    mended = foreign(pad="<|end|>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    config = Qwen3Config(vocab_size=len(mended), num_key_value_heads=1, tie_word_embeddings=tied, **sizes)
    model = Qwen3ForCausalLM(config).eval()
    ids = torch.tensor([[0, 1, 2]])
    before = model(ids).logits.detach()
    assert ensure_pad_token(mended, model) is True
    after = model(ids).logits.detach()
    assert after.shape[-1] == before.shape[-1] + 1 == model.config.vocab_size == len(mended)
    torch.testing.assert_close(after[..., :-1], before)
    torch.testing.assert_close(after[..., -1], before.mean(-1))
    assert model.config.pad_token_id == model.generation_config.pad_token_id == mended.pad_token_id
    assert ensure_pad_token(mended, model) is False


def test_padded_vocabulary_is_not_shortened():
    pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    mended = foreign(pad="<|end|>")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    ensure_pad_token(mended, model)
    assert model.get_input_embeddings().num_embeddings == 64 and model.config.pad_token_id == mended.pad_token_id


def test_tinyshakespeare_as_a_byte_model(real):
    (document,) = load_documents(real("tinyshakespeare/input.txt"))
    by_bytes = train_tokenizer([document.text], 261)
    (ids,) = encode_documents(by_bytes, [document.text])
    assert len(ids) == 1_115_394 + 1 and len(set(ids.tolist())) == 65 + 1
