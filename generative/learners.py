"""What each kind brings to the training loop: its optimizers, and the losses of one step.

Axes: B rows of this process, C H W of an image, Z latent dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from generative.diffusion import DiffusionModel, min_snr_weight, signal_to_noise, stratified_timesteps
from generative.gan import GAN, PenalisedDiscriminator, discriminator_nll, generator_nll
from generative.training import Batch, Phase, Terms
from generative.vae import VAE, negative_elbo
from launch.engine import Engine
from launch.runtime import Runtime

MAX_GRAD_NORM = 1.0
ADAM_BETAS = (0.9, 0.99)
GAN_BETAS = (0.0, 0.99)  # momentum lets the two players overshoot each other (Karras et al. 2018)


def make_adam(module: nn.Module, rate: float, betas: tuple[float, float] = ADAM_BETAS) -> torch.optim.Adam:
    """Adam in one kernel: in the plain loop it is a quarter of a step."""
    return torch.optim.Adam(module.parameters(), lr=rate, betas=betas, fused=True)


class VAELearner:
    """Minimises the negative ELBO, in nats for each pixel value."""

    def __init__(self, model: VAE, rate: float, batch_size: int, runtime: Runtime) -> None:
        self.model = self.averaged = model
        self.engine = Engine(runtime, model, make_adam(model, rate), MAX_GRAD_NORM, batch_size)
        self.phases = [Phase("vae", self.engine, self.terms)]

    def terms(self, batch: Batch) -> Terms:
        """Loss, reconstruction and KL in nats for each image, and the bound in bits for each pixel value."""
        posterior = self.engine(batch.images, batch.normal("posterior", *self.model.noise_shape))
        nll_B, kl_B = negative_elbo(batch.images, posterior)
        values = batch.images[0].numel()
        elbo = batch.mean(nll_B + kl_B)
        return {
            "loss": elbo / values,
            "reconstruction": batch.mean(nll_B),
            "kl": batch.mean(kl_B),
            "bits_per_dim": elbo / values / math.log(2),
        }


class GANLearner:
    """A discriminator step on real and generated images, then a generator step. In fp32: R1 is a second derivative."""

    def __init__(self, model: GAN, rate: float, r1_weight: float, batch_size: int, runtime: Runtime) -> None:
        self.model, self.averaged, self.r1_weight = model, model.generator, r1_weight
        penalised, generator = PenalisedDiscriminator(model.discriminator), model.generator
        # not clipped, since R1 holds the gradients
        adam = make_adam(penalised, rate, GAN_BETAS)
        self.discriminator = Engine(runtime, penalised, adam, math.inf, batch_size, whole=True)
        self.generator = Engine(runtime, generator, make_adam(generator, rate, GAN_BETAS), math.inf, batch_size)
        self.phases = [
            Phase("discriminator", self.discriminator, self.discriminator_terms),
            Phase("generator", self.generator, self.generator_terms),
        ]

    def discriminator_terms(self, batch: Batch) -> Terms:
        """Cross-entropy of telling real from generated, plus r1_weight / 2 times R1; mean probability of "real" on each."""
        with torch.no_grad():
            fake_BCHW = self.model.generator(batch.normal("latent of discriminator", *self.model.noise_shape))
        real_B, fake_B, r1_B = self.discriminator.wrapped(batch.images, fake_BCHW)
        r1 = batch.mean(r1_B)
        return {
            "loss": batch.mean(discriminator_nll(real_B, fake_B)) + 0.5 * self.r1_weight * r1,
            "r1": r1,
            "real_score": batch.mean(real_B.sigmoid()),
            "fake_score": batch.mean(fake_B.sigmoid()),
        }

    def generator_terms(self, batch: Batch) -> Terms:
        """The non-saturating loss; the discriminator's weights take no part in this graph."""
        discriminator = self.model.discriminator.requires_grad_(False)
        fake_BCHW = self.generator.wrapped(batch.normal("latent of generator", *self.model.noise_shape))
        logits_B = discriminator(fake_BCHW).squeeze(1)
        discriminator.requires_grad_(True)
        return {"loss": batch.mean(generator_nll(logits_B))}


class DiffusionLearner:
    """Denoising at a random time: weighted squared error of the noise or the velocity."""

    def __init__(
        self, model: DiffusionModel, rate: float, min_snr_gamma: float | None, batch_size: int, runtime: Runtime
    ) -> None:
        self.model, self.averaged, self.gamma = model, model.unet, min_snr_gamma
        self.engine = Engine(runtime, model.unet, make_adam(model.unet, rate), MAX_GRAD_NORM, batch_size)
        self.snr_T = signal_to_noise(model.scheduler.alphas_cumprod)
        self.phases = [Phase("unet", self.engine, self.terms)]

    def terms(self, batch: Batch) -> Terms:
        """The weighted loss, and the mean squared error without weights."""
        scheduler, prediction = self.model.scheduler, self.model.scheduler.config.prediction_type
        times_B = stratified_timesteps(batch.uniform("times"), batch.rows, batch.size, len(self.snr_T))
        noise_BCHW = batch.normal("noise", *self.model.noise_shape)
        times_B = times_B.to(noise_BCHW.device)
        noisy_BCHW = scheduler.add_noise(batch.images, noise_BCHW, times_B)
        target_BCHW = self.model.target(batch.images, noise_BCHW, times_B)
        found_BCHW = self.engine(noisy_BCHW, times_B).sample.float()
        error_B = (found_BCHW - target_BCHW).square().flatten(1).mean(1)
        if self.gamma is None:
            return {"loss": batch.mean(error_B), "squared_error": batch.mean(error_B)}
        weight_B = min_snr_weight(self.snr_T.to(error_B.device)[times_B], self.gamma, prediction)
        return {"loss": batch.mean(weight_B * error_B), "squared_error": batch.mean(error_B)}
