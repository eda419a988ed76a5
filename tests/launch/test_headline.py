"""What a stage says at its end."""

from launch.headline import headline


def test_numbers_bring_their_intervals_along():
    summary = {
        "accuracy": 0.71234,
        "accuracy_low": 0.6,
        "accuracy_high": 0.8,
        "best/kl": 1.0,
        "n": 123456,
        "x_low": 1.0,
    }
    summary |= {"best/kl_ci_low": 0.5, "best/kl_ci_high": 1.5, "x": 2.0, "who": "nobody"}
    lines = headline(["{accuracy} of {n}", "{best/kl}, {x}: {who} in {folder}"], summary, "runs/a")
    assert lines == ["0.7123 [0.6, 0.8] of 123456", "1 [0.5, 1.5], 2: nobody in runs/a"]


def test_a_line_whose_numbers_are_missing_is_left_out():
    assert headline(["held out: {eval_loss}", "{rows} rows"], {"rows": 3}, "") == ["3 rows"]
