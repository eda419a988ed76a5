"""Preference data: load with validation, save, make from rankings, describe."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from data.formats import RESPONSE_NAMES, fault_of, from_row, from_unpaired
from data.named_splits import keep_split, parse_source
from data.overlap import deduplicate
from data.readers import Row
from data.records import Preference, Turns, plain_text
from data.sources import load_rows
from launch.errors import UserError
from launch.files import write_atomic


def load_preferences(source: str | Path, invalid: Literal["error", "drop"] = "error") -> list[Preference]:
    """The preferences of a file, a folder or a `hub:` data set, in any of the formats of formats.py.

    Faulty rows (a field missing or of the wrong type, an empty answer, chosen equal to rejected) are an error that
    names the first, or are left out with `invalid="drop"`. Data that can teach nothing is an error either way: no
    valid row, ties only, one label only. A named split (`FILE::train`) goes by the prompt.
    """
    bare, split = parse_source(str(source))
    rows = load_rows(bare)
    _check_classes(rows, bare)
    preferences, faults = _read(rows)
    if faults and invalid == "error":
        count = f"{len(faults)} of {len(rows)} rows are invalid"
        raise UserError(f"{faults[0]} ({count}; invalid='drop' leaves them out)")
    if not preferences:
        raise UserError(f"{bare}: none of {len(rows)} rows is valid; the first fault: {faults[0]}")
    kept = keep_split(preferences, split, bare)
    validate_preferences(kept, str(source))
    return kept


def count_invalid(source: str | Path) -> int:
    """How many rows of a whole source `load_preferences` leaves out with `invalid="drop"`, whatever its split."""
    return len(_read(load_rows(parse_source(str(source))[0]))[1])


def validate_preferences(preferences: Sequence[Preference], where: str = "preferences") -> None:
    """UserError that names the first faulty row (from 1), or when there is nothing to learn: no row, or ties only."""
    for number, preference in enumerate(preferences, 1):
        fault = fault_of(preference)
        if fault:
            raise UserError(f"{preference.origin or f'{where}: row {number}'}: {fault}")
    if not preferences:
        raise UserError(f"{where}: no preferences; give at least one judgement")
    if all(preference.tie for preference in preferences):
        raise UserError(f"{where}: one class only: every row is a tie, so nothing says what is better; add judgements")


def _read(rows: Sequence[Row]) -> tuple[list[Preference], list[UserError]]:
    if _is_unpaired(rows[0]):
        return from_unpaired(rows), []
    preferences, faults = [], []
    for row in rows:
        try:
            preferences.append(from_row(row))
        except UserError as error:
            faults.append(error)
    return preferences, faults


def _is_unpaired(row: Row) -> bool:
    return "completion" in row.values and "label" in row.values and "chosen" not in row.values


def _check_classes(rows: Sequence[Row], source: str) -> None:
    """A constant label says that a column was mixed up or that the side leaked into the order: refuse it."""
    labelled = [row for row in rows if "label" in row.values and any(pair[0] in row.values for pair in RESPONSE_NAMES)]
    labels = {str(row.values["label"]) for row in labelled}
    if len(labelled) > 1 and len(labels) == 1:
        raise UserError(
            f"{source}: one class only: all {len(labelled)} rows have label {labels.pop()}; "
            "check the label column, or give rows of both kinds"
        )


def save_preferences(preferences: Iterable[Preference], path: str | Path) -> None:
    """Write preferences as JSON lines, whole or not at all; `load_preferences` gives them back."""
    lines = [json.dumps(preference.row(), ensure_ascii=False, allow_nan=False) for preference in preferences]
    if not lines:
        raise UserError(f"{path}: no preferences to save; nothing was written")
    write_atomic(path, "\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------- rankings


def pairs_from_ranking(
    prompt: Turns,
    completions: Sequence[Turns],
    scores: Sequence[float],
    tie_margin: float = 0.0,
    keep_ties: bool = False,
    source: str = "",
    criteria: str = "overall",
    annotator: str = "",
) -> list[Preference]:
    """All pairs of k ranked completions of one prompt, at most k (k - 1) / 2, the clearest first.

    The higher score is chosen and the gap is the strength. A gap of `tie_margin` or less is a tie, kept with `tie=True`
    or left out. Equal texts make no pair. Train the pairs of one prompt in one batch: as single samples they overfit
    (Ouyang et al. 2022, section 3.5).
    """
    if len(completions) != len(scores):
        raise ValueError(f"{len(completions)} completions and {len(scores)} scores; give one score for each")
    if not all(math.isfinite(score) for score in scores):
        raise ValueError(f"scores must be finite numbers, not {list(scores)}")
    texts = [plain_text(completion).strip() for completion in completions]
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    preferences = []
    for rank, better in enumerate(ranked):
        for worse in ranked[rank + 1 :]:
            gap = scores[better] - scores[worse]
            tie = gap <= tie_margin
            if texts[better] != texts[worse] and (keep_ties or not tie):
                chosen, rejected = completions[better], completions[worse]
                preferences.append(Preference(prompt, chosen, rejected, source, criteria, annotator, float(gap), tie))
    return sorted(preferences, key=lambda preference: -(preference.strength or 0.0))


# ---------------------------------------------------------------------------------------------- statistics


def describe_preferences(preferences: Sequence[Preference]) -> dict[str, Any]:
    """Counts, duplicates, lengths in words and the length bias of preferences, JSON-able.

    `duplicates` are the judgements that `deduplicate` would leave out, `exact_duplicates` those with equal texts.

    `longer_chosen` is the share of decided pairs of unequal length in which the longer answer won, with
    `longer_chosen_n` pairs behind it; 0.5 is no length bias.
    """
    decided = [preference for preference in preferences if not preference.tie]
    chosen = [_word_count(preference.chosen) for preference in decided]
    rejected = [_word_count(preference.rejected) for preference in decided]
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True) if a != b]
    strengths = [preference.strength for preference in decided if preference.strength is not None]
    dropped = deduplicate(preferences)[1]
    return {
        "n": len(preferences),
        "duplicates": len(dropped),
        "exact_duplicates": sum(duplicate.exact for duplicate in dropped),
        "ties": len(preferences) - len(decided),
        "prompts": len({plain_text(preference.prompt) for preference in preferences}),
        "chosen_words": fmean(chosen) if decided else None,
        "rejected_words": fmean(rejected) if decided else None,
        "longer_chosen": sum(gap > 0 for gap in gaps) / len(gaps) if gaps else None,
        "longer_chosen_n": len(gaps),
        "mean_strength": fmean(strengths) if strengths else None,
        "sources": dict(Counter(preference.source for preference in preferences)),
        "criteria": dict(Counter(preference.criteria for preference in preferences)),
        "annotators": dict(Counter(preference.annotator for preference in preferences)),
    }


def _word_count(turns: Turns) -> int:
    text = turns if isinstance(turns, str) else " ".join(message["content"] for message in turns)
    return len(text.split())
