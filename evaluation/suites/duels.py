"""`alignkit evaluate duels`: several models' completions before a judge, or recorded comparisons, as one leaderboard."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluation.judges.config import JudgeConfig
from evaluation.options import SCHEMA_VERSION
from launch.config import artefact
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage


@dataclass(kw_only=True)
class DuelsConfig(JudgeConfig):
    """A league of models: every pair meets on every prompt before a judge; Bradley-Terry strengths, Elo, ranks, win rates."""

    completions: list[str] = artefact([])
    """Completions of two or more models on the same prompts: files or folders of `alignkit generate`."""
    names: list[str] = field(default_factory=list)
    """The models' names in reports, in the order of `completions`; the folders' names unless given."""
    against: str = ""
    """Name of one model that all others meet, and meet alone: fewer duels, wider intervals; every pair unless given."""
    max_prompts: PositiveInt | None = None
    """Use only so many prompts, the first by a hash of the prompt."""
    comparisons: str = artefact("")
    """Recorded comparisons instead: rows of model_a, model_b, winner and, where known, prompt."""

    def check(self) -> None:
        """Completions with a judge, or recorded comparisons."""
        if bool(self.completions) == bool(self.comparisons):
            raise ValueError(
                "completions: give --completions A,B,... with a judge, or --comparisons FILE, and not both"
            )
        self.check_judge(needed=bool(self.completions))
        if self.completions and len(self.completions) < 2:
            raise ValueError("completions: a league has at least two models; give two files or more")
        if self.names and len(self.names) != len(self.completions):
            raise ValueError(f"names: {len(self.names)} names for {len(self.completions)} models; give one for each")
        for name in ("names", "against", "max_prompts"):
            if getattr(self, name) and self.comparisons:
                raise ValueError(f"{name}: belongs to completions; leave it out")


STAGE = Stage("evaluate duels", DuelsConfig, LazyRun("evaluation.suites.duels_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.duels")
