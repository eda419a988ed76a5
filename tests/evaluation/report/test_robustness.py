"""Robustness curves: where the points lie, in which order, and what the table says."""

import re

from evaluation.report.categories import category_views
from evaluation.report.charts import Scale, steps
from evaluation.report.leaderboard import Leaderboard
from evaluation.report.robustness import robustness_views
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, Subject
from launch.files import sha256_text


def area(value, name="auc", unit="", better=False):
    return Metric(name, value, 200, value - 0.05, value + 0.05, ci_method="x", higher_is_better=better, unit=unit)


def result(name, whole, treated, kind="image generator", group="robustness", metric="auc", dataset="digits", **more):
    slices = [Slice(group, treatment, [area(value, metric, **more)]) for treatment, value in treated.items()]
    protocol = Protocol(dataset, sha256_text(dataset), 100)
    metrics = [area(whole, metric, **more)] if whole is not None else [area(0.9, "auc_own_generator")]
    return EvaluationResult("deepfake", Subject(name, kind), protocol, metrics, slices, created="2026-01-01")


VAE = {"blur:1": 0.6, "jpeg:50": 0.7, "jpeg:95": 0.9, "blur:0.5": 0.8}


def test_steps_stand_in_the_middle_of_equal_rooms():
    ends = [(0.9, 0.8, 1.0), None, (0.5, None, None), (0.6, None, None)]
    svg = str(steps([(ends, 3)], Scale(0.5, 1.0), 0.5))
    assert re.search(r'points="([^"]+)"', svg)[1] == "12.5,13.8 62.5,57.0 87.5,46.2"
    assert svg.count('class="dot c3"') == 3 and svg.count('class="span c3"') == 1
    assert 'class="span c3" x1="12.5" y1="24.6" x2="12.5" y2="3.0"' in svg and 'class="ref"' in svg


def test_whiskers_of_several_entries_do_not_lie_on_each_other():
    ends = [(0.9, 0.8, 1.0), (0.5, 0.4, 0.6)]
    svg = str(steps([(ends, c) for c in range(8)], Scale(0.0, 1.0), None))
    places = sorted(float(x) for x in re.findall(r'class="dot c\d" x1="([\d.]+)"', svg))
    assert len(set(places)) == 16 and places[0] > 0 and places[-1] < 100
    assert places[7] < 50 < places[8]  # every point stays in the room of its tick


def test_curves_go_from_none_to_the_strongest():
    found = robustness_views([result("vae", 0.95, VAE), result("gan", 0.85, {"jpeg:95": 0.75})], {"vae": 4, "gan": 2})
    (view,) = found
    assert (view.title, view.arrow, view.unit, view.entries) == ("Detector AUC", "↓", "", [("vae", 4), ("gan", 2)])
    assert [(f.title, f.ticks) for f in view.figures] == [
        ("Blur, sigma in pixels", ["none", "0.5", "1"]),
        ("JPEG quality", ["none", "95", "50"]),
    ]
    jpeg = str(view.figures[1].svg)
    assert jpeg.count('class="dot c4"') == 3 and jpeg.count('class="dot c2"') == 2
    heights = [float(p.split(",")[1]) for p in re.search(r'line c4" points="([^"]+)"', jpeg)[1].split()]
    assert heights == sorted(heights) and len(heights) == 3  # it falls: lower on the page
    rows = dict(view.rows)
    assert rows["none"] == ["0.95 [0.90, 1.00]", "0.85 [0.80, 0.90]"] and rows["jpeg:95"][1] == "0.75 [0.70, 0.80]"
    assert rows["blur:1"] == ["0.60 [0.55, 0.65]", ""]


def test_what_is_not_comparable_has_pictures_of_its_own():
    marks = result("vae", 0.9, {"jpeg:95": 0.5}, group="watermark after", metric="watermark_detected", unit="share")
    others = [result("vae", 0.9, VAE, dataset="photographs"), result("spectral detector", None, VAE, kind="detector")]
    views = robustness_views([result("vae", 0.95, VAE), marks, *others], {"vae": 0})
    assert [(v.title, v.unit) for v in views] == [("Detector AUC", ""), ("Watermark found", "%"), ("Detector AUC", ""), ("Detector AUC", "")]  # fmt: skip
    assert dict(views[3].rows)["none"] == ["0.90 [0.85, 0.95]"]  # the mean over own generators
    assert dict(views[1].rows)["jpeg:95"] == ["50.0 [45.0, 55.0]"]


def test_entries_without_whiskers_are_named():
    bare = [Slice("robustness", "jpeg:50", [Metric("auc", 0.6, 200, higher_is_better=False)])]
    plain = EvaluationResult(
        "deepfake", Subject("gan", "image generator"), Protocol("digits", sha256_text("digits"), 100), [], bare
    )
    (view,) = robustness_views([result("vae", 0.95, VAE), plain], {})
    assert view.bare == ["gan"] and robustness_views([result("vae", 0.95, VAE)], {})[0].bare == []


def test_treatments_that_are_not_known_stay_in_their_order_and_none_makes_no_view():
    view = robustness_views([result("x", 0.9, {"crop:3": 0.6, "crop:1": 0.7, "jpeg": 0.5, "odd": 0.4})], {})[0]
    assert [(f.title, f.ticks) for f in view.figures] == [
        ("crop", ["none", "3", "1"]),
        ("JPEG quality", ["none", "jpeg"]),
        ("odd", ["none", "odd"]),
    ]
    assert robustness_views([result("x", 0.9, {}), result("y", 0.9, VAE, group="topic")], {}) == []


def test_curves_are_not_shown_again_by_category():
    board = Leaderboard([result("vae", 0.95, VAE)])
    assert category_views(board, {"vae": 0}) == []
    assert category_views(Leaderboard([result("vae", 0.95, VAE, group="topic")]), {"vae": 0}) != []
