"""The stage `train-generative`: images in, the folder of a VAE, a GAN or a diffusion model out. See docs/generative.md."""

from generative.train.config import TrainConfig
from launch.stage import Stage, run_of

STAGE = Stage("train-generative", TrainConfig, run_of("generative.train.stage"))
__all__ = ["STAGE", "TrainConfig"]
