"""The recipe of `train-generative`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from launch.config import artefact
from launch.ranges import NotNegative, Positive, PositiveInt, ShareBelowOne
from launch.stage import StageConfig


@dataclass(kw_only=True)
class VAEOptions:
    """Options of kind vae."""

    latent_dim: PositiveInt = 16
    """Dimensions of the latent vector."""


@dataclass(kw_only=True)
class GANOptions:
    """Options of kind gan."""

    latent_dim: PositiveInt = 32
    """Dimensions of the latent vector."""
    r1_weight: NotNegative = 1.0
    """Weight gamma of the R1 penalty, gamma / 2 E ||grad D(x)||^2; 0 switches it off."""


@dataclass(kw_only=True)
class DiffusionOptions:
    """Options of kind diffusion."""

    noise_steps: PositiveInt = 1000
    """Steps of the noise schedule."""
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    """What the UNet predicts: the velocity, or the noise."""
    min_snr_gamma: Positive | None = 5.0
    """Bound of the loss weight min(SNR, gamma); null for the plain squared error."""


@dataclass(frozen=True)
class Dials:
    """What `steps`, `batch_size`, `learning_rate` and `width` are when the recipe leaves them out."""

    steps: int
    batch_size: int
    learning_rate: float
    width: int


# Chosen on 8x8 digits for about 20 seconds of one core each; docs/generative.md has what they reach.
DEFAULTS = {
    "vae": Dials(steps=1600, batch_size=64, learning_rate=1.6e-2, width=16),
    "gan": Dials(steps=800, batch_size=64, learning_rate=8e-3, width=16),
    "diffusion": Dials(steps=500, batch_size=32, learning_rate=6e-3, width=16),
}


@dataclass(kw_only=True)
class TrainConfig(StageConfig):
    """A generative model of images."""

    kind: Literal["vae", "gan", "diffusion"] = "diffusion"
    """What to train: a variational autoencoder, a GAN or a diffusion model."""
    data: str = artefact("embedded:digits::train")
    """Images: embedded:digits, a folder of pictures, an npz file, an idx file or the folder of MNIST; `::train` picks
    the half that `evaluate images` does not compare with."""
    image_size: PositiveInt | None = None
    """Bring the images to squares of this side; null to keep theirs."""
    steps: PositiveInt | None = None
    """Updates; null for the default of the kind."""
    batch_size: PositiveInt | None = None
    """Images of one update, over all processes; null for the default of the kind."""
    learning_rate: Positive | None = None
    """Adam's peak rate; null for the default of the kind."""
    width: PositiveInt | None = None
    """Channels at full resolution, doubled at each halving; null for the default of the kind."""
    ema_decay: ShareBelowOne = 0.99
    """Decay of the average of the weights that is saved, reached after a warm-up; 0 switches the average off."""
    vae: VAEOptions = field(default_factory=VAEOptions)
    """Options of kind vae."""
    gan: GANOptions = field(default_factory=GANOptions)
    """Options of kind gan."""
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    """Options of kind diffusion."""
    log_steps: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""

    def check(self) -> None:
        if self.kind == "gan" and self.precision == "bf16":
            raise ValueError("precision: a GAN trains in fp32, R1 being a second derivative; give fp32 or auto")
        if self.kind == "diffusion" and self.dials.width % 8:
            raise ValueError(f"width: {self.width} is no multiple of 8, the groups of the UNet's normalisation")

    @property
    def dials(self) -> Dials:
        """The four dials as given, or by default of the kind."""
        default = DEFAULTS[self.kind]
        given = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "width")}
        return Dials(**{k: getattr(default, k) if v is None else v for k, v in given.items()})
