"""`alignkit evaluate text --tasks`: lm-eval's tasks in our result, resumed where they were killed."""

import math

import pytest

from evaluation.report.items import item_scores
from evaluation.schema import load, read_samples
from evaluation.suites.text import STAGE
from tests.evaluation.language.harness_tasks import KINDS, QUESTIONS
from tests.evaluation.suites.conftest import run_suite


def test_the_suite_reports_tasks_with_intervals(task_folder, models, tmp_path, monkeypatch):
    monkeypatch.setattr("multiprocessing.Pool", None)  # forked processes that are ended while they start may hang
    out = tmp_path / "out"
    acc_result = run_suite(
        STAGE,
        out,
        "tasks/local_choice",
        model=models / "policy",
        tasks=",".join(KINDS),
        include_path=task_folder,
        num_fewshot=3,
    )
    results = {name: load(out / "tasks" / name) for name in KINDS}
    acc = acc_result.metric("local_choice/acc")
    assert acc.n == 12 and acc.ci_method == "wilson" and acc.ci_low < acc.value < acc.ci_high
    stderr = pytest.approx(acc.stderr * math.sqrt(12 / 11), rel=1e-6)
    assert acc.extra["lm_eval_stderr"] == stderr and acc.bounds == (0, 1)
    rolling = results["local_rolling"]
    bits, words = rolling.metric("local_rolling/bits_per_byte"), rolling.metric("local_rolling/word_perplexity")
    assert bits.ci_method == "delta" and bits.stderr > 0 and words.ci_low < words.value < words.ci_high
    assert results["local_cloze"].metric("local_cloze/perplexity").stderr > 0
    assert {r.protocol.dataset for r in results.values()} == {f"lm-eval:{name}" for name in KINDS}
    settings = acc_result.protocol.settings
    assert (settings["num_fewshot"], settings["version"], settings["precision"]) == (3, 1.0, "fp32")
    assert any("lost their beginning" in note for note in acc_result.notes)  # the context is 64 tokens
    assert {name: r.samples.rows for name, r in results.items()} == dict(zip(KINDS, (12, 4, 3, 3), strict=True))
    assert {name: r.protocol.n_items for name, r in results.items()} == dict(zip(KINDS, (12, 4, 3, 3), strict=True))
    rows = read_samples(out / "tasks" / "local_choice", acc_result.samples)
    first = rows[0]
    assert first["choices"] == [f" {c}" for c in QUESTIONS[0]["choices"]] and first["prompt"].endswith(
        "\n\nWhat follows 0?\nAnswer:"
    )
    assert len(first["responses"]) == 4 and first["metrics"]["acc"] in (0.0, 1.0)
    assert first["acc"] == first["metrics"]["acc"] == first["scores"]["local_choice/acc"]
    assert first["response"] in first["choices"]
    assert len(item_scores(acc, rows).scores) == 12


def test_answers_that_were_given_before_are_not_asked_again(task_folder, models, tmp_path, monkeypatch):
    from evaluation.language.harness_model import SharedPrefixLM
    from launch.stopping import Stopped

    arguments = dict(
        model=models / "policy",
        tasks="local_choice,local_rolling",
        include_path=task_folder,
        batch_tokens=64,
        num_fewshot=0,
    )
    whole = run_suite(STAGE, tmp_path / "whole", "tasks/local_choice", **arguments)
    score_texts = SharedPrefixLM._score_texts

    def stop(self, texts):
        raise Stopped(75)

    monkeypatch.setattr(SharedPrefixLM, "_score_texts", stop)
    with pytest.raises(Stopped):
        run_suite(STAGE, tmp_path / "stopped", **arguments)
    assert (tmp_path / "stopped" / "scored" / "loglikelihood.rank-0.jsonl").read_text().count("\n") == 12

    def never(self, samples):
        raise AssertionError("was scored before")

    monkeypatch.setattr(SharedPrefixLM, "_score_texts", score_texts)
    monkeypatch.setattr(SharedPrefixLM, "_score_groups", never)
    again = run_suite(STAGE, tmp_path / "stopped", "tasks/local_choice", **arguments)
    assert again.metrics == whole.metrics and again.samples == whole.samples
    rolling = [load(tmp_path / name / "tasks" / "local_rolling") for name in ("whole", "stopped")]
    assert rolling[0].metrics == rolling[1].metrics and rolling[0].samples == rolling[1].samples
