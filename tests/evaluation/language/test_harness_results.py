"""lm-eval's results as metrics; needs no lm-eval."""

import math

import pytest

from evaluation.language.harness_results import estimate, task_results
from evaluation.report.items import item_scores
from evaluation.report.viewer import is_wrong


def results(metric, values, value, stderr="N/A", filter_key="none"):
    sample = lambda n, v: {  # noqa: E731
        "doc_id": n,
        "target": n,
        "arguments": [("p", " a"), ("p", " b")],
        "filtered_resps": [(-1.0, False), (float("-inf"), True)],
        "filter": filter_key,
        "metrics": [metric],
        "doc_hash": f"d{n}",
        "prompt_hash": "p",
        "target_hash": "t",
        metric: v,
    }
    numbers = {"alias": "t", "sample_len": len(values), f"{metric},{filter_key}": value}
    return {
        "results": {"t": numbers | {f"{metric}_stderr,{filter_key}": stderr}},
        "samples": {"t": [sample(n, v) for n, v in enumerate(values)]},
        "higher_is_better": {"t": {metric: True}},
        "versions": {"t": 2.0},
        "n-shot": {"t": 5},
    }


def task_metrics(found):
    """The metrics of the one task."""
    return task_results(found)[0].metrics


def task_rows(found):
    return task_results(found)[0].rows


def test_rates_get_wilsons_interval_and_keep_lm_evals_stderr():
    entry = task_metrics(results("acc", [1.0, 0.0, 1.0, 1.0], 0.75, 0.25))[0]
    assert (entry.name, entry.value, entry.n, entry.ci_method) == ("t/acc", 0.75, 4, "wilson")
    assert entry.extra["lm_eval_stderr"] == 0.25
    assert entry.higher_is_better is True


def test_filters_are_part_of_the_name():
    assert task_metrics(results("exact_match", [1.0, 0.0], 0.5, filter_key="strict"))[0].name == "t/exact_match,strict"


def test_perplexities_of_texts_have_the_delta_interval_that_lm_eval_lacks():
    pairs = [(-10.0, 4), (-30.0, 9), (-12.0, 5)]
    value = math.exp(52 / 18)
    entry = task_metrics(results("word_perplexity", pairs, value))[0]
    assert entry.value == value and entry.stderr > 0 and entry.ci_method == "delta, exponentiated"
    bits = 52 / 18 / math.log(2)
    assert task_metrics(results("bits_per_byte", pairs, bits))[0].ci_method == "delta"
    cloze = [-1.0, -3.0, -2.0]  # one value for each document
    assert task_metrics(results("perplexity", cloze, math.exp(2.0), 0.4))[0].ci_method == "student-t, exponentiated"


def test_values_that_documents_do_not_explain_keep_lm_evals_own_error():
    found = estimate("f1", [1.0, 0.0, 0.0], 0.6, 0.1, 3)
    assert (found.value, found.stderr, found.method) == (0.6, 0.1, "normal, lm-eval's stderr")
    assert found.high == pytest.approx(0.6 + 1.959964 * 0.1)
    bare = estimate("bleu", [("a", "b")], 12.0, None, 7)
    assert bare.low is None and bare.n == 7 and "no standard error" in bare.method


def test_a_value_that_is_not_finite_is_said_to_be_so():
    entry = task_metrics(results("perplexity", [-800.0], math.inf))[0]
    assert entry.value is None and entry.note == "lm-eval gives inf"


def test_rows_are_json_and_the_hash_knows_the_prompts():
    found = results("acc", [1.0, 0.0], 0.5)
    row = task_rows(found)[0]
    assert (
        row["prompt"] == "p" and row["choices"] == [" a", " b"] and row["responses"] == [[-1.0, False], ["-inf", True]]
    )
    assert row["response"] == " a" and row["scores"] == {"t/acc": 1.0} and row["acc"] == 1.0
    (before,) = task_results(found)
    found["samples"]["t"][1]["prompt_hash"] = "other"
    (after,) = task_results(found)
    assert before.sha256 != after.sha256 and before.n == 2 and before.settings == {"version": 2.0, "num_fewshot": 5}


def test_two_filters_of_one_document_are_one_document_and_groups_count_their_tasks():
    found = results("acc", [1.0, 0.0], 0.5)
    found["samples"]["t"] += [s | {"filter": "strict"} for s in found["samples"]["t"]]
    found["samples"]["u"] = found["samples"]["t"][:1]
    found["results"] |= {"whole": {"acc,none": 0.6, "sample_len": 3}, "bare": {"alias": "bare"}}
    found["group_subtasks"] = {"whole": ["inner"], "inner": ["t", "u"]}
    task, group = task_results(found)
    assert (task.n, len(task.rows)) == (2, 4)
    assert (group.name, group.n, group.rows) == ("whole", 3, []) and group.sha256 != task.sha256


@pytest.mark.parametrize(("metric", "filter_key"), [("acc", "none"), ("exact_match", "strict")])
def test_a_report_finds_the_scores_and_the_mistakes_in_the_rows(metric, filter_key):
    found = results(metric, [1.0, 0.0, 1.0, 1.0], 0.75, filter_key=filter_key)
    for n, sample in enumerate(found["samples"]["t"]):
        sample["arguments"] = [(f"question {n}", " a"), (f"question {n}", " b")]
    (entry,), rows = task_metrics(found), task_rows(found)
    assert list(item_scores(entry, rows).scores.values()) == [1.0, 0.0, 1.0, 1.0]
    assert [is_wrong("text", row) for row in rows] == [False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "answers", "response"),
    [
        ([("q", {"until": []})], ["what it wrote"], "what it wrote"),
        ([("q", " a"), ("q", " b")], [(-2.0, False), (-1.0, False)], " b"),
        ([("He", " ran."), ("She", " ran.")], [(-2.0, False), (-1.0, False)], "She ran."),
        ([("q", " a"), ("q", " b"), ("", " a"), ("", " b")], [(-2.0, False), (-3.0, False), (-0.1, False), (-1.0, False)], " a"),
        ([("q", " word")], [(-2.0, True)], ""),
        ([("a whole document",)], [-9.0], ""),
    ],
)  # fmt: skip
def test_what_the_model_answered_is_text(arguments, answers, response):
    found = results("f1", [0.5], 0.5)
    found["samples"]["t"][0] |= {"arguments": arguments, "filtered_resps": answers}
    (row,) = task_rows(found)
    assert row["response"] == response and row["scores"] == {"t/f1": 0.5} and "acc" not in row


def test_pairs_of_sums_are_no_scores():
    (row,) = task_rows(results("word_perplexity", [(-10.0, 4)], math.exp(2.5)))
    assert row["scores"] == {}


@pytest.mark.parametrize(
    ("name", "bounds"),
    [("acc", (0, 1)), ("brier_score", (0, 2)), ("mcc", (-1, 1)), ("perplexity", (1, None)), ("f1", (None, None))],
)
def test_metrics_know_their_range_where_all_tasks_agree_on_it(name, bounds):
    (entry,) = task_metrics(results(name, [1.0, 0.0, 1.0, 1.0], 0.75, 0.25))
    assert entry.bounds == bounds
