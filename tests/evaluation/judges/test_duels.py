import re

import numpy as np
import pytest

from data.records import Preference
from evaluation.judges.duels import Answer, Duel, gather_verdicts
from evaluation.judges.people import People
from evaluation.preferences.judging import (
    agreement_metrics,
    annotator_metrics,
    length_metrics_of_judge,
    place_notes,
    verdict_metrics,
)
from evaluation.schema import Judge
from evaluation.statistics import cohen_kappa, wilson

VOTES = {"A": 1.0, "B": 0.0, "C": 0.5, "?": None}


def verdicts(forward, backward=None):
    """Votes as letters: A for the answer shown first, B for the second, C a tie, ? nothing to read."""
    rows = [[{"vote": VOTES[v]} for v in letters] for letters in (forward, backward or "")]
    return gather_verdicts(rows[0], rows[1] if backward else None)


def values(metrics):
    return {m.name: m.value for m in metrics}


def test_inconsistent_verdicts_are_ties():
    found = verdicts("AABBCAC", "BABACCC")
    np.testing.assert_array_equal(found.outcomes_N, [1, 0.5, 0.5, 0, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(found.consistent_N, [1, 0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(found.first_shown_N, [0.5, 1, 0, 0.5, 0.5, 0.75, 0.5])


@pytest.mark.parametrize(
    ("forward", "backward", "said"),
    [
        ("A" * 20, "A" * 20, r"same verdict in both orders in 0% .*\(position bias \+0.50: the answer shown first"),
        ("B" * 20, "B" * 20, r"position bias -0.50: the answer shown last is preferred"),
        ("AB" * 10, "AABB" * 5, "in 50% of the duels, where a coin would in half of them. All others"),
        ("A" * 20, "A" * 8 + "B" * 12, r"goes by place, too \(position bias \+0.20.* 40% of the duels count as ties"),
        ("A" * 20, "A" * 1 + "B" * 19, ""),
        ("A" * 5, "A" * 2 + "B" * 3, ""),  # may be chance
    ],
)
def test_a_judge_that_goes_by_place_is_told_of(forward, backward, said):
    notes = place_notes(verdict_metrics(verdicts(forward, backward), [f"p{n}" for n in range(len(forward))]))
    assert len(notes) == bool(said) and (not said or re.search(said, notes[0]))


def test_the_interval_of_the_position_bias_has_a_width_and_stays_in_its_range():
    def interval(forward, backward):
        entry = verdict_metrics(verdicts(forward, backward), [f"p{n}" for n in range(len(forward))])[-1]
        return entry.value, entry.ci_low, entry.ci_high

    always = wilson(30, 30)
    assert interval("A" * 30, "A" * 30) == pytest.approx((0.5, always.low - 0.5, 0.5))
    value, low, high = interval("AB" * 6, "BA" * 6)
    assert value == 0 and low == pytest.approx(-high) and 0.05 < high < 0.25
    tied = interval("C" * 12, "A" * 12)  # a tie, then the first: a quarter each
    assert tied[0] == pytest.approx(0.25) and -0.5 < tied[1] < 0.25 < tied[2] < 0.5


def test_a_judge_that_always_names_the_first_wins_nothing():
    found = verdicts("A" * 20, "A" * 20)
    assert found.outcomes_N.mean() == 0.5
    metrics = values(verdict_metrics(found, [f"p{n}" for n in range(20)]))
    assert metrics == {"missing_verdicts": 0.0, "consistency": 0.0, "position_bias": 0.5}
    assert values(verdict_metrics(verdicts("B" * 4, "B" * 4), list("pqrs")))["position_bias"] == -0.5


def test_duels_without_both_verdicts_are_left_out_and_counted():
    found = verdicts("A?B", "BA?")
    np.testing.assert_array_equal(found.decided_N, [True, False, False])
    assert found.missing == 2 and found.consistent_N.tolist() == [1.0]
    metrics = verdict_metrics(found, ["p", "q", "r"])
    assert values(metrics)["missing_verdicts"] == pytest.approx(1 / 3) and metrics[0].n == 3
    nothing = verdict_metrics(verdicts("?", "A"), ["p"])
    assert values(nothing)["consistency"] is None and nothing[1].note


def test_a_judge_that_is_asked_once_has_no_consistency():
    found = verdicts("ABC")
    np.testing.assert_array_equal(found.outcomes_N, [1, 0, 0.5])
    assert values(verdict_metrics(found, list("pqr"))) == {"missing_verdicts": 0.0}


# ---------------------------------------------------------------------------------------------- agreement


def test_agreement_with_people():
    judged, people = [1, 0, 0.5, 1, 0.5, 0], [1, 1, 0.5, 1, 0, 0.5]
    found = values(agreement_metrics(judged, people, list("abcdef")))
    assert found["agreement"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found["exact_agreement"] == pytest.approx(3 / 6)
    assert found["judge_ties"] == pytest.approx(2 / 6)


def test_kappa_without_ties_is_twice_the_accuracy_less_one_whichever_answer_is_first():
    judged, people = np.array([1, 1, 1, 1, 0, 1, 1, 1.0]), np.array([1, 1, 1, 1, 1, 1, 0, 1.0])
    prompts = [str(n) for n in range(8)]
    turned = np.arange(8) % 2 == 1
    one = values(agreement_metrics(judged, people, prompts))
    other = values(
        agreement_metrics(np.where(turned, 1 - judged, judged), np.where(turned, 1 - people, people), prompts)
    )
    assert one["cohen_kappa"] == pytest.approx(2 * 6 / 8 - 1) and one == pytest.approx(other)
    plain = cohen_kappa(judged.tolist(), people.tolist())
    assert plain is not None and plain.value < 0  # as it stands, the first answer's luck would count as chance


def test_length_of_what_is_preferred():
    judged, people, lengths = [1, 0, 1, 0.5], [1, 1, 0, 0.5], [5, -5, 3, 0]
    found = values(length_metrics_of_judge(judged, people, lengths, list("abcd")))
    assert found["prefers_longer"] == 1.0 and found["people_prefer_longer"] == pytest.approx(1 / 3)
    assert found["baseline_longest"] == pytest.approx(1 / 3) and found["baseline_shortest"] == pytest.approx(2 / 3)


def test_people_among_each_other():
    ratings = [[1, 1, np.nan], [0, 0, 0], [1, 0, np.nan], [0.5, np.nan, np.nan]]
    (found,) = annotator_metrics(ratings, list("abcd"))
    assert 0 < found.value < 1 and found.n == 3 and found.extra["annotators"] == 3
    assert annotator_metrics([[1.0, np.nan]], ["a"]) == []


def test_people_judge_what_they_saw_by_majority():
    records = [
        Preference("p", "x", "y", annotator="ann"),
        Preference("p", "y", "x", annotator="bob"),
        Preference("p", "x", "y", annotator="cat"),
        Preference("q", "x", "y"),
        Preference("q", "y", "x"),
        Preference("r", "x", "y", tie=True),
    ]
    people = People(records, Judge("people.jsonl", "0"))
    x, y = Answer("x"), Answer("y")
    found = people.judge(
        [Duel("p", x, y), Duel("p", y, x), Duel("q", x, y), Duel("r", x, y), Duel("s", x, y), Duel("s", x, x)]
    )
    assert [v["vote"] for v in found] == [1.0, 0.0, 0.5, 0.5, None, 0.5]
    assert [v["votes"] for v in found] == [3, 3, 2, 1, 0, 0] and found[4]["why"] == "nobody judged this pair"


def test_the_order_of_a_duel_is_a_part_of_its_content():
    one = Duel("p", Answer("x"), Answer("y", finished=False))
    assert one.swapped.swapped == one and one.swapped.content != one.content
    assert Duel("p", Answer("x"), Answer("x", finished=False)).same is False
