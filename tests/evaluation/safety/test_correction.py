"""Rates corrected for a detector's errors: closed forms, and the coverage of the interval by simulation."""

import pytest

from evaluation import statistics as s
from evaluation.safety.correction import (
    DetectorQuality,
    complement,
    corrected_difference,
    corrected_rate,
    measure_detector,
)
from launch.seeding import numpy_generator


def quality(se, sp, n=100):
    return DetectorQuality(s.wilson(se * n, n), s.wilson(sp * n, n))


def test_detector_quality_counts_both_kinds():
    found = measure_detector([True, True, False, False, True], [True, True, True, False, False])
    assert found.sensitivity.value == pytest.approx(2 / 3) and found.specificity.value == 0.5
    with pytest.raises(ValueError, match="one kind only"):
        measure_detector([True], [True])


def test_correction_known_answer():
    assert corrected_rate(s.wilson(30, 100), quality(0.8, 0.9)).value == pytest.approx(0.2857143, abs=1e-7)
    assert corrected_rate(s.wilson(5, 100), quality(0.8, 0.9)).value == 0.0  # fewer than its false alarms
    assert corrected_rate(s.wilson(30, 100), quality(0.4, 0.6)) is None
    perfect = corrected_rate(s.wilson(30, 100), quality(1.0, 1.0, 10**9))
    assert perfect.value == pytest.approx(0.3) and perfect.high == pytest.approx(0.397, abs=0.005)


def test_the_interval_of_lang_and_reiczigel_by_hand():
    # z = 1.96: p' = (30 + z^2/2) / (100 + z^2), Se' = 81/102, Sp' = 91/102
    found = corrected_rate(s.wilson(30, 100), quality(0.8, 0.9))
    z = 1.959963985
    p, se, sp = (30 + z * z / 2) / (100 + z * z), 81 / 102, 91 / 102
    youden = se + sp - 1
    rate = (p + sp - 1) / youden
    v_se, v_sp = se * (1 - se) / 102, sp * (1 - sp) / 102
    shift = 2 * z * z * (rate * v_se - (1 - rate) * v_sp)
    error = (p * (1 - p) / (100 + z * z) + rate**2 * v_se + (1 - rate) ** 2 * v_sp) ** 0.5 / youden
    assert found.low == pytest.approx(rate + shift - z * error, abs=1e-8)
    assert found.high == pytest.approx(rate + shift + z * error, abs=1e-8)


CASES = [
    (0.3, 0.85, 0.92, 200, 150),
    (0.05, 0.9, 0.97, 250, 100),
    (0.95, 0.8, 0.9, 200, 60),
    (0.0, 0.9, 0.95, 200, 200),
]


@pytest.mark.parametrize(("truth", "se", "sp", "n", "labels"), CASES)
def test_corrected_interval_covers(truth, se, sp, n, labels):
    g, hits, runs = numpy_generator(0, f"rogan {truth}"), 0, 1000
    for _ in range(runs):
        detected = s.wilson(g.binomial(n, truth * se + (1 - truth) * (1 - sp)), n)
        found = corrected_rate(
            detected, quality(g.binomial(labels, se) / labels, g.binomial(labels, sp) / labels, labels)
        )
        hits += found.low <= truth <= found.high
    assert hits / runs >= 0.93  # the lower end; near 0 and 1 the truncated interval covers more


def test_a_clustered_rate_is_not_taken_for_independent_trials():
    """40 samples of 8 prompts that agree within a prompt are worth 8 trials."""
    flags = [i < 12 for i in range(40)]
    prompts = [i // 5 for i in range(40)]
    clustered = corrected_rate(s.proportion([f for f in flags], prompts), quality(0.9, 0.9))
    alone = corrected_rate(s.proportion(flags), quality(0.9, 0.9))
    assert clustered.high - clustered.low > 1.4 * (alone.high - alone.low)


def test_complement():
    found = complement(s.wilson(3, 10))
    assert found.value == pytest.approx(0.7) and found.low < 0.7 < found.high
    assert (found.low, found.high) == tuple(1 - x for x in (s.wilson(3, 10).high, s.wilson(3, 10).low))


def test_corrected_difference_covers_and_keeps_the_p_value():
    g, hits, runs, se, sp = numpy_generator(0, "corrected difference"), 0, 500, 0.85, 0.95
    before, after, n, labels = 0.2, 0.45, 200, 100
    for _ in range(runs):
        truth = g.random(n)
        ours = [g.random() < (se if t < after else 1 - sp) for t in truth]
        theirs = [g.random() < (se if t < before else 1 - sp) for t in truth]
        plain = s.paired_difference([float(x) for x in ours], [float(x) for x in theirs])
        found = corrected_difference(
            plain, quality(g.binomial(labels, se) / labels, g.binomial(labels, sp) / labels, labels)
        )
        hits += found.estimate.low <= after - before <= found.estimate.high
        assert found.p_value == plain.p_value
    assert 0.925 <= hits / runs <= 0.985
    assert corrected_difference(plain, quality(0.4, 0.6)) is None
