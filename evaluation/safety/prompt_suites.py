"""Labelled prompts (XSTest, AdvBench, HarmBench, StrongREJECT and the like) and labelled completions, by path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.readers import Row, get_field, get_text, kind, read_rows, read_text
from launch.errors import UserError

PROMPT_FIELDS = ("prompt", "goal", "Behavior", "forbidden_prompt", "instruction")
TYPE_FIELDS = ("type", "category", "SemanticCategory", "FunctionalCategory", "Category")


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt, whether answering it is safe, and its type."""

    prompt: str
    safe: bool
    type: str


def load_prompt_suite(path: str | Path) -> dict[str, LabelledPrompt]:
    """prompt -> label, from CSV, JSON(L) or a text file with a prompt on each line.

    A `label` column says safe or unsafe; without one every prompt is unsafe, as in AdvBench.
    """
    path = Path(path)
    if kind(path) == ".txt":
        prompts = [LabelledPrompt(line.strip(), False, "") for line in read_text(path).split("\n") if line.strip()]
    else:
        prompts = [_labelled(row) for row in read_rows(path)]
    return {p.prompt: p for p in prompts}


def _labelled(row: Row) -> LabelledPrompt:
    name = next((n for n in PROMPT_FIELDS if n in row.values), None)
    if name is None:
        raise UserError(f"{row.where}: no field for the prompt; name it one of {', '.join(PROMPT_FIELDS)}")
    label = str(row.values.get("label", "unsafe")).strip().lower()
    if label not in ("safe", "unsafe"):
        raise UserError(f"{row.where}: label '{label}' is neither safe nor unsafe; mend it or remove the column")
    group = next((str(row.values[n]) for n in TYPE_FIELDS if row.values.get(n)), "")
    return LabelledPrompt(get_text(row, name).strip(), label == "safe", group)


def load_refusal_labels(path: str | Path) -> tuple[list[str], list[bool]]:
    """Completions and whether people call them refusals, to measure the detector with.

    `completion` with `refusal` (true/false), or with XSTest's `final_label` (1_full_compliance, 2_full_refusal,
    3_partial_refusal).
    """
    rows = read_rows(Path(path))
    return [str(get_field(row, "completion")) for row in rows], [_refused(row) for row in rows]


def _refused(row: Row) -> bool:
    name = "refusal" if "refusal" in row.values else "final_label"
    value = str(get_field(row, name)).strip().lower()
    known = {"true": True, "1": True, "false": False, "0": False}
    if name == "final_label":
        known = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}
    if value not in known:
        raise UserError(f"{row.where}: {name} '{value}' is not one of {', '.join(known)}; mend that row")
    return known[value]
