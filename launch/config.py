"""Typed recipes: a YAML file and `--key value` overrides become one checked dataclass.

Every field is declared once, in a dataclass, with its type, its default and a string below it as its
documentation. A number's field declares its range, too (launch/ranges.py). Unknown keys and wrong types are errors that name the key, the file and the nearest valid key.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from launch.errors import UserError, nearest
from launch.functions import PREFIX
from launch.ranges import check_ranges

T = TypeVar("T")
COMMAND_LINE = "command line"
LIFECYCLE = "ALIGNKIT_LIFECYCLE"
"""Set for a stage of a lifecycle: what messages call its recipe. We wrote that one, its user knows another file."""


def artefact(default: Any = "", prefix: str = "") -> Any:
    """A field that holds the path of an input: its content is hashed into the provenance.

    `prefix` says how: RUNS_WITHIN (launch/provenance.py) counts the runs that lie in a folder, too.
    """
    metadata = {"artefact": True, "prefix": prefix}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def python_function() -> Any:
    """A field, None unless given, that names a Python function whose file is an input: see launch/functions.py."""
    return dataclasses.field(default=None, metadata={"artefact": True, "prefix": PREFIX})


def operational(default: Any) -> Any:
    """A field that does not change the result (where to log, how often to save): no part of a run's identity."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"operational": True})
    return dataclasses.field(default=default, metadata={"operational": True})


# ---------------------------------------------------------------------------------------------- reading


class _StrictLoader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key written twice (YAML keeps the last one, silently)."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise UserError(f"{node.start_mark.name}: line {key_node.start_mark.line + 1}: a key is text, not {key!r}")
        if key in seen:
            raise UserError(
                f"{node.start_mark.name}: line {key_node.start_mark.line + 1}: key '{key}' is given twice; keep one"
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


_UNREADABLE = (ValueError, RecursionError)
"""What PyYAML lets through: days of months that do not have them, thousands of digits, or of brackets within one another."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file (safe loading only); UserError names the file, the line and the fault."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        names = [p.name for p in folder.glob("*.y*ml")]
        raise UserError(f"{path}: no such recipe{nearest(path.name, names)}") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 recipe ({error}); give a YAML file") from None
    try:
        loader = _StrictLoader(text)
        loader.name = str(path)
        content = loader.get_single_data()
    except UserError:  # of `_construct_mapping`, which says where
        raise
    except (yaml.YAMLError, *_UNREADABLE) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}: line {mark.line + 1}, column {mark.column + 1}" if mark else path
        raise UserError(f"{where}: not valid YAML ({_problem(error)}); mend that line") from None
    if content is None:
        raise UserError(f"{path}: the recipe is empty; write at least one `key: value` line")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a {type(content).__name__}")
    return content


# ---------------------------------------------------------------------------------------------- checking


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(a) for a in get_args(hint))
    if get_origin(hint) is not None:
        return f"{get_origin(hint).__name__} of {', '.join(_type_name(a) for a in get_args(hint))}"
    return {type(None): "null", str: "text", int: "an integer", float: "a number", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _scalar(value: Any, hint: Any) -> Any:
    """`value` as int, float, bool or str, or TypeError. Text is parsed for numbers: YAML 1.1 reads 3e-4 as text."""
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            number = _parse_float(value.replace("_", ""))
            if number is not None and number.is_integer():
                return int(number)
    elif hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = _parse_float(value)
            if number is not None:
                return number
    elif hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _parse_float(value: str | float) -> float | None:
    """A finite number, or None: no field means infinity or NaN, they only surface later, as a loss that is NaN."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _parse_flow(text: str, key: str, where: str) -> Any:
    """A list or mapping in YAML's flow form, from the command line."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, *_UNREADABLE) as error:
        raise UserError(f"{where}: {key}: {shorten(text)!r} is not valid YAML ({_problem(error)}); mend it") from None


def _problem(error: Exception) -> str:
    """One line."""
    if isinstance(error, RecursionError):
        return "brackets nest too deep"
    return " ".join(str(getattr(error, "problem", None) or error or "it is cut").split())


def shorten(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= 80 else f"{text[:80]}..."


class Flag(str):
    """What a bare `--flag` of the command line is: true, and no value of another kind."""


def _takes_true(hint: Any) -> bool:
    """Whether a bare flag may stand for a value of this type."""
    return hint in (bool, Any) or "true" in map(str, get_args(hint)) or any(map(_takes_true, get_args(hint)))


def check_value(value: Any, hint: Any, key: str, where: str) -> Any:
    """`value` converted to the type `hint`, or a UserError that names the key, the file, the value and the type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if isinstance(value, Flag) and not _takes_true(hint):
        raise UserError(f"{where}: {key}: needs a value; give {_type_name(hint)}")
    if origin in (Union, types.UnionType):
        if type(None) in args and value in (None, "null", "none", "None"):
            return None
        for option in (a for a in args if a is not type(None)):
            if isinstance(value, dict) and dataclasses.is_dataclass(option):
                return check_value(value, option, key, where)  # its errors name the key within
            try:
                return check_value(value, option, key, where)
            except UserError:
                continue
    elif origin is Literal:
        for option in args:
            if value == option or str(value) == str(option):
                return option
        raise UserError(f"{where}: {key}: {value!r} is not {_type_name(hint)}{nearest(str(value), map(str, args))}")
    elif origin is list:
        if isinstance(value, str):  # from the command line: a,b,c or [a, b, c]
            flow = value.strip().startswith("[")
            value = _parse_flow(value, key, where) if flow else [v for v in value.split(",") if v]
        if isinstance(value, (list, tuple)):
            return [check_value(v, args[0], f"{key}[{i}]", where) for i, v in enumerate(value)]
    elif origin is dict:
        if isinstance(value, str) and value.strip().startswith("{"):
            value = _parse_flow(value, key, where)
        if isinstance(value, dict):
            return {str(k): check_value(v, args[1], f"{key}.{k}", where) for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, dict) and isinstance(hint, type):
            return build(hint, value, where, prefix=f"{key}.")
    else:
        try:
            return _scalar(value, hint)
        except TypeError:
            pass
    raise UserError(f"{where}: {key}: {value!r} is not {_type_name(hint)}; give {_type_name(hint)}")


def field_types(cls: Any) -> dict[str, Any]:
    """Field name -> resolved type of a config dataclass."""
    return _resolve_fields(cls)


@functools.cache
def _resolve_fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def build(
    cls: type[T], values: dict[str, Any], where: str, prefix: str = "", place: Callable[[str], str] | None = None
) -> T:
    """A `cls` from a mapping. `where` names the file (or the command line) in errors.

    A config may define `check(self)`, which raises ValueError("key: what is wrong and what to do") on values that
    do not fit each other. `place` tells where the value of such a message was given, when that may be two places.
    """
    hints = field_types(cls)
    for key in values:
        if key not in hints:
            raise UserError(f"{where}: unknown key '{prefix}{key}'{nearest(str(key), hints)}")
    checked = {key: check_value(value, hints[key], prefix + key, where) for key, value in values.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in checked and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(
            f"{where}: '{prefix}{missing[0]}' is missing; add `{missing[0]}: ...` or --{prefix}{missing[0]} VALUE"
        )
    config = cls(**checked)
    try:
        check_config(config)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{place(str(error)) if place else where}: {prefix}{error}") from None
    return config


def check_config(config: Any) -> None:
    """ValueError when a number is outside of the range that its field declares, for a word that is none of its field's
    choices (a config built in Python has not been read by `build`), or by the config's own `check`."""
    check_ranges(config)
    for name, hint in field_types(type(config)).items():
        if typing.get_origin(hint) is Literal and getattr(config, name) not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ValueError(f"{name}: {getattr(config, name)!r} is not one of {choices}; give one of them")
    if hasattr(config, "check"):
        config.check()


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--group.key value` and bare `--flag` (true) as a nested mapping."""
    nested: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"command line: '{word}' is not an option; write --key value")
        key, equals, value = word[2:].partition("=")
        position += 1
        if not equals:
            if position < len(arguments) and not arguments[position].startswith("--"):
                value = arguments[position]
                position += 1
            else:
                value = Flag("true")
        *groups, leaf = key.replace("-", "_").split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise UserError(f"command line: --{key}: '{group}' is given a value, too; keep one of them")
        if leaf in target:
            raise UserError(f"command line: --{key} is given twice; keep one")
        target[leaf] = value
    return nested


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested `changes` laid over it."""
    merged = dict(base)
    for key, value in changes.items():
        both_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_mappings else value
    return merged


def load_config(cls: type[T], arguments: Sequence[str]) -> T:
    """The config of a command line: `[--config FILE.yaml] [--key value ...]`, overrides winning over the file."""
    overrides = parse_overrides(arguments)
    recipe = overrides.pop("config", None)
    where = COMMAND_LINE
    values: dict[str, Any] = {}
    if isinstance(recipe, Flag):
        raise UserError(f"{COMMAND_LINE}: --config: needs a value; give a recipe's file or name")
    if recipe is not None:
        values, where = read_yaml(find_recipe(str(recipe))), os.environ.get(LIFECYCLE) or str(recipe)
    check_overrides(cls, overrides)
    return build(cls, merge(values, overrides), where, place=lambda text: _place_of(text, where, overrides))


def check_overrides(cls: Any, overrides: dict[str, Any], prefix: str = "") -> None:
    """The command line's values on their own, before they are laid over the recipe's: an error names the right place."""
    hints = field_types(cls)
    for key, value in overrides.items():
        if key not in hints:
            raise UserError(f"{COMMAND_LINE}: unknown key '--{prefix}{key}'{nearest(key, hints)}")
        inner = get_args(hints[key])[-1] if get_origin(hints[key]) is dict else None
        if isinstance(value, dict) and dataclasses.is_dataclass(hints[key]):
            check_overrides(hints[key], value, f"{prefix}{key}.")
        elif isinstance(value, dict) and dataclasses.is_dataclass(inner):
            for name, part in value.items():  # a part of what the recipe says of it: not a whole one
                if isinstance(part, dict):
                    check_overrides(inner, part, f"{prefix}{key}.{name}.")
        else:
            check_value(value, hints[key], f"--{prefix}{key}", COMMAND_LINE)


def _place_of(text: str, where: str, overrides: dict[str, Any]) -> str:
    """Where the values that a `check` complains of were given; its message begins with the key, and may name others."""
    first, *others = re.findall(r"\w+", text)
    if first in overrides:
        return COMMAND_LINE
    return f"{where} and {COMMAND_LINE}" if set(others) & set(overrides) and where != COMMAND_LINE else where


def find_recipe(name: str) -> Path:
    """A recipe's path: a file as given, or the name of one that comes with alignkit (`demo`, `ppo.yaml`)."""
    path = Path(name)
    if path.is_file() or "/" in name:  # a folder of a recipe's name is no recipe: `make demo` writes to demo/
        return path
    shipped = Path(__file__).parent / "recipes"
    for candidate in (shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    if path.suffix in (".yaml", ".yml"):
        return path
    raise UserError(f"{name}: no such recipe{nearest(name, [p.stem for p in shipped.glob('*.yaml')])}")


# ---------------------------------------------------------------------------------------------- writing


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-able values."""
    return dataclasses.asdict(config)


def identity_dict(config: Any) -> dict[str, Any]:
    """The part of a config that decides the result, at any depth: all but the operational fields and the places of inputs.

    Where an input lies does not matter, what it holds does: see `launch.stage.describe_run`.
    """
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        given_input = field.metadata.get("artefact") and value
        if not field.metadata.get("operational") and not given_input:
            kept[field.name] = _identity_of(value)
    return kept


def _identity_of(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return identity_dict(value)
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    return [_identity_of(item) for item in value] if isinstance(value, (list, tuple)) else value


def artefact_paths(config: Any) -> dict[str, str]:
    """Name -> value of the fields declared with `artefact` or `python_function` that are set, at any depth.

    Names are `field`, `field[i]` in a list, and `group.field` or `group.key.field` in a nested config.
    """
    found: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata.get("artefact"):
            found.update(_nested_paths(field.name, value))
        elif value:
            prefix = field.metadata.get("prefix", "")
            found.update({name: f"{prefix}{item}" for name, item in _items(field.name, value)})
    return found


def _nested_paths(name: str, value: Any) -> dict[str, str]:
    """`artefact_paths` of the configs within a field, their names after that of the field."""
    if dataclasses.is_dataclass(value):
        return {f"{name}.{inner}": path for inner, path in artefact_paths(value).items()}
    return {k: v for key, item in _items(name, value) if item is not value for k, v in _nested_paths(key, item).items()}


def _items(name: str, value: Any) -> list[tuple[str, Any]]:
    """The items of a list or mapping with their names; of anything else, itself."""
    if isinstance(value, (list, tuple)):
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return [(f"{name}.{key}", item) for key, item in value.items()]
    return [(name, value)]


def field_docs(cls: Any) -> dict[str, str]:
    """Field name -> the string literal below it, of a class and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source: Any = inspect.getsource(base)  # type: ignore[arg-type]
        definition: Any = ast.parse(textwrap.dedent(source)).body[0]
        for statement, following in itertools.pairwise(definition.body):
            is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            is_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_field and is_doc and isinstance(following.value.value, str):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


def describe(cls: type, prefix: str = "", said: set[str] | None = None) -> str:
    """The help text of a config: one line for each field, with its type, default and documentation; groups by field.

    What many fields of groups say alike is said once.
    """
    docs, hints, lines, said = field_docs(cls), field_types(cls), [], set() if said is None else said
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        group = dataclasses.is_dataclass(hint) and isinstance(hint, type)
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        text = docs.get(field.name) or (" ".join((hint.__doc__ or "").split()) if group else "")
        said_default = "empty unless given" if default == "" else f"default {default!r}"
        lines.append(f"  --{name}.*" if group else f"  --{name}  ({_type_name(hint)}; {said_default})")
        if text not in said:
            lines.extend(textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      "))
        said.add(text)
        if group:
            lines.append(describe(hint, f"{name}.", said))
    return "\n".join(lines)
