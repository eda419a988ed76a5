"""Charts: where things are drawn, and that long or broken logs stay honest."""

import re
from pathlib import Path

import numpy as np
import pytest

from evaluation.report import charts
from evaluation.report.charts import Scale, curve, depths, lineage, whisker
from evaluation.report.leaderboard import leaderboards
from evaluation.report.page import assign_colors
from evaluation.schema import EvaluationResult, Metric, Protocol, Subject


def test_scale_places_values_linearly():
    scale = Scale(10.0, 20.0)
    assert [scale.place(v) for v in (10, 15, 20)] == [0.0, 50.0, 100.0]
    assert Scale.of([2.0, 4.0], 0.5) == Scale(1.0, 5.0)
    assert Scale.of([0.0, 0.9]).low == 0.0 and Scale.of([0.2, 0.99]).high == 1.0
    shares = Scale.of([-0.03, 0.5], share=True)  # an interval may pass 0; the room beside it does not
    assert shares.low == -0.03 and 0.5 < shares.high < 1
    assert Scale.of([0.0], share=True) == Scale(0.0, 1.0) and Scale.of([0.9], share=True) == Scale(0.45, 1.0)
    assert Scale.of([3.0]) == Scale(1.5, 4.5) and Scale.of([]).low < Scale.of([]).high


def test_sixteen_entries_can_be_told_apart():
    names = [str(i) for i in range(17)]
    rows = [
        EvaluationResult("s", Subject(n, "judge"), Protocol("d", "a" * 64, 9), [Metric("m", 1.0, 9)]) for n in names
    ]
    colors = assign_colors(leaderboards(rows))
    assert len(set(colors.values())) == 16
    style = (Path(charts.__file__).parent / "style.css").read_text()
    assert all(f".c{color} {{ color: var(--c{color % 8}); }}" in style for color in colors.values())


def test_whisker_draws_interval_value_and_reference():
    svg = str(whisker(0.6, 0.5, 0.7, Scale(0.0, 1.0), 0.5, 2))
    assert 'class="span c2" x1="50.0" y1="10" x2="70.0"' in svg
    assert 'class="dot c2" x1="60.0" y1="10" x2="60.0"' in svg and 'class="ref" x1="50.0"' in svg
    without = str(whisker(0.6, None, None, Scale(0.0, 1.0), None, 0))
    assert "span" not in without and "ref" not in without and "dot c0" in without


def test_curve_runs_from_corner_to_corner():
    found = curve("loss", [1, 2, 3], [4.0, 3.0, 2.0], 1)
    points = re.search(r'points="([^"]+)"', str(found.svg))[1].split()
    assert points == ["0.0,3.0", "50.0,30.0", "100.0,57.0"]
    assert (found.first_step, found.last_step, found.lowest, found.highest, found.last) == (1, 3, 2.0, 4.0, 2.0)


def test_long_curves_are_averaged_and_broken_values_counted():
    values = np.arange(1000.0)
    values[10:13] = [np.nan, np.inf, -np.inf]
    found = curve("loss", list(range(1000)), values.tolist(), 0)
    assert found.averaged == 7 and found.broken == 3
    assert len(re.search(r'points="([^"]+)"', str(found.svg))[1].split()) == -(-997 // 7)
    assert found.lowest == pytest.approx(3.0) and found.highest < 1000


def test_too_little_for_a_curve():
    assert curve("loss", [1], [2.0], 0) is None and curve("loss", [1, 2], [2.0, float("nan")], 0) is None


def test_constant_curve_is_a_line_in_the_middle():
    points = re.search(r'points="([^"]+)"', str(curve("lr", [1, 2], [5.0, 5.0], 0).svg))[1]
    assert points == "0.0,30.0 100.0,30.0"


def test_lineage_depths_and_edges():
    parents = [[], [0], [0], [1, 2], []]
    assert depths(parents) == [0, 1, 1, 2, 0]
    svg = str(lineage([(f"s{i}", f"n{i}", "x") for i in range(5)], parents))
    assert svg.count('class="edge"') == 4 and svg.count('class="box"') == 5
    assert "<svg" in str(lineage([], []))


def test_names_in_the_graph_are_escaped():
    svg = str(lineage([('"><script>', "<b>", "&")], [[]]))
    assert "<script>" not in svg and "<b>" not in svg and "&lt;b&gt;" in svg
