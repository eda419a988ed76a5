"""The progress display where there is no terminal: a line every half minute, whatever it is told."""

import pytest

from launch import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_long_unit_shows_what_it_is_doing(clock, capsys):
    with progress.progress(4, "ppo") as meter:
        clock[0] = 29.0
        meter.note("sampling: 32 of 1000 episodes")
        assert capsys.readouterr().err == ""
        clock[0] = 31.0
        meter.note("sampling: 64 of 1000 episodes")
        assert capsys.readouterr().err == "ppo: 0/4  sampling: 64 of 1000 episodes\n"
        clock[0] = 60.0
        meter.advance(1)
        assert capsys.readouterr().err == ""  # something was said 29 s ago
        clock[0] = 62.0
        meter.advance(1, loss=0.5)
        assert capsys.readouterr().err == "ppo: 2/4  0.0323/s  62 s left  loss=0.5\n"


def test_a_bar_shows_it_beside_the_numbers():
    class Bar:
        def update(self, task, **fields):
            self.shown = fields["postfix"]

    meter = progress._BarMeter(Bar(), 0)
    meter.advance(1, loss=0.5)
    numbers = meter.bar.shown
    meter.note("sampling: 64 of 1000 episodes")
    assert meter.bar.shown == f"{numbers}  sampling: 64 of 1000 episodes" and numbers.endswith("loss=0.5")
    meter.advance(1, loss=0.25)
    assert "sampling" not in meter.bar.shown and meter.bar.shown.endswith("loss=0.25")


def test_before_the_first_unit_there_is_no_rate(monkeypatch, capsys):
    now = iter([0.0, 40.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    meter = progress._LineMeter("score documents", 2, 0)
    meter.advance(0)
    meter.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "score documents: 0/2",
        "score documents: 1/2  0.0125/s  80 s left",
    ]
