"""The stage `sample`: a model folder in, images out. See docs/generative.md."""

from typing import Any

__all__ = ["STAGE", "SampleConfig"]
HEADLINE = ("{images} images: {folder}/samples.npz, and some of them in grid.png",)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'generative.sample' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from generative.sample.config import SampleConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("generative.sample.stage")
    globals().update(SampleConfig=SampleConfig, STAGE=Stage("sample", SampleConfig, run, headline=HEADLINE))
    return globals()[name]
