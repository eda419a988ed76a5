"""The work of `alignkit evaluate judge`: pairs that people judged before a judge, and how far the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data import load_preferences, plain_text
from data.preferences import count_invalid
from data.records import Preference, Turns
from evaluation.artefacts import describe_subject, trained_with, write_result
from evaluation.judges.ask import build_judge, judge_duels, tell_missing
from evaluation.judges.duels import Answer, Duel, Judge, Verdict
from evaluation.judges.people import Key, ballot_key
from evaluation.judges.reward_model import RewardModelJudge
from evaluation.preferences.judging import (
    agreement_metrics,
    annotator_metrics,
    length_metrics_of_judge,
    place_notes,
    verdict_metrics,
)
from evaluation.preferences.slices import rows_by_label
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Protocol, Slice, Subject, write_samples
from evaluation.scoring import context_of
from evaluation.suites.judge import JudgeEvaluationConfig
from launch.errors import UserError
from launch.files import sha256_text
from launch.provenance import fingerprint_input
from launch.stage import Job

RESOLVED = ("agreement", "exact_agreement", "cohen_kappa", "krippendorff_alpha", "consistency")
"""Metrics whose smallest resolvable difference (to another judge) is told."""


@dataclass
class Ballot:
    """Two answers to a prompt and people's votes on them: 1 for the first, 0 for the second, 0.5 for neither."""

    prompt: Turns
    first: Turns
    second: Turns
    source: str
    votes: list[tuple[str, float]] = field(default_factory=list)

    @property
    def duel(self) -> Duel:
        """For a judge."""
        return Duel(self.prompt, Answer(self.first), Answer(self.second))

    @property
    def outcome(self) -> float:
        """That of the majority, ties counted half."""
        share = sum(vote for _, vote in self.votes) / len(self.votes)
        return 0.5 if share == 0.5 else float(share > 0.5)


def gather_ballots(preferences: Sequence[Preference]) -> list[Ballot]:
    """The pairs of answers with all votes on them. Which answer is the first goes by their texts, not by who won."""
    ballots: dict[Key, Ballot] = {}
    for p in preferences:
        key = ballot_key(p.prompt, p.chosen, p.rejected)
        chosen_first = plain_text(p.chosen).strip() == key[1]
        first, second = (p.chosen, p.rejected) if chosen_first else (p.rejected, p.chosen)
        ballot = ballots.setdefault(key, Ballot(p.prompt, first, second, p.source))
        ballot.votes.append((p.annotator, 0.5 if p.tie else float(chosen_first)))
    return list(ballots.values())


def ratings_of(ballots: Sequence[Ballot]) -> np.ndarray:
    """Votes (U, R) of the people who are named, NaN where one did not judge; the last counts where one judged twice."""
    people = {name: i for i, name in enumerate(dict.fromkeys(n for b in ballots for n, _ in b.votes if n))}
    ratings = np.full((len(ballots), len(people)), np.nan)
    for row, ballot in enumerate(ballots):
        for name, vote in ballot.votes:
            if name:
                ratings[row, people[name]] = vote
    return ratings


def run(config: JudgeEvaluationConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    ballots = gather_ballots(load_preferences(config.preferences, config.invalid))
    if config.max_pairs is not None:
        ballots = sorted(ballots, key=lambda b: sha256_text(plain_text(b.prompt)))[: config.max_pairs]
    judge = build_judge(config, job)
    ballots, too_long = _readable(config, judge, ballots)
    verdicts, said = judge_duels(job, judge, [b.duel for b in ballots])
    decided = verdicts.decided_N
    if not decided.any():
        raise UserError(
            f"judge: {tell_missing(judge.name, verdicts, said)}; see {job.output_dir}/scored for the others"
        )
    kept = [b for b, d in zip(ballots, decided, strict=True) if d]
    judged, people = verdicts.outcomes_N[decided], np.array([b.outcome for b in kept])
    prompts = [plain_text(b.prompt) for b in kept]
    lengths = [float(len(plain_text(b.first)) - len(plain_text(b.second))) for b in kept]
    rows = [_row(*values) for values in zip(ballots, verdicts.outcomes_N, said, strict=True)]
    metrics = [
        *agreement_metrics(judged, people, prompts),
        *verdict_metrics(verdicts, [plain_text(b.prompt) for b in ballots]),
        *length_metrics_of_judge(judged, people, lengths, prompts),
        *annotator_metrics(ratings_of(ballots), [plain_text(b.prompt) for b in ballots]),
    ]
    result = EvaluationResult(
        suite="judge",
        subject=_subject(config, judge),
        protocol=_protocol(config, job, judge, len(ballots)),
        metrics=metrics,
        slices=_slices(kept, judged, people, prompts),
        samples=write_samples(job.output_dir, rows) if job.runtime.is_main else None,
        notes=place_notes(metrics) + _notes(config, too_long),
        resolution=resolution_notes(metrics, RESOLVED),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def _subject(config: JudgeEvaluationConfig, judge: Judge) -> Subject:
    if config.judge:
        return describe_subject("judge", config.judge, "reward model", config.name)
    record = judge.record()
    return Subject(config.name or record.path, "judge", record.path, record.sha256)


def _protocol(config: JudgeEvaluationConfig, job: Job, judge: Judge, n: int) -> Protocol:
    return Protocol(
        dataset=config.preferences,
        dataset_sha256=fingerprint_input("preferences", config.preferences)["sha256"],
        n_items=n,
        split=config.preferences.partition("::")[2],
        seeds=[config.seed],
        settings={
            "invalid": config.invalid,
            "length_unit": "characters",
            "orders": "both, inconsistent verdicts are ties"
            if judge.sees_order
            else "one: the judge reads answers apart",
            "precision": job.runtime.precision if config.judge else "",
        },
    )


def _slices(ballots: Sequence[Ballot], judged: np.ndarray, people: np.ndarray, prompts: Sequence[str]) -> list[Slice]:
    """Agreement for each source."""
    found = []
    for name, inside in rows_by_label([b.source for b in ballots]).items():
        metrics = agreement_metrics(judged[inside], people[inside], [prompts[i] for i in inside])
        found.append(Slice("source", name or "unnamed", metrics[:2]))
    return found


def _readable(config: JudgeEvaluationConfig, judge: Judge, ballots: list[Ballot]) -> tuple[list[Ballot], int]:
    """The ballots that fit into a reward model's context, and how many do not; all of them unless faulty ones may go."""
    if not isinstance(judge, RewardModelJudge) or config.invalid == "error":
        return ballots, 0
    limit = context_of(judge.model)
    lengths = judge.lengths([b.duel for b in ballots])
    kept = [b for b, length in zip(ballots, lengths, strict=True) if limit is None or length <= limit]
    if not kept:
        raise UserError(
            f"preferences: every pair of {config.preferences} is longer than the judge's context of {limit}"
        )
    return kept, len(ballots) - len(kept)


def _notes(config: JudgeEvaluationConfig, too_long: int) -> list[str]:
    notes = [f"{too_long} pairs longer than the judge's context are left out."] if too_long else []
    if config.invalid == "drop" and (faulty := count_invalid(config.preferences)):
        notes.append(f"{faulty} faulty rows of the whole source are left out.")
    fingerprint = fingerprint_input("preferences", config.preferences)["sha256"]
    return notes + (trained_with(config.judge, fingerprint, "judge") if config.judge else [])


def _row(ballot: Ballot, outcome: float, said: Verdict) -> dict[str, Any]:
    return {
        "prompt": plain_text(ballot.prompt),
        "first": plain_text(ballot.first),
        "second": plain_text(ballot.second),
        "source": ballot.source,
        "people": ballot.outcome,
        "votes": len(ballot.votes),
        "outcome": None if np.isnan(outcome) else float(outcome),
        **said,
    }
