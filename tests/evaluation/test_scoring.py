import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Gemma2Config, Gemma2ForCausalLM

from evaluation import scoring
from evaluation.trunk import states_at
from launch.errors import UserError
from tests.evaluation import tiny

SEQUENCES = [[5, 9, 200], [7] * 40, [3, 1, 4, 1, 5, 9, 2, 6], [100], [11, 256, 257, 256], list(range(60))]


def manual_logprobs(model, prompt, completion, temperature=1.0):
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    picked = logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(completion) - 1), completion]
    return picked.detach().float()


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_rewards_do_not_depend_on_the_batch(batch_tokens):
    model = tiny.reward_model()
    alone = torch.stack([model(torch.tensor([s])).logits[0, 0] for s in SEQUENCES[:4]]).detach()
    rewards = scoring.score_ids(model, SEQUENCES, batch_tokens)
    assert rewards.dtype == torch.float32 and rewards.shape == (6,)
    torch.testing.assert_close(rewards[:4], alone, atol=1e-5, rtol=0)
    assert rewards.std() > 0.1


def test_the_last_token_is_read_even_when_it_is_the_pad_token():
    model = tiny.reward_model()
    ids = [11, 256, 257, 256]
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    mine = scoring.score_ids(model, [ids])[0]
    torch.testing.assert_close(mine, model.score(hidden)[0].detach(), atol=1e-5, rtol=0)
    assert (model(torch.tensor([ids])).logits[0, 0] - mine).abs() > 1e-3  # transformers reads token 2


def test_a_model_without_pad_token_scores_batches():
    model = tiny.reward_model()
    expected = scoring.score_ids(model, SEQUENCES)
    model.config.pad_token_id = None
    torch.testing.assert_close(scoring.score_ids(model, SEQUENCES), expected)


def test_an_encoder_is_scored_by_its_own_pooling():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=258, num_labels=1, initializer_range=0.5, **shape)
    ).eval()
    alone = torch.stack([model(torch.tensor([s])).logits[0, 0] for s in SEQUENCES]).detach()
    torch.testing.assert_close(scoring.score_ids(model, SEQUENCES), alone, atol=1e-5, rtol=0)


def test_prompt_and_completion_are_tokenised_apart():
    tok, model = tiny.tokenizer(), tiny.reward_model()
    ids = tok("abc")["input_ids"]
    assert scoring.encode(tok, ["ab", "ab"], ["c", "c"], [True, False]) == [[*ids, 257], ids]
    rewards = scoring.score_sequences(model, tok, ["ab", "x"], ["c", "yz"], ended=[True, False])
    torch.testing.assert_close(rewards, scoring.score_ids(model, [[*ids, 257], tok("xyz")["input_ids"]]))


TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role != 'user' %}<eos>{% endif %};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def test_messages_go_through_the_chat_template():
    tok = tiny.tokenizer.__wrapped__()
    with pytest.raises(UserError, match="no chat template"):
        scoring.encode(tok, [[{"role": "user", "content": "hi"}]], ["yo"])
    tok.chat_template = TEMPLATE
    prompt = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "he"},
    ]
    whole, cut = scoring.encode(tok, [prompt, prompt], ["yo", "yo"], [True, False])
    assert tok.decode(whole) == "u:hi;a:ho<eos>;u:he;a:yo<eos>" and whole == [*cut, 257]


def test_a_row_is_encoded_the_same_whatever_stands_beside_it():
    tok = tiny.tokenizer.__wrapped__()
    tok.chat_template = TEMPLATE
    prompts, completions, ended = (
        ["ab", [{"role": "user", "content": "hi"}], "x"],
        ["c", "yo", "y"],
        [True, False, False],
    )
    together = scoring.encode(tok, prompts, completions, ended)
    alone = [scoring.encode(tok, [p], [c], [e])[0] for p, c, e in zip(prompts, completions, ended)]
    assert together == alone
    assert tok.decode(together[0]) == "abc<eos>" and tok.decode(together[1]) == "u:hi;a:yo"


@pytest.mark.parametrize("chat", [False, True])
def test_encoding_is_that_of_the_reward_model(chat):
    from alignment.reward.model import RewardModel

    tok = tiny.tokenizer.__wrapped__()
    prompts, completions = ["one two ", "x"], ["three", "y z"]
    if chat:
        tok.chat_template = TEMPLATE
        prompts = [[{"role": "user", "content": p}] for p in prompts]
    model = RewardModel(tiny.reward_model(), tok)
    assert scoring.encode(tok, prompts, completions) == model.encode(prompts, completions)
    mine = scoring.score_sequences(tiny.reward_model(), tok, prompts, completions).tolist()
    assert mine == pytest.approx(model.score(prompts, completions), abs=1e-5)


def test_two_labels_are_refused_with_the_remedy():
    with pytest.raises(UserError, match="has 2 labels, a reward model has one; train one"):
        scoring.score_ids(tiny.reward_model(num_labels=2), [[1]])


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_match_the_full_softmax_on_any_batch(batch_tokens, temperature):
    model = tiny.language_model()
    prompts = [[5, 9], [7] * 30, [3, 1, 4], [100]]
    completions = [[8, 8, 257], [9] * 20, [2], []]
    scored = scoring.completion_logprobs(model, prompts, completions, temperature, batch_tokens)
    for prompt, completion, values in zip(prompts, completions, scored, strict=True):
        torch.testing.assert_close(values, manual_logprobs(model, prompt, completion, temperature), atol=1e-5, rtol=0)
    assert [len(v) for v in scored] == [3, 20, 1, 0]


def test_logits_stay_within_their_limit(monkeypatch):
    model = tiny.language_model()
    widths = []
    model.lm_head.register_forward_hook(lambda module, args, out: widths.append(out.shape[:-1].numel()))
    before = scoring.completion_logprobs(model, [[1, 2]] * 8, [[3, 4, 5]] * 8)
    assert widths == [24]  # 8 rows x 3 scored positions, not 8 x 5
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 258 * 6)
    monkeypatch.setattr(scoring, "ROWS_PER_SOFTMAX", 2)
    after = scoring.completion_logprobs(model, [[1, 2]] * 8, [[3, 4, 5]] * 8)
    assert widths[1:] == [6, 6, 6, 6]
    torch.testing.assert_close(torch.stack(after), torch.stack(before))


def test_logit_soft_capping_is_kept():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=50,
            head_dim=16,
            num_key_value_heads=1,
            final_logit_softcapping=0.5,
            initializer_range=0.5,
            **shape,
        )
    ).eval()
    values = scoring.completion_logprobs(model, [[1, 2, 3]], [[4, 5]])[0]
    torch.testing.assert_close(values, manual_logprobs(model, [1, 2, 3], [4, 5]), atol=1e-5, rtol=0)


def test_too_long_and_empty_rows_are_named():
    model = tiny.language_model()
    with pytest.raises(UserError, match=r"prompt 2 has 70 tokens, more than the model's context of 64"):
        scoring.completion_logprobs(model, [[1], [1] * 70], [[2], [2]])
    with pytest.raises(UserError, match=r"row 1 has 65 tokens"):
        scoring.completion_logprobs(model, [[1] * 60], [[2] * 6])
    assert len(scoring.completion_logprobs(model, [[1] * 60], [[2] * 5])[0]) == 5  # 64 inputs
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        scoring.completion_logprobs(model, [[]], [[2]])
    with pytest.raises(UserError, match=r"row 3 has 65 tokens"):
        scoring.score_ids(tiny.reward_model(), [[1], [2], [3] * 65])


def test_temperature_zero_has_no_distribution():
    with pytest.raises(ValueError, match="greedy"):
        scoring.completion_logprobs(tiny.language_model(), [[1]], [[2]], temperature=0.0)


def test_the_model_is_left_as_it_was():
    model = tiny.language_model().train()
    beats = []
    scoring.completion_logprobs(model, [[1], [2]], [[2], [3]], batch_tokens=1, beat=beats.append)
    assert model.training and beats == [1, 1] and model.lm_head.weight.requires_grad


def test_tokens_of_another_tokenizer_are_refused():
    with pytest.raises(UserError, match="token id 999 is outside its vocabulary of 258"):
        scoring.completion_logprobs(tiny.language_model(), [[1]], [[2, 999]])


def test_damaged_weights_are_named():
    model, judge = tiny.language_model(), tiny.reward_model()
    model.lm_head.weight.data[3, 0] = judge.score.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="gives NaN or infinity for row 1"):
        scoring.completion_logprobs(model, [[1]], [[2]])
    with pytest.raises(UserError, match="gives NaN or infinity"):
        scoring.score_ids(judge, [[1], [2]])


def test_the_reward_head_is_fp32_under_autocast():
    model = tiny.reward_model()
    with torch.autocast("cpu", torch.bfloat16):
        rewards = torch.cat([scoring.score_ids(model, [ids]) for ids in SEQUENCES])
        rows = [(torch.tensor([ids]), torch.tensor([len(ids) - 1])) for ids in SEQUENCES]
        last = torch.cat([states_at(model.model, ids_1S, last_1) for ids_1S, last_1 in rows])
    assert (rewards != rewards.bfloat16().float()).any()
    expected = last.float() @ model.score.weight[0]  # a body in bf16, a head in fp32
    torch.testing.assert_close(rewards, expected.detach(), atol=1e-6, rtol=1e-6)
