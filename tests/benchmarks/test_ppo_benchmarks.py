"""The PPO benchmarks can fail, and count the tokens that there were."""

from collections import Counter

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.ppo import describe, reached, reward_curve
from benchmarks.ppo_case import EOS, PAD, Case, mean_length, write_case
from benchmarks.soak import Tally, find_failures


def tally(**changes):
    good = dict(kills=Counter(clock=3, phase=2), jobs=Counter(a=2, b=1), identical=Counter(a=2, b=1))
    return Tally(**{**good, **changes})


def test_a_soak_that_found_nothing_wrong():
    assert find_failures(tally(), 5) == []


@pytest.mark.parametrize(
    ("changes", "wanted", "message"),
    [
        ({}, 6, "5 kills were made, 6 were wanted"),
        ({"lost": 1}, 5, "1 acknowledged steps were lost"),
        ({"faults": ["job 3: torn"]}, 5, "a fault: job 3: torn"),
        ({"identical": Counter(a=2)}, 5, "2 of 3 jobs ended as the undisturbed run did"),
        ({"jobs": Counter(), "identical": Counter()}, 5, "0 of 0 jobs"),
    ],
)
def test_a_soak_that_did(changes, wanted, message):
    assert [message in found for found in find_failures(tally(**changes), wanted)] == [True]


def test_a_response_is_as_long_as_its_first_eos():
    rows = torch.tensor([[5, EOS, PAD, PAD], [5, 6, 7, 8], [EOS, 9, EOS, 9]])
    assert mean_length(rows) == pytest.approx((2 + 4 + 1) / 3)


def test_tokens_per_second_are_of_the_tokens_that_there_were():
    update = {"seconds": 2.0, "generate": 1.0, "score": 0.5, "update": 0.5, "length": 10.0}
    run = {"updates": [update, {**update, "length": 20.0}], "peak_mib": 2.0, "imports_mib": 1.0}
    assert describe(run, Case(1024, True, batch=4))["response_tokens_per_second"] == pytest.approx(4 * 15 / 2)


def test_the_reward_that_was_reached_is_that_of_the_last_updates_within_the_time():
    run = {"updates": [{"seconds": 2.0, "reward": float(n), "kl": 10.0 * n} for n in range(8)]}
    assert reward_curve(run)[:2] == [(2.0, 0.0, 0.0), (4.0, 1.0, 10.0)]
    assert reached(run, 13.0) == pytest.approx({"score": 3.0, "kl": 30.0, "objective": 3.0 - 0.05 * 30})


@pytest.mark.parametrize(("hidden", "layers"), [(256, 4), (512, 16)])
def test_responses_end_at_the_rate_that_the_case_says_whatever_the_size(tmp_path, hidden, layers):
    write_case(tmp_path, Case(64, True, hidden=hidden, layers=layers, intermediate=2 * hidden))
    policy = LlamaForCausalLM.from_pretrained(tmp_path / "policy")
    texts = torch.randint(2, 64, (2, 64), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        rates = torch.softmax(policy(texts).logits / 0.7, -1)[..., EOS]
    assert rates.min() > 0.03 and rates.max() < 0.09  # the mean length is about a third of the longest


def test_the_learnable_judge_reads_the_whole_response_and_not_its_end(tmp_path):
    """The score is nearly a sum over tokens, with deviation 1: the last token alone must not decide it."""
    write_case(tmp_path, Case(128, False, prompt=8, response=24, hidden=64, layers=1, intermediate=64, learnable=True))
    judge = LlamaForSequenceClassification.from_pretrained(tmp_path / "reward")
    texts = torch.randint(2, 128, (64, 32), generator=torch.Generator().manual_seed(3))
    other_end, other_middle = texts.clone(), texts.clone()
    other_end[:, -1] = texts[:, -1].roll(1)
    other_middle[:, 8:-1] = texts[:, 8:-1].roll(1, dims=0)
    with torch.no_grad():
        scores, with_other_end, with_other_middle = (judge(t).logits[:, 0] for t in (texts, other_end, other_middle))
    correlation = torch.corrcoef(torch.stack([scores, with_other_end, with_other_middle]))[0]
    assert 0.7 < scores.std() < 1.4
    assert correlation[1] > 0.8 and correlation[2] < 0.6
