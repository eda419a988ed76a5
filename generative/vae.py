"""A variational autoencoder (Kingma and Welling 2014) with a discretised logistic likelihood.

Axes: B images of a batch, C H W of an image, Z latent dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.nets import Decoder, Encoder

LEVEL = 2 / 255  # distance of two grey levels in [-1, 1]
LOG_SCALE_FLOOR = -7.0  # as PixelCNN++: a pixel that never varies must not drive its scale to zero


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each element, in nats (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def discretised_logistic_nll(images: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log P of each value of images on the 256 levels of [-1, 1], in nats; the shapes broadcast.

    P is the mass of a logistic distribution within half a level; the outer levels take the tails (Salimans et al. 2017,
    PixelCNN++, eq. 2). With a, b the ends of the bin in scales, sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^(b-a)):
    exact in logarithms where a difference of sigmoids would round to zero.
    """
    precision = torch.exp(-log_scale)
    upper = (images - mean + LEVEL / 2) * precision
    lower = (images - mean - LEVEL / 2) * precision
    inner = torch.log(-torch.expm1(-LEVEL * precision))
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    log_mass = torch.where(
        images < -1 + LEVEL / 2, below, torch.where(images > 1 - LEVEL / 2, above, below + above + inner)
    )
    return -log_mass


class Posterior(NamedTuple):
    """What a forward pass gives: the decoded location and scale of each pixel, the posterior's mean and log-variance."""

    location_BCHW: Tensor
    log_scale_CHW: Tensor
    mean_BZ: Tensor
    log_variance_BZ: Tensor


class VAE(ModelMixin, ConfigMixin):
    """Encoder, decoder and one learned scale for each pixel.

    A learned scale balances reconstruction and KL without a weight to tune (Rybkin et al. 2021, sigma-VAE); one for
    each pixel, since a digit's border never varies and its middle does.
    """

    @register_to_config
    def __init__(self, image_size: int = 8, channels: int = 1, width: int = 32, latent_dim: int = 16) -> None:
        super().__init__()
        self.encoder = Encoder(image_size, channels, width, 2 * latent_dim)
        self.decoder = Decoder(image_size, channels, width, latent_dim)
        self.log_scale = nn.Parameter(torch.full((channels, image_size, image_size), math.log(0.2)))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one image is made from."""
        return (self.config.latent_dim,)

    def forward(self, images_BCHW: Tensor, noise_BZ: Tensor) -> Posterior:
        """Encode, draw z = mean + deviation * noise, decode."""
        mean_BZ, log_variance_BZ = self.encoder(images_BCHW).float().chunk(2, dim=1)
        z_BZ = mean_BZ + torch.exp(0.5 * log_variance_BZ) * noise_BZ
        location_BCHW = self.decoder(z_BZ).float()
        return Posterior(location_BCHW, self.log_scale.clamp(min=LOG_SCALE_FLOOR), mean_BZ, log_variance_BZ)

    @torch.no_grad()
    def generate(self, noise_BZ: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from N(0, 1) noise: the location of p(x | z), without its pixel noise."""
        return self.decoder(noise_BZ).clamp(-1, 1)


def negative_elbo(images_BCHW: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Reconstruction -log p(x | z) and KL of each image, (B,) each, in nats; their sum bounds -log p(x) from above."""
    location, log_scale, mean, log_variance = posterior
    nll_BCHW = discretised_logistic_nll(images_BCHW, location, log_scale)
    return nll_BCHW.flatten(1).sum(1), gaussian_kl(mean, log_variance).sum(1)
