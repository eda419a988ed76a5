"""Every number of every config declares its range, and what lies outside of it is an error that names the field."""

import dataclasses
import importlib
import math
import typing

import pytest

from alignment.reward.serve import ServeConfig
from launch.cli import COMMANDS
from launch.config import build, check_config, field_types
from launch.errors import UserError
from launch.ranges import Range, ranges_of
from launch.templates import LaunchConfig

CLOSE = (0, -1, -1e-3, 0.5, 1, 1.5, 2, 19, 20)
HUGE = 10**18


def stage_configs():
    """name -> config class of every stage, as the table of commands has them, and of the commands that are none."""
    found = {"reward serve": ServeConfig, "launch": LaunchConfig}
    for name, (module, attribute, _) in COMMANDS.items():
        stage = getattr(importlib.import_module(module), "STAGE", None)
        if attribute == "STAGE" or stage is not None:
            found[name] = stage.config
    return found


def groups_of(cls):
    """A config class and those of its groups, at any depth."""
    found = {cls}
    for hint in field_types(cls).values():
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option):
                found |= groups_of(option)
    return found


CONFIGS = stage_configs()
NUMBERS = {
    f"{name}: {group.__name__}.{field}": (group, field)
    for name, cls in CONFIGS.items()
    for group in sorted(groups_of(cls), key=lambda each: each.__name__)  # the same order in every process
    for field, hint in field_types(group).items()
    if {int, float} & {hint, *typing.get_args(hint)}
}


def test_all_stages_are_walked():
    assert len(CONFIGS) > 15 and len({group for group, _ in NUMBERS.values()}) > 25 and len(NUMBERS) > 200


def fault_of(group, field, value):
    """What building a config with this value says of it; other fields are missing, of which it may complain later."""
    try:
        build(group, {field: value}, "recipe")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_of_its_range_is_an_error_that_names_the_field(name):
    group, field = NUMBERS[name]
    range_ = ranges_of(group).get(field)
    assert range_ is not None, (
        "declare its range, launch/ranges.py; AnyInt or AnyNumber where every number has a meaning"
    )
    whole = int in {field_types(group)[field], *typing.get_args(field_types(group)[field])}
    for value in (v for v in (*CLOSE, HUGE, -HUGE) if not whole or float(v).is_integer()):
        inside = range_.low <= value <= range_.high
        inside = inside and not (range_.above and value == range_.low) and not (range_.below and value == range_.high)
        said = fault_of(group, field, value)
        assert said.startswith(f"recipe: {field}: ") or inside, (value, said)
        assert "Traceback" not in said
    for value in (math.nan, math.inf, -math.inf):
        assert fault_of(group, field, value).startswith(f"recipe: {field}: ")
        with pytest.raises(ValueError, match=f"^{field}: .* is no finite number"):  # a config that Python made
            check_config(_made_by_python(group, field, value))


def _made_by_python(group, field, value):
    """An instance whose other fields have their defaults."""
    needed = {f.name: None for f in dataclasses.fields(group) if f.default is f.default_factory is dataclasses.MISSING}
    return group(**{**needed, field: value})


def test_meaningless_values_are_refused():
    """Of each kind one, so that a range that was declared too wide is seen, too."""
    for name, field, value in [
        ("train-generative", "log_steps", 0),  # divides
        ("evaluate reward", "max_pairs", 0),  # an empty array of rewards
        ("sft", "adam_beta2", 2),
        ("sft", "adam_beta2", 1),
        ("sft", "micro_batch_size", -1),
        ("sft", "weight_decay", -0.1),
        ("sft", "checkpoint_minutes", -1),
        ("sft", "watchdog_minutes", 1e300),
        ("ppo", "gamma", 1.5),
        ("ppo", "temperature", 0),
        ("ppo", "max_prompt_tokens", 0),
        ("generate", "limit", 0),
        ("evaluate text", "batch_tokens", 0),
        ("evaluate images", "splits", 0),
        ("evaluate deepfake", "resamples", 0),
        ("sample", "count", 0),
        ("report", "width", 0),
        ("preferences build", "tie_margin", -1),
    ]:
        assert fault_of(CONFIGS[name], field, value).startswith(f"recipe: {field}: "), (name, field, value)


@pytest.mark.parametrize(
    ("range_", "value", "said"),
    [
        (Range(1), 0, "is below 1; give a positive integer"),
        (Range(0), -1, "is negative; give 0 or more"),
        (Range(0, above=True), 0.0, "is not above 0; give a positive number"),
        (Range(20), 19, "is below 20; give a larger number"),
        (Range(high=1), 2, "is above 1; give a smaller number"),
        (Range(0, 1, below=True), 1, "is outside [0, 1); give a number within"),
        (Range(0, 1, above=True), 0, "is outside (0, 1]; give a number within"),
        (Range(0, 1), 1, ""),
        (Range(), math.nan, "is no finite number; give one"),
    ],
)
def test_what_is_said(range_, value, said):
    assert range_.fault(value) == said
