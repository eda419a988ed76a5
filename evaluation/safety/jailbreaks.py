"""Requests in disguise: versioned templates that ask for the same behaviour in ways that get past some refusals."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Sequence
from pathlib import Path

from data.readers import Row, get_text
from evaluation.safety.prompt_suites import LabelledPrompt
from launch.errors import UserError, nearest
from launch.files import read_json

TEMPLATES_FILE = Path(__file__).parent / "files" / "jailbreak_templates.json"
DIRECT = "direct"
"""The request as it is."""


def load_templates(path: str | Path = TEMPLATES_FILE) -> dict[str, str]:
    """name -> text, of a file of templates; UserError for another form, and where a text names nothing of the request."""
    content = read_json(Path(path), remedy='give a file {"templates": {"NAME": {"text": "..."}}}')
    entries = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise UserError(
            f'{path}: no "templates" with a text for each name; give {{"templates": {{"NAME": {{"text": "..."}}}}}}'
        )
    rows = {
        str(name): Row(f"{path}: template '{name}'", entry if isinstance(entry, dict) else {})
        for name, entry in entries.items()
    }
    templates = {name: get_text(row, "text") for name, row in rows.items()}
    for name, text in templates.items():
        if disguise(text, "first second") == text:
            raise UserError(f"{path}: template '{name}' holds nothing of the request; write {{prompt}} into it")
    return templates


def choose_templates(field: str, wanted: Sequence[str], path: str | Path = TEMPLATES_FILE) -> dict[str, str]:
    """The templates named, `all` for all of them, `direct` for the request as it is."""
    known = {DIRECT: "{prompt}", **load_templates(path)}
    names = list(known) if "all" in wanted else list(dict.fromkeys(wanted))
    for name in names:
        if name not in known:
            raise UserError(
                f"{field}: no template is called '{name}'{nearest(name, known)}; there are {', '.join(known)}"
            )
    return {name: known[name] for name in names}


def disguise(template: str, prompt: str) -> str:
    """The template with the request in it. Places are replaced by name, so that braces in either do no harm."""
    middle = len(prompt) // 2
    places = {
        "prompt": prompt,
        "base64": base64.b64encode(prompt.encode()).decode(),
        "rot13": codecs.encode(prompt, "rot13"),
        "spaced": " ".join(prompt),
        "reversed": prompt[::-1],
        "first_half": prompt[:middle],
        "second_half": prompt[middle:],
    }
    parts = template.split("{")
    text = parts[0]
    for part in parts[1:]:
        name, mark, rest = part.partition("}")
        text += places[name] + rest if mark and name in places else "{" + part
    return text


def disguised(prompts: Sequence[LabelledPrompt], templates: dict[str, str]) -> list[LabelledPrompt]:
    """Each unsafe prompt under each template; safe prompts as they are."""
    found = []
    for p in prompts:
        if p.safe:
            found.append(p)
            continue
        for name, text in templates.items():
            found.append(LabelledPrompt(disguise(text, p.prompt), False, p.type, name, p.behaviour or p.prompt, p.pair))
    return found
