import numpy as np
import pytest
from scipy import stats

from evaluation.preferences.league import Game, check_league, elo_resolution, fit_league, resolvable_elo, standings
from launch.errors import UserError
from launch.seeding import numpy_generator


def games(*results):
    """(first, second, wins of the first, losses, ties); every game on a prompt of its own."""
    found = []
    for first, second, wins, losses, ties in results:
        for outcome, count in ((1.0, wins), (0.0, losses), (0.5, ties)):
            found += [Game(first, second, outcome, f"{first} {second} {len(found) + n}", 3.0) for n in range(count)]
    return found


def table(played):
    return standings(fit_league(played), played)


def elos(played):
    return {s.name: s.metrics[0] for s in table(played)}


def test_three_of_four_wins_are_190_points():
    found = elos(games(("a", "b", 3000, 1000, 0)))
    assert found["a"].value - found["b"].value == pytest.approx(190.8485, abs=0.1)
    assert found["a"].value + found["b"].value == pytest.approx(2000)


def test_an_undefeated_model_has_a_place():
    found = table(games(("best", "a", 20, 0, 0), ("best", "b", 20, 0, 0), ("a", "b", 9, 8, 3)))
    assert found[0].name == "best" and np.isfinite(found[0].metrics[0].ci_high)
    assert found[0].metrics[0].extra == {"rank_best": 1, "rank_worst": 1, "group": 1}
    assert {s.metrics[0].extra["group"] for s in found[1:]} == {2}  # a and b are not ranked apart
    assert found[1].metrics[0].extra["rank_best"] == 2 and found[1].metrics[0].extra["rank_worst"] == 3


def test_models_that_never_met_are_refused():
    with pytest.raises(UserError, match=r"2 parts that never met, \[a, b\]\[c, d\]"):
        table(games(("a", "b", 5, 5, 0), ("c", "d", 5, 5, 0)))


def test_the_order_of_games_and_of_models_in_them_does_not_matter():
    played = games(("a", "b", 12, 8, 2), ("b", "c", 11, 9, 0), ("a", "c", 15, 5, 1))
    turned = [g.seen_by(g.second) if n % 2 else g for n, g in enumerate(reversed(played))]
    one, other = elos(played), elos(turned)
    assert list(one) == list(other)
    for name in one:
        assert one[name].value == pytest.approx(other[name].value)
        assert one[name].ci_low == pytest.approx(other[name].ci_low)


def test_games_on_one_prompt_are_not_independent():
    """The same 30 prompts, each judged five times with the same outcome."""
    generator = numpy_generator(0, "test")
    outcomes = (generator.random(30) < 0.6).astype(float)
    once = [Game("a", "b", o, f"p{n}") for n, o in enumerate(outcomes)]
    copies = fit_league(once * 5).elo()["a"]
    alone = fit_league(once).elo()["a"]
    assert copies.stderr == pytest.approx(alone.stderr, rel=0.15) and copies.n == 30
    unknown = fit_league([Game(g.first, g.second, g.outcome, "") for g in once * 5]).elo()["a"]
    assert unknown.stderr < 0.6 * alone.stderr  # nothing tells that they are copies


def test_what_is_said_of_each_opponent():
    played = games(("a", "b", 12, 6, 2), ("a", "c", 10, 10, 0))
    found = {s.name: s for s in table(played)}
    (against_b, against_c) = sorted(found["a"].slices, key=lambda s: s.name)
    metrics = {m.name: m for m in against_b.metrics}
    assert against_b.name == "b" and metrics["win_rate"].value == pytest.approx(13 / 20)
    assert metrics["win_rate_by_length"].value == 1  # the first one's answers are all longer
    assert (
        metrics["win_rate_length_controlled"].value is None and "constant" in metrics["win_rate_length_controlled"].note
    )
    mirrored = {m.name: m for s in found["b"].slices for m in s.metrics}
    assert mirrored["win_rate"].value == pytest.approx(7 / 20) and mirrored["win_rate_by_length"].value == 0
    assert found["a"].metrics[1].value == pytest.approx(23 / 40) and found["a"].metrics[1].extra["ties"] == 2
    assert against_c.metrics[0].value == 0.5


def test_pairs_have_no_test_that_is_not_corrected():
    (standing, _) = table(games(("a", "b", 12, 6, 2)))
    assert "sign_test" not in standing.slices[0].metrics[0].extra


def test_too_few_prompts_are_refused_before_anything_is_judged():
    check_league(3, [f"p{n}" for n in range(5)])  # no prompt twice: every duel is a unit
    check_league(3, [f"p{n}" for n in range(12)] * 3)
    with pytest.raises(UserError, match=r"11 clusters of duels for 3 models are too few .* at least 12 prompts"):
        check_league(3, [f"p{n}" for n in range(11)] * 3)


def test_the_smallest_difference_that_a_league_finds_in_closed_form():
    """n even duels of two models: the difference in logits has a variance of 4/n; 400 points are ln 10 of it."""
    n = 400
    low, high = resolvable_elo(fit_league(games(("a", "b", n // 2, n // 2, 0))))
    expected = 400 / np.log(10) * 2 / np.sqrt(n) * (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1))
    assert low == high == pytest.approx(expected, rel=0.005)  # Firth's penalty is worth about a duel
    (note,) = elo_resolution(fit_league(games(("a", "b", n // 2, n // 2, 0))))
    assert f": {low:.0f} Elo points;" in note


def test_of_several_models_every_pair_is_corrected_for_and_the_worst_is_told():
    """a and b meet often, c meets b alone: a variance of 4/n + 4/m lies between a and c. Three pairs: level .05/3."""
    n, m = 400, 100
    low, high = resolvable_elo(fit_league(games(("a", "b", n // 2, n // 2, 0), ("b", "c", m // 2, m // 2, 0))))
    for found, variance, duels in ((low, 4 / n, n), (high, 4 / n + 4 / m, m)):
        quantiles = stats.t.ppf(1 - 0.05 / 6, duels - 1) + stats.t.ppf(0.8, duels - 1)
        assert found == pytest.approx(400 / np.log(10) * np.sqrt(variance) * quantiles, rel=0.01)
    (note,) = elo_resolution(fit_league(games(("a", "b", n // 2, n // 2, 0), ("b", "c", m // 2, m // 2, 0))))
    assert f"{low:.0f} to {high:.0f} Elo points, depending on the pair" in note
