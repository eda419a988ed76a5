"""The stage `train-generative`: images in, the folder of a VAE, a GAN or a diffusion model out. See docs/generative.md."""

from typing import Any

__all__ = ["STAGE", "TrainConfig"]
HEADLINE = ("{parameters} parameters trained on {images} images, {steps} steps; last loss {loss}",)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'generative.train' has no attribute '{name}'")
    # Not before: a folder of the user may hide a package, which is looked for first
    from generative.train.config import TrainConfig
    from launch.stage import LazyRun, Stage

    run = LazyRun("generative.train.stage")
    globals().update(TrainConfig=TrainConfig, STAGE=Stage("train-generative", TrainConfig, run, headline=HEADLINE))
    return globals()[name]
