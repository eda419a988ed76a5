"""Preference formats: TRL's explicit and implicit prompt, labelled pairs of responses, and unpaired (KTO) rows.

Each `from_...` turns one row (or, for unpaired rows, all of them) into `Preference`s and raises `UserError` with the
row's place; `to_implicit` and `to_unpaired` go the other way. There and back is the identity, but for implicit rows of prompts
in plain text, which end nowhere that could be seen (`preferences export` says so).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from data.readers import Row, get_field, get_turns
from data.records import Message, Preference, Turns, plain_text
from launch.errors import UserError, nearest

ASSISTANT_TURN = "\n\nAssistant:"
"""What opens the assistant's turns in a transcript (Anthropic's hh-rlhf)."""

RESPONSE_NAMES = (("response 1", "response 2"), ("response_1", "response_2"), ("response_a", "response_b"))


def from_row(row: Row) -> Preference:
    """The preference of a row: explicit prompt, implicit prompt or labelled pair, told apart by the field names."""
    names = next((pair for pair in RESPONSE_NAMES if pair[0] in row.values and pair[1] in row.values), None)
    if names is not None and "chosen" not in row.values:
        return from_labelled(row, names)
    if "chosen" not in row.values and "rejected" not in row.values:
        wanted = ("chosen", "rejected", *(name for pair in RESPONSE_NAMES for name in pair))
        hint = next((h for key in row.values if "mean" in (h := nearest(str(key), wanted))), "")
        raise UserError(
            f"{row.where}: no fields 'chosen' and 'rejected', only {', '.join(map(str, row.values))}{hint}; "
            "give prompt, chosen and rejected"
        )
    chosen, rejected = get_turns(row, "chosen"), get_turns(row, "rejected")
    prompt: Turns | None = get_turns(row, "prompt") if "prompt" in row.values else None
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        # a text prompt beside message lists is a copy of their first message (UltraFeedback)
        prompt, chosen, rejected = split_prompt(chosen, rejected, row.where)
    return checked(prompt, chosen, rejected, row)


def from_labelled(row: Row, names: tuple[str, str]) -> Preference:
    """A row with two responses and a label: 0 the first is better, 1 the second, 2 a tie (auto-j, prometheus-eval)."""
    label = get_field(row, "label")
    if label not in (0, 1, 2) or isinstance(label, bool):
        label = {"0": 0, "1": 1, "2": 2}.get(label) if isinstance(label, str) else None
    if label is None:
        raise UserError(
            f"{row.where}: label is {row.values['label']!r}; give 0 (first better), 1 (second better) or 2 (tie)"
        )
    first, second = (get_turns(row, name) for name in names)
    chosen, rejected = (second, first) if label == 1 else (first, second)
    return checked(get_turns(row, "prompt"), chosen, rejected, row, tie=label == 2)


def checked(prompt: Turns, chosen: Turns, rejected: Turns, row: Row, tie: bool | None = None) -> Preference:
    """A `Preference` with the row's optional fields, or UserError that names the row."""
    named = (_optional(row, name, str, "") for name in ("source", "scenario", "subset"))
    source = next((name for name in named if name), "")
    strength = _optional(row, "strength", (int, float), None)
    preference = Preference(
        prompt,
        chosen,
        rejected,
        source=source,
        criteria=_optional(row, "criteria", str, "") or "overall",
        annotator=_optional(row, "annotator", str, ""),
        strength=None if strength is None else float(strength),
        tie=_optional(row, "tie", bool, False) if tie is None else tie,
        origin=row.where,
    )
    fault = fault_of(preference)
    if fault:
        raise UserError(f"{row.where}: {fault}")
    return preference


def fault_of(preference: Preference) -> str | None:
    """What is wrong with a preference and what to do, or None."""
    parts = (preference.prompt, preference.chosen, preference.rejected)
    if len({isinstance(turns, str) for turns in parts}) > 1:
        return "prompt, chosen and rejected must all be text or all be messages; convert one to the form of the others"
    for name, turns in zip(("prompt", "chosen", "rejected"), parts, strict=True):
        if not plain_text(turns).strip():
            return f"'{name}' is empty; fill it or remove the row"
    if plain_text(preference.chosen).strip() == plain_text(preference.rejected).strip():
        return "chosen and rejected are the same text; remove the row"
    if preference.strength is not None and not 0 <= preference.strength < float("inf"):
        return f"strength is {preference.strength}; give a finite number of 0 or more, or leave it out"
    return None


def _optional(row: Row, name: str, types: type | tuple[type, ...], default: Any) -> Any:
    """An optional field, `default` when it is absent, null or (from CSV) empty; UserError for a wrong type."""
    value = row.values.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str) and types is not str:  # CSV has only text
        value = _parsed(value)
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        kind = {str: "text", bool: "true or false"}.get(types, "a number")  # type: ignore[arg-type]
        raise UserError(f"{row.where}: '{name}' is {row.values[name]!r}, not {kind}; mend or remove the field")
    return value


def _parsed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


# ---------------------------------------------------------------------------------------------- implicit prompt


def split_prompt(chosen: Turns, rejected: Turns, where: str) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected) of two whole conversations that share their beginning.

    Messages: the prompt is every message both share. Transcripts: everything up to and with the last assistant turn
    mark that both share; not up to the first differing character, as TRL's `extract_prompt` does, which leaves the
    words that both answers start with in the prompt.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        end = _prompt_end(chosen, rejected)
        if end == 0:
            raise UserError(
                f"{where}: no prompt field, and chosen and rejected share no beginning with {ASSISTANT_TURN!r}; "
                "give the prompt in a field of its own"
            )
        return chosen[:end], _answer(chosen, end, where), _answer(rejected, end, where)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise UserError(f"{where}: chosen and rejected must both be text or both be messages")
    shared = len(_common_messages(chosen, rejected))
    if shared == 0 or shared in (len(chosen), len(rejected)):
        fault = "share no first message" if shared == 0 else "do not differ in their answers"
        raise UserError(f"{where}: the conversations chosen and rejected {fault}; mend or remove the row")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _prompt_end(chosen: str, rejected: str) -> int:
    same = (a == b for a, b in zip(chosen, rejected, strict=False))
    shared = len(list(itertools.takewhile(bool, same)))
    start = chosen.rfind(ASSISTANT_TURN, 0, shared)
    return start + len(ASSISTANT_TURN) if start >= 0 else 0


def _answer(transcript: str, end: int, where: str) -> str:
    if not transcript[end:].strip():
        raise UserError(f"{where}: the last assistant turn is empty in chosen or rejected; fill it or remove the row")
    return transcript[end:]


def _common_messages(first: list[Message], second: list[Message]) -> list[Message]:
    shared = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def to_implicit(preference: Preference) -> dict[str, Turns]:
    """The row with whole conversations as chosen and rejected (what TRL recommends for reward models)."""
    return {
        "chosen": preference.prompt + preference.chosen,  # type: ignore[operator]
        "rejected": preference.prompt + preference.rejected,  # type: ignore[operator]
    }


# ---------------------------------------------------------------------------------------------- unpaired


def to_unpaired(preferences: Iterable[Preference]) -> list[dict[str, Any]]:
    """Two rows (prompt, completion, label) for each preference, the format of KTO; ties say nothing and are left out."""
    rows = []
    for preference in preferences:
        if not preference.tie:
            rows.append({"prompt": preference.prompt, "completion": preference.chosen, "label": True})
            rows.append({"prompt": preference.prompt, "completion": preference.rejected, "label": False})
    return rows


def from_unpaired(rows: Sequence[Row]) -> list[Preference]:
    """Preferences of rows (prompt, completion, label): the k-th good with the k-th bad completion of each prompt.

    A completion without a partner is left out. UserError when all labels are the same, or no prompt has both.
    """
    groups: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    labels = set()
    for row in rows:
        good = _label(row)
        labels.add(good)
        groups[repr(get_turns(row, "prompt"))][0 if good else 1].append(row)
    place = rows[0].where.rsplit(":", 1)[0]
    if len(labels) == 1:
        raise UserError(f"{place}: one class only: every label is {labels.pop()}; give good and bad completions")
    preferences = [
        _paired(good, bad) for goods, bads in groups.values() for good, bad in zip(goods, bads, strict=False)
    ]
    if not preferences:
        raise UserError(f"{place}: no prompt has both a good and a bad completion, so there is nothing to compare")
    return preferences


def _paired(good: Row, bad: Row) -> Preference:
    chosen, rejected = get_turns(good, "completion"), get_turns(bad, "completion")
    return checked(get_turns(good, "prompt"), chosen, rejected, good)


def _label(row: Row) -> bool:
    label = get_field(row, "label")
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(label).lower() not in known:
        raise UserError(f"{row.where}: label is {label!r}; give true (good) or false (bad)")
    return known[str(label).lower()]
