"""The config of the stage `sample`."""

from __future__ import annotations

from dataclasses import dataclass

from launch.config import artefact, operational
from launch.ranges import PositiveInt
from launch.stage import StageConfig


@dataclass(kw_only=True)
class SampleConfig(StageConfig):
    """Images from a generative model."""

    model: str = artefact("")
    """Folder of `alignkit train-generative`, or a DDPM pipeline of diffusers."""
    count: PositiveInt = 1000
    """Images to make. The first n images of a seed are the same for every count."""
    batch_size: PositiveInt = operational(100)
    """Images made at a time by one process; it does not change them."""
    diffusion_steps: PositiveInt = 20
    """DDIM steps of a diffusion model, a divisor of its schedule; VAE and GAN take one."""
    watermark: str = ""
    """A key, any text: its invisible mark is put into every image, from 24x24 pixels up, and `alignkit evaluate deepfake
    --watermark KEY` finds it. Whoever has the key can remove it. Empty for none."""

    def check(self) -> None:
        if not self.model:
            raise ValueError("model: is missing; give the folder of a generative model")
