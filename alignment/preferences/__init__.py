"""The stage `preferences build`: pairs of a better and a worse completion for each prompt.

Completions come from a completions file (stage `generate`, k samples for each prompt), the order among them from:
- `reference`: the human-written reference against one sample (the reference is better);
- `reward`: a reward model ranks the samples; best against worst, or all pairs.
The result is preferences.jsonl in TRL's explicit-prompt format, checked and free of duplicates.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from data import Preference, deduplicate, pairs_from_ranking, save_preferences, validate_preferences
from launch.config import artefact
from launch.errors import UserError
from launch.files import read_jsonl_log
from launch.stage import Job, Stage, StageConfig


@dataclass(kw_only=True)
class PreferencesConfig(StageConfig):
    """Build preference pairs by ranking completions."""

    completions: list[str] = artefact([])
    """Completions files (or folders of the stage `generate`) to compare; rows of the same prompt are ranked together."""
    judge: Literal["reference", "reward"] = "reference"
    """What orders the completions: the human reference beats a sample, or a reward model's scores."""
    reward: str | None = artefact(None)
    """The reward model of judge `reward`."""
    pairs: Literal["extremes", "all"] = "extremes"
    """With judge `reward`: the best against the worst completion of a prompt, or every pair."""
    tie_margin: float = 0.0
    """With judge `reward`: completions whose scores are closer than this are a tie, and make no pair."""

    def check(self) -> None:
        if not self.completions:
            raise ValueError("completions is missing; add --completions FILE[,FILE]")
        if self.judge == "reward" and not self.reward:
            raise ValueError("reward is missing: judge `reward` needs a reward model; add --reward PATH")


def run(config: PreferencesConfig, job: Job) -> dict[str, Any]:
    """Rank, pair, check, write preferences.jsonl."""
    rows = [row for path in config.completions for row in _read_completions(path)]
    pairs = _against_reference(rows) if config.judge == "reference" else _by_reward(rows, config, job)
    kept, dropped = deduplicate(pairs)
    validate_preferences(kept)
    if job.runtime.is_main:
        save_preferences(kept, job.output_dir / "preferences.jsonl")
    job.runtime.barrier()
    longer = sum(len(str(p.chosen)) > len(str(p.rejected)) for p in kept)
    return {
        "pairs": len(kept),
        "duplicates_dropped": len(dropped),
        "prompts": len({str(p.prompt) for p in kept}),
        "chosen_longer_rate": longer / len(kept),
    }


def _read_completions(path: str) -> list[dict[str, Any]]:
    from pathlib import Path

    file = Path(path) / "completions.jsonl" if Path(path).is_dir() else Path(path)
    rows = read_jsonl_log(file)
    if not rows:
        raise UserError(f"completions: {file} holds no rows; run `alignkit generate` first")
    return rows


def _against_reference(rows: list[dict[str, Any]]) -> list[Preference]:
    """The human reference is better than the sample. Samples equal to it, and rows without one, make no pair."""
    pairs = []
    for row in rows:
        reference = row.get("reference")
        if reference and row["completion"].strip() and row["completion"].strip() != reference.strip():
            pairs.append(
                Preference(
                    prompt=row["prompt"],
                    chosen=reference,
                    rejected=row["completion"],
                    source="reference",
                    annotator="human",
                )
            )
    if not pairs:
        raise UserError(
            "completions: no row has a reference that differs from its sample; generate from a source of pairs, or use --judge reward"
        )
    return pairs


def _by_reward(rows: list[dict[str, Any]], config: PreferencesConfig, job: Job) -> list[Preference]:
    """Rank the completions of each prompt by a reward model."""
    from alignment.reward.model import RewardModel

    judge = RewardModel.from_pretrained(str(config.reward).removeprefix("hub:"), device=job.runtime.device)
    scores = [float(s) for s in judge.score([r["prompt"] for r in rows], [r["completion"] for r in rows])]
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[str(row["prompt"])].append(number)
    pairs: list[Preference] = []
    for numbers in groups.values():
        ranked = pairs_from_ranking(
            rows[numbers[0]]["prompt"],
            [rows[n]["completion"] for n in numbers],
            [scores[n] for n in numbers],
            tie_margin=config.tie_margin,
        )
        pairs += ranked if config.pairs == "all" else sorted(ranked, key=lambda p: -(p.strength or 0))[:1]
    return pairs


STAGE = Stage("preferences build", PreferencesConfig, run)
