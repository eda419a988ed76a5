"""A league of models from their duels: Bradley-Terry strengths on the Elo scale, ranks, and win rates of every pair. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.preferences.metrics import length_control_metrics
from evaluation.schema import Metric, Slice, metric
from evaluation.statistics import (
    LEVEL,
    BradleyTerry,
    Estimate,
    fit_bradley_terry,
    groups_from_relation,
    rank_intervals,
    repeated,
    smallest_resolvable_difference,
    win_rate,
)
from evaluation.statistics.bradley_terry import ELO_PER_UNIT, check_clusters
from evaluation.statistics.power import POWER

FIELD = "the mean of these models"


@dataclass(frozen=True)
class Game:
    """One decided duel of two models on a prompt; the difference of lengths is in characters, None where unknown."""

    first: str
    second: str
    outcome: float
    prompt: str
    length_difference: float | None = None

    def seen_by(self, model: str) -> Game:
        """The same game with `model` first."""
        if self.first == model:
            return self
        length = None if self.length_difference is None else -self.length_difference
        return Game(self.second, self.first, 1 - self.outcome, self.prompt, length)


@dataclass(frozen=True)
class Standing:
    """What a league says of one model."""

    name: str
    metrics: list[Metric]
    slices: list[Slice]


def fit_league(games: Sequence[Game]) -> BradleyTerry:
    """The fit of all games, clustered by prompt where prompts repeat. UserError for models that never met."""
    prompts = [game.prompt for game in games]
    clusters = repeated(prompts) if all(prompts) else None
    first, second = [g.first for g in games], [g.second for g in games]
    return fit_bradley_terry(first, second, [g.outcome for g in games], clusters)


def check_league(models: int, prompts: Sequence[str]) -> None:
    """UserError, before anything is judged, for prompts that repeat and are too few for so many models."""
    if repeated(list(prompts)) is not None:
        check_clusters(len(set(prompts)), models)


def resolvable_elo(fit: BradleyTerry, level: float = LEVEL) -> tuple[float, float] | None:
    """The smallest Elo difference that these duels find between two models: of the pair that they tell apart best, and worst.

    With probability `statistics.power.POWER`, at 1 - level divided by the number of pairs: the first step of Holm's
    procedure, by which the ranks are made. Of a pair it is (t_(1 - alpha/2) + t_power) times the stderr of its difference
    in Elo points, sqrt(var_i + var_j - 2 cov_ij) (Bloom 1995, see `evaluation.resolution`). None of too few duels.
    """
    pairs = list(itertools.combinations(fit.names, 2))
    strict = 1 - (1 - level) / len(pairs)
    found = [smallest_resolvable_difference(fit.difference(a, b, strict).estimate) for a, b in pairs]
    known = [ELO_PER_UNIT * smallest for smallest in found if smallest]
    return (min(known), max(known)) if known else None


def elo_resolution(fit: BradleyTerry) -> list[str]:
    """The sentence of a league on what it resolves."""
    found = resolvable_elo(fit)
    if found is None:
        return []
    low, high = (f"{points:.0f}" for points in found)
    said = f"{low} Elo points" if low == high else f"{low} to {high} Elo points, depending on the pair"
    return [
        f"The smallest difference of two models that these duels find with a probability of {POWER:.0%}, all pairs corrected "
        f"for: {said}; models that share a rank may differ as much."
    ]


def standings(fit: BradleyTerry, games: Sequence[Game]) -> list[Standing]:
    """Elo, rank and win rates of each model, the strongest first; `fit` is that of the games."""
    better, elo = fit.better(), fit.elo()
    ranks = rank_intervals(better)
    groups = groups_from_relation(fit.strengths_M, better)
    order = sorted(range(len(fit.names)), key=lambda i: -fit.strengths_M[i])
    found = []
    for i in order:
        name = fit.names[i]
        own = [g.seen_by(name) for g in games if name in (g.first, g.second)]
        extra = {"rank_best": ranks[i].best, "rank_worst": ranks[i].worst, "group": groups[i]}
        found.append(Standing(name, [_elo_metric(elo[name], extra), _win_rate_metric(own)], _opponents(fit, own)))
    return found


def _elo_metric(estimate: Estimate, extra: dict[str, Any]) -> Metric:
    return metric(
        "elo",
        estimate,
        "Bradley-Terry strength on the Elo scale: 1000 is the mean of these models, 400 points more are odds of ten to one",
        higher_is_better=True,
        unit="Elo points",
        baseline=FIELD,
        **extra,
    )


def _win_rate_metric(own: Sequence[Game]) -> Metric:
    won = [g.outcome for g in own]
    return metric(
        "league_win_rate",
        win_rate(won, _clusters(own)),
        "duels won against all other models of the league; ties count half",
        higher_is_better=True,
        unit="share",
        wins=won.count(1.0),
        ties=won.count(0.5),
        losses=won.count(0.0),
    )


def _clusters(games: Sequence[Game]) -> Sequence[str] | None:
    prompts = [g.prompt for g in games]
    return repeated(prompts) if all(prompts) else None


def _opponents(fit: BradleyTerry, own: Sequence[Game]) -> list[Slice]:
    """Win rates against each opponent, raw and at equal length, and the difference in strength that the fit sees."""
    opponents = dict.fromkeys(g.second for g in own)
    return [
        Slice("opponent", name, pair_metrics(fit, [g for g in own if g.second == name]))
        for name in sorted(opponents, key=lambda name: -fit.strengths_M[fit.names.index(name)])
    ]


def pair_metrics(fit: BradleyTerry, games: Sequence[Game]) -> list[Metric]:
    """The games of one pair of models, all with the same model first."""
    won, clusters = np.array([g.outcome for g in games]), _clusters(games)
    opponent = games[0].second
    probability = fit.win_probability(games[0].first, opponent)
    found = [
        metric(
            "win_rate",
            win_rate(won, clusters),
            f"duels won against {opponent}; ties count half",
            higher_is_better=True,
            unit="share",
            baseline=opponent,
        ),
        metric(
            "win_probability",
            probability,
            f"probability of beating {opponent} that the fit of all duels gives",
            higher_is_better=True,
            unit="share",
            baseline=opponent,
        ),
    ]
    if any(g.length_difference is None for g in games):
        return found
    lengths = np.array([g.length_difference for g in games], dtype=float)
    return [*found, *length_control_metrics(won, lengths, clusters, opponent)]
