"""The configuration of the stage `generate`. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from launch.config import artefact, operational
from launch.ranges import NotNegative, PositiveInt
from launch.stage import StageConfig


@dataclass(kw_only=True)
class GenerateConfig(StageConfig):
    """Sample completions from a causal language model."""

    model: str = artefact()
    """The model: a folder, or hub:org/name."""
    prompts: str = artefact()
    """Prompts (or pairs, whose completions are kept as references): a file, a folder, embedded:... or hub:...; `::eval` picks a split."""
    limit: PositiveInt | None = None
    """Use only so many prompts, the first by content hash."""
    samples: PositiveInt = 1
    """Completions for each prompt."""
    temperature: NotNegative = 0.7
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: PositiveInt = 32
    """Longest completion."""
    max_prompt_tokens: PositiveInt = 96
    """Longer prompts are left out (never cut), and counted."""
    batch_size: PositiveInt = operational(64)
    """Samples in one batch; it does not change them, and may be another one when a run is resumed."""

    def check(self) -> None:
        for name in ("model", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; add --{name} PATH")
