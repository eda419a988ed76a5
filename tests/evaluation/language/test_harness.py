"""lm-evaluation-harness's tasks on our scorer: the answers are its own, on a local task of each kind."""

import importlib.util
import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `tasks`)")

from lm_eval.models.huggingface import HFLM

from evaluation.language import harness
from evaluation.language.harness_model import SharedPrefixLM
from evaluation.language.harness_results import task_results
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.language.harness_tasks import KINDS, QUESTIONS, multiple_choice, write_task


def evaluate(lm, task_folder, names=tuple(KINDS), **changes):
    settings = dict(num_fewshot=None, max_items=None, seed=0)
    return harness.run_tasks(lm, list(names), str(task_folder), **{**settings, **changes})


def numbers(results):
    return {
        (task, key): value
        for task, entry in results["results"].items()
        for key, value in entry.items()
        if isinstance(value, float) and "," in key
    }


@pytest.mark.parametrize("context", [512, 80])  # 80: prompts are cut from the left, texts are rolled over
def test_answers_are_those_of_its_own_model(task_folder, context):
    changes = dict(max_position_embeddings=context)
    theirs = evaluate(
        HFLM(tiny.language_model(**changes), tokenizer=tiny.tokenizer.__wrapped__(), batch_size=3), task_folder
    )
    lm = SharedPrefixLM(tiny.language_model(**changes), tiny.tokenizer.__wrapped__(), batch_tokens=300)
    ours = evaluate(lm, task_folder)
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-4, nan_ok=True)
    assert (
        len(numbers(ours)) >= 12
        and lm.truncated == (0 if context == 512 else lm.truncated)
        and (lm.truncated > 0 or context == 512)
    )
    for name in KINDS:
        for a, b in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert (a["doc_id"], a["prompt_hash"], a["target_hash"]) == (
                b["doc_id"],
                b["prompt_hash"],
                b["target_hash"],
            )
            for x, y in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
                if isinstance(x, tuple):
                    assert x[0] == pytest.approx(y[0], abs=1e-3) and x[1] == y[1]
                else:
                    assert x == (y if isinstance(y, str) else pytest.approx(y, abs=1e-3))


def test_a_prefix_runs_once(task_folder):
    tokens = {}
    for name, make in (("hf", HFLM), ("ours", SharedPrefixLM)):
        model = tiny.language_model(max_position_embeddings=512)
        seen = []
        model.base_model.register_forward_pre_hook(
            lambda m, a, k, seen=seen: seen.append(torch.tensor([(k["input_ids"] != 0).sum(), k["input_ids"].numel()])),
            with_kwargs=True,
        )
        lm = make(model, tokenizer=tiny.tokenizer.__wrapped__())
        evaluate(lm, task_folder, ["local_choice"])
        tokens[name] = sum(seen).tolist()
    (theirs, _), (ours, padded) = tokens["hf"], tokens["ours"]
    assert theirs > 2.5 * ours and padded < 1.5 * ours


def test_local_tasks_need_no_index_of_lm_evals_own(task_folder, monkeypatch):

    manager = harness.find_tasks(["local_choice"], str(task_folder))
    assert set(manager.all_tasks) == set(KINDS)


def test_missing_package_and_unknown_tasks_are_one_sentence(task_folder, only_local, monkeypatch, tmp_path):
    with pytest.raises(
        UserError, match=r"no task 'local_choise' among lm-eval's and below .*did you mean 'local_choice'"
    ):
        harness.find_tasks(["local_choise"], str(task_folder))
    with pytest.raises(UserError, match=r"include_path: .* is no folder"):
        harness.find_tasks(["x"], str(tmp_path / "none"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(UserError, match=r"which is not installed; run: pip install 'alignkit\[tasks\]'"):
        harness.find_tasks(["local_choice"], str(task_folder))


def test_data_that_cannot_be_read_is_named(task_folder, tmp_path):
    write_task(tmp_path / "cut", "cut", multiple_choice("cut"), QUESTIONS)
    path = tmp_path / "cut" / "cut.test.jsonl"
    path.write_text(path.read_text()[:-30])
    lm = SharedPrefixLM(tiny.language_model(), tiny.tokenizer.__wrapped__())
    with pytest.raises(
        UserError, match=r"tasks: lm-eval cannot load cut.*Missing a closing quotation.*check the task's YAML"
    ):
        evaluate(lm, tmp_path / "cut", ["cut"])


def test_a_continuation_longer_than_the_context_is_refused(task_folder, tmp_path):
    rows = [{**QUESTIONS[0], "choices": ["a", "b" * 80, "c", "d"]}]
    write_task(tmp_path / "long", "long", multiple_choice("long", 0), rows)
    lm = SharedPrefixLM(tiny.language_model(), tiny.tokenizer.__wrapped__())
    with pytest.raises(UserError, match=r"a continuation of 81 tokens .* is longer than the model's context of 64"):
        evaluate(lm, tmp_path / "long", ["long"])


def test_sampled_generations_differ_and_repeat(task_folder, tmp_path):
    config = {
        **KINDS["local_generation"][0],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0},
        "repeats": 3,
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": 3}]}],
        "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
    }
    write_task(tmp_path / "sampled", "sampled", config, KINDS["local_generation"][1])
    lm = SharedPrefixLM(tiny.language_model(max_position_embeddings=512), tiny.tokenizer.__wrapped__(), seed=3)
    asked = []
    generate = lm.generate_until
    lm.generate_until = lambda requests: asked.append(generate(requests)) or asked[-1]
    for _ in range(2):
        evaluate(lm, tmp_path / "sampled", ["sampled"])
    assert asked[0] == asked[1] and len(set(asked[0])) > 3


def test_answers_are_kept_as_they_are_given(task_folder, tmp_path):
    calls = []

    def keep(name, samples, compute, *, content, size):
        calls.append((name, [json.dumps(content(s)) for s in samples], [size(s) for s in samples]))
        return [json.loads(json.dumps(row)) for row in compute(list(samples))]

    lm = SharedPrefixLM(tiny.language_model(max_position_embeddings=512), tiny.tokenizer.__wrapped__(), keep=keep)
    plain = SharedPrefixLM(tiny.language_model(max_position_embeddings=512), tiny.tokenizer.__wrapped__())
    assert numbers(evaluate(lm, task_folder)) == pytest.approx(numbers(evaluate(plain, task_folder)), nan_ok=True)
    assert {name for name, _, _ in calls} == {"loglikelihood", "rolling", "generate_until"}
    assert all(len(set(contents)) == len(contents) for _, contents, _ in calls)
    assert len(task_results(evaluate(plain, task_folder))) == 4
