"""Rows of local files: text, JSON lines, JSON, CSV, TSV and Parquet, plain or gzipped.

A fault is one `UserError` sentence that names the file and the line or row. Lines are split at "\\n" only:
`str.splitlines` would also cut at U+2028 and U+0085, which JSON allows inside a string.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from launch.errors import UserError, nearest, reason_of
from launch.files import files_without_runs

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (".txt", *TABLE_SUFFIXES)
_NEXT_NAMES = 8  # how many names of a folder an error lists


class Row(NamedTuple):
    """One row of a table: where it was read (`file: line 3`) and its fields."""

    where: str
    values: dict[str, Any]


def kind(path: Path) -> str:
    """The format by suffix, `.gz` set aside: one of SUFFIXES; anything else is read as text."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in TABLE_SUFFIXES if name.endswith(suffix)), ".txt")


def list_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder in name order (hidden ones, other suffixes and runs left out)."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder{_near(path)}")
    files = [p for p in files_without_runs(path) if p.is_file() and _is_data(p.relative_to(path))]
    if not files:
        runs = " but in runs of alignkit, each of which is given by its own name" if any(path.rglob("run.json")) else ""
        raise UserError(
            f"{path}: the folder holds no data file{runs}; put a {', '.join(SUFFIXES)} file there (.gz too)"
        )
    return files


def _is_data(relative: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in relative.parts)
    return not hidden and relative.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def _near(path: Path) -> str:
    """A hint with the nearest names of the folder in which `path` was looked for."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    return nearest(path.name, difflib.get_close_matches(path.name, names, _NEXT_NAMES, 0.3) or names[:_NEXT_NAMES])


# ---------------------------------------------------------------------------------------------- bytes to text


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends with .gz; an empty file is an error."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); copy or download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from None
    if not data or data.isspace():
        raise _empty(path)
    return data


def _empty(path: Path) -> UserError:
    return UserError(f"{path}: the file is empty; give a file with data or take it out of the list")


def read_text(path: Path) -> str:
    """The file as text with "\\n" line ends; UserError for binary files and for the first byte that is not UTF-8."""
    data = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the text is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
    zero = data.find(b"\0")
    if zero >= 0:
        raise UserError(f"{path}: a binary file (zero byte at offset {zero}), not text; give UTF-8 text or {_tables()}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: byte 0x{data[error.start]:02X} at offset {error.start} is not UTF-8; "
            "convert the file, for example with `iconv -f LATIN1 -t UTF-8`"
        ) from None
    if not text.strip():  # a byte order mark alone, as spreadsheets save an empty table, or blanks that are not ASCII
        raise _empty(path)
    return text.replace("\r\n", "\n")


def _tables() -> str:
    return "a " + ", ".join(TABLE_SUFFIXES[:-1]) + " or " + TABLE_SUFFIXES[-1] + " file"


# ---------------------------------------------------------------------------------------------- tables


def read_rows(path: Path) -> list[Row]:
    """All rows of one table file; UserError when there are none."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if kind(path) not in readers:
        raise UserError(f"{path}: rows are needed here, not text; give {_tables()}")
    rows = list(readers[kind(path)](path))
    if not rows:
        raise UserError(f"{path}: the file holds no rows; give a file with data or take it out of the list")
    return rows


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            # an error at the very end of the line is what a killed writer or a full disk leaves
            cut = "the line is cut" if error.pos >= len(line.rstrip()) or "Unterminated" in error.msg else "not JSON"
            raise UserError(
                f"{where}: {cut} ({error.msg}, column {error.colno}); restore the line or remove it"
            ) from None
        except (ValueError, RecursionError) as error:
            raise _unreadable(where, error) from None
        yield Row(where, mapping_of(values, where))


def _json(path: Path) -> Iterator[Row]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # many hubs name JSON lines .json
            yield from _jsonl(path)
            return
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: {where}: not JSON ({error.msg}); restore the file") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(str(path), error) from None
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise UserError(f"{path}: holds {_article(content)}; give a JSON list of objects, one for each row")
    for number, values in enumerate(content, 1):
        where = f"{path}: row {number}"
        yield Row(where, mapping_of(values, where))


def _unreadable(where: str, error: Exception) -> UserError:
    """For what JSON allows and Python does not read: thousands of brackets within one another, or of digits."""
    fault = "brackets nest too deep" if isinstance(error, RecursionError) else "a number has thousands of digits"
    return UserError(f"{where}: not JSON that can be read ({fault}); mend or remove it")


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    table = csv.reader(io.StringIO(read_text(path)), delimiter="\t" if kind(path) == ".tsv" else ",", strict=True)
    try:
        header = [name.strip() for name in next(table)]
        if len(header) > 1 and not header[0] and "index" not in header:
            header[0] = "index"  # pandas writes its row numbers under no heading
        _check_header(path, header)
        for fields in table:
            where = f"{path}: line {table.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(f"{where}: {len(fields)} fields under {len(header)} headings; quote or mend that line")
            yield Row(where, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}: line {table.line_num}: not CSV ({error}); mend that line") from None


def _check_header(path: Path, header: list[str]) -> None:
    for position, name in enumerate(header):
        if not name:
            raise UserError(f"{path}: heading {position + 1} is empty; name every column in the first line")
        if name in header[:position]:
            raise UserError(f"{path}: the heading '{name}' is given twice; rename or remove one column")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet  # type: ignore[import-untyped]

    data = read_bytes(path)
    try:
        table = parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not readable as Parquet ({reason_of(error)}); write or download the file again"
        ) from None
    _check_header(path, table.column_names)
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(f"{path}: row {number}", values)


# ---------------------------------------------------------------------------------------------- fields


def _article(value: Any) -> str:
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "nothing (null)" if value is None else names.get(type(value), f"a {type(value).__name__}")


def get_field(row: Row, name: str) -> Any:
    """The value of a field; UserError names the row and the nearest field when it is missing."""
    if name not in row.values:
        raise UserError(f"{row.where}: no field '{name}'{nearest(name, map(str, row.values))}")
    return row.values[name]


def mapping_of(values: Any, where: str) -> dict[str, Any]:
    """`values` if it is an object with names, else UserError."""
    if not isinstance(values, dict):
        raise UserError(f'{where}: holds {_article(values)}; give an object such as {{"text": "..."}}')
    return values


def text_of(value: Any, where: str) -> str:
    """`value` if it is text that can be written as UTF-8 and is not blank, else UserError."""
    if not isinstance(value, str):
        raise UserError(f"{where} is {_article(value)}, not text; give a string")
    if not value.strip():
        raise UserError(f"{where} is empty; fill it or remove the row")
    return check_utf8(value, where)


def check_utf8(text: str, where: str) -> str:
    """The text, which may be blank; UserError when it cannot be written as UTF-8, as JSON's escapes allow it to be."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half a character (lone surrogate at position {error.start}); mend the text"
        ) from None
    return text


def get_text(row: Row, name: str) -> str:
    """A field that must be text and not blank."""
    return text_of(get_field(row, name), f"{row.where}: '{name}'")


def messages_of(value: Any, where: str) -> list[dict[str, str]]:
    """Chat messages with roles and contents checked; `from`/`value` turns (ShareGPT) are renamed."""
    if not isinstance(value, list) or not value:
        raise UserError(f'{where} is {_article(value)}; give a list such as [{{"role": "user", "content": "..."}}]')
    return [_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1)]


_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise UserError(f'{where} is {_article(turn)}; give {{"role": "user", "content": "..."}}')
    if "from" in turn and "role" not in turn:
        speaker = text_of(turn["from"], f"{where}: from")
        turn = {"role": _SHAREGPT_ROLES.get(speaker, speaker), "content": turn.get("value")}
    for key in ("role", "content"):
        if key not in turn:
            raise UserError(f"{where} has no '{key}'{nearest(key, map(str, turn))}")
    role, content = text_of(turn["role"], f"{where}: role"), text_of(turn["content"], f"{where}: content")
    return {"role": role, "content": content}


def get_list(row: Row, name: str) -> list[Any]:
    """A field that must be a list."""
    value = get_field(row, name)
    if not isinstance(value, list):
        raise UserError(f"{row.where}: '{name}' is {_article(value)}, not a list; mend that row")
    return value


def get_turns(row: Row, name: str) -> str | list[dict[str, str]]:
    """A field that holds text or messages."""
    value = get_field(row, name)
    if isinstance(value, list):
        return messages_of(value, f"{row.where}: '{name}'")
    return text_of(value, f"{row.where}: '{name}'")
