"""The stage `train-generative`: images in, the folder of a VAE, a GAN or a diffusion model out. See docs/generative.md."""

from generative.train.config import TrainConfig
from generative.train.stage import STAGE

__all__ = ["STAGE", "TrainConfig"]
