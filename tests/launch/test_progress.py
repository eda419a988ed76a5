"""Progress in lines: what it says before anything is done, and after."""

from launch import progress


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
