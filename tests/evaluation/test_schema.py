import dataclasses
import json
import re

import pytest

from evaluation import schema
from evaluation import statistics as s
from launch.errors import UserError
from launch.files import artefact_files, hash_files


def result(**changes):
    difference = s.paired_difference([1.0, 2.0, 4.0], [0.0, 0.0, 1.0])
    metrics = [
        schema.metric(
            "reward",
            s.mean([1.0, 2.0, 4.0]),
            "mean reward",
            higher_is_better=True,
            baseline="sft",
            difference=difference,
        ),
        schema.metric("fid", None, "undefined here", higher_is_better=False, note="fewer than two images"),
    ]
    values = {
        "suite": "reward",
        "subject": schema.Subject("ppo", "language model", "runs/ppo", "ab" * 32, {"policy": "cd" * 32}),
        "protocol": schema.Protocol("held-out", "ef" * 32, 3, judge=schema.Judge("runs/gold", "01" * 32), seeds=[0]),
        "metrics": metrics,
        "slices": [schema.Slice("category", "chat", metrics[:1])],
    }
    return schema.EvaluationResult(**(values | changes))


def test_round_trip_is_exact(tmp_path):
    samples = schema.write_samples(tmp_path, [{"id": 1, "reward": 0.5}, {"id": 2, "reward": 1.5}])
    before = result(samples=samples, seconds=1.5, versions={"torch": "2"})
    assert before.save(tmp_path) == tmp_path / "results.json"
    after = schema.load(tmp_path)
    assert after == before and schema.load(tmp_path / "results.json") == before
    assert after.metric("reward").comparison.p_value == before.metric("reward").comparison.p_value
    assert schema.read_samples(tmp_path, after.samples) == [{"id": 1, "reward": 0.5}, {"id": 2, "reward": 1.5}]


@pytest.mark.parametrize("created", ["yesterday", "", "2026-13-01T00:00:00+00:00", "0001-01-01T00:00:00"])
def test_a_result_that_was_written_at_no_date_is_refused(tmp_path, created):
    path = result().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": created}))
    with pytest.raises(
        UserError, match=rf"results\.json: created: '{re.escape(created)}' is no date; write it as in 2026"
    ):
        schema.load(tmp_path)


def test_summary_has_values_and_limits():
    summary = result().summary()
    assert summary["reward"] == pytest.approx(7 / 3) and summary["fid"] is None
    assert summary["reward_ci_low"] < summary["reward"] < summary["reward_ci_high"]


def test_nan_is_never_written(tmp_path):
    bad = dataclasses.replace(result().metrics[0], value=float("nan"))
    with pytest.raises(ValueError, match=r"metrics\[0\].value: (is not finite|inf is not a number)"):
        result(metrics=[bad]).save(tmp_path)
    deep = dataclasses.replace(result().metrics[0], extra={"bins": [1.0, float("inf")]})
    with pytest.raises(ValueError, match=r"metrics\[0\].extra.bins\[1\]"):
        result(metrics=[deep]).save(tmp_path)
    with pytest.raises(ValueError):
        schema.write_samples(tmp_path, [{"x": float("nan")}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": []}, "metrics: is empty"),
        (
            {"slices": [schema.Slice("g", "a", [schema.Metric("x", 1.0, 1, ci_low=0.0)])]},
            r"slices\[0\].metrics\[0\].ci_low",
        ),
    ],
)
def test_a_faulty_result_is_not_saved(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        result(**change).save(tmp_path)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (schema.Metric("x", None, 3), "has no value; say why"),
        (schema.Metric("x", 1.0, 3, ci_low=2.0, ci_high=1.0, ci_method="m"), "above ci_high"),
        (schema.Metric("x", 1.0, 3, ci_low=0.0, ci_high=1.0), "without its method"),
        (
            schema.Metric("x", 1.0, 3, comparison=schema.Comparison("base", 0.1, 0.0, 0.2)),
            "comparison.ci_method: 'x' has an interval without its method",
        ),
        (schema.Metric("x", 1.0, -1), "negative"),
        (schema.Metric("", 1.0, 1), "is empty"),
    ],
)
def test_metric_checks(metric, words):
    with pytest.raises(ValueError, match=words):
        metric.check()


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'reward' occurs twice"):
        result(metrics=[result().metrics[0]] * 2).check()


def damaged(tmp_path, change):
    path = result().save(tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("schema_version"), "schema_version is missing"),
        (
            lambda c: c.update(schema_version=99),
            "schema_version 99 is not 2; it was written by a newer alignkit; upgrade",
        ),
        (
            lambda c: c.update(schema_version=1),
            "schema_version 1 is not 2; it was written by an earlier alignkit; run the evaluation again",
        ),
        (lambda c: c.update(sweet=1), "unknown key 'sweet'"),
        (lambda c: c.pop("subject"), "'subject' is missing"),
        (lambda c: c["metrics"][0].update(vlaue=1), r"unknown key 'metrics\[0\].vlaue'; did you mean 'value'"),
        (lambda c: c["metrics"][0].update(n="many"), r"metrics\[0\].n: 'many' is not an integer"),
        (lambda c: c["metrics"][0].update(value=float("inf")), r"metrics\[0\].value: inf is not a number"),
        (lambda c: c["subject"].update(kind="robot"), "'robot' is not one of"),
    ],
)
def test_load_names_the_file_and_the_key(tmp_path, change, words):
    path = damaged(tmp_path, change)
    with pytest.raises(UserError, match=words) as caught:
        schema.load(path)
    assert str(path) in str(caught.value)


def test_load_of_something_else(tmp_path):
    (tmp_path / "results.json").write_text("{cut")
    with pytest.raises(UserError, match="not valid JSON"):
        schema.load(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        schema.load(tmp_path / "nowhere.json")


def test_a_result_that_was_edited_after_its_stage_wrote_it_is_refused(tmp_path):
    sibling = tmp_path / "run" / "vae"  # evaluate images writes one folder for each generator, below its own
    sibling.mkdir(parents=True)
    result().save(sibling)
    hashes = hash_files(tmp_path / "run")
    record = {"stage": "evaluate images", "files": artefact_files(tmp_path / "run"), "files_sha256": hashes}
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(record))
    assert schema.load(sibling) == schema.load(sibling / "results.json")
    text = (sibling / "results.json").read_text()
    (sibling / "results.json").write_text(text.replace("ppo", "dpo", 1))
    for path in (sibling, sibling / "results.json"):
        with pytest.raises(
            UserError, match=r"vae/results\.json is gone or has changed since `alignkit evaluate images`"
        ):
            schema.load(path)


def test_changed_samples_are_noticed(tmp_path):
    samples = schema.write_samples(tmp_path, [{"id": 1}])
    (tmp_path / "samples.jsonl").write_text('{"id": 2}\n')
    with pytest.raises(UserError, match="has changed"):
        schema.read_samples(tmp_path, samples)
    (tmp_path / "samples.jsonl").unlink()
    with pytest.raises(UserError, match="no such file"):
        schema.read_samples(tmp_path, samples)


@pytest.mark.parametrize(("kept", "whole"), [(25, 2), (24, 2), (1, 0)])
def test_truncated_samples_are_called_that(tmp_path, kept, whole):
    samples = schema.write_samples(tmp_path, [{"id": i} for i in range(10, 14)])
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"samples\.jsonl: is truncated, with {whole} of its 4 rows whole since"):
        schema.read_samples(tmp_path, samples)


def test_samples_with_the_line_ends_of_unicode_come_back(tmp_path):
    rows = [{"text": "one\u2028two\u0085three\x0b"}, {"text": "four"}]
    assert schema.read_samples(tmp_path, schema.write_samples(tmp_path, rows)) == rows


def test_metric_lookup_names_what_there_is():
    with pytest.raises(KeyError, match="reward, fid"):
        result().metric("bleu")


def test_the_limits_end_where_the_metric_does():
    """A mean of shares near 0 has a symmetric interval, which would go below."""
    wide = s.Estimate(0.02, 9, 0.03, -0.04, 0.08, 0.95, "student-t")
    found = schema.metric("m", wide, "", higher_is_better=None, unit="share")
    assert (found.ci_low, found.ci_high, found.stderr) == (0.0, 0.08, 0.03)
    assert schema.metric("m", wide, "", higher_is_better=None, bounds=(None, 0.05)).ci_high == 0.05
    ties = schema.metric("m", wide, "", higher_is_better=None, unit="share", bounds=(-0.01, 1.01))
    assert ties.ci_low == -0.01 and schema.metric("m", wide, "", higher_is_better=None).ci_low == -0.04
    below = s.Estimate(-0.02, 9, 0.01, -0.04, -0.01, 0.95, "corrected for a bias")
    assert schema.metric("m", below, "", higher_is_better=None, unit="share").ci_low == -0.04  # it says what it is
