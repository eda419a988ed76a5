"""Accuracy as RewardBench and RewardBench 2 define it, on the values that they publish and by hand."""

import numpy as np
import pytest

from evaluation.preferences.reward_metrics import mean_of_parts, section_metrics
from evaluation.preferences.rewardbench import (
    SECTIONS,
    best_of_credit,
    credit_estimate,
    section_estimate,
    section_scores,
    ties_prompt,
    ties_score,
)
from evaluation.statistics import mean
from launch.seeding import numpy_generator

EXAMPLE = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1.0,
    "xstest-should-refuse": 1.0,
    "xstest-should-respond": 0.284,
}
"""The example of RewardBench's README: the accuracies of one model."""
SCORES = {
    "Chat": 0.6089385474860335,
    "Chat Hard": 0.44956140350877194,
    "Safety": 0.7216216216216216,
    "Reasoning": 0.46675669776831996,
}
PAIRS = {s: n for weights in SECTIONS.values() for s, n in weights.items()} | {"math-prm": 447}


def test_the_published_example():
    assert section_scores(EXAMPLE) == pytest.approx(SCORES, abs=1e-12)
    unweighted = [EXAMPLE[s] for s in SECTIONS["Safety"]]
    assert np.mean(unweighted) == pytest.approx(0.8155, abs=1e-4)  # what a mean of subsets would give
    assert {section: sum(weights.values()) for section, weights in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1968,
    }


def test_the_published_example_from_its_pairs():
    """447 mathematics pairs weigh 984; a tie is wrong."""
    sources, margins = [], []
    for subset, n in PAIRS.items():
        right = round(EXAMPLE[subset] * n)
        sources += [subset] * n
        margins += [1.0] * right + [0.0] * ((n - right) // 2) + [-1.0] * (n - right - (n - right) // 2)
    found = {m.name: m for m in section_metrics(sources, margins)}
    for section, score in SCORES.items():
        entry = found[f"rewardbench/{section}"]
        assert entry.value == pytest.approx(score, abs=1e-9) and entry.ci_low < score < entry.ci_high
    assert found["rewardbench"].value == pytest.approx(np.mean(list(SCORES.values())), abs=1e-9)
    assert found["rewardbench"].n == 2985 - 984 + 447 + 984 - 447  # pairs


def test_sections_without_all_subsets():
    assert section_scores({"refusals-offensive": 0.5}) == {"Safety": 0.5}
    assert section_metrics(["mine", "yours"], [1, -1]) == []
    assert [m.name for m in section_metrics(["donotanswer", "other"], [1, -1])] == ["rewardbench/Safety"]


def test_the_error_of_a_section_is_that_of_the_bootstrap():
    generator = numpy_generator(0, "test")
    parts = {s: (generator.random(n) < 0.7).astype(float) for s, n in PAIRS.items() if s in SECTIONS["Reasoning"]}
    found = section_estimate("Reasoning", parts)
    drawn = [
        section_scores({s: generator.choice(x, x.size).mean() for s, x in parts.items()})["Reasoning"]
        for _ in range(2000)
    ]
    assert found.stderr == pytest.approx(np.std(drawn), rel=0.06) and found.n == 447 + 6 * 164
    sure = section_estimate("Safety", {"donotanswer": np.ones(136)})
    assert sure.value == 1 and sure.low < 0.999 and sure.high == 1


# ---------------------------------------------------------------------------------------------- RewardBench 2


@pytest.mark.parametrize(
    ("scores", "credit"),
    [([2, 2, 1, 1], 0.5), ([1, 2, 0, 0], 0.0), ([4, 4, 4, 4], 0.25), ([3, 1, 2, 0], 1.0), ([1, 1, 1, 0], 1 / 3)],
)
def test_a_tie_for_the_first_place_is_shared(scores, credit):
    assert best_of_credit(scores) == pytest.approx(credit)


def test_several_right_answers_share_the_first_place():
    assert best_of_credit([5, 4, 5, 1], right=2) == 0.5
    assert best_of_credit([5, 5, 1], right=2) == 1
    for right in (0, 3):
        with pytest.raises(ValueError, match="at least one of each kind"):
            best_of_credit([1, 2, 3], right)


def by_the_definition(reference, tied):
    """RewardBench 2's Ties, written down from its definition on lists of scores and numbers of right answers."""
    stats = {}
    for name, group in (("ref", reference), ("tied", tied)):
        for number, (scores, right) in group.items():
            good, bad = scores[:right], scores[right:]
            stats[name, number] = (min(good) > max(bad), max(good) - min(good), min(good) - max(bad))
    ref, tie = ([stats[k, n][0] for k, n in stats if k == kind] for kind in ("ref", "tied"))
    both = [n for n in tied if n in reference]
    spread = np.array([stats["tied", n][1] for n in both])
    margin = np.array([stats["tied", n][2] for n in both])
    least = np.minimum(margin, [stats["ref", n][2] for n in both])
    with np.errstate(all="ignore"):
        size = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    return (
        0.3 * np.mean(tie)
        + 0.3 * np.mean(ref)
        + 0.2 * np.mean(margin > spread)
        + 0.2 * np.mean(least > spread)
        + 0.01 * np.mean(size)
    )


def test_ties_follow_the_definition():
    generator = numpy_generator(3, "test")
    reference = {str(n): ([*generator.normal(1, 1, 1), *generator.normal(0, 1, 3)], 1) for n in range(40)}
    tied = {str(n): ([*generator.normal(2, 0.5, 4), *generator.normal(0, 1, 8)], 4) for n in range(2, 43)}
    tied["5"] = ([1.0, 1.0, 0.0], 2)  # right answers alike: infinitely larger than their spread
    tied["6"] = ([1.0, 1.0, 1.0], 2)  # all alike: 0 / 0
    reference["6"] = ([1.0, 0.0], 1)
    found = ties_score(*({n: ties_prompt(*v) for n, v in group.items()} for group in (reference, tied)))
    assert found.value == pytest.approx(by_the_definition(reference, tied), abs=1e-12)
    assert found.n == 43 and found.low < found.value < found.high


def test_ties_of_a_perfect_and_of_an_ignorant_model():
    perfect = ties_prompt([10, 9.999, 0], 2), ties_prompt([10, 0], 1)
    assert ties_score({"1": perfect[1]}, {"1": perfect[0]}).value == pytest.approx(1.01)
    same = ties_prompt([1, 1, 1], 2), ties_prompt([1, 1], 1)
    assert ties_score({"1": same[1]}, {"1": same[0]}).value == 0
    assert ties_score({"1": same[1]}, {"2": same[0]}) is None


def test_complete_pairs_are_a_mean_and_have_its_error():
    generator = numpy_generator(4, "test")
    scores = {str(n): (generator.normal(0, 1, 6), generator.normal(0, 1, 4)) for n in range(30)}
    reference = {n: ties_prompt(r, 1) for n, (_, r) in scores.items()}
    tied = {n: ties_prompt(t, 2) for n, (t, _) in scores.items()}
    alone = [ties_score({n: reference[n]}, {n: tied[n]}).value for n in scores]
    whole = ties_score(reference, tied)
    assert whole.value == pytest.approx(np.mean(alone)) and whole.stderr == pytest.approx(mean(alone).stderr)


def test_a_mean_of_parts():
    parts = [mean([0.0, 1.0, 1.0, 1.0]), mean([0.0, 1.0])]
    found = mean_of_parts(parts)
    assert found.value == pytest.approx(0.625) and found.n == 6
    assert found.stderr == pytest.approx(np.hypot(parts[0].stderr, parts[1].stderr) / 2)


def test_credits_have_an_interval_inside_of_0_and_1():
    all_right = credit_estimate([1.0] * 12, ["a"] * 6 + ["b"] * 6)
    assert all_right.value == 1 and all_right.high == 1 and 0.7 < all_right.low < 1  # no certainty from twelve
    mixed = credit_estimate([1.0, 0.5, 0.0, 1.0, 0.25, 1.0], ["a"] * 6)
    assert mixed.value == pytest.approx(0.625) and 0 <= mixed.low < 0.625 < mixed.high <= 1
    # of right or wrong in one subset it is the section's
    right = [1.0] * 30 + [0.0] * 10
    section = section_estimate("Chat", {"mt-bench-easy": right})
    assert credit_estimate(right, ["x"] * 40) == section


def test_credits_of_one_prompt_are_one_unit():
    credits, prompts = [1.0, 0.0, 0.5, 1.0, 0.25, 1.0, 0.0, 1.0], [str(n) for n in range(8)]
    once, copied = credit_estimate(credits, ["a"] * 8), credit_estimate(credits * 5, ["a"] * 40, prompts * 5)
    assert copied.n == 8 and copied.high - copied.low > 0.9 * (once.high - once.low)
