from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evaluation.resolution import LISTED, resolution_notes, resolvable_alone
from evaluation.schema import Comparison, Metric, metric
from evaluation.statistics import mean, paired_difference, proportion
from launch.seeding import numpy_generator


def test_the_note_names_what_a_simulated_test_finds_four_times_in_five():
    g, n, found = numpy_generator(0, "resolution"), 60, 0
    difference = paired_difference(g.normal(0, 1, n), np.zeros(n))
    entry = metric("m", mean([0.0, 1.0]), "", higher_is_better=True, baseline="b", difference=difference)
    (note,) = resolution_notes([entry, metric("alone", mean([0.0, 1.0]), "", higher_is_better=True)])
    smallest = float(note.split(": m ")[1].split(";")[0])
    assert "differences to b that" in note and "alone" not in note
    assert smallest == pytest.approx(2.85 * difference.estimate.stderr, rel=0.1)
    for _ in range(500):
        found += (
            paired_difference(g.normal(smallest, difference.estimate.stderr * np.sqrt(n), n), np.zeros(n)).p_value
            < 0.05
        )
    assert 0.74 < found / 500 < 0.88
    assert resolution_notes([]) == []


def test_the_stderr_of_a_comparison_counts_and_without_one_its_interval():
    """Of few items the two are not the same: the interval is made with t, and read back with z."""
    difference = paired_difference([0.1, 0.4, -0.2, 0.3, 0.2], np.zeros(5))
    quantiles = stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)
    entry = metric("m", mean([0.0, 1.0]), "", higher_is_better=True, baseline="b", difference=difference)
    (note,) = resolution_notes([entry])
    assert f": m {quantiles * difference.estimate.stderr:.3g};" in note
    bare = Comparison("b", 0.0, -0.1, 0.1, n=5)
    (note,) = resolution_notes([Metric("m", 1.0, 5, comparison=bare)])
    assert f": m {quantiles * 0.1 / 1.959964:.3g};" in note


def test_alone_is_the_closed_form_of_two_samples():
    g = numpy_generator(0, "alone")
    scores = g.normal(3, 2, 40)
    entry = metric("m", mean(scores), "", higher_is_better=True)
    expected = (stats.t.ppf(0.975, 78) + stats.t.ppf(0.8, 78)) * np.sqrt(2 * scores.var(ddof=1) / 40)
    assert resolvable_alone(entry) == pytest.approx(expected, rel=1e-9)


def test_alone_is_what_a_test_of_two_samples_finds_four_times_in_five():
    g, n = numpy_generator(0, "power"), 50
    entry = metric("m", mean(np.tile([-1.0, 1.0], n // 2)), "", higher_is_better=True)
    smallest, spread = resolvable_alone(entry), np.sqrt(n / (n - 1))
    p_values = [stats.ttest_ind(g.normal(smallest, spread, n), g.normal(0, spread, n)).pvalue for _ in range(1000)]
    assert 0.76 < np.mean(np.array(p_values) < 0.05) < 0.84


def test_item_by_item_models_that_correlate_are_told_apart_at_less():
    """What the note says of r: the paired difference has sqrt(1 - r) of the stderr of two samples."""
    g, n, r = numpy_generator(0, "paired"), 20_000, 0.84
    common, own, other = g.normal(size=(3, n))
    ours, theirs = (np.sqrt(r) * common + np.sqrt(1 - r) * e for e in (own, other))
    paired = paired_difference(ours, theirs).estimate.stderr
    assert paired / (np.sqrt(2) * mean(ours).stderr) == pytest.approx(np.sqrt(1 - r), rel=0.03)


def test_a_share_of_zero_still_has_a_resolution_and_one_item_has_none():
    none_of_ten = metric("share", proportion(np.zeros(10)), "", higher_is_better=True)
    width = none_of_ten.ci_high - none_of_ten.ci_low
    quantiles = stats.t.ppf(0.975, 18) + stats.t.ppf(0.8, 18)
    assert resolvable_alone(none_of_ten) == pytest.approx(np.sqrt(2) * width / (2 * 1.959964) * quantiles, rel=1e-6)
    single = metric("one", mean([1.0]), "", higher_is_better=True)
    undefined = metric("none", None, "", higher_is_better=True, note="there is none")
    assert resolvable_alone(single) is None and resolvable_alone(undefined) is None
    assert resolution_notes([single, undefined], ["one", "none"]) == []


def test_many_metrics_are_told_by_their_range():
    entries = [metric(f"m{n}", mean([0.0, 1.0 + n] * 10), "", higher_is_better=True) for n in range(LISTED + 1)]
    (few,) = resolution_notes(entries[:-1], [m.name for m in entries])
    (many,) = resolution_notes(entries, [m.name for m in entries])
    assert all(f"m{n} " in few for n in range(LISTED))
    ends = [f"{resolvable_alone(entry):.3g} ({entry.name})" for entry in (entries[0], entries[-1])]
    assert f"from {ends[0]} to {ends[1]} over {LISTED + 1} metrics" in many


def test_a_difference_that_no_share_can_show_is_not_told():
    """Two pairs, one of them different: the t quantiles of one degree would make it 4.98 of a scale that ends at 1."""
    difference = paired_difference([1.0, 0.0], [0.0, 0.0])
    entry = metric("copied_rate", proportion([1, 0]), "", higher_is_better=False, unit="share", baseline="b",
                   difference=difference)  # fmt: skip
    assert resolution_notes([entry]) == ["These items are too few to find any difference of copied_rate."]
    wide = metric("wide", proportion([1, 0] * 2 + [1]), "", higher_is_better=False, unit="share")
    percent = replace(wide, name="percent", value=60.0, ci_low=10.0, ci_high=95.0, stderr=30.0, unit="%")
    bare = replace(percent, name="bare", unit="")
    assert 0.6 < resolvable_alone(replace(wide, unit="")) < 1  # another share can be 0.6 lower, no more
    assert resolvable_alone(wide) is None
    assert resolvable_alone(percent) is None and resolvable_alone(bare) > 100
    first, second = resolution_notes([wide, percent, bare], ["wide", "percent", "bare"])
    assert ": bare " in first and second.endswith("difference of wide, percent.")


def test_of_two_items_nothing_is_told():
    scores = [0.1, 0.4]
    entry = metric("m", mean(scores), "", higher_is_better=True, baseline="b",
                   difference=paired_difference(scores, np.zeros(2)))  # fmt: skip
    assert resolution_notes([entry], ["m"]) == ["These items are too few to find any difference of m."]
    assert resolvable_alone(metric("m", mean([*scores, 0.2]), "", higher_is_better=True)) is not None


def test_items_that_never_differ_are_not_called_too_few():
    entry = Metric("m", 1.0, 100, 1.0, 1.0, ci_method="bootstrap", unit="share")
    assert resolution_notes([entry], ["m"]) == []


def test_generators_of_images_are_not_compared_item_by_item():
    entry = metric("m", mean([0.0, 1.0] * 10), "", higher_is_better=True)
    assert "item by item" in resolution_notes([entry], ["m"])[0]
    assert "item by item" not in resolution_notes([entry], ["m"], paired=False)[0]


def test_bounds_of_a_metric_stand_before_those_of_its_unit():
    """A gap of shares lies between -1 and 1: a difference of 1.5 can be seen there, and of shares it cannot."""
    wide = paired_difference([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0], np.zeros(7))
    share = metric("m", mean([0.0, 1.0]), "", higher_is_better=None, unit="share", baseline="b", difference=wide)
    gap = replace(share, extra={"bounds": (-1, 1)})
    assert (
        share.bounds == (0.0, 1.0)
        and gap.bounds == (-1.0, 1.0)
        and replace(share, unit="reward").bounds == (None, None)
    )
    assert replace(share, unit="%").bounds == (0.0, 100.0)
    assert "too few items" not in resolution_notes([gap])[0] and "too few" in resolution_notes([share])[0]
    assert replace(share, unit="tokens").bounds == (0.0, None)
    floor = replace(share, extra={"bounds": (0, None)})
    assert "too few items" not in resolution_notes([floor])[0]  # no end above: any difference may be
    alone = metric("m", mean([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0]), "", higher_is_better=None, bounds=(-1, 1))
    assert resolvable_alone(alone) is None and resolvable_alone(replace(alone, extra={})) > 1
