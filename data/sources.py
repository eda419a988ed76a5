"""One loader for every source: embedded data, local files and folders, data sets of a hub.

| source | what it is |
|---|---|
| `embedded:python-prose`, `embedded:docstrings` | data that lies on every machine (see embedded.py) |
| `path/to/file.jsonl`, `folder/` | .txt, .jsonl, .json, .csv, .tsv, .parquet, each also gzipped; other suffixes are text |
| `hub:org/name[:config][@revision][#split]` | `datasets.load_dataset`, split `train` unless named; never runs remote code |

Any of them with `::train`, `::eval`, `::train/a` or `::train/b` behind it is that part of it (see named_splits.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data import embedded
from data.named_splits import keep_split, parse_source
from data.readers import Row, get_field, get_text, get_turns, kind, list_files, messages_of, read_rows, read_text
from data.records import Document, Pair, Turns
from launch.errors import UserError, nearest, reason_of

TextSplit = Literal["file", "blank-line", "endoftext"]
_SEPARATORS = {"blank-line": re.compile(r"\n[ \t]*\n\s*"), "endoftext": re.compile(r"<\|endoftext\|>")}

_EMBEDDED: dict[str, tuple[str, Callable[[], Any]]] = {
    "python-prose": ("documents", embedded.python_prose),
    "docstrings": ("pairs", embedded.docstring_pairs),
    "digits": ("images", embedded.digits),
}


def load_documents(source: str | Path, text_field: str = "text", split_text: TextSplit = "file") -> list[Document]:
    """The documents of a source, in its own order; blank ones are left out.

    `text_field` names the column of tables. `split_text` says what one document of a text file is: the whole
    file, a paragraph (`blank-line`), or the text between `<|endoftext|>` marks. Splits go by the whole text.
    """
    bare, split = parse_source(str(source))
    if bare.startswith("embedded:"):
        documents = _load_embedded(bare, "documents")
    elif bare.startswith("hub:"):
        documents = [d for row in read_hub(bare) for d in _document(row, text_field)]
    else:
        documents = [d for path in list_files(Path(bare)) for d in _file_documents(path, text_field, split_text)]
    if not documents:
        raise UserError(f"{bare}: holds no text, only blanks; give a source with text")
    return keep_split(documents, split, bare)


def load_pairs(source: str | Path) -> list[Pair]:
    """(prompt, completion) pairs for fine-tuning, from rows of one of two forms.

    `prompt` + `completion`, as text or as messages; `messages` (or ShareGPT `conversations`), of which the last
    assistant message is the completion and all before it the prompt. Splits go by the prompt.
    """
    bare, split = parse_source(str(source))
    embedded = bare.startswith("embedded:")
    pairs: list[Pair] = _load_embedded(bare, "pairs") if embedded else [_pair(row) for row in load_rows(bare)]
    return keep_split(pairs, split, bare)


def load_prompts(source: str | Path) -> list[Turns]:
    """The prompts of a source: each line of a text file, or of each row `prompt`, else what `load_pairs` calls it."""
    bare, split = parse_source(str(source))
    if bare.startswith("embedded:"):
        return [pair.prompt for pair in load_pairs(source)]
    prompts: list[Turns] = []
    for path in [None] if bare.startswith("hub:") else list_files(Path(bare)):
        if path is not None and kind(path) == ".txt":
            prompts.extend(line for line in read_text(path).split("\n") if line.strip())
        else:
            prompts.extend(_prompt(row) for row in (read_rows(path) if path else read_hub(bare)))
    return keep_split(prompts, split, bare)


def load_prompts_with_columns(source: str | Path) -> list[dict[str, Any]]:
    """The rows {prompt, reference, ...} of a source, in the order of `load_prompts`, with all their other columns.

    `reference` is the completion of a pair, else a column of that name, else None. For what judges the answer to a prompt
    by more than its text: a solution, a test, a level.
    """
    bare, split = parse_source(str(source))
    if bare.startswith("embedded:"):
        return [{"prompt": pair.prompt, "reference": pair.completion} for pair in load_pairs(source)]
    rows: list[dict[str, Any]] = []
    for path in [None] if bare.startswith("hub:") else list_files(Path(bare)):
        if path is not None and kind(path) == ".txt":
            lines = [line for line in read_text(path).split("\n") if line.strip()]
            rows.extend({"prompt": line, "reference": None} for line in lines)
        else:
            rows.extend(_with_columns(row) for row in (read_rows(path) if path else read_hub(bare)))
    return keep_split(rows, split, bare)


def load_rows(source: str | Path) -> list[Row]:
    """The rows of a table file, of a folder of them or of a hub data set, with where each was read."""
    source = str(source)
    if source.startswith("hub:"):
        return read_hub(source)
    if source.startswith("embedded:"):
        raise UserError(f"{source}: holds no rows of this kind; give a file, a folder or a hub: name")
    return [row for path in list_files(Path(source)) for row in read_rows(path)]


# ---------------------------------------------------------------------------------------------- embedded


def _load_embedded(source: str, wanted: str) -> list[Any]:
    name = source.removeprefix("embedded:")
    if name not in _EMBEDDED:
        raise UserError(f"{source}: no such embedded source{nearest(name, _EMBEDDED)}")
    held, load = _EMBEDDED[name]
    if held != wanted:
        right = next(other for other, (form, _) in _EMBEDDED.items() if form == wanted)
        raise UserError(f"{source}: holds {held}, not {wanted}; use 'embedded:{right}' here")
    return load()


# ---------------------------------------------------------------------------------------------- local files


def _file_documents(path: Path, name: str, split_text: TextSplit) -> list[Document]:
    if kind(path) != ".txt":
        return [d for row in read_rows(path) for d in _document(row, name)]
    text = read_text(path)
    if split_text == "file":
        return [Document(text, str(path))]
    parts = [part.strip("\n") for part in _SEPARATORS[split_text].split(text)]
    return [Document(part, f"{path}: part {number}") for number, part in enumerate(parts, 1) if part.strip()]


def _document(row: Row, name: str) -> list[Document]:
    """The document of a row, or none: blank rows are common in published corpora and carry nothing."""
    value = get_field(row, name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return [Document(get_text(row, name), row.where)]


def _pair(row: Row) -> Pair:
    if "prompt" in row.values or "completion" in row.values:
        prompt, completion = get_turns(row, "prompt"), get_turns(row, "completion")
        if isinstance(prompt, str) != isinstance(completion, str):
            raise UserError(f"{row.where}: 'prompt' and 'completion' must both be text or both be messages")
        return Pair(prompt, completion, row.where)
    for name in ("messages", "conversations"):
        if name in row.values:
            return _pair_of_messages(messages_of(row.values[name], f"{row.where}: '{name}'"), row.where)
    names = ("prompt", "completion", "messages")
    found = next((hint for key in row.values if "mean" in (hint := nearest(str(key), names))), "")
    held = ", ".join(map(str, row.values))
    raise UserError(f"{row.where}: neither prompt and completion nor messages, only {held}{found}; rename the fields")


def _pair_of_messages(messages: list[dict[str, str]], where: str) -> Pair:
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    if last == 0:
        raise UserError(f"{where}: no assistant message after a first one; add the answer or remove the row")
    return Pair(messages[:last], [messages[last]], where)


_OF_PAIRS = ("completion", "messages", "conversations")


def _with_columns(row: Row) -> dict[str, Any]:
    """The prompt of a row with its columns, of which those that hold a pair become `prompt` and `reference`."""
    columns = {name: value for name, value in row.values.items() if name not in ("prompt", *_OF_PAIRS)}
    if set(_OF_PAIRS) & set(row.values):
        pair = _pair(row)
        return {**columns, "prompt": pair.prompt, "reference": pair.completion}
    return {"reference": None, **columns, "prompt": _prompt(row)}


def _prompt(row: Row) -> Turns:
    if "prompt" in row.values:
        return get_turns(row, "prompt")
    if "messages" in row.values or "conversations" in row.values:
        return _pair(row).prompt
    return get_turns(row, "prompt")  # says which field is missing and which is nearest


# ---------------------------------------------------------------------------------------------- hub


class HubName(NamedTuple):
    """The parts of a `hub:` source."""

    path: str
    config: str | None
    revision: str | None
    split: str


_HUB = re.compile(r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(#(?P<split>.+))?")


def parse_hub(source: str) -> HubName:
    """`hub:org/name[:config][@revision][#split]` in parts; a slice such as `#train[:100]` is a split."""
    match = _HUB.fullmatch(source.removeprefix("hub:"))
    if match is None:
        raise UserError(f"{source}: not a hub name; write hub:org/name[:config][@revision][#split]")
    return HubName(match["path"], match["config"], match["revision"], match["split"] or "train")


def read_hub(source: str) -> list[Row]:
    """The rows of a hub data set. Loading scripts are not run: `datasets` refuses them since version 4."""
    import datasets  # type: ignore[import-untyped]

    name = parse_hub(source)
    try:
        table = datasets.load_dataset(name.path, name.config, revision=name.revision, split=name.split)
    except Exception as error:  # the hub client raises a dozen kinds: network, names, files, parsing
        reason = reason_of(error)
        offline = "; HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"{source}: could not be loaded ({reason}){offline}; check name, config, split and network, "
            "or give local files"
        ) from None
    return [Row(f"{source}: row {number}", values) for number, values in enumerate(table, 1)]
