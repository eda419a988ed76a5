"""The stage `generate`: completions of a model for many prompts. See stage.py."""

from typing import Any

__all__ = ["STAGE", "GenerateConfig"]
HEADLINE = (
    "{completions} completions of {mean_tokens} tokens on average, a share of {finished_rate} ended by themselves: {folder}/completions.jsonl",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'alignment.generate' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from alignment.generate.config import GenerateConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("alignment.generate.stage")
    globals().update(GenerateConfig=GenerateConfig, STAGE=Stage("generate", GenerateConfig, run, headline=HEADLINE))
    return globals()[name]
