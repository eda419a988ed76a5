"""One run against an earlier one: what is worse, what may not be compared, and the exit code."""

import dataclasses

import numpy as np
import pytest

from evaluation.report.changes import compare_runs, to_record, unpaired_difference
from evaluation.report.collect import FoundResult
from evaluation.report.differences import changes_sentence, changes_view
from evaluation.schema import EvaluationResult, Judge, Metric, Protocol, Subject, with_estimate, write_samples
from evaluation.statistics import win_rate
from tests.commands import run_command

PROTOCOL = Protocol(
    dataset="runs/1/prompts", dataset_sha256="a" * 64, n_items=400, judge=Judge("runs/1/gold", "b" * 64)
)


def outcomes(rate, flipped=0, n=400):
    """n outcomes of 0 and 1; some of the won ones flipped to lost."""
    won = np.repeat([1.0, 0.0], [round(rate * n), n - round(rate * n)])
    won[:flipped] = 0.0
    return won


def found(
    folder, won, protocol=PROTOCOL, name="ppo", metric="win_rate", better=True, samples=True, created="2026-01-01"
):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"p{i}", "outcome": float(w)} for i, w in enumerate(won)] if samples else []
    e = win_rate(won)
    entry = Metric(
        metric, e.value, e.n, e.low, e.high, ci_method=e.method, stderr=e.stderr, higher_is_better=better, unit="share"
    )
    result = EvaluationResult(
        "win-rate", Subject(name, "language model"), protocol, [entry],
        samples=write_samples(folder, rows) if samples else None, created=created,
    )  # fmt: skip
    result.save(folder)
    return FoundResult(folder, result)


def rows_of(entry):
    from evaluation.report.items import SampleReader

    return SampleReader()(entry)


def test_the_same_run_is_not_worse(tmp_path):
    one, two = (found(tmp_path / x, outcomes(0.6)) for x in "ab")
    changes = compare_runs([one], [two], rows_of)
    (change,) = changes.changes
    assert (
        change.verdict == "not told apart" and change.corrected == 1.0 and change.difference.test.startswith("McNemar")
    )
    assert changes_sentence(changes).startswith("Nothing got significantly worse: 1 numbers tested")


@pytest.mark.parametrize(("better", "verdict"), [(True, "worse"), (False, "better")])
def test_fewer_wins_on_the_same_prompts(tmp_path, better, verdict):
    one, two = (
        found(tmp_path / "a", outcomes(0.6), better=better),
        found(tmp_path / "b", outcomes(0.6, 12), better=better),
    )
    changes = compare_runs([one], [two], rows_of)
    (change,) = changes.changes
    assert change.verdict == verdict and change.difference.estimate.value == pytest.approx(-0.03)
    assert bool(changes.worse) == better
    # the same numbers without their samples: too few to tell
    bare = [found(tmp_path / x, outcomes(0.6, f), better=better, samples=False) for x, f in (("c", 0), ("d", 12))]
    (change,) = compare_runs(bare[:1], bare[1:], rows_of).changes
    assert change.verdict == "not told apart" and change.difference.test == "unpaired z"


def test_what_got_worse_is_named(tmp_path):
    one, two = found(tmp_path / "a", outcomes(0.6)), found(tmp_path / "b", outcomes(0.6, 40))
    changes = compare_runs([one], [two], rows_of)
    text = changes_sentence(changes)
    assert text.startswith("1 of 1 numbers got significantly worse: ppo, Win rate ↑: 60.0 to 50.0 (−10.0 points [")
    assert "p < .001 after Holm" in text
    record = to_record(changes)
    assert record["worse"] == ["ppo: win_rate"] and record["changes"][0]["verdict"] == "worse"
    assert changes_view(changes, "before").rows[0].verdict == "worse"


def test_another_protocol_is_refused_and_says_what_differs(tmp_path):
    other = dataclasses.replace(PROTOCOL, judge=Judge("x", "c" * 64), settings={"precision": "bf16"})
    changes = compare_runs(
        [found(tmp_path / "a", outcomes(0.6))], [found(tmp_path / "b", outcomes(0.4), other)], rows_of
    )
    assert changes.changes == []
    assert changes.refused == [
        "ppo: win_rate (win-rate) was measured under another protocol, so it is not compared: judge.sha256, settings.precision differ."
    ]


def test_other_folders_are_no_other_protocol(tmp_path):
    moved = dataclasses.replace(PROTOCOL, dataset="runs/2/prompts", judge=Judge("runs/2/gold", "b" * 64), seeds=[7])
    changes = compare_runs(
        [found(tmp_path / "a", outcomes(0.6))], [found(tmp_path / "b", outcomes(0.4), moved)], rows_of
    )
    assert len(changes.changes) == 1 and changes.refused == []


def test_a_number_that_is_gone_is_told_of(tmp_path):
    one = found(tmp_path / "a", outcomes(0.6))
    two = found(tmp_path / "b", outcomes(0.6), name="dpo")
    assert compare_runs([one], [two], rows_of).refused == [
        "ppo: win_rate (win-rate) was measured before and is missing now, so nothing is said of it."
    ]


def test_of_two_results_the_newest_counts(tmp_path):
    old = [found(tmp_path / "a", outcomes(0.6))]
    new = [
        found(tmp_path / "b", outcomes(0.6, 100), created="2026-01-02"),
        found(tmp_path / "c", outcomes(0.6), created="2026-01-03"),
    ]
    (change,) = compare_runs(old, new, rows_of).changes
    assert change.now.value == 0.6


def test_corrections_count_all_tests(tmp_path):
    """Eight flipped items are significant alone (p = .004) and not among forty tests."""

    def runs(flipped, names):
        return [found(tmp_path / f"{flipped}-{x}", outcomes(0.6, flipped if x == "0" else 0), name=x) for x in names]

    names = [str(i) for i in range(40)]
    alone = compare_runs(runs(0, "0"), runs(8, "0"), rows_of)
    among = compare_runs(runs(0, names), runs(8, names), rows_of)
    assert len(alone.worse) == 1 and among.worse == []


def test_an_unpaired_difference_by_hand():
    a = Metric("x", 0.5, 100, 0.4, 0.6, ci_method="m", higher_is_better=True)
    b = Metric("x", 0.7, 100, stderr=0.05, higher_is_better=True)
    found = unpaired_difference(b, a)
    error = np.hypot(0.05, 0.1 / 1.959963985)
    assert found.estimate.stderr == pytest.approx(error, rel=1e-9)
    assert found.estimate.low == pytest.approx(0.2 - 1.959963985 * error, rel=1e-8)
    assert unpaired_difference(b, Metric("x", 0.5, 100, higher_is_better=True)) is None


@pytest.mark.slow
def test_the_command_fails_when_worse_and_says_which(tmp_path):
    """Real processes: 0 when nothing is worse, 1 with the metric's name, 2 when nothing can be compared."""
    found(tmp_path / "old" / "e", outcomes(0.6))
    found(tmp_path / "same" / "e", outcomes(0.6))
    found(tmp_path / "worse" / "e", outcomes(0.6, 40))
    found(tmp_path / "other" / "e", outcomes(0.6), dataclasses.replace(PROTOCOL, n_items=9))

    def report(name):
        words = [name, "--against", "old", "--fail-if-worse", "--output_dir", f"report-{name}"]
        return run_command("launch.cli:run_command", "report", *words, cwd=tmp_path)

    assert report("same").returncode == 0
    for _ in range(2):  # a second time, too: the report is replaced
        done = report("worse")
        assert done.returncode == 1 and "significantly worse than old: ppo: win_rate" in done.stderr
    assert "Changes since the earlier run" in (tmp_path / "report-worse" / "index.html").read_text()
    refused = report("other")
    assert refused.returncode == 2 and "n_items differ" in refused.stderr


def test_none_of_five_against_all_of_five_is_not_certain():
    """Without their items: shares of 0 and 1 have a plain standard error of 0, and an interval that knows better."""
    none, all_of_five = (
        with_estimate(Metric("win_rate", None, 0, higher_is_better=True), win_rate([x] * 5)) for x in (0.0, 1.0)
    )
    found = unpaired_difference(all_of_five, none)
    assert 0.0005 < found.p_value < 0.05 and found.estimate.low < 1 < found.estimate.high
    bare = [Metric("loss", x, 5, stderr=0.0, higher_is_better=False) for x in (1.0, 2.0)]
    assert unpaired_difference(*bare).p_value is None and unpaired_difference(bare[0], bare[0]).p_value == 1.0
