"""What verdicts tell of the judge itself: consistency, bias towards a place or towards length, verdicts that are missing. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.judges.duels import Verdicts
from evaluation.preferences.accuracy import outcomes
from evaluation.schema import Metric, metric
from evaluation.statistics import Estimate, cohen_kappa, krippendorff_alpha, proportion, repeated, score_mean, win_rate

Array = NDArray[np.float64]
COIN = 0.5
"""Consistency of a judge that throws a coin for each verdict."""
NOTED_BIAS = 0.1
"""Position bias from which on a note speaks of it."""


def verdict_metrics(verdicts: Verdicts, prompts: Sequence[str]) -> list[Metric]:
    """`missing_verdicts`; of a judge that was asked in both orders also `consistency` and `position_bias`."""
    asked = [verdicts.first_N] if verdicts.second_N is None else [verdicts.first_N, verdicts.second_N]
    missing = np.concatenate([np.isnan(votes) for votes in asked]).astype(float)
    found = [
        metric(
            "missing_verdicts",
            proportion(missing, repeated(list(prompts) * len(asked))),
            "verdicts that could not be read or were not given; these duels are left out",
            higher_is_better=False,
            unit="share",
        )
    ]
    consistent, first_shown = verdicts.consistent_N, verdicts.first_shown_N
    if consistent is None or first_shown is None:
        return found
    groups = repeated([p for p, kept in zip(prompts, verdicts.decided_N, strict=True) if kept])
    some = consistent.size > 0
    return [
        *found,
        metric(
            "consistency",
            proportion(consistent, groups) if some else None,
            "duels with the same verdict in both orders of the answers; the others count as ties",
            higher_is_better=True,
            unit="share",
            note="" if some else "no duel has a verdict in both orders",
        ),
        metric(
            "position_bias",
            _shifted(score_mean(first_shown, groups), -0.5) if some else None,
            "how far the answer shown first is preferred: 0 not at all, 0.5 always, -0.5 never",
            higher_is_better=None,
            unit="share",
            note="" if some else "no duel has a verdict in both orders",
            bounds=(-0.5, 0.5),
        ),
    ]


def place_notes(metrics: Sequence[Metric]) -> list[str]:
    """The note that verdicts go by the place of an answer and not by what it says, where `verdict_metrics` show it.

    That is where no more than half of the duels got the same verdict in both orders, which a coin would give them; and where
    the judge leans to a place by at least NOTED_BIAS, and by more than chance.
    """
    found = {m.name: m for m in metrics}
    consistency, bias = found.get("consistency"), found.get("position_bias")
    if consistency is None or bias is None or consistency.value is None or bias.value is None:
        return []
    place = f"position bias {bias.value:+.2f}: {'the answer shown first' if bias.value > 0 else 'the answer shown last'} is preferred"
    if consistency.value <= COIN:
        leaning = f" ({place})" if abs(bias.value) >= NOTED_BIAS else ""
        return [
            f"The judge gave the same verdict in both orders in {consistency.value:.0%} of the duels, where a coin would in half "
            f"of them{leaning}. All others count as ties: what it says of the models is hardly more than chance, however "
            "narrow the intervals are."
        ]
    sure = bias.ci_low is not None and bias.ci_high is not None and (bias.ci_low > 0 or bias.ci_high < 0)
    if sure and abs(bias.value) >= NOTED_BIAS:
        return [
            f"The judge goes by place, too ({place}): {1 - consistency.value:.0%} of the duels count as ties for it, which "
            "draws the models together."
        ]
    return []


def _shifted(estimate: Estimate, by: float) -> Estimate:
    def moved(value: float | None) -> float | None:
        return None if value is None else value + by

    return replace(estimate, value=estimate.value + by, low=moved(estimate.low), high=moved(estimate.high))


# ---------------------------------------------------------------------------------------------- people


def agreement_metrics(judged: ArrayLike, people: ArrayLike, prompts: Sequence[str]) -> list[Metric]:
    """How a judge's outcomes (n,) agree with people's, each 1, 0.5 or 0 for the first of two answers.

    Which answer is the first is arbitrary. Kappa and alpha therefore count each pair in both orders, one cluster each, and
    do not depend on it.
    """
    j, h = np.asarray(judged, float), np.asarray(people, float)
    groups = list(prompts)
    decided = h != 0.5
    right = np.where(j == 0.5, 0.5, (j == h).astype(float))
    both_j, both_h = np.concatenate([j, 1 - j]), np.concatenate([h, 1 - h])
    kappa = cohen_kappa(both_j.tolist(), both_h.tolist(), groups * 2)
    alpha = krippendorff_alpha(np.stack([both_j, both_h], 1), "interval", groups * 2)
    undefined = "" if kappa else "judge and people give one verdict only"
    kept = repeated([g for g, d in zip(groups, decided, strict=True) if d])
    return [
        metric(
            "agreement",
            win_rate(right[decided], kept) if decided.any() else None,
            "pairs that people decided, and the judge decides alike; its ties count half",
            higher_is_better=True,
            unit="share",
            note="" if decided.any() else "people called every pair a tie",
        ),
        metric(
            "exact_agreement",
            proportion((j == h).astype(float), repeated(groups)),
            "pairs with the same verdict of judge and people, first, second or tie",
            higher_is_better=True,
            unit="share",
        ),
        metric(
            "cohen_kappa",
            kappa,
            "agreement beyond chance on first, second or tie (Cohen 1960), each pair in both orders",
            higher_is_better=True,
            note=undefined,
            bounds=(-1, 1),
        ),
        metric(
            "krippendorff_alpha",
            alpha,
            "the same by Krippendorff's alpha, a tie lying between the two",
            higher_is_better=True,
            note="" if alpha else undefined or "judge and people give one verdict only",
            bounds=(None, 1),
        ),
        metric(
            "judge_ties",
            proportion((j == 0.5).astype(float), repeated(groups)),
            "pairs that the judge calls a tie, inconsistent verdicts among them",
            higher_is_better=None,
            unit="share",
            people=float((h == 0.5).mean()),
        ),
    ]


def length_metrics_of_judge(
    judged: ArrayLike, people: ArrayLike, length_differences: ArrayLike, prompts: Sequence[str]
) -> list[Metric]:
    """How often judge and people take the longer answer, and what content-blind judges would agree with."""
    j, h, d = (np.asarray(values, float) for values in (judged, people, length_differences))
    unlike, decided = d != 0, h != 0.5
    labels = list(prompts)

    def rate(values: Array, part: NDArray[np.bool_]) -> Estimate | None:
        kept = repeated([g for g, inside in zip(labels, part, strict=True) if inside])
        return win_rate(values[part], kept) if part.any() else None

    longer = outcomes(d)
    said = "" if unlike.any() else "all pairs are of equal length"
    rows: list[tuple[str, Estimate | None, str, str]] = [
        (
            "prefers_longer",
            rate(np.where(d > 0, j, 1 - j), unlike),
            "how often the judge prefers the longer answer",
            said,
        ),
        ("people_prefer_longer", rate(np.where(d > 0, h, 1 - h), unlike), "how often people do", said),
    ]
    for name, blind in (("longest", longer), ("shortest", 1 - longer)):
        alike = np.where(blind == 0.5, 0.5, (blind == h).astype(float))
        text = f"agreement of a judge that reads nothing and prefers the {name} answer"
        rows.append(
            (f"baseline_{name}", rate(alike, decided), text, "" if decided.any() else "people called every pair a tie")
        )
    return [metric(n, e, text, higher_is_better=None, unit="share", note="" if e else why) for n, e, text, why in rows]


def annotator_metrics(ratings_UR: ArrayLike, units: Sequence[str]) -> list[Metric]:
    """Krippendorff's alpha of R people on U pairs, NaN where one did not judge; nothing when no pair has two.

    Ratings are 1, 0.5 or 0 for the first answer; each pair counts in both orders, as in `agreement_metrics`.
    """
    ratings = np.asarray(ratings_UR, float)
    if not (np.isfinite(ratings).sum(axis=1) >= 2).any():
        return []
    alpha = krippendorff_alpha(np.concatenate([ratings, 1 - ratings]), "interval", list(units) * 2)
    return [
        metric(
            "people_alpha",
            alpha,
            "agreement of people with each other (Krippendorff's alpha, a tie lying between the two): what a judge may reach",
            higher_is_better=None,
            note="" if alpha else "people give one verdict only",
            bounds=(None, 1),
            annotators=ratings.shape[1],
        )
    ]
