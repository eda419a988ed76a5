import numpy as np
import pytest
import torch

from data import Preference
from evaluation.preferences.implicit import answer_logprobs, implicit_rewards
from evaluation.scoring import completion_logprobs
from tests.evaluation import tiny

PAIRS = [
    Preference("a question? ", "good", "bad indeed"),
    Preference("b", "x", "yes"),
    Preference("a question? ", "", "no"),
]


def test_logprobs_are_those_of_each_answer_with_its_end_token():
    model, tok = tiny.language_model(), tiny.tokenizer()
    logprobs, counts = answer_logprobs(model, tok, PAIRS)
    for row, pair in enumerate(PAIRS):
        for column, answer in enumerate((pair.chosen, pair.rejected)):
            ids = [*(tok(answer)["input_ids"] if answer else []), 257]
            alone = completion_logprobs(model, [tok(pair.prompt)["input_ids"]], [ids])[0]
            assert logprobs[row, column] == pytest.approx(float(alone.double().sum()), abs=1e-4)
            assert counts[row, column] == len(ids)


def test_the_prompt_of_a_pair_runs_once():
    model, tok = tiny.language_model(), tiny.tokenizer()
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True
    )
    answer_logprobs(model, tok, PAIRS[:1])
    hook.remove()
    # both answers beside one prompt; what came before is the trial of the model
    assert seen[-1] == len("a question? ") + len("good") + len("bad indeed")


def test_rewards_by_their_formula():
    policy, reference = np.array([[-1.0, -2.0], [-4.0, -3.0]]), np.array([[-2.0, -2.0], [-1.0, -3.0]])
    counts = np.array([[1, 2], [2, 3]])
    rewards = implicit_rewards(policy, reference, counts, beta=0.5)
    assert rewards.tolist() == [[0.5, 0.0], [-1.5, 0.0]]
    assert (rewards[:, 0] > rewards[:, 1]).tolist() == [True, False]
    assert implicit_rewards(policy, None, counts).tolist() == policy.tolist()
    assert implicit_rewards(policy, None, counts, average=True)[1].tolist() == [-2.0, -1.0]
    with pytest.raises(ValueError, match="beta: 0 is not positive"):
        implicit_rewards(policy, reference, counts, beta=0)


def test_a_policy_that_learned_the_chosen_answers_prefers_them():
    """One step of gradient towards the chosen answers: the implicit reward must see it, against the model before."""
    tok, reference, policy = tiny.tokenizer(), tiny.language_model(0), tiny.language_model(0)
    pairs = PAIRS[:2]
    for _ in range(3):
        loss = 0.0
        for pair in pairs:
            ids = torch.tensor([tok(pair.prompt + pair.chosen)["input_ids"] + [257]])
            loss = loss + policy(ids, labels=ids).loss
        loss.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= 0.02 * parameter.grad
                parameter.grad = None
    (ours, counts), (theirs, _) = answer_logprobs(policy, tok, pairs), answer_logprobs(reference, tok, pairs)
    rewards = implicit_rewards(ours, theirs, counts)
    assert (rewards[:, 0] > rewards[:, 1]).all()
