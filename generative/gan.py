"""A GAN with the non-saturating loss (Goodfellow et al. 2014) and the R1 penalty (Mescheder et al. 2018).

Why these: R1 makes training converge locally where the plain and the Wasserstein losses circle (Mescheder et al. 2018,
table 1), and needs no normalisation in the discriminator, no power iterations and no several critic steps.
Axes: B images of a batch, C H W of an image, Z latent dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.nets import Decoder, Encoder


def discriminator_nll(real_logits_B: Tensor, fake_logits_B: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))) with D = sigmoid(logits): (B,), nats. At logits 0 it is 2 log 2."""
    return F.softplus(-real_logits_B) + F.softplus(fake_logits_B)


def generator_nll(fake_logits_B: Tensor) -> Tensor:
    """-log D(G(z)): (B,), nats; its gradient does not vanish where the discriminator is sure."""
    return F.softplus(-fake_logits_B)


def r1_penalty(real_logits_B: Tensor, real_BCHW: Tensor) -> Tensor:
    """Squared norm of the discriminator's gradient at each real image: (B,), differentiable.

    `real_BCHW` must require gradients, and each logit must depend on its own image alone.
    """
    (gradient,) = torch.autograd.grad(real_logits_B.sum(), real_BCHW, create_graph=True)
    return gradient.square().flatten(1).sum(1)


class Generator(nn.Module):
    """N(0, 1) noise (B, Z) -> images (B, C, H, W) in [-1, 1]."""

    def __init__(self, image_size: int, channels: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.decoder = Decoder(image_size, channels, width, latent_dim)

    def forward(self, noise_BZ: Tensor) -> Tensor:
        return torch.tanh(self.decoder(noise_BZ))


class PenalisedDiscriminator(nn.Module):
    """The discriminator as it is trained: R1, itself a gradient, is taken inside the forward pass.

    Outside, DDP and DeepSpeed would see a backward pass that is not the step's.
    """

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real_BCHW: Tensor, fake_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of real and of generated images, and R1 at the real ones: each (B,)."""
        real_BCHW = real_BCHW.detach().requires_grad_()
        real_B, fake_B = self.discriminator(torch.cat([real_BCHW, fake_BCHW])).squeeze(1).chunk(2)
        return real_B, fake_B, r1_penalty(real_B, real_BCHW)


class GAN(ModelMixin, ConfigMixin):
    """A generator and its discriminator, which gives one logit for each image: above 0 for real."""

    @register_to_config
    def __init__(self, image_size: int = 8, channels: int = 1, width: int = 32, latent_dim: int = 32) -> None:
        super().__init__()
        self.generator = Generator(image_size, channels, width, latent_dim)
        self.discriminator = Encoder(image_size, channels, width, 1)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one image is made from."""
        return (self.config.latent_dim,)

    def forward(self, noise_BZ: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from N(0, 1) noise."""
        return self.generator(noise_BZ)

    @torch.no_grad()
    def generate(self, noise_BZ: Tensor) -> Tensor:
        """As `forward`, without gradients."""
        return self.generator(noise_BZ)
