"""Labelled prompts (XSTest, AdvBench, HarmBench, StrongREJECT and the like) and labelled completions, by path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data.readers import Row, get_field, kind, read_rows, read_text, text_of
from data.sources import load_rows
from launch.errors import UserError

PROMPT_FIELDS = ("prompt", "goal", "Behavior", "forbidden_prompt", "instruction")
TYPE_FIELDS = ("type", "category", "SemanticCategory", "FunctionalCategory", "Category")
CONTEXT_FIELD = "ContextString"  # HarmBench's contextual behaviours: the text that they speak of
CONTRAST = "contrast_"
_STEMS = {"nons_group_real_discr": "discr", "real_group_nons_discr": "discr"} | {
    name: "privacy" for name in ("privacy_public", "privacy_fictional")
}


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt, whether answering it is safe, and its type.

    `behaviour` is what an attack asks for: the same for a request and its disguises ("" for the prompt itself), and
    `template` the disguise. `pair` joins a safe prompt with its unsafe contrast.
    """

    prompt: str
    safe: bool
    type: str
    template: str = ""
    behaviour: str = ""
    pair: str = ""


def load_prompt_suite(path: str | Path) -> dict[str, LabelledPrompt]:
    """prompt -> label, from CSV, JSON(L) or a text file with a prompt on each line, or a `hub:` set.

    A `label` column says safe or unsafe; without one every prompt is unsafe, as in AdvBench.
    """
    source = str(path)
    if not source.startswith("hub:") and Path(source).is_file() and kind(Path(source)) == ".txt":
        lines = [line.strip() for line in read_text(Path(source)).split("\n")]
        prompts = [LabelledPrompt(line, False, "") for line in lines if line]
    else:
        prompts = [_labelled(row) for row in load_rows(source)]
    return {p.prompt: p for p in with_pairs(prompts)}


def _labelled(row: Row) -> LabelledPrompt:
    name = next((n for n in PROMPT_FIELDS if n in row.values), None)
    if name is None:
        raise UserError(f"{row.where}: no field for the prompt; name it one of {', '.join(PROMPT_FIELDS)}")
    label = str(row.values.get("label", "unsafe")).strip().lower()
    if label not in ("safe", "unsafe"):
        raise UserError(f"{row.where}: label '{label}' is neither safe nor unsafe; mend it or remove the column")
    group = next((str(row.values[n]) for n in TYPE_FIELDS if row.values.get(n)), "")
    extra = {key: str(row.values.get(key) or "") for key in ("template", "behaviour", "pair")}
    return LabelledPrompt(_prompt_text(row, name), label == "safe", group, **extra)


def _prompt_text(row: Row, name: str) -> str:
    """The prompt; of RealToxicityPrompts' nested ones the text, of HarmBench's contextual ones with the context before."""
    value = get_field(row, name)
    value = value.get("text") if isinstance(value, dict) else value
    prompt = text_of(value, f"{row.where}: '{name}'").strip()
    context = str(row.values.get(CONTEXT_FIELD) or "").strip()
    return f"{context}\n\n---\n\n{prompt}" if context else prompt


def with_pairs(prompts: Iterable[LabelledPrompt]) -> list[LabelledPrompt]:
    """XSTest's prompts joined with their contrasts: the i-th of a type with the i-th of `contrast_` and that type.

    Two safe types share one contrast type where the set has it so. Prompts of types without a contrast stay alone.
    """
    prompts = list(prompts)
    contrasted = {p.type.removeprefix(CONTRAST) for p in prompts if p.type.startswith(CONTRAST)}
    seen: Counter[str] = Counter()
    joined = []
    for p in prompts:
        stem = _STEMS.get(p.type, p.type.removeprefix(CONTRAST))
        seen[p.type] += 1
        pair = p.pair or (f"{stem} {seen[p.type]}" if stem in contrasted else "")
        joined.append(replace(p, pair=pair))
    return joined


def load_refusal_labels(path: str | Path) -> tuple[list[str], list[bool]]:
    """Completions and whether people call them refusals, to measure the detector with; a file or a folder of them.

    `completion` with `refusal` (true/false), or with XSTest's `final_label` (1_full_compliance, 2_full_refusal,
    3_partial_refusal).
    """
    rows = load_rows(path) if Path(path).is_dir() else read_rows(Path(path))
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
