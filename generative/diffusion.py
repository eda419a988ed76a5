"""A denoising diffusion model (Ho et al. 2020) on diffusers' UNet2DModel and schedulers.

Its folder is a diffusers pipeline: `DDPMPipeline.from_pretrained(folder)()` makes images without alignkit.
Axes: B images of a batch, C H W of an image; T diffusion steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from generative.nets import halvings
from generative.weights import load_weights

Prediction = Literal["v_prediction", "epsilon"]
GROUPS = 8


def signal_to_noise(alphas_cumprod_T: Tensor) -> Tensor:
    """SNR(t) = alpha_bar / (1 - alpha_bar) of x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise."""
    return alphas_cumprod_T / (1 - alphas_cumprod_T)


def min_snr_weight(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Weight of the squared error at each SNR (Hang et al. 2023): min(SNR, gamma) on the scale of x.

    An error of noise is SNR times, one of v SNR + 1 times that of x, so the weight is divided by it.
    """
    return snr_B.clamp(max=gamma) / (snr_B if prediction == "epsilon" else snr_B + 1)


def stratified_timesteps(offset: Tensor, rows: slice, size: int, steps: int) -> Tensor:
    """Times of some rows of a batch of `size`: int64 in 0..steps-1, evenly spread over the batch with one random offset.

    Each time is uniform, the batch covers all of them: less variance than independent draws (Kingma et al. 2021, VDM,
    appendix I.1). `offset` is uniform in [0, 1).
    """
    places = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + offset.double()) / size
    return (places * steps).long().clamp(max=steps - 1)


def build_unet(image_size: int, channels: int, width: int) -> UNet2DModel:
    """A UNet with one residual block at each resolution, down to 2x2 or by three halvings, and attention at the lowest.

    At 8x8 the levels below 4x4 cost little time. A 3x3 convolution
    sees all of 2x2 pixels: there is no attention there.
    """
    halved = min(3, halvings(image_size, largest=2))
    return UNet2DModel(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=tuple(width * min(2**k, 4) for k in range(halved + 1)),
        down_block_types=("DownBlock2D",) * (halved + 1),
        up_block_types=("UpBlock2D",) * (halved + 1),
        norm_num_groups=GROUPS,
        attention_head_dim=GROUPS,
        add_attention=image_size >> halved > 2,
    )


class DiffusionModel(nn.Module):
    """A UNet and the noise schedule that it was trained with."""

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.unet, self.scheduler = unet, scheduler

    @classmethod
    def create(
        cls, image_size: int, channels: int, width: int, noise_steps: int, prediction: Prediction
    ) -> DiffusionModel:
        """An untrained model with the cosine schedule (Nichol and Dhariwal 2021)."""
        scheduler = DDPMScheduler(noise_steps, beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
        return cls(build_unet(image_size, channels, width), scheduler)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DiffusionModel:
        """The model of a diffusers pipeline folder (a UNet2DModel and a DDPM scheduler)."""
        unet = load_weights(UNet2DModel, folder, subfolder="unet")
        return cls(unet, DDPMScheduler.from_pretrained(str(folder), subfolder="scheduler"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers pipeline folder: model_index.json, unet/, scheduler/."""
        DDPMPipeline(self.unet, self.scheduler).save_pretrained(folder, safe_serialization=True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one image is made from."""
        config = self.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def target(self, images_BCHW: Tensor, noise_BCHW: Tensor, times_B: Tensor) -> Tensor:
        """What the UNet is asked for: the noise, or the velocity v (Salimans and Ho 2022)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise_BCHW
        return self.scheduler.get_velocity(images_BCHW, noise_BCHW, times_B)

    @torch.no_grad()
    def generate(self, noise_BCHW: Tensor, steps: int = 20) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] by DDIM (Song et al. 2021, eta = 0): a function of the first noise alone.

        Times are spaced from the last one back ("trailing", Lin et al. 2024): the first step starts at pure noise.
        ValueError when `steps` does not divide the schedule: diffusers' DDIM then ends before the noise does.
        """
        length = self.scheduler.config.num_train_timesteps
        if steps < 1 or length % steps:
            raise ValueError(f"{steps} steps do not divide the schedule's {length}; give a divisor of {length}")
        scheduler = DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        x_BCHW = noise_BCHW
        for time in scheduler.timesteps:
            x_BCHW = scheduler.step(self.unet(x_BCHW, time).sample.float(), time, x_BCHW).prev_sample
        return x_BCHW.clamp(-1, 1)
