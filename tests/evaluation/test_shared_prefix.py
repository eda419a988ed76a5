"""Shared prefixes: the numbers are those of each pair alone, and what is shared runs once."""

import functools
import itertools

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
)

from evaluation import scoring, shared_prefix
from evaluation.shared_prefix import reward_continuations, score_continuations, takes_packed_rows
from launch.errors import UserError
from tests.evaluation import tiny

VOCABULARY = 258
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.3}


@functools.cache
def architectures():
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    bloom = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3)
    windows = dict(head_dim=16, sliding_window=32, **SHAPE, **HEADS)
    mamba = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)
    eager = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, attn_implementation="eager"))
    return {
        "qwen3": (tiny.language_model(max_position_embeddings=256), True),
        "llama-eager": (eager, True),
        "gpt2": (GPT2LMHeadModel(gpt2), True),
        "gemma2": (Gemma2ForCausalLM(Gemma2Config(**{**windows, "sliding_window": 200})), True),
        "mistral-window": (MistralForCausalLM(MistralConfig(**windows)), False),
        "bloom-alibi": (BloomForCausalLM(bloom), False),
        "mamba": (MambaForCausalLM(mamba), False),
    }


NAMES = ["qwen3", "llama-eager", "gpt2", "gemma2", "mistral-window", "bloom-alibi", "mamba"]


def sequence(length, seed):
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


START = sequence(70, 99)
"""A beginning that some contexts share, longer than SHARED_START."""
CONTEXTS = [sequence(9, 0), sequence(40, 1), [*START, *sequence(5, 2)], [*START, *sequence(20, 3)], START, [7]]
PAIRS = [(c, sequence(n, 10 * i + n)) for i, c in enumerate(CONTEXTS) for n in (1, 3, 12)] + [(CONTEXTS[1], [])]


def manual(model, context, continuation):
    """Log-probabilities by the full softmax in float64 of one row, and whether all are the likeliest."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0].double()
    rows = logits[len(context) - 1 : len(context) + len(continuation) - 1]
    return rows.log_softmax(-1)[range(len(continuation)), continuation], rows.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_scores_are_those_of_each_pair_alone(name, batch_tokens):
    model, packs = architectures()[name]
    model.eval()
    assert takes_packed_rows(model, max(len(c) + len(a) for c, a in PAIRS)) is packs
    scored = score_continuations(model, [c for c, _ in PAIRS], [a for _, a in PAIRS], batch_tokens)
    assert len(scored) == len(PAIRS)
    for (context, answer), found in zip(PAIRS, scored, strict=True):
        expected, greedy = manual(model, context, answer)
        torch.testing.assert_close(found.logprobs_T, expected.float(), atol=2e-5, rtol=0)
        assert found.greedy is greedy


def test_greedy_means_every_token_is_the_likeliest():
    model = tiny.language_model()
    context, answer = [5, 9], []
    for _ in range(3):
        with torch.no_grad():
            answer.append(int(model(torch.tensor([[*context, *answer]])).logits[0, -1].argmax()))
    wrong = [*answer[:2], (answer[2] + 1) % VOCABULARY]
    assert [s.greedy for s in score_continuations(model, [context] * 3, [answer, wrong, answer[:1]])] == [
        True,
        False,
        True,
    ]


class Counted:
    """Counts the tokens (padding included) and the positions of the head that a model computes."""

    def __init__(self, model):
        self.tokens = self.heads = 0
        self.hooks = [
            model.base_model.register_forward_pre_hook(self._read, with_kwargs=True),
            model.lm_head.register_forward_hook(self._head),
        ]

    def _read(self, module, args, named):
        self.tokens += named["input_ids"].numel()

    def _head(self, module, args, out):
        self.heads += out.shape[:-1].numel()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        for hook in self.hooks:
            hook.remove()


@pytest.fixture
def no_trial(monkeypatch):
    monkeypatch.setattr(shared_prefix, "takes_packed_rows", lambda model, longest: True)


def test_a_context_runs_once_for_its_choices_and_the_head_where_it_must(no_trial):
    model = tiny.language_model(max_position_embeddings=256)
    context = sequence(50, 5)
    with Counted(model) as counted:
        score_continuations(model, [context] * 4, [sequence(n, n) for n in (1, 3, 4, 6)])
    assert counted.tokens == 50 + 0 + 2 + 3 + 5  # alone: 4 x 50 + 10
    assert counted.heads == 1 + 2 + 3 + 5


def test_what_contexts_share_runs_once(no_trial):
    model = tiny.language_model(max_position_embeddings=256)
    contexts = [[*START, *sequence(10, n)] for n in range(5)]
    pairs = list(itertools.product(contexts, [[1], [2]]))
    with Counted(model) as counted:
        score_continuations(model, [c for c, _ in pairs], [a for _, a in pairs])
    assert counted.tokens == 70 + 5 * 10
    assert counted.heads == 5  # one for both answers, which are one token long


def test_rows_that_share_nothing_meet_in_one_pass(no_trial):
    """In place of a pass for each: prompts shorter than SHARED_START, as those of the demo are, are families of one."""
    model = tiny.language_model(max_position_embeddings=256)
    passes = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: passes.append(k["input_ids"].shape), with_kwargs=True
    )
    contexts = [sequence(20, n) for n in range(6)] + [sequence(80, 50)]
    score_continuations(model, contexts, [[1, 2]] * 7, batch_tokens=1000)
    hook.remove()
    assert sorted(passes) == [(1, 81), (6, 21)]


def test_rows_stay_within_the_budget_where_they_can(no_trial):
    model = tiny.language_model(max_position_embeddings=256)
    sizes = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: sizes.append(k["input_ids"].numel()), with_kwargs=True
    )
    score_continuations(model, [[1, 2, 3]] * 30, [sequence(8, n) for n in range(30)], batch_tokens=40)
    hook.remove()
    assert max(sizes) <= 40 and len(sizes) == 6  # 5 answers of 7 read tokens beside 3 of context


def test_a_model_that_masks_wrongly_is_found_out():
    model = tiny.language_model()
    before = model.model.forward

    def deaf(*words, attention_mask=None, **named):  # reads rows as plain text, whatever the mask says
        return before(*words, attention_mask=None, **named)

    assert takes_packed_rows(model, 10)
    model.model.forward = deaf
    assert not takes_packed_rows(model, 10)


def test_a_model_that_cannot_read_such_masks_is_named_and_lack_of_memory_is_no_such_model(caplog):
    def fails(error):
        def forward(*words, **named):
            raise error

        model = tiny.language_model()
        model.model.forward = forward
        return model

    with caplog.at_level("INFO", "evaluation.shared_prefix"):
        assert not takes_packed_rows(fails(TypeError("a mask of four dimensions")), 10)
    (said,) = caplog.messages
    assert "takes no packed rows" in said and "a mask of four dimensions" in said
    with pytest.raises(torch.OutOfMemoryError):
        takes_packed_rows(fails(torch.OutOfMemoryError("no memory")), 10)


def test_bf16_is_near_and_fp32_does_not_depend_on_the_batch():
    model = tiny.language_model(max_position_embeddings=256)
    arguments = [c for c, _ in PAIRS], [a for _, a in PAIRS]
    one, all_ = score_continuations(model, *arguments, 1), score_continuations(model, *arguments, 10_000)
    assert max(float((a.logprobs_T - b.logprobs_T).abs().max()) for a, b in zip(one, all_) if len(a.logprobs_T)) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        rough = score_continuations(model, *arguments)
    assert max(float((a.logprobs_T - b.logprobs_T).abs().max()) for a, b in zip(one, rough) if len(a.logprobs_T)) < 1.0


@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_rewards_are_those_of_the_joined_rows(batch_tokens):
    model = tiny.reward_model(max_position_embeddings=256)
    contexts, answers = [c for c, _ in PAIRS], [a for _, a in PAIRS]
    found = reward_continuations(model, contexts, answers, batch_tokens)
    expected = scoring.score_ids(model, [[*c, *a] for c, a in PAIRS], 1)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert found.std() > 0.1
    assert reward_continuations(model, [], []).shape == (0,)


def test_a_pair_costs_its_prompt_once():
    model = tiny.reward_model(max_position_embeddings=256)
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True
    )
    reward_continuations(model, [sequence(50, 5)] * 2, [sequence(4, 1), sequence(7, 2)])
    hook.remove()
    assert seen[-1] == 50 + 4 + 7


def test_encoders_and_window_models_are_rewarded_row_by_row():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=258, num_labels=1, initializer_range=0.5, **shape)
    ).eval()
    windows = MistralConfig(head_dim=16, sliding_window=8, num_labels=1, pad_token_id=0, **SHAPE, **HEADS)
    for model in (bert, MistralForSequenceClassification(windows).eval()):
        found = reward_continuations(model, [[5, 9, 7], [5, 9, 7]], [[8] * 9, [3]])
        torch.testing.assert_close(found, scoring.score_ids(model, [[5, 9, 7, *[8] * 9], [5, 9, 7, 3]]))


def test_mistakes_are_named():
    model = tiny.language_model()
    with pytest.raises(UserError, match="context 2 has no tokens"):
        score_continuations(model, [[1], []], [[2], [3]])
    with pytest.raises(UserError, match="row 1 has 65 tokens, more than the model's context of 64"):
        score_continuations(model, [[1] * 60], [[2] * 6])
    assert len(score_continuations(model, [[1] * 60], [[2] * 5])[0].logprobs_T) == 5
    with pytest.raises(UserError, match="outside its vocabulary"):
        score_continuations(model, [[1]], [[999]])
    assert score_continuations(model, [], []) == []


def test_completion_logprobs_agree():
    model = tiny.language_model()
    prompts, answers = [[5, 9], [7] * 30, [5, 9]], [[8, 8, 257], [9] * 20, [2]]
    ours = [s.logprobs_T for s in score_continuations(model, prompts, answers)]
    for a, b in zip(ours, scoring.completion_logprobs(model, prompts, answers), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
