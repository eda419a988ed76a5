"""Metrics of reward models beyond pairs: RewardBench's sections and subsets, ensembles, best-of-n. Pure, from arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluation.options import Ties
from evaluation.preferences.accuracy import outcomes
from evaluation.preferences.best_of_n import best_of_n_values, curve_points, kl_bound
from evaluation.preferences.ensemble import disagreement
from evaluation.preferences.rewardbench import SECTIONS, category_accuracies, section_estimate
from evaluation.schema import Metric, metric
from evaluation.statistics import (
    Estimate,
    combine_variances,
    krippendorff_alpha,
    mean,
    mean_of,
    paired_difference,
    proportion,
    repeated,
    win_rate,
)

WRONG: Ties = "wrong"


def section_metrics(sources: Sequence[str], margins: ArrayLike) -> list[Metric]:
    """RewardBench's sections, where the pairs' sources are its subsets: ties wrong, whatever `ties` says elsewhere.

    `rewardbench` is the mean of the four sections, where all of them are there (without the prior sets of version 1).
    """
    parts = category_accuracies(sources, outcomes(margins, WRONG))
    estimates = {section: section_estimate(section, parts) for section in SECTIONS}
    found = {section: estimate for section, estimate in estimates.items() if estimate is not None}
    metrics = [
        metric(
            f"rewardbench/{section}",
            estimate,
            f"RewardBench's section {section}: accuracy of its subsets, ties wrong, weighted as there",
            higher_is_better=True,
            unit="share",
            subsets={s: float(parts[s].mean()) for s in SECTIONS[section] if s in parts},
        )
        for section, estimate in found.items()
    ]
    if len(found) < len(SECTIONS):
        return metrics
    text = "mean of RewardBench's four sections, without its prior sets"
    whole = metric("rewardbench", mean_of_parts(list(found.values())), text, higher_is_better=True, unit="share")
    return [whole, *metrics]


def mean_of_parts(parts: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent estimates; n is their sum."""
    value, n = float(np.mean([p.value for p in parts])), sum(p.n for p in parts)
    variances = [((p.stderr or 0.0) / len(parts)) ** 2 for p in parts]
    degrees = [max(1, p.n - 1) for p in parts]
    return combine_variances(value, n, variances, degrees, method="mean of parts, Satterthwaite")


# ---------------------------------------------------------------------------------------------- ensembles


def ensemble_metrics(margins_MN: ArrayLike, prompts: Sequence[str]) -> list[Metric]:
    """How far M reward models agree on N pairs; nothing for a single one."""
    margins = np.asarray(margins_MN, dtype=float)
    if len(margins) < 2:
        return []
    found, groups = disagreement(margins), repeated(prompts)
    same = found.unanimous_N
    alpha = krippendorff_alpha(np.concatenate([found.votes_MN, 1 - found.votes_MN], 1).T, "interval", list(prompts) * 2)
    return [
        metric(
            "ensemble_accuracy",
            win_rate(found.together_N, groups),
            "pairs that the mean of the models' margins orders as people did, each in units of its root mean square",
            higher_is_better=True,
            unit="share",
            models=len(margins),
            each=[float(votes.mean()) for votes in found.votes_MN],
        ),
        metric(
            "ensemble_unanimous",
            proportion(same.astype(float), groups),
            "pairs that all models order alike",
            higher_is_better=None,
            unit="share",
        ),
        metric(
            "ensemble_alpha",
            alpha,
            "agreement of the models' votes beyond chance (Krippendorff's alpha, each pair in both orders)",
            higher_is_better=None,
            note="" if alpha else "the models give one verdict only",
            bounds=(None, 1),
        ),
        metric(
            "ensemble_disagreement",
            mean_of(found.spread_N, groups),
            "standard deviation over models of a pair's margin, in units of each model's root mean square margin",
            higher_is_better=None,
            bounds=(0, None),
        ),
        *(
            _part_accuracy(name, found.together_N, part, prompts)
            for name, part in (("unanimous", same), ("split", ~same))
        ),
    ]


def _part_accuracy(name: str, right: np.ndarray, part: np.ndarray, prompts: Sequence[str]) -> Metric:
    kept = repeated([p for p, inside in zip(prompts, part, strict=True) if inside])
    return metric(
        f"ensemble_accuracy_{name}",
        win_rate(right[part], kept) if part.any() else None,
        f"accuracy together where the votes are {name}",
        higher_is_better=True,
        unit="share",
        note="" if part.any() else f"no pair's votes are {name}",
    )


# ---------------------------------------------------------------------------------------------- best of n


def best_of_n_metrics(proxy: Sequence[ArrayLike], judged: Sequence[ArrayLike], proxy_is_judge: bool) -> list[Metric]:
    """The judge's reward of the best of n samples by the proxy, for n = 1, 2, 4, ...; arrays (N,) of each prompt.

    `kl_bound` beside each is an upper bound on the KL divergence from the policy, not an estimate of it.
    """
    fewest = min(len(np.asarray(p)) for p in proxy)
    base = best_of_n_values(proxy, judged, 1)
    found = []
    for n in curve_points(fewest):
        values, own = best_of_n_values(proxy, judged, n), best_of_n_values(proxy, proxy, n)
        found.append(
            metric(
                f"best_of_{n}",
                mean(values),
                f"mean reward that the judge gives to the best of {n} samples"
                + (", which it chooses itself" if proxy_is_judge else " by the proxy"),
                higher_is_better=True,
                unit="reward",
                baseline=None if n == 1 else "one sample",
                difference=None if n == 1 else paired_difference(values, base),
                n_samples=n,
                kl_bound=kl_bound(n),
                kl_bound_formula="ln n - (n - 1)/n, an upper bound",
                proxy=float(own.mean()),
            )
        )
    return found
