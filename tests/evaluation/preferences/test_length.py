import numpy as np
import pytest
from scipy.special import expit

from evaluation.preferences import length
from launch.seeding import numpy_generator


def test_slope_recovers_a_planted_bias():
    g = numpy_generator(0, "slope")
    x = g.normal(5, 30, 4000)
    found = length.length_slope(0.02 * x + g.normal(0, 1, 4000), x)
    assert found.low < 0.02 < found.high and found.high - found.low < 0.003
    assert length.length_slope([1.0, 2.0], [0.0, 0.0]) is None


def test_slope_and_correlation_do_not_depend_on_which_answer_comes_first():
    g = numpy_generator(1, "swap")
    x, flips = g.normal(2, 10, 50), g.choice([-1, 1], 50)
    y = 0.1 * x + g.normal(0, 1, 50)
    assert length.length_slope(y * flips, x * flips) == length.length_slope(y, x)
    assert length.length_correlation(y * flips, x * flips) == pytest.approx(length.length_correlation(y, x))
    assert length.length_correlation(3 * x, x) == pytest.approx(1.0) and length.length_correlation(y, 0 * x) is None


def test_slope_interval_covers_with_unequal_variances():
    g, hits = numpy_generator(2, "cover slope"), 0
    for _ in range(600):
        x = g.normal(0, 1, 100)
        found = length.length_slope(0.5 * x + g.normal(0, 1, 100) * (0.3 + np.abs(x)), x)
        hits += found.low <= 0.5 <= found.high
    assert 0.91 <= hits / 600 <= 0.98


def test_repeated_prompts_do_not_narrow_the_interval_of_the_slope():
    g = numpy_generator(3, "clusters")
    x = g.normal(0, 1, 30)
    y = 0.5 * x + g.normal(0, 1, 30)
    once, four = length.length_slope(y, x), (np.tile(y, 4), np.tile(x, 4))
    clustered = length.length_slope(*four, groups=list(range(30)) * 4)
    assert (clustered.value, clustered.stderr) == (pytest.approx(once.value), pytest.approx(once.stderr))
    assert clustered.n == 30 and "clustered" in clustered.method
    assert length.length_slope(*four).stderr < 0.6 * once.stderr


def test_firth_matches_its_closed_form():
    # one group: (wins + 1/2) / (n + 1); two groups: each its own
    fit = length.firth_logistic(np.ones((20, 1)), [1.0] * 20)
    assert expit(fit.coefficients[0]) == pytest.approx(20.5 / 21)
    x = np.stack([np.ones(30), [0.0] * 10 + [1.0] * 20], 1)
    y = [1.0] * 3 + [0.0] * 7 + [1.0] * 20
    a, b = length.firth_logistic(x, y).coefficients
    assert (expit(a), expit(a + b)) == (pytest.approx(3.5 / 11), pytest.approx(20.5 / 21))


def test_firth_agrees_with_maximum_likelihood_on_many_rows():
    from sklearn.linear_model import LogisticRegression

    g = numpy_generator(3, "firth")
    x = g.normal(0, 1, 5000)
    y = (g.random(5000) < expit(0.3 + 1.2 * x)).astype(float)
    mine = length.firth_logistic(np.stack([np.ones(5000), x], 1), y)
    theirs = LogisticRegression(C=np.inf).fit(x[:, None], y)
    assert mine.coefficients == pytest.approx([theirs.intercept_[0], theirs.coef_[0, 0]], abs=2e-3)
    assert np.sqrt(mine.covariance[0, 0]) == pytest.approx(0.033, abs=0.003)


def test_preference_by_length_alone_is_fifty():
    g = numpy_generator(4, "by length")
    x = g.normal(40, 50, 4000)
    p = expit(2.5 * np.tanh(x / x.std()))
    y = (g.random(4000) < p).astype(float)
    found = length.length_controlled_win_rate(y, x)
    assert y.mean() > 0.65 and found.low < 0.5 < found.high
    exact = length.length_controlled_win_rate(p, x)  # the probabilities themselves: no sampling noise
    assert exact.value == pytest.approx(0.5, abs=1e-3)


def test_the_terms_of_alpacaeval():
    """Its design, tanh(length difference / sd with ddof 1) and a constant, fitted without its penalty by another library."""
    from sklearn.linear_model import LogisticRegression

    g = numpy_generator(10, "alpaca")
    x = g.normal(100, 300, 3000)
    y = (g.random(3000) < expit(-0.4 + 1.3 * np.tanh(x / 300))).astype(float)
    design = np.tanh(x / x.std(ddof=1))[:, None]
    theirs = LogisticRegression(C=np.inf).fit(design, y).predict_proba([[0.0]])[0, 1]
    assert length.length_controlled_win_rate(y, x).value == pytest.approx(theirs, abs=1e-3)


def test_unknown_difficulty_of_instructions_is_averaged_as_alpacaeval_averages_it():
    """Truth: a constant, length, and a difficulty of each instruction; the mean over instructions at equal length."""
    g = numpy_generator(11, "difficulty")
    x, difficulty = g.normal(50, 200, 40_000), g.normal(0, 1.5, 40_000)
    y = (g.random(40_000) < expit(0.8 + 1.0 * np.tanh(x / 200) + difficulty)).astype(float)
    found = length.length_controlled_win_rate(y, x)
    assert found.value == pytest.approx(expit(0.8 + difficulty).mean(), abs=0.01)
    assert abs(expit(0.8) - expit(0.8 + difficulty).mean()) > 0.03  # which is not the prediction for a middling one


def test_symmetric_models_are_fifty_exactly():
    x = np.array([5.0, -5.0, 12.0, -12.0, 3.0, -3.0])
    y = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.5])
    assert length.length_controlled_win_rate(y, x).value == pytest.approx(0.5, abs=1e-12)


def test_quality_alone_survives_the_control():
    g = numpy_generator(5, "quality")
    x, y = g.normal(30, 40, 3000), (g.random(3000) < 0.7).astype(float)
    found = length.length_controlled_win_rate(y, x)
    assert found.low < 0.7 < found.high and found.low > 0.6


def test_swapping_the_models_mirrors_the_rate():
    g = numpy_generator(6, "mirror")
    x, y = g.normal(3, 20, 80), g.choice([0.0, 0.5, 1.0], 80)
    ours, theirs = length.length_controlled_win_rate(y, x), length.length_controlled_win_rate(1 - y, -x)
    assert ours.value == pytest.approx(1 - theirs.value) and ours.low == pytest.approx(1 - theirs.high)


def test_one_side_wins_always():
    g = numpy_generator(7, "always")
    found = length.length_controlled_win_rate(np.ones(40), g.normal(0, 10, 40))
    assert 0.93 < found.value < 1 and 0.5 < found.low < found.value < found.high < 1


def test_separation_by_length_is_finite():
    x = np.array([-9.0, -4.0, -2.0, 2.0, 5.0, 9.0])
    found = length.length_controlled_win_rate((x > 0).astype(float), x)
    assert found.value == pytest.approx(0.5, abs=0.02) and found.low > 0 and found.high < 1


def test_length_that_cannot_be_separated():
    assert length.length_controlled_win_rate([1, 0, 1], [4.0, 4.0, 4.0]) is None
    equal = length.length_controlled_win_rate([1, 0, 1], [0.0, 0.0, 0.0])
    assert equal.value == pytest.approx(2.5 / 4)


def test_interval_covers_at_its_level():
    g, hits = numpy_generator(8, "cover lc"), 0
    for _ in range(500):
        x = g.normal(10, 30, 120)
        y = (g.random(120) < expit(0.4 + 1.0 * np.tanh(x / x.std()))).astype(float)
        found = length.length_controlled_win_rate(y, x)
        hits += found.low <= expit(0.4) <= found.high
    assert 0.92 <= hits / 500 <= 0.98


def test_copies_of_a_prompt_add_no_evidence():
    g = numpy_generator(9, "copies")
    x, y = g.normal(0, 20, 60), (g.random(60) < 0.6).astype(float)
    plain = length.length_controlled_win_rate(y, x)
    copied = length.length_controlled_win_rate(np.tile(y, 4), np.tile(x, 4), list(range(60)) * 4)
    naive = length.length_controlled_win_rate(np.tile(y, 4), np.tile(x, 4))
    assert copied.n == 60 and copied.stderr == pytest.approx(plain.stderr, rel=0.1)
    assert naive.stderr < 0.6 * plain.stderr
