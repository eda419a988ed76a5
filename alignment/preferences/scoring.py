"""Rewards of completions by any source of reward, for the stage `preferences build`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from alignment.models import load_tokenizer
from alignment.reward.sources.build import build_source
from alignment.reward.sources.protocol import Episodes
from data.completions import Completion
from evaluation.artefacts import beating, over_ranks
from launch.stage import Job

if TYPE_CHECKING:
    from alignment.preferences import PreferencesConfig

CHUNK = 512  # completions that a source is asked about at once


def score_completions(
    rows: Sequence[Completion], config: PreferencesConfig, job: Job
) -> tuple[list[float], dict[str, float]]:
    """The whole reward of each completion, and the mean of each source as `reward/NAME`; the ranks share the work."""
    with beating(job, -(-len(rows) // job.runtime.world), "score completions") as beat, job.runtime.autocast():
        source = build_source(
            config.sources,
            job.runtime.device,
            load_tokenizer(config.tokenizer, "tokenizer") if config.tokenizer else None,
            config.seed,
            beat=partial(beat, 0),
            say=job.say,
        )

        def compute(part: list[Completion]) -> list[tuple[float, dict[str, float]]]:
            found: list[tuple[float, dict[str, float]]] = []
            for start in range(0, len(part), CHUNK):
                chunk = part[start : start + CHUNK]
                scores = source.score(episodes_of(chunk))
                columns = {f"reward/{name}": values.tolist() for name, values in scores.columns().items()}
                rewards = scores.total_B.tolist()
                found += [
                    (rewards[i], {name: values[i] for name, values in columns.items()}) for i in range(len(chunk))
                ]
                beat(len(chunk))
            return found

        found = over_ranks(job, rows, compute)
    names = set.intersection(*(set(columns) for _, columns in found))
    means = {name: sum(columns[name] for _, columns in found) / len(found) for name in sorted(names)}
    return [reward for reward, _ in found], means


def episodes_of(rows: Sequence[Completion]) -> Episodes:
    """Completions as what sources of reward score; a person's answer is the column `reference`."""
    return Episodes(
        prompts=[row.prompt for row in rows],
        completions=[row.text for row in rows],
        prompt_ids=[row.prompt_ids for row in rows],
        completion_ids=[row.completion_ids for row in rows],
        finished=[row.finished for row in rows],
        rows=[{"reference": row.reference} for row in rows],
    )
