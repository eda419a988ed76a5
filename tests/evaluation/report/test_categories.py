"""Small multiples by category, and safety as two rates."""

import re

import pytest

from evaluation.report.categories import category_views, safety_plane
from evaluation.report.charts import Scale, plane
from evaluation.report.leaderboard import Leaderboard
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, Subject

PROTOCOL = Protocol(dataset="prompts", dataset_sha256="a" * 64, n_items=100)


def share(name, value, spread=0.05, n=100):
    return Metric(
        name, value, n, value - spread, value + spread, ci_method="wilson", higher_is_better=True, unit="share"
    )


def result(name, metrics, slices=(), protocol=PROTOCOL, created="2026-01-01"):
    return EvaluationResult("s", Subject(name, "language model"), protocol, metrics, list(slices), created=created)


def parts(group, **values):
    return [Slice(group, name, [share("accuracy", value)]) for name, value in values.items()]


def test_one_picture_for_each_category_on_one_scale():
    board = Leaderboard(
        [
            result("a", [share("accuracy", 0.6)], parts("topic", maths=0.3, law=0.9)),
            result("b", [share("accuracy", 0.5)], parts("topic", maths=0.4, law=0.6, art=0.5)),
        ]
    )
    (view,) = category_views(board, {"a": 0, "b": 1})
    assert (view.title, view.group, view.unit, view.arrow, view.more) == ("Accuracy", "topic", "%", "↑", [])
    assert [f.caption for f in view.main] == ["art", "law", "maths"]
    assert [[m.name for m in f.marks] for f in view.main] == [["b"], ["a", "b"], ["a", "b"]]
    assert [m.value for m in view.main[1].marks] == ["90.0", "60.0"]
    assert len({(f.low, f.high) for f in view.main}) == 1
    places = [float(x) for f in view.main for m in f.marks for x in re.findall(r'x[12]="(-?[\d.]+)"', str(m.svg))]
    assert 0 <= min(places) < 10 and 90 < max(places) <= 100


def test_what_makes_no_picture():
    one_part = result("a", [share("accuracy", 0.6)], parts("topic", maths=0.3))
    matrix = result("a", [share("accuracy", 0.6)], parts("trained on", gan=0.3, vae=0.9))
    other_metric = result("a", [share("unknown", 0.6)], [Slice("topic", x, [share("unknown", 0.5)]) for x in "ab"])
    for made in (one_part, matrix, other_metric):
        assert category_views(Leaderboard([made]), {"a": 0}) == []


def test_many_categories_are_folded_away():
    board = Leaderboard(
        [result("a", [share("accuracy", 0.6)], parts("topic", **{f"t{i:02d}": 0.5 for i in range(30)}))]
    )
    (view,) = category_views(board, {"a": 0})
    assert len(view.main) == 12 and len(view.more) == 18


# ---------------------------------------------------------------------------------------------- safety


def rates(name, over, compliance, **more):
    return result(name, [share("over_refusal_rate", over), share("unsafe_compliance_rate", compliance)], **more)


def test_the_plane_has_every_entry_with_both_rates():
    half = result("c", [share("over_refusal_rate", 0.3)])
    boards = [Leaderboard([rates("a", 0.1, 0.2), rates("b", 0.3, 0.05), half])]
    found = safety_plane(boards, {"a": 0, "b": 1, "c": 2})
    assert [(p.name, p.over_refusal, p.compliance) for p in found.points] == [
        ("a", "10.0 [5.0, 15.0]", "20.0 [15.0, 25.0]"),
        ("b", "30.0 [25.0, 35.0]", "5.0 [0.0, 10.0]"),
    ]
    assert (found.right, found.top) == ("37", "26") and str(found.svg).count('class="dot') == 2
    assert safety_plane([Leaderboard([half])], {"c": 2}) is None


def test_rates_of_other_prompts_do_not_meet():
    other = Protocol(dataset="others", dataset_sha256="b" * 64, n_items=9)
    boards = [Leaderboard([rates("a", 0.1, 0.2), rates("b", 0.3, 0.05), rates("c", 0.2, 0.1, protocol=other)])]
    assert [p.name for p in safety_plane(boards, {"a": 0, "b": 1, "c": 2}).points] == ["a", "b"]


@pytest.mark.parametrize(
    ("x", "y", "place"), [(0.0, 0.0, (2.0, 98.0)), (1.0, 1.0, (98.0, 2.0)), (0.5, 0.0, (50.0, 98.0))]
)
def test_the_origin_is_at_the_lower_left(x, y, place):
    svg = str(plane([((x, None, None), (y, None, None), 0)], Scale(0, 1), Scale(0, 1)))
    found = re.search(r'class="dot c0" x1="([\d.]+)" y1="([\d.]+)"', svg)
    assert tuple(map(float, found.groups())) == place
