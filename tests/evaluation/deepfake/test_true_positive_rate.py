"""The interval of the true positive rate at a false positive rate: against a literal bootstrap, theory, and the ends."""

import numpy as np
import pytest
import scipy.stats

from evaluation.deepfake.metrics import true_positive_rate_at, true_positive_rate_estimate


def estimate(real, generated, rate=0.01, seed=0, level=0.95):
    labels = np.repeat([0, 1], [len(real), len(generated)])
    return true_positive_rate_estimate(labels, np.concatenate([real, generated]), rate, seed, level)


def literal(real, generated, rate, draws=4000):
    """Weights for the n + 1 gaps between real scores, their ROC by straight lines, and a beta around each count.

    Left of the first real score it rises as the square root.
    """
    draw, found = np.random.default_rng(1), []
    hits = [0.0]
    for place in np.unique(real)[::-1]:
        equal, above = (real == place).sum(), (generated > place).sum()
        hits += [above + (generated == place).sum() * (i + 1) / (equal + 1) for i in range(equal)]
    hits.append(len(generated))
    for _ in range(draws):
        weights = np.cumsum(draw.dirichlet(np.ones(len(real) + 1)))
        straight = np.interp(rate, [0.0, *weights[:-1], 1.0], hits)
        count = hits[1] * np.sqrt(rate / weights[0]) if rate < weights[0] else straight
        found.append(draw.beta(count + 0.5, len(generated) - count + 0.5))
    return np.array(found)


@pytest.mark.parametrize(
    ("n", "m", "rate", "digits"), [(60, 40, 0.01, 9), (80, 50, 0.1, 9), (80, 50, 0.1, 0), (30, 30, 0.9, 1)]
)
def test_equal_to_a_literal_bayesian_bootstrap(n, m, rate, digits):
    draw = np.random.default_rng(0)
    real, generated = draw.normal(0, 1, n).round(digits), draw.normal(1, 1, m).round(digits)  # 0: many ties
    found, drawn = estimate(real, generated, rate), literal(real, generated, rate)
    assert found.n == n + m and found.method == "Bayesian bootstrap of the ROC"
    value = true_positive_rate_at(np.repeat([0, 1], [n, m]), np.concatenate([real, generated]), rate)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.value == value and found.stderr == pytest.approx(drawn.std(), rel=0.06)
    assert (found.low, found.high) == (
        pytest.approx(min(low, value), abs=0.02),
        pytest.approx(max(high, value), abs=0.02),
    )


def test_with_many_images_it_is_the_delta_method():
    """The variance of the ordinate of a ROC: p(1 - p)/m + slope^2 a(1 - a)/n (Pepe 2003, section 5.2)."""
    draw, n, m, a = np.random.default_rng(3), 20_000, 3_000, 0.01
    found = estimate(draw.normal(0, 1, n), draw.normal(1.5, 1, m), a)
    cut = scipy.stats.norm.isf(a)
    p, slope = scipy.stats.norm.sf(cut - 1.5), scipy.stats.norm.pdf(cut - 1.5) / scipy.stats.norm.pdf(cut)
    error = np.sqrt(p * (1 - p) / m + slope**2 * a * (1 - a) / n)
    assert found.stderr == pytest.approx(error, rel=0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1) and found.low < p < found.high
    assert error > 1.3 * np.sqrt(p * (1 - p) / m)  # the threshold's part is no small one


def test_ends():
    apart = estimate(np.zeros(40), np.ones(40))
    assert (apart.value, apart.high) == (1, 1) and 0.2 < apart.low < 0.5
    many = estimate(np.zeros(4000) + np.arange(4000) / 1e6, np.ones(400))
    assert many.low > 0.98
    below = estimate(np.ones(400) + np.arange(400) / 1e6, np.zeros(50))
    assert (below.value, below.low) == (0, 0) and below.high < 0.1
    assert estimate(np.zeros(9), np.zeros(9)).value == 0


def test_a_higher_level_is_wider_and_a_seed_gives_the_same():
    draw = np.random.default_rng(5)
    real, generated = draw.normal(0, 1, 200), draw.normal(1, 1, 100)
    one, other = estimate(real, generated), estimate(real, generated, level=0.99)
    assert other.low <= one.low < one.high <= other.high and one == estimate(real, generated)
