"""The over-optimisation curves of a report, and the curves of a run that was rolled back."""

import json
import re

import pytest

from evaluation.report.charts import Point, scatter
from evaluation.report.collect import collect
from evaluation.report.media import curves_of
from evaluation.report.overoptimisation import overoptimisation_of
from evaluation.report.page import PageParts, render_page
from tests.evaluation.report.conftest import falling, write_stage


def evaluations(alpha=1.0, beta=0.25):
    """Gold on d (alpha - beta d), the training reward on 2 d."""
    rows = []
    for step, d in enumerate((0.0, 0.5, 1.0, 2.0, 3.0)):
        gold = d * (alpha - beta * d)
        row = {"step": 10 * step, "sqrt_kl": d, "gold_reward_gain": gold, "proxy_reward_gain": 2 * d}
        rows.append({**row, "gold_reward_gain_ci_low": gold - 0.1, "gold_reward_gain_ci_high": gold + 0.1})
    return rows


@pytest.fixture
def stage(tmp_path):
    def write(rows, log=()):
        folder = write_stage(
            tmp_path, "ppo", "ppo", {"prompts": "embedded:docstrings"}, 9.0, log or falling(5, 2, 1, 0)
        )
        if rows:
            (tmp_path / "ppo" / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return collect([folder])

    return write


def test_scatter_places_points_whiskers_and_line():
    found = scatter([Point(0.0, 0.0, None, None), Point(2.0, 1.0, 0.5, 1.5)], [(0.0, 0.0), (2.0, 1.5)], 3)
    svg = str(found.svg)
    assert (found.left, found.right, found.lowest, found.highest) == (0.0, 2.0, 0.0, 1.5)
    assert 'class="dot c3" x1="98.0" y1="21.0"' in svg  # two thirds of the way from 57 up to 3, and whole
    assert 'class="span c3" x1="98.0" y1="39.0" x2="98.0" y2="3.0"' in svg
    assert svg.count('class="dot') == 2 and svg.count('class="span') == 1 and 'points="2.0,57.0 98.0,3.0"' in svg


def test_curves_and_what_their_fits_say(stage):
    (found,) = stage(evaluations()).stages
    view = overoptimisation_of(found, 2)
    assert [title for title, _, _ in view.curves] == ["gold reward", "training reward (proxy)"]
    _, chart, fit = view.curves[0]
    assert fit == "Line: d (α − β d), α 1.000 [1.000, 1.000]; β 0.250 [0.250, 0.250]; highest at √KL 2.00."
    assert str(chart.svg).count('class="dot') == 5 and chart.right == 3.0
    assert overoptimisation_of(found, 2).curves[1][2].startswith("Line: d (α − β")
    assert overoptimisation_of(stage(evaluations()[:1]).stages[0], 0) is None
    assert overoptimisation_of(stage(evaluations()[:2]).stages[0], 0).curves[0][2].startswith("Fewer than three")


def test_the_page_shows_them(stage):
    page = render_page(stage(evaluations()), [], [], PageParts(), "Title")
    section = page[page.index("<h3>Over-optimisation</h3>") : page.index('<section id="lineage"')]
    assert section.count('class="dot') == 10 and "highest at √KL 2.00" in section
    assert "<b>ppo</b> gold reward" in section and "<span>√KL 3.00</span>" in section


def test_a_run_without_evaluations_has_no_such_section(tmp_path):
    folder = write_stage(tmp_path, "sft", "sft", {"data": "embedded:docstrings"}, 9.0, falling(5, 2, 1, 0))
    assert "Over-optimisation" not in render_page(collect([folder]), [], [], PageParts(), "Title")


def test_steps_after_a_rollback_count_as_they_were_made_last(stage):
    log = [{"step": s, "reward/score": float(v)} for s, v in ((1, 1), (2, 2), (3, 90), (4, 99), (3, 3), (4, 4), (5, 5))]
    (found,) = curves_of(stage([], log).stages[0], 0).main
    assert (found.first_step, found.last_step, found.highest, found.last) == (1, 5, 5.0, 5.0)
    xs = [float(p.split(",")[0]) for p in re.search(r'points="([^"]+)"', str(found.svg))[1].split()]
    assert xs == sorted(xs) and len(xs) == 5
