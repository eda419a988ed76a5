"""The stage `preferences build`: pairs of a better and a worse completion for each prompt.

Completions come from a completions file (stage `generate`, k samples for each prompt), the order among them from:
- `reference`: the human-written reference against one sample (the reference is better);
- `reward`: a reward model ranks the samples; best against worst, or all pairs.
Samples that were cut at max_new_tokens make no pair unless asked for: a preference file cannot say that a text has no
end, and training would close it with an EOS that the model never wrote.
The result is preferences.jsonl in TRL's explicit-prompt format, checked and free of duplicates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from data import Preference, deduplicate, pairs_from_ranking, save_preferences, validate_preferences
from launch.config import artefact
from launch.errors import UserError
from launch.stage import Job, Stage, StageConfig

if TYPE_CHECKING:
    from data.completions import Completion


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
    unfinished: Literal["drop", "keep"] = "drop"
    """Samples that were cut at max_new_tokens: left out and counted, or paired as if they had ended there."""

    def check(self) -> None:
        if not self.completions:
            raise ValueError("completions is missing; add --completions FILE[,FILE]")
        if self.judge == "reward" and not self.reward:
            raise ValueError("reward is missing: judge `reward` needs a reward model; add --reward PATH")


def run(config: PreferencesConfig, job: Job) -> dict[str, Any]:
    """Rank, pair, check, write preferences.jsonl."""
    rows, unfinished = _read_completions(config)
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
        "unfinished_dropped": unfinished,
        "prompts": len({str(p.prompt) for p in kept}),
        "chosen_longer_rate": longer / len(kept),
    }


def _read_completions(config: PreferencesConfig) -> tuple[list[Completion], int]:
    """The samples to compare, and how many were left out because they have no end."""
    from data.completions import load_completions

    rows = [row for path in config.completions for row in load_completions(path)]
    usable = [row for row in rows if row.finished or config.unfinished == "keep"]
    if not usable:
        raise UserError(
            f"completions: none of the {len(rows)} samples ended before max_new_tokens; generate with a larger "
            "--max_new_tokens, or pair them as they are with --unfinished keep"
        )
    return usable, len(rows) - len(usable)


def _against_reference(rows: Sequence[Completion]) -> list[Preference]:
    """The human reference is better than the sample. Samples equal to it, and rows without one, make no pair."""
    pairs = [
        Preference(prompt=row.prompt, chosen=row.reference, rejected=row.text, source="reference", annotator="human")
        for row in rows
        if row.reference and row.text.strip() and row.text.strip() != row.reference.strip()
    ]
    if not pairs:
        raise UserError(
            "completions: no row has a reference that differs from its sample; generate from a source of pairs, or use --judge reward"
        )
    return pairs


def _by_reward(rows: Sequence[Completion], config: PreferencesConfig, job: Job) -> list[Preference]:
    """Rank the completions of each prompt by a reward model."""
    scores = _judge(rows, str(config.reward), job)
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.prompt_text].append(number)
    pairs: list[Preference] = []
    for numbers in groups.values():
        ranked = pairs_from_ranking(
            rows[numbers[0]].prompt,
            [rows[n].text for n in numbers],
            [scores[n] for n in numbers],
            tie_margin=config.tie_margin,
        )
        pairs += ranked if config.pairs == "all" else sorted(ranked, key=lambda p: -(p.strength or 0))[:1]
    return pairs


def _judge(rows: Sequence[Completion], source: str, job: Job) -> list[float]:
    """Rewards of the samples, the ranks sharing the work; unfinished ones are read without an EOS."""
    from evaluation.artefacts import beating, load_reward_model, over_ranks
    from evaluation.scoring import BATCH_TOKENS, score_sequences

    model, tokenizer = load_reward_model("reward", source, job.runtime.device)
    with beating(job, -(-len(rows) // job.runtime.world), "score completions") as beat, job.runtime.autocast():

        def compute(part: list[Completion]) -> list[float]:
            texts, ended = ([r.prompt for r in part], [r.text for r in part]), [r.finished for r in part]
            return score_sequences(model, tokenizer, *texts, ended, BATCH_TOKENS, beat).tolist()

        return over_ranks(job, rows, compute)


STAGE = Stage("preferences build", PreferencesConfig, run)
