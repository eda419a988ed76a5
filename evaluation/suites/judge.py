"""`alignkit evaluate judge`: how far a judge of answers agrees with people, and what sways it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluation.judges.config import JudgeConfig
from evaluation.options import SCHEMA_VERSION
from launch.config import artefact
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage


@dataclass(kw_only=True)
class JudgeEvaluationConfig(JudgeConfig):
    """Agreement of a judge with people's preferences, its consistency over both orders, its bias towards place and length."""

    name: str = ""
    """Name of the judge in reports; its own unless given."""
    preferences: str = artefact("")
    """What people preferred: a file, a folder or hub:...; ties count as a verdict of theirs."""
    invalid: Literal["error", "drop"] = "error"
    """Pairs that are faulty (an empty answer, both the same) or longer than a reward model's context: stop and name the
    first, or leave them out and say how many."""
    max_pairs: PositiveInt | None = None
    """Use only so many pairs, the first by a hash of the prompt."""

    def check(self) -> None:
        """Preferences and one judge."""
        if not self.preferences:
            raise ValueError("preferences is missing; add --preferences FILE with what people preferred")
        self.check_judge()


STAGE = Stage("evaluate judge", JudgeEvaluationConfig, LazyRun("evaluation.suites.judge_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.judge")
