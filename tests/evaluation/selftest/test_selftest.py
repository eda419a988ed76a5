"""`alignkit evaluate selftest`: all known answers hold here, and one that does not turns the exit code."""

import dataclasses
import subprocess
import sys

import pytest

from evaluation.selftest import command, registry
from evaluation.selftest.registry import AREAS, KnownAnswer, answers_of, check, run_answers
from launch.errors import UserError
from tests.support import alignkit, environment


@pytest.mark.parametrize("area", AREAS)
def test_the_known_answers_of_an_area_hold(area):
    checked, _ = run_answers([area])
    assert len(checked) >= 5
    assert not [(c.answer.metric, c.answer.case, c.found, c.error) for c in checked if not c.holds]


def test_cases_are_told_apart_and_take_no_wide_tolerance():
    every = [(area, answer) for area in AREAS for answer in answers_of(area)]
    names = [(area, a.metric, a.case) for area, a in every]
    assert len(set(names)) == len(names) >= 60
    loose = [a.case for _, a in every if a.tolerance > 1e-3]
    assert loose == ["bias of equal sets: 2 d + d (d + 1) / 2 over N"]  # the mean of draws


def raises():
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (lambda: 7.1, "off by 0.1"),
        (lambda: float("nan"), "off by inf"),
        (lambda: (7.0, 7.0), "off by inf"),
        (raises, "RuntimeError: no such thing"),
    ],
)
def test_an_answer_that_does_not_hold_ends_with_code_1(compute, said, monkeypatch, capsys):
    held = KnownAnswer("good", "seven", 7.0, lambda: 7.0)
    monkeypatch.setattr(
        registry, "answers_of", lambda area: [held, dataclasses.replace(held, metric="bad", compute=compute)]
    )
    with pytest.raises(SystemExit) as end:
        command.main(["images"])
    printed = capsys.readouterr().out
    assert end.value.code == 1 and "1 of 2 known answers hold" in printed
    assert "FAILED" in printed and said in " ".join(printed.split()) and "! images, bad, seven" in printed


def test_the_table_as_users_get_it():
    done = alignkit("evaluate", "selftest", "statistics", "preferences")
    assert done.returncode == 0, done.stderr
    assert "known answers hold" in done.stdout and "FAILED" not in done.stdout
    assert "McNemar" in done.stdout and "Bradley-Terry" in done.stdout and "Inception" not in done.stdout


def test_a_broken_metric_is_found_by_the_command():
    code = (
        "import evaluation.statistics as s; s.mcnemar_exact = lambda b, c: 0.5\n"
        "from launch.entry import guarded, leave; from launch.cli import run_command\n"
        "leave(guarded(lambda: run_command(['evaluate', 'selftest', 'statistics'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "! statistics, McNemar, exact" in done.stdout, done.stderr


def test_help_and_unknown_areas(capsys):
    command.main(["--help"])
    printed = capsys.readouterr().out
    assert all(area in printed for area in AREAS)
    with pytest.raises(UserError, match="unknown area 'image'; did you mean 'images'"):
        command.main(["image"])


def test_deviation_is_the_largest():
    found = check("x", KnownAnswer("m", "c", (1.0, 2.0), lambda: (1.0, 2.5), 0.4))
    assert found.deviation == pytest.approx(0.5) and not found.holds
    assert check("x", KnownAnswer("m", "c", True, lambda: True)).holds
