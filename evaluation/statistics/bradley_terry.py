"""Strengths of models from their duels: Bradley and Terry (1952), with intervals, and the Elo scale. Pure.

P(i beats j) = sigmoid(s_i - s_j). Letters: M models, D duels. Only differences of strengths mean anything: they are
told from the mean of all models, and intervals hold for that.

The fit has Firth's (1993) penalty, the Jeffreys prior. It needs no anchor and no strength to be chosen, is finite for
a model that won or lost every duel (maximum likelihood is not), removes the first-order bias of the estimates, and
vanishes beside many duels. What no prior can mend is a graph in two parts: nothing links their strengths, and a number
would be the prior's invention, so it is refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, ndtr

from evaluation.statistics.comparison import Difference
from evaluation.statistics.estimate import LEVEL, Estimate, as_vector, z_quantile
from evaluation.statistics.logistic import LogisticFit, clustered_covariance, firth_logistic
from evaluation.statistics.ranking import Relation, better_by_differences
from launch.errors import UserError

Array = NDArray[np.float64]
Penalty = Literal["firth", "none"]

ELO_PER_UNIT = 400 / math.log(10)
"""Elo points for a unit of strength: 400 points are odds of ten to one."""
ELO_CENTRE = 1000.0
CLUSTERS_PER_MODEL = 4
"""Fewer clusters than this for each model, and the sandwich knows too little to be asked."""


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of M models in logits about their mean, and the covariance of their errors (M, M)."""

    names: list[str]
    strengths_M: Array
    covariance_MM: Array
    duels_M: NDArray[np.int64]
    """Duels of each model (clusters of them, where outcomes were clustered)."""
    method: str

    def strengths(self, level: float = LEVEL) -> dict[str, Estimate]:
        """Each model's strength in logits above the mean of all models; n counts its duels."""
        return {name: self._estimate(i, level, 0.0, 1.0) for i, name in enumerate(self.names)}

    def elo(self, level: float = LEVEL, centre: float = ELO_CENTRE) -> dict[str, Estimate]:
        """The same on the Elo scale: `centre` is the mean of all models, 400 points are odds of ten to one."""
        return {name: self._estimate(i, level, centre, ELO_PER_UNIT) for i, name in enumerate(self.names)}

    def _estimate(self, model: int, level: float, centre: float, scale: float) -> Estimate:
        value = centre + scale * float(self.strengths_M[model])
        error = scale * math.sqrt(max(0.0, float(self.covariance_MM[model, model])))
        half = z_quantile(level) * error
        return Estimate(value, int(self.duels_M[model]), error, value - half, value + half, level, self.method)

    def difference(self, first: str, second: str, level: float = LEVEL) -> Difference:
        """Strength of `first` less that of `second` in logits, and Wald's p-value for none. n: the smaller number."""
        i, j = self.names.index(first), self.names.index(second)
        value = float(self.strengths_M[i] - self.strengths_M[j])
        c = self.covariance_MM
        error = math.sqrt(max(0.0, float(c[i, i] + c[j, j] - 2 * c[i, j])))
        half, n = z_quantile(level) * error, int(min(self.duels_M[i], self.duels_M[j]))
        estimate = Estimate(value, n, error, value - half, value + half, level, self.method)
        p_value = float(2 * ndtr(-abs(value) / error)) if error > 0 else 1.0
        return Difference(estimate, p_value, "Wald, Bradley-Terry")

    def win_probability(self, first: str, second: str, level: float = LEVEL) -> Estimate:
        """P(first beats second); the interval of the difference, mapped."""
        found = self.difference(first, second, level).estimate
        p = float(expit(found.value))
        low, high = (float(expit(v)) for v in (found.low, found.high) if v is not None)
        return Estimate(p, found.n, p * (1 - p) * (found.stderr or 0.0), low, high, level, f"{found.method}, logit")

    def better(self, level: float = LEVEL) -> Relation:
        """Which models surely beat which, all pairs after Holm: for `rank_intervals` and `groups_from_relation`."""
        pairs = list(itertools.combinations(range(len(self.names)), 2))
        found = [self.difference(self.names[i], self.names[j], level) for i, j in pairs]
        differences, p_values = [d.estimate.value for d in found], [d.p_value for d in found]
        return better_by_differences(len(self.names), pairs, differences, p_values, level)


def fit_bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    outcomes: ArrayLike,
    clusters: Sequence[object] | None = None,
    penalty: Penalty = "firth",
) -> BradleyTerry:
    """Fit duels (D,): `outcomes` is 1 where `first` won, 0 where `second` won, 0.5 for a tie, which counts half a win.

    A tie has less variance than a win or a loss, p(1 - p) - t/4 with tie rate t, so that the inverse information, which
    knows wins and losses alone, is multiplied by the mean of that over the mean of p(1 - p); t is drawn towards 0 as in
    `win_rate`. `clusters` labels duels that
    depend on each other (all those on one prompt): the covariance is then the sandwich of Liang and Zeger (1986), in
    each direction no less than the former, since the residuals of a model that always wins say nothing.

    UserError when the models fall into parts that never met, or for penalty "none" when a group of models won all of
    its duels with the others, so that no finite maximum exists (Ford 1957).
    """
    y = as_vector(outcomes, "outcomes")
    if not (len(first) == len(second) == y.size) or not np.isin(y, (0.0, 0.5, 1.0)).all():
        raise ValueError("fit_bradley_terry: give one outcome (1, 0.5 or 0) and two names for each duel")
    names = list(dict.fromkeys(itertools.chain(*zip(first, second, strict=True))))
    index = {name: i for i, name in enumerate(names)}
    pair_D2 = np.array([(index[a], index[b]) for a, b in zip(first, second, strict=True)])
    if (pair_D2[:, 0] == pair_D2[:, 1]).any():
        raise ValueError("fit_bradley_terry: a model does not meet itself")
    wins_MM = np.zeros((len(names), len(names)))
    np.add.at(wins_MM, (pair_D2[:, 0], pair_D2[:, 1]), y)
    np.add.at(wins_MM, (pair_D2[:, 1], pair_D2[:, 0]), 1 - y)
    found = fit_win_matrix(wins_MM, names, penalty, ties=int((y == 0.5).sum()))
    if clusters is None or len(set(clusters)) == y.size:
        return found
    return _clustered(found, pair_D2, y, clusters)


def fit_win_matrix(
    wins_MM: ArrayLike, names: Sequence[str] | None = None, penalty: Penalty = "firth", ties: int = 0
) -> BradleyTerry:
    """The fit of wins (M, M): row over column, a tie half a win to both. Sufficient, so that ranks may add theirs up.

    `ties` of the duels were ties.
    """
    wins = np.asarray(wins_MM, dtype=np.float64)
    labels = [str(i) for i in range(len(wins))] if names is None else list(names)
    if wins.ndim != 2 or wins.shape != (len(labels), len(labels)) or (wins < 0).any() or np.diag(wins).any():
        raise ValueError(f"wins: expected non-negative ({len(labels)}, {len(labels)}) with an empty diagonal")
    check_connected(wins, labels, penalty)
    basis = _contrasts(len(labels))
    rows = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if wins[i, j] + wins[j, i] > 0]
    design = np.array([basis[i] - basis[j] for i, j in rows])
    won, met = np.array([wins[i, j] for i, j in rows]), np.array([wins[i, j] + wins[j, i] for i, j in rows])
    fit = firth_logistic(design, won, met, penalised=penalty == "firth")
    spread = _tie_factor(ties, met, expit(design @ fit.coefficients))
    method = "Bradley-Terry, Firth" if penalty == "firth" else "Bradley-Terry, maximum likelihood"
    duels = np.rint(wins.sum(0) + wins.sum(1)).astype(np.int64)
    covariance = basis @ fit.covariance @ basis.T * spread
    return BradleyTerry(labels, basis @ fit.coefficients, covariance, duels, method)


def _tie_factor(ties: int, met: Array, p: Array) -> float:
    """What ties leave of the variance of outcomes: 1 - sum t / 4 over sum p(1 - p), all over the duels of each pair.

    No less than half of 1 - t, t the share of ties: ties where p is near 0 or 1 contradict the model, and must not make
    its intervals vanish.
    """
    if not ties:
        return 1.0
    total = float(met.sum())
    share = ties / (total + z_quantile(LEVEL) ** 2)
    return max(1 - share * total / 4 / float(met @ (p * (1 - p))), (1 - share) / 2)


def check_connected(wins_MM: Array, names: Sequence[str], penalty: Penalty = "firth") -> None:
    """UserError when duels leave the models in parts; for maximum likelihood also when wins go one way only."""
    if len(names) < 2:
        raise UserError("Bradley-Terry: there is one model; strengths need at least two that met")
    strong = penalty == "none"
    count, part = connected_components(wins_MM > 0, directed=True, connection="strong" if strong else "weak")
    if count == 1:
        return
    groups = [", ".join(n for n, p in zip(names, part, strict=True) if p == c) for c in range(count)]
    if strong:
        raise UserError(
            f"Bradley-Terry without a penalty: one of [{']['.join(groups)}] won or lost every duel with the others, so "
            "that no finite strength exists; use the penalty 'firth'"
        )
    raise UserError(
        f"Bradley-Terry: the models fall into {count} parts that never met, [{']['.join(groups)}], so that nothing "
        "says how their strengths compare; judge at least one pair across, or rank the parts apart"
    )


def check_clusters(groups: int, models: int) -> None:
    """UserError where clusters are too few for their scatter to tell of the error of so many strengths."""
    if groups < CLUSTERS_PER_MODEL * models:
        raise UserError(
            f"Bradley-Terry: {groups} clusters of duels for {models} models are too few to know how they vary; "
            f"judge at least {CLUSTERS_PER_MODEL * models} prompts"
        )


def _contrasts(models: int) -> Array:
    """An orthonormal basis (M, M - 1) of the vectors with sum zero (Helmert)."""
    basis = np.zeros((models, models - 1))
    for k in range(1, models):
        basis[:k, k - 1], basis[k, k - 1] = 1.0, -k
        basis[:, k - 1] /= math.sqrt(k * (k + 1))
    return basis


def _clustered(found: BradleyTerry, pair_D2: Array, y: Array, clusters: Sequence[object]) -> BradleyTerry:
    """The fit with the sandwich in place of the model's covariance, where that is larger, and n in clusters."""
    labels = list(clusters)
    groups, models = len(set(labels)), len(found.names)
    check_clusters(groups, models)
    basis = _contrasts(models)
    design = basis[pair_D2[:, 0]] - basis[pair_D2[:, 1]]
    inner = basis.T @ found.covariance_MM @ basis
    weight_D = expit(design @ (basis.T @ found.strengths_M))
    information = (design * (weight_D * (1 - weight_D))[:, None]).T @ design
    fit = LogisticFit(basis.T @ found.strengths_M, np.linalg.inv(information))
    sandwich = clustered_covariance(design, y, fit, labels)
    covariance = basis @ _larger(inner, sandwich) @ basis.T
    seen = [{labels[d] for d in np.flatnonzero((pair_D2 == i).any(axis=1))} for i in range(models)]
    units = np.array([len(s) for s in seen], dtype=np.int64)
    return BradleyTerry(found.names, found.strengths_M, covariance, units, f"{found.method}, sandwich by cluster")


def _larger(first: Array, second: Array) -> Array:
    """The least upper bound, direction by direction, of two covariances (K, K): first's eigenvectors under second."""
    factor = np.linalg.cholesky(first)
    inverse = np.linalg.inv(factor)
    values, vectors = np.linalg.eigh(inverse @ second @ inverse.T)
    rotated = factor @ vectors
    return (rotated * np.maximum(values, 1.0)) @ rotated.T


def elo_difference(win_probability: float) -> float:
    """Elo points that give this probability of winning: 400 log10(p / (1 - p)); .75 is 190.85."""
    if not 0 < win_probability < 1:
        raise ValueError(f"elo_difference: {win_probability} is not between 0 and 1")
    return 400 * math.log10(win_probability / (1 - win_probability))


def elo_probability(difference: float) -> float:
    """The probability of winning with this many Elo points more: 400 points are 10/11."""
    return 1 / (1 + 10 ** (-difference / 400))
