"""The stage `preferences build`: pairs of a better and a worse completion for each prompt.

Completions come from completions files (stage `generate`, k samples for each prompt), the order among them from:
- `reference`: the human-written reference against one sample (the reference is better);
- `reward`: any source of reward, or several with weights, ranks the samples (docs/reward_sources.md);
- `score`: the field `score` that the rows carry, whoever wrote it.
Ranked samples give the best against the worst, or all pairs.
Samples that were cut at max_new_tokens make no pair unless asked for: a preference file cannot say that a text has no
end, and training would close it with an EOS that the model never wrote.
The result is preferences.jsonl in TRL's explicit-prompt format, checked and free of duplicates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.reward.sources.config import SourceConfig, named_rewards
from data import Preference, Turns, deduplicate, pairs_from_ranking, save_preferences, validate_preferences
from data.completions import Completion, load_completions
from launch.config import artefact
from launch.errors import UserError
from launch.ranges import NotNegative
from launch.stage import Job, Stage, StageConfig


@dataclass(kw_only=True)
class PreferencesConfig(StageConfig):
    """Build preference pairs by ranking completions."""

    completions: list[str] = artefact([])
    """Completions files (or folders of the stage `generate`) to compare; rows of the same prompt are ranked together."""
    judge: Literal["reference", "reward", "score"] = "reference"
    """What orders the completions: the human reference beats a sample; `reward` or `rewards`; or the rows' field `score`."""
    reward: str | None = artefact(None)
    """Judge `reward`: a reward model. The short form of `rewards`."""
    rewards: dict[str, SourceConfig] = field(default_factory=dict)
    """Judge `reward`: sources of reward by name, added up by their weights: models, ensembles, functions, services, rules."""
    tokenizer: str | None = artefact(None)
    """Judge `reward`: the tokenizer that the completions were made with, a folder or hub:org/name. Services need it;
    reward models that share it read the token ids, and without it the text."""
    pairs: Literal["extremes", "all"] = "extremes"
    """Judges `reward` and `score`: the best against the worst completion of a prompt, or every pair."""
    tie_margin: NotNegative = 0.0
    """Judges `reward` and `score`: completions whose scores are closer than this are a tie, and make no pair."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Samples that were cut at max_new_tokens: left out and counted, or paired as if they had ended there."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources of reward by name."""
        return named_rewards(self.reward, self.rewards)

    def check(self) -> None:
        if not self.completions:
            raise ValueError("completions is missing; add --completions FILE[,FILE]")
        if self.judge == "reward" and self.sources:
            return
        for name in ("reward", "rewards", "tokenizer"):
            if getattr(self, name):
                raise ValueError(f"{name}: the judge `{self.judge}` reads none; take it out, or add --judge reward")


def run(config: PreferencesConfig, job: Job) -> dict[str, Any]:
    """Rank, pair, check, write preferences.jsonl."""
    rows, left_out = _read_completions(config)
    pairs, found = _judge(rows, config, job)
    kept, dropped = deduplicate(pairs)
    validate_preferences(kept)
    if job.runtime.is_main:
        save_preferences(kept, job.output_dir / "preferences.jsonl")
    job.runtime.barrier()
    longer = sum(len(str(p.chosen)) > len(str(p.rejected)) for p in kept)
    return {
        "pairs": len(kept),
        "duplicates_dropped": len(dropped),
        **left_out,
        "prompts": len({str(p.prompt) for p in kept}),
        "chosen_longer_rate": longer / len(kept),
        **found,
    }


def _read_completions(config: PreferencesConfig) -> tuple[list[Completion], dict[str, int]]:
    """The samples to compare, and how many were left out because they have no end, or no text."""
    rows = [row for path in config.completions for row in load_completions(path)]
    ended = [row for row in rows if row.finished or config.unfinished == "keep"]
    usable = [row for row in ended if row.text.strip()]
    if not ended:
        raise UserError(
            f"completions: none of the {len(rows)} samples ended before max_new_tokens; generate with a larger "
            "--max_new_tokens, or pair them as they are with --unfinished keep"
        )
    return usable, {"unfinished_dropped": len(rows) - len(ended), "empty_dropped": len(ended) - len(usable)}


def _judge(
    rows: Sequence[Completion], config: PreferencesConfig, job: Job
) -> tuple[list[Preference], dict[str, float]]:
    """The pairs, and the mean reward of each source."""
    if config.judge == "reference":
        return _against_reference(rows), {}
    if config.judge == "score":
        return rank(rows, _own_scores(rows), config), {}
    from alignment.preferences.scoring import score_completions

    scores, means = score_completions(rows, config, job)
    return rank(rows, scores, config), means


def _against_reference(rows: Sequence[Completion]) -> list[Preference]:
    """The human reference is better than the sample. Samples equal to it, and rows without one, make no pair."""
    pairs = [
        Preference(row.prompt, _answer(row, row.reference), _answer(row), source="reference", annotator="human")
        for row in rows
        if row.reference and row.text.strip() != row.reference.strip()
    ]
    if not pairs:
        raise UserError(
            "completions: no row has a reference that differs from its sample; generate from a source of pairs, or use --judge reward"
        )
    return pairs


def _own_scores(rows: Sequence[Completion]) -> list[float]:
    """The rows' own scores; UserError names the first row without one."""
    if row := next((row for row in rows if row.score is None), None):
        raise UserError(f"{row.origin}: no field 'score', which --judge score ranks by; add it to every row")
    return [float(row.score) for row in rows if row.score is not None]


def rank(rows: Sequence[Completion], scores: Sequence[float], config: PreferencesConfig) -> list[Preference]:
    """Pairs among the completions of each prompt, the higher score chosen. UserError when there are none."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row.prompt_text].append(number)
    pairs: list[Preference] = []
    for numbers in groups.values():
        ranked = pairs_from_ranking(
            rows[numbers[0]].prompt,
            [_answer(rows[n]) for n in numbers],
            [scores[n] for n in numbers],
            tie_margin=config.tie_margin,
            source=config.judge,
        )
        pairs += ranked if config.pairs == "all" else ranked[:1]
    if not pairs:
        raise UserError(
            f"completions: no two samples of a prompt differ in text and by more than {config.tie_margin} in score; "
            "generate several with --samples, or lower tie_margin"
        )
    return pairs


def _answer(row: Completion, text: str | None = None) -> Turns:
    """The sample (or another text) in the form of its prompt: text, or an assistant's message."""
    text = row.text if text is None else text
    return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]


HEADLINE = (
    "{pairs} pairs of {prompts} prompts, a share of {chosen_longer_rate} with the longer answer chosen: {folder}/preferences.jsonl",
)
STAGE = Stage("preferences build", PreferencesConfig, run, headline=HEADLINE)
