"""The metrics of a reward model on preference pairs, and of one policy against another, from arrays. Pure.

Lengths are in characters: a judge's preference for length can then be compared between tokenizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.options import Ties
from evaluation.preferences.accuracy import brier_score, outcomes, pairwise_loss
from evaluation.preferences.length import length_controlled_win_rate, length_correlation, length_slope
from evaluation.schema import Comparison, Metric, metric
from evaluation.statistics import (
    calibration,
    mcnemar_exact,
    mean_of,
    paired_difference,
    repeated,
    scaled,
    win_rate,
)

LONGEST = "taking the longer answer"

# ---------------------------------------------------------------------------------------------- reward model


def accuracy_metric(margins: ArrayLike, length_differences: ArrayLike, prompts: Sequence[str], ties: Ties) -> Metric:
    """Share of pairs that the reward model orders as people did, compared with taking the longer answer."""
    groups = repeated(prompts)
    right, by_length = outcomes(margins, ties), outcomes(length_differences, "half")
    return metric(
        "accuracy",
        win_rate(right, groups),
        f"pairs whose chosen answer gets the higher reward; equal rewards count {'half' if ties == 'half' else 'as wrong'}",
        higher_is_better=True,
        unit="share",
        baseline=LONGEST,
        difference=paired_difference(right, by_length, clusters=groups),
        tied_pairs=int((np.asarray(margins) == 0).sum()),
    )


def accuracy_metrics(
    margins: ArrayLike, length_differences: ArrayLike, prompts: Sequence[str], ties: Ties, seed: int
) -> list[Metric]:
    """Accuracy, loss, calibration and length bias from margins and chosen-minus-rejected lengths (n,)."""
    d, lengths, groups = np.asarray(margins, float), np.asarray(length_differences, float), repeated(prompts)
    loss = pairwise_loss(d, groups)
    return [
        accuracy_metric(d, lengths, prompts, ties),
        metric(
            "pairwise_loss",
            loss,
            "mean Bradley-Terry loss; 0.693 knows nothing",
            higher_is_better=False,
            unit="nats",
            bounds=(0, None),
        ),
        metric(
            "brier_score",
            brier_score(d, groups),
            "mean squared error of the stated probability; 0.25 knows nothing",
            higher_is_better=False,
            bounds=(0, 1),
        ),
        _calibration_metric(d, groups, seed),
        metric(
            "mean_margin",
            mean_of(d, groups),
            "reward of chosen less reward of rejected",
            higher_is_better=None,
            unit="reward",
        ),
        *_length_metrics(d, lengths, groups),
    ]


def _calibration_metric(margins: np.ndarray, groups: Sequence[str] | None, seed: int) -> Metric:
    found = calibration(margins, seed, groups=groups)
    return metric(
        "calibration_error",
        found.error,
        "expected calibration error of sigmoid(|margin|) in 10 bins, without the upward bias of the plain one (`plug_in`)",
        higher_is_better=False,
        unit="share",
        plug_in=found.plug_in,
        expected_if_calibrated=found.expected,
        p_value_if_calibrated=found.p_value,
        bins=[dataclasses.asdict(b) for b in found.bins],
    )


def _length_metrics(margins: np.ndarray, lengths: np.ndarray, groups: Sequence[str] | None) -> list[Metric]:
    metrics = [
        metric(
            f"baseline_{name}",
            win_rate(outcomes(sign * lengths, "half"), groups),
            f"accuracy of a judge that reads nothing and prefers the {name} answer",
            higher_is_better=None,
            unit="share",
        )
        for name, sign in (("longest", 1), ("shortest", -1))
    ]
    for name, part in (("longer", lengths > 0), ("shorter", lengths < 0)):
        chosen = None if groups is None else repeated([g for g, inside in zip(groups, part, strict=True) if inside])
        metrics.append(
            metric(
                f"accuracy_chosen_{name}",
                win_rate(outcomes(margins[part]), chosen) if part.any() else None,
                f"accuracy on pairs whose chosen answer is the {name} one",
                higher_is_better=True,
                unit="share",
                note="" if part.any() else f"no chosen answer is {name} than the rejected one",
            )
        )
    slope = length_slope(margins, lengths, groups)
    metrics.append(
        metric(
            "length_slope",
            slope and (scaled(slope, 100.0)),
            "reward for each 100 characters that an answer is longer",
            higher_is_better=None,
            unit="reward",
            note="" if slope else "all pairs are of equal length",
            correlation=length_correlation(margins, lengths),
        )
    )
    return metrics


# ---------------------------------------------------------------------------------------------- head to head


def length_control_metrics(
    won: NDArray[np.float64], lengths: NDArray[np.float64], clusters: Sequence[object] | None, baseline: str
) -> list[Metric]:
    """The win rate (outcomes (N,)) at equal length, and that of the longer answer: length differences (N,) over a baseline."""
    controlled = length_controlled_win_rate(won, lengths, clusters)
    return [
        metric(
            "win_rate_length_controlled",
            controlled,
            "win rate predicted at equal length (logistic regression on tanh of the standardised length difference)",
            higher_is_better=True,
            unit="share",
            baseline=baseline,
            note="" if controlled else "lengths differ by one constant: length and quality cannot be told apart",
        ),
        metric(
            "win_rate_by_length",
            win_rate(outcomes(lengths), clusters),
            "win rate before a judge that reads nothing and prefers the longer answer",
            higher_is_better=None,
            unit="share",
            baseline=baseline,
        ),
    ]


def head_to_head_metrics(
    rewards: ArrayLike,
    baseline_rewards: ArrayLike,
    won: NDArray[np.float64],
    length_differences: ArrayLike,
    prompts: Sequence[str],
    baseline: str,
) -> list[Metric]:
    """Win rates and mean rewards of a policy against a baseline on the same prompts, by one judge's rewards (n,).

    `won` (n,) are the `duel_outcomes` of these rewards.
    """
    ours, theirs = np.asarray(rewards, float), np.asarray(baseline_rewards, float)
    lengths, groups = np.asarray(length_differences, float), repeated(prompts)
    return [
        _win_rate_metric(won, groups, baseline),
        *length_control_metrics(won, lengths, groups, baseline),
        metric(
            "judge_reward",
            mean_of(ours, groups),
            "mean reward that the judge gives",
            higher_is_better=True,
            unit="reward",
            baseline=baseline,
            difference=paired_difference(ours, theirs, clusters=groups),
        ),
        metric(
            "baseline_judge_reward",
            mean_of(theirs, groups),
            f"mean reward that the judge gives to {baseline}",
            higher_is_better=None,
            unit="reward",
        ),
    ]


def _win_rate_metric(won: np.ndarray, groups: Sequence[str] | None, baseline: str) -> Metric:
    """The win rate, compared with one half: exact sign test on the decided prompts, or a clustered t-test."""
    estimate = win_rate(won, groups)
    wins, losses = int((won == 1).sum()), int((won == 0).sum())
    test = "exact sign test, ties left out"
    p_value: float | None = mcnemar_exact(wins, losses)
    if groups is not None:
        test = "clustered t against one half"
        p_value = paired_difference(won, np.full(won.size, 0.5), clusters=groups).p_value
    found = metric(
        "win_rate",
        estimate,
        f"prompts on which the judge prefers the completion to that of {baseline}; ties count half",
        higher_is_better=True,
        unit="share",
        baseline=baseline,
        wins=wins,
        ties=int(won.size - wins - losses),
        losses=losses,
    )
    comparison = Comparison(
        baseline="an even match",
        difference=estimate.value - 0.5,
        ci_low=None if estimate.low is None else estimate.low - 0.5,
        ci_high=None if estimate.high is None else estimate.high - 0.5,
        p_value=p_value,
        test=test,
        n=estimate.n,
        ci_level=estimate.level,
        ci_method=estimate.method,
        stderr=estimate.stderr,
    )
    return dataclasses.replace(found, comparison=comparison)
