"""lm-evaluation-harness's tasks on our scorer: the answers are its own, on a local task of each kind."""

import importlib.util
import json
import math

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `tasks`)")

import datasets
from lm_eval.models.huggingface import HFLM

from evaluation.language import harness
from evaluation.language.harness_model import SharedPrefixLM
from evaluation.language.harness_results import task_metrics
from evaluation.schema import read_samples
from evaluation.suites.text import STAGE
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.language.harness_tasks import KINDS, QUESTIONS, multiple_choice, write_task, write_tasks
from tests.evaluation.suites.conftest import models, run_suite  # noqa: F401


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tasks")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    yield write_tasks(root / "yaml")
    datasets.config.HF_DATASETS_CACHE = before


def evaluate(lm, folder, names=tuple(KINDS), **changes):
    settings = dict(num_fewshot=None, max_items=None, seed=0)
    return harness.run_tasks(lm, list(names), str(folder), **{**settings, **changes})


def numbers(results):
    return {
        (task, key): value
        for task, entry in results["results"].items()
        for key, value in entry.items()
        if isinstance(value, float) and "," in key
    }


@pytest.mark.parametrize("context", [512, 80])  # 80: prompts are cut from the left, texts are rolled over
def test_answers_are_those_of_its_own_model(folder, context):
    changes = dict(max_position_embeddings=context)
    theirs = evaluate(
        HFLM(tiny.language_model(**changes), tokenizer=tiny.tokenizer.__wrapped__(), batch_size=3), folder
    )
    lm = SharedPrefixLM(tiny.language_model(**changes), tiny.tokenizer.__wrapped__(), batch_tokens=300)
    ours = evaluate(lm, folder)
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


def test_a_prefix_runs_once(folder):
    tokens = {}
    for name, make in (("hf", HFLM), ("ours", SharedPrefixLM)):
        model = tiny.language_model(max_position_embeddings=512)
        seen = []
        model.register_forward_pre_hook(
            lambda m, a, k, seen=seen: seen.append((a[0] if a else k["input_ids"]).numel()), with_kwargs=True
        )
        lm = make(model, tokenizer=tiny.tokenizer.__wrapped__())
        evaluate(lm, folder, ["local_choice"])
        tokens[name] = sum(seen)
    assert tokens["hf"] > 2.5 * tokens["ours"]


def test_the_suite_reports_tasks_with_intervals(folder, models, tmp_path):
    out = tmp_path / "out"
    result = run_suite(STAGE, out, model=models / "policy", tasks=",".join(KINDS), include_path=folder, num_fewshot=3)
    acc = result.metric("local_choice/acc")
    assert acc.n == 12 and acc.ci_method == "wilson" and acc.ci_low < acc.value < acc.ci_high
    assert acc.extra["lm_eval_stderr"] == pytest.approx(acc.stderr * math.sqrt(12 / 11), rel=1e-6)
    bits, words = result.metric("local_rolling/bits_per_byte"), result.metric("local_rolling/word_perplexity")
    assert bits.ci_method == "delta" and bits.stderr > 0 and words.ci_low < words.value < words.ci_high
    assert result.metric("local_cloze/perplexity").stderr > 0
    assert result.protocol.dataset == "lm-eval:" + ",".join(KINDS)
    assert result.protocol.settings["tasks"]["local_choice"]["num_fewshot"] == 3
    assert any("lost their beginning" in note for note in result.notes)  # the context is 64 tokens
    rows = read_samples(out, result.samples)
    assert len(rows) == 12 + 4 + 3 + 3
    first = rows[0]
    assert (
        first["choices"] == [f" {c}" for c in QUESTIONS[0]["choices"]] and first["prompt"].endswith("\n\nWhat follows 0?\nAnswer:")
    )
    assert len(first["responses"]) == 4 and first["metrics"]["acc"] in (0.0, 1.0)


def test_local_tasks_need_no_index_of_lm_evals_own(folder, monkeypatch):

    manager = harness.find_tasks(["local_choice"], str(folder))
    assert set(manager.all_tasks) == set(KINDS)


def test_missing_package_and_unknown_tasks_are_one_sentence(folder, monkeypatch, models, tmp_path):
    with pytest.raises(
        UserError, match=r"no task 'local_choise' among lm-eval's and below .*did you mean 'local_choice'"
    ):
        harness.find_tasks(["local_choise"], str(folder))
    with pytest.raises(UserError, match=r"include_path: .* is no folder"):
        harness.find_tasks(["x"], str(tmp_path / "none"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(UserError, match=r"which is not installed; run: pip install 'alignkit\[tasks\]'"):
        run_suite(STAGE, tmp_path / "out", model=models / "policy", tasks="local_choice", include_path=folder)


def test_data_that_cannot_be_read_is_named(folder, tmp_path):
    write_task(tmp_path / "cut", "cut", multiple_choice("cut"), QUESTIONS)
    path = tmp_path / "cut" / "cut.test.jsonl"
    path.write_text(path.read_text()[:-30])
    lm = SharedPrefixLM(tiny.language_model(), tiny.tokenizer.__wrapped__())
    with pytest.raises(UserError, match=r"tasks: lm-eval cannot load cut.*Missing a closing quotation.*check the task's YAML"):
        evaluate(lm, tmp_path / "cut", ["cut"])


def test_a_continuation_longer_than_the_context_is_refused(folder, tmp_path):
    rows = [{**QUESTIONS[0], "choices": ["a", "b" * 80, "c", "d"]}]
    write_task(tmp_path / "long", "long", multiple_choice("long", 0), rows)
    lm = SharedPrefixLM(tiny.language_model(), tiny.tokenizer.__wrapped__())
    with pytest.raises(UserError, match=r"a continuation of 81 tokens .* is longer than the model's context of 64"):
        evaluate(lm, tmp_path / "long", ["long"])


def test_sampled_generations_differ_and_repeat(folder, tmp_path):
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


def test_answers_are_kept_as_they_are_given(folder, tmp_path):
    calls = []

    def keep(name, samples, compute, *, content, size):
        calls.append((name, [json.dumps(content(s)) for s in samples], [size(s) for s in samples]))
        return [json.loads(json.dumps(row)) for row in compute(list(samples))]

    lm = SharedPrefixLM(tiny.language_model(max_position_embeddings=512), tiny.tokenizer.__wrapped__(), keep=keep)
    plain = SharedPrefixLM(tiny.language_model(max_position_embeddings=512), tiny.tokenizer.__wrapped__())
    assert numbers(evaluate(lm, folder)) == pytest.approx(numbers(evaluate(plain, folder)), nan_ok=True)
    assert {name for name, _, _ in calls} == {"loglikelihood", "rolling", "generate_until"}
    assert all(len(set(contents)) == len(contents) for _, contents, _ in calls)
    assert task_metrics(evaluate(plain, folder))
