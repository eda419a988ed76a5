"""The configuration of rewards: `rewards: {helpful: {model: runs/reward}, brief: {rule: length, soft: 24, hard: 32}}`.

A config holds `rewards: dict[str, SourceConfig]`. Importing this module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from launch.addresses import check_url, check_variable
from launch.config import artefact, operational, python_function
from launch.errors import UserError
from launch.functions import split_name
from launch.ranges import AnyNumber, Count, NotNegative, Positive, PositiveInt

KINDS = ("model", "ensemble", "function", "rule", "url")
OPTIONS: dict[str, tuple[str, ...]] = {
    "model": (),
    "ensemble": ("aggregate", "std_weight"),
    "function": ("timeout_s",),
    "rule: length": ("soft", "hard"),
    "rule: repetition": ("ngram",),
    "rule: format": ("pattern",),
    "url": ("service", "labels", "token_env", "batch_size", "concurrency", "timeout_s"),
}
"""What each kind of source reads besides `weight`."""
RESERVED = ("total", "score", "score_std")
"""Names that trainers log under `reward/` themselves."""


@dataclass(kw_only=True)
class SourceConfig:
    """One source of reward: exactly one of model, ensemble, function, rule and url. See docs/reward_sources.md."""

    weight: AnyNumber = 1.0
    """Factor of this source in the total; 0 logs it alone, a negative one turns it into a penalty."""

    model: str | None = artefact(None)
    """A reward model: a sequence-classification model with one label, of any tokenizer."""

    ensemble: list[str] = artefact([])
    """Reward models, at least two, that judge together."""
    aggregate: Literal["mean", "min", "mean-std"] | None = None
    """How the ensemble's rewards become one: their mean (when not given), minimum, or mean - std_weight * std."""
    std_weight: NotNegative | None = None
    """Weight of the members' standard deviation in `mean-std`; 1 when not given."""

    function: str | None = python_function()
    """A Python function, path/to/file.py:name or package.module:name. Its file is run."""

    rule: Literal["length", "repetition", "format"] | None = None
    """length: 0 up to `soft` tokens, -1 from `hard`; repetition: minus the share of repeated n-grams; format: 1 if `pattern` matches."""
    soft: Count | None = None
    """Tokens, EOS included, up to which a completion costs nothing."""
    hard: PositiveInt | None = None
    """Tokens from which on a completion costs 1."""
    ngram: PositiveInt | None = None
    """Words in an n-gram of the repetition rule; 4 when not given."""
    pattern: str | None = None
    """Regular expression that a completion must contain."""

    url: str | None = operational(None)
    """Address of a service that speaks OpenRLHF's remote_rm_url JSON. Where it is does not belong to the run, see `service`."""
    service: str | None = None
    """What answers at `url`, in words of your choice (name and version): a part of the run's identity."""
    labels: str | None = None
    """The column that is sent as `labels`; `reference` when not given."""
    token_env: str | None = operational(None)
    """The environment variable that holds the service's bearer token."""
    batch_size: PositiveInt | None = operational(None)
    """Episodes in one request; 32 when not given."""
    concurrency: PositiveInt | None = operational(None)
    """Requests at a time, on each process; 4 when not given."""
    timeout_s: Positive | None = operational(None)
    """url: seconds to wait for an answer before the request is sent again (60). function: seconds that it may take, after which the
    watchdog takes the run for stuck (3600)."""

    @property
    def kind(self) -> str:
        """Which kind of source this is: a key of OPTIONS."""
        given = next(name for name in KINDS if getattr(self, name))
        return f"rule: {self.rule}" if given == "rule" else given

    def options(self) -> dict[str, Any]:
        """The options of this kind that are given; the source itself has the defaults of the others."""
        return {name: getattr(self, name) for name in OPTIONS[self.kind] if getattr(self, name) is not None}

    def check(self) -> None:
        given = [name for name in KINDS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'model'}: give exactly one of {', '.join(KINDS)}")
        self._check_options()
        if len(self.ensemble) == 1:
            raise ValueError("ensemble: it has one member; name at least two, or use model")
        if self.std_weight is not None and self.aggregate != "mean-std":
            raise ValueError(f"std_weight: {self.std_weight} needs aggregate: mean-std; add it, or leave this out")
        if self.function:
            self._check_function(self.function)
        if self.rule:
            self._check_rule()
        if self.url:
            check_url("url", self.url)
            check_variable("token_env", self.token_env)

    def _check_options(self) -> None:
        """ValueError for an option that this kind of source does not read."""
        for owner, names in OPTIONS.items():
            for name in names:
                if name not in OPTIONS[self.kind] and getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: belongs to a reward with `{owner}`, not to one with `{self.kind}`; take it out"
                    )

    def _check_function(self, name: str) -> None:
        try:
            split_name("function", name)
        except UserError as error:  # as a ValueError, to which the name of this reward is added
            raise ValueError(str(error)) from None

    def _check_rule(self) -> None:
        if missing := [name for name in OPTIONS[self.kind] if name != "ngram" and getattr(self, name) is None]:
            raise ValueError(f"{missing[0]} is missing; `rule: {self.rule}` needs {' and '.join(OPTIONS[self.kind])}")
        if self.soft is not None and self.hard is not None and self.soft >= self.hard:
            raise ValueError(f"soft: {self.soft} is not below hard ({self.hard}); give fewer tokens than hard")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression ({error}); mend it") from None


def named_rewards(reward: str | None, rewards: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
    """The sources of a config by name: `rewards`, or of its short form `reward: PATH` one model called `model`.

    ValueError, for a config's `check`, when both or neither are given, for a name that makes no metric, and when no
    source has a weight.
    """
    if bool(reward) == bool(rewards):
        problem = "and rewards are both given; keep one" if reward else "is missing; add --reward PATH, or rewards"
        raise ValueError(f"reward {problem}")
    if reward:
        return {"model": SourceConfig(model=reward)}
    _check_names(rewards)
    if not any(source.weight for source in rewards.values()):
        raise ValueError("rewards: every weight is 0, so there is nothing to learn; give one another weight")
    return rewards


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(f"rewards: '{name}' is no name for a metric; use letters, digits and _")
        if name in RESERVED:
            raise ValueError(f"rewards: '{name}' is the name of another metric; call it otherwise")
