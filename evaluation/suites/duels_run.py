"""The work of `alignkit evaluate duels`: duels judged or read, one result for each model, and one for the judge."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.comparisons import load_comparisons
from data.completions import Completion, align, completions_file, load_completions
from evaluation.artefacts import (
    content_hash,
    describe_author,
    provenance_of,
    save_result,
    trained_against,
    write_result,
)
from evaluation.judges.ask import build_judge, judge_duels, tell_missing
from evaluation.judges.duels import Answer, Duel, Verdict
from evaluation.preferences.judging import place_notes, verdict_metrics
from evaluation.preferences.league import FIELD, Game, Standing, check_league, elo_resolution, fit_league, standings
from evaluation.resolution import resolution_notes
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Judge, Metric, Protocol, Samples, Subject, write_samples
from evaluation.statistics import BradleyTerry
from evaluation.suites.duels import DuelsConfig
from launch.errors import UserError, nearest
from launch.files import folder_name, sha256_file, sha256_text
from launch.provenance import fingerprint_input
from launch.stage import Job

MODELS = "models"
"""Folder of the results of the single models."""


def run(config: DuelsConfig, job: Job) -> dict[str, Any]:
    """Write results.json of the judge, models/NAME/results.json of each model, and samples.jsonl of the duels."""
    played = _recorded(config) if config.comparisons else _judged(config, job)
    fit = _fit(played)
    table, resolution = standings(fit, played.games), elo_resolution(fit)
    samples = write_samples(job.output_dir, played.rows) if job.runtime.is_main else None
    if job.runtime.is_main:
        _write_models(job, table, played, resolution)
    result = _league_result(config, table, played, resolution, samples)
    _say(job, table)
    summary = write_result(job, result)
    clear_samples(job)
    return summary


# ---------------------------------------------------------------------------------------------- duels


@dataclass(frozen=True)
class Played:
    """All duels that have an outcome, by whom they were played and judged, and the rows of samples.jsonl."""

    games: list[Game]
    subjects: dict[str, Subject]
    protocol: Protocol
    judge_metrics: list[Metric]
    rows: list[dict[str, Any]]
    missing: str = ""
    """How many verdicts are missing, and why; empty when none is."""


@dataclass(frozen=True)
class Meeting:
    """Two models and what they answered to a prompt."""

    first: str
    second: str
    ours: Completion
    theirs: Completion

    @property
    def duel(self) -> Duel:
        """For a judge."""
        answers = [Answer(row.text, row.finished) for row in (self.ours, self.theirs)]
        return Duel(self.ours.prompt, *answers)

    def game(self, outcome: float) -> Game:
        """With its outcome for the first model."""
        length = float(len(self.ours.text) - len(self.theirs.text))
        return Game(self.first, self.second, outcome, self.ours.prompt_text, length)

    def row(self, outcome: float, said: Verdict) -> dict[str, Any]:
        """The row of samples.jsonl: both answers, the outcome (None without a verdict), what the judge said."""
        return {
            "id": f"{self.ours.id} {self.first} / {self.second}",
            "prompt": self.ours.prompt_text,
            "model": self.first,
            "completion": self.ours.text,
            "opponent": self.second,
            "opponent_completion": self.theirs.text,
            "outcome": None if np.isnan(outcome) else float(outcome),
            **said,
        }


def _recorded(config: DuelsConfig) -> Played:
    """The games of a file of comparisons. All that is known of its models is their names."""
    games = [Game(c.first, c.second, c.outcome, c.prompt) for c in load_comparisons(config.comparisons)]
    names = dict.fromkeys(name for game in games for name in (game.first, game.second))
    subjects = {name: Subject(name, "language model", config.comparisons) for name in names}
    return Played(games, subjects, _protocol(config, games, None), [], [vars(game) for game in games])


def _judged(config: DuelsConfig, job: Job) -> Played:
    """Every pair of models on every prompt before the judge."""
    authors = [describe_author("completions", path) for path in config.completions]
    names = _names(config, authors)
    subjects = {name: replace(author, name=name) for name, author in zip(names, authors, strict=True)}
    meetings = _meetings(config, names)
    check_league(len(names), [m.ours.prompt_text for m in meetings])
    judge = build_judge(config, job)
    verdicts, said = judge_duels(job, judge, [m.duel for m in meetings])
    outcomes = verdicts.outcomes_N.tolist()
    games = [m.game(outcome) for m, outcome in zip(meetings, outcomes, strict=True) if not np.isnan(outcome)]
    missing = tell_missing(judge.name, verdicts, said)
    if unheard := [name for name in names if not any(name in (game.first, game.second) for game in games)]:
        raise UserError(f"judge: {missing}, so nothing is known of {', '.join(unheard)}")
    metrics = verdict_metrics(verdicts, [m.ours.prompt_text for m in meetings])
    rows = [m.row(outcome, words) for m, outcome, words in zip(meetings, outcomes, said, strict=True)]
    return Played(games, subjects, _protocol(config, games, judge.record()), metrics, rows, missing)


def _fit(played: Played) -> BradleyTerry:
    """The strengths. UserError for too few verdicts, which says first how many are missing."""
    try:
        return fit_league(played.games)
    except UserError as error:
        raise UserError(f"judge: {played.missing}; {error}") if played.missing else error from None


def _meetings(config: DuelsConfig, names: Sequence[str]) -> list[Meeting]:
    """Every pair of models, or one model with all others, on every prompt that is used."""
    sets = _chosen_prompts(config, [load_completions(path) for path in config.completions])
    return [
        Meeting(a, b, *pair)
        for (a, ours), (b, theirs) in itertools.combinations(zip(names, sets, strict=True), 2)
        if config.against in ("", a, b)
        for pair in align(ours, theirs)
    ]


def _names(config: DuelsConfig, authors: Sequence[Subject]) -> list[str]:
    """The models' names, each its own."""
    names = config.names or [author.name for author in authors]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"names: two models are called {twice}; give --names, one for each of the completions")
    if config.against and config.against not in names:
        raise UserError(f"against: there is no model {config.against}{nearest(config.against, names)}")
    return list(names)


def _chosen_prompts(config: DuelsConfig, sets: list[list[Completion]]) -> list[list[Completion]]:
    if config.max_prompts is None:
        return sets
    prompts = sorted({row.prompt_text for row in sets[0]}, key=sha256_text)[: config.max_prompts]
    return [[row for row in rows if row.prompt_text in set(prompts)] for rows in sets]


# ---------------------------------------------------------------------------------------------- results


def _protocol(config: DuelsConfig, games: Sequence[Game], judge: Judge | None) -> Protocol:
    """Of the league as a whole: its strengths mean something beside each other alone."""
    if config.comparisons:
        fingerprint = fingerprint_input("comparisons", config.comparisons)["sha256"]
        return Protocol(config.comparisons, fingerprint, len(games), baseline=FIELD)
    prompts = {game.prompt for game in games}
    return Protocol(
        dataset=provenance_of(config.completions[0]).get("config", {}).get("prompts", config.completions[0]),
        dataset_sha256=content_hash(prompts),
        n_items=len(prompts),
        judge=judge,
        baseline=config.against or FIELD,
        seeds=[config.seed],
        settings={
            "orders": "both, inconsistent verdicts are ties",
            "length_unit": "characters",
            "league": sorted(sha256_file(completions_file(path)) for path in config.completions),
        },
    )


def _write_models(job: Job, table: Sequence[Standing], played: Played, resolution: list[str]) -> None:
    """One result for each model, so that a report puts them into one table."""
    for number, standing in enumerate(table):
        subject, protocol = played.subjects[standing.name], played.protocol
        notes = trained_against(subject, protocol.judge) + place_notes(played.judge_metrics)
        result = EvaluationResult(
            "duels", subject, protocol, standing.metrics, standing.slices, notes=notes, resolution=resolution
        )
        folder = job.output_dir / MODELS / f"{number + 1:02d}-{folder_name(standing.name)}"
        folder.mkdir(parents=True, exist_ok=True)
        save_result(job, result, folder)


def _league_result(
    config: DuelsConfig,
    table: Sequence[Standing],
    played: Played,
    resolution: list[str],
    samples: Samples | None,
) -> EvaluationResult:
    """The result of the league itself, whose subject is its judge: Elo of every model, and how well it judges."""
    protocol, judge = played.protocol, played.protocol.judge
    source = config.comparisons or config.judge or config.annotations
    subject = Subject(
        judge.path if judge else "recorded comparisons",
        "judge",
        source,
        judge.sha256 if judge else protocol.dataset_sha256,
    )
    elos = [replace(s.metrics[0], name=f"elo/{s.name}", higher_is_better=None) for s in table]
    resolution = resolution + resolution_notes(played.judge_metrics, ["consistency"])
    metrics = [*elos, *played.judge_metrics]
    notes = place_notes(metrics)
    return EvaluationResult("duels", subject, protocol, metrics, samples=samples, notes=notes, resolution=resolution)


def _say(job: Job, table: Sequence[Standing]) -> None:
    for standing in table:
        ranks = standing.metrics[0].extra
        place = (
            f"{ranks['rank_best']}"
            if ranks["rank_best"] == ranks["rank_worst"]
            else f"{ranks['rank_best']} to {ranks['rank_worst']}"
        )
        job.say(f"{standing.name}: rank {place}")
