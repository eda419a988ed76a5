"""Text to ids: prompt, completion, EOS; chat templates; rows that are too long."""

import pytest
from transformers.utils import logging

from data import train_tokenizer
from data.encoding import encode_completions, encode_prompts, keep_fitting
from launch.errors import UserError
from tests.support import word_tokenizer

TEXTS = ["def f(x):", "Return the value of x.", "the quick brown fox"]
CHAT = [{"role": "user", "content": "def f(x):"}]
ANSWER = [{"role": "assistant", "content": "Return x."}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_text_is_encoded_apart_and_ends_in_eos(tokenizer):
    prompts, completions = ["def f(x):\n", "the"], ["Return x.", " fox"]
    heads, tails = encode_prompts(tokenizer, prompts), encode_completions(tokenizer, prompts, completions)
    for prompt, completion, head, tail in zip(prompts, completions, heads, tails, strict=True):
        assert tokenizer.decode(head) == prompt
        assert tail[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tail[:-1]) == completion
        assert tail.count(tokenizer.eos_token_id) == 1


def test_one_by_one_is_the_same_as_in_a_batch(tokenizer):
    whole = encode_prompts(tokenizer, TEXTS)
    assert whole == [encode_prompts(tokenizer, [text])[0] for text in TEXTS]
    mixed = encode_prompts(tokenizer, [*TEXTS, CHAT])  # a row of messages among them takes the slow way
    assert mixed[:3] == whole


def test_a_begin_token_opens_the_prompt_and_nothing_else():
    tokenizer = train_tokenizer(TEXTS, 300, bos=True)
    head, tail = encode_prompts(tokenizer, ["the"])[0], encode_completions(tokenizer, ["the"], [" fox"])[0]
    assert head[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in head[1:] + tail


def test_messages_go_through_the_template(tokenizer):
    head, tail = encode_prompts(tokenizer, [CHAT])[0], encode_completions(tokenizer, [CHAT], [ANSWER])[0]
    assert tokenizer.decode(head) == "<|user|>def f(x):<|assistant|>"
    assert tokenizer.decode(tail) == "Return x." + tokenizer.eos_token
    assert encode_completions(tokenizer, [CHAT], ["Return x."])[0] == tail  # a text answer to messages


def test_what_a_template_writes_after_the_end_is_not_learned(tokenizer):
    chat = train_tokenizer(TEXTS, 300)
    chat.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert chat.decode(encode_completions(chat, [CHAT], [ANSWER])[0]) == "Return x." + chat.eos_token
    chat.chat_template = chat.chat_template.replace("{{ eos_token }}", "")
    assert chat.decode(encode_completions(chat, [CHAT], [ANSWER])[0]) == "Return x.\n" + chat.eos_token


def test_a_template_that_renders_the_prompt_differently_is_an_error(tokenizer):
    chat = train_tokenizer(TEXTS, 300)
    chat.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="rendered prompt is not the beginning"):
        encode_completions(chat, [CHAT], [ANSWER])
    chat.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompts(chat, [CHAT])


def test_long_rows_are_left_out_and_counted():
    rows = [{"origin": f"a.jsonl: line {i}"} for i in range(4)]
    assert keep_fitting(rows, [3, 9, 5, 6], 5) == ([rows[0], rows[2]], 2)
    assert keep_fitting([], [], 5) == ([], 0)
    with pytest.raises(UserError, match=r"a.jsonl: line 0: takes 7 tokens, the context holds 5, and so do the other 3"):
        keep_fitting(rows, [7, 9, 6, 6], 5)
    with pytest.raises(UserError, match=r"a.jsonl: line 0: takes 7 tokens, the context holds 5; shorten"):
        keep_fitting(rows[:1], [7], 5)


def test_the_tokenizer_says_nothing_of_length(caplog):
    """Whoever encodes leaves out what is too long, and says how many rows that were."""
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 4
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    logging.get_logger().addHandler(caplog.handler)
    try:
        text, turns = "the of and to in a is", [{"role": "user", "content": "the of and to in a is"}]
        for prompts, completions in (([text], [text]), ([turns], [text])):
            assert len(encode_prompts(tokenizer, prompts)[0]) == 7
            encode_completions(tokenizer, prompts, completions)
    finally:
        logging.get_logger().removeHandler(caplog.handler)
    assert "Token indices" not in caplog.text
