"""The losses against closed forms, brute force, SciPy, torch.distributions and diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from scipy.stats import logistic

from generative.diffusion import DiffusionModel, min_snr_weight, signal_to_noise, stratified_timesteps
from generative.gan import discriminator_nll, generator_nll, r1_penalty
from generative.vae import Posterior, discretised_logistic_nll, gaussian_kl, negative_elbo

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1

# ------------------------------------------------------------------------------------------------ VAE


def test_kl_is_that_of_torch_distributions():
    mean, log_variance = torch.tensor([0.0, 1.5, -2.0]), torch.tensor([0.0, 0.7, -3.0])
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert gaussian_kl(mean, log_variance)[0] == 0.0
    assert gaussian_kl(torch.tensor(2.0), torch.tensor(0.0)) == 2.0  # half the squared mean


@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1, 0.9999, 4.0])
@pytest.mark.parametrize("log_scale", [-7.0, -2.0, 0.5])
def test_discretised_logistic_is_a_distribution(mean, log_scale):
    mass = torch.exp(-discretised_logistic_nll(LEVELS, torch.tensor(mean).double(), torch.tensor(log_scale).double()))
    assert mass.sum() == pytest.approx(1, abs=1e-12)


def test_discretised_logistic_is_the_difference_of_distribution_functions():
    mean, log_scale, half = 0.21, -1.7, 1 / 255
    scale = math.exp(log_scale)
    values = LEVELS.numpy()
    upper = np.where(values > 0.999, 1.0, logistic.cdf(values + half, mean, scale))
    lower = np.where(values < -0.999, 0.0, logistic.cdf(values - half, mean, scale))
    location, log_scale_tensor = torch.tensor([mean, log_scale], dtype=torch.float64)
    found = discretised_logistic_nll(LEVELS, location, log_scale_tensor)
    np.testing.assert_allclose(found.numpy(), -np.log(upper - lower), rtol=1e-9)


def test_discretised_logistic_is_finite_where_a_difference_of_sigmoids_is_zero():
    """Far below its location the mass falls as exp(-distance / scale); the top level has all of it above."""
    location = torch.full((3,), 30.0, requires_grad=True)
    nll = discretised_logistic_nll(torch.tensor([-1.0, 0.5, 1.0]), location, torch.full((3,), -7.0))
    steep = math.exp(7)
    torch.testing.assert_close(nll.detach(), torch.tensor([31 * steep, 29.5 * steep, 0.0]), rtol=1e-3, atol=1e-6)
    nll.sum().backward()
    torch.testing.assert_close(location.grad, torch.tensor([steep, steep, 0.0]), rtol=1e-4, atol=1e-6)


def test_elbo_is_the_sum_over_pixels_and_latents_of_each_image():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 1, 4, 4)) / 127.5 - 1
    location, log_scale = torch.randn(3, 1, 4, 4), torch.randn(1, 4, 4)
    mean, log_variance = torch.randn(3, 5), torch.randn(3, 5)
    nll, kl = negative_elbo(images, Posterior(location, log_scale, mean, log_variance))
    for i in range(3):
        by_pixel = [
            discretised_logistic_nll(images[i, 0, y, x], location[i, 0, y, x], log_scale[0, y, x]).item()
            for y in range(4)
            for x in range(4)
        ]
        assert nll[i].item() == pytest.approx(sum(by_pixel), rel=1e-5)
        assert kl[i].item() == pytest.approx(gaussian_kl(mean[i], log_variance[i]).sum().item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------ GAN


def test_gan_losses_are_those_of_the_probabilities():
    real, fake = torch.tensor([0.0, 3.0, -1.0]), torch.tensor([0.0, -2.0, 4.0])
    p_real, p_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(discriminator_nll(real, fake), -torch.log(p_real) - torch.log(1 - p_fake))
    torch.testing.assert_close(generator_nll(fake), -torch.log(p_fake))
    assert discriminator_nll(real, fake)[0] == pytest.approx(2 * math.log(2))


def test_generator_gradient_survives_a_sure_discriminator():
    logit = torch.tensor([-40.0], requires_grad=True)
    generator_nll(logit).sum().backward()
    assert logit.grad.item() == pytest.approx(-1.0)


def test_r1_of_a_quadratic_discriminator():
    """D(x) = x' A x / 2 has gradient A x, and R1's own gradient in A is 2 (A x) x'."""
    torch.manual_seed(0)
    half = torch.randn(16, 16)
    matrix = (half + half.T).requires_grad_()
    images = torch.randn(5, 1, 4, 4, requires_grad=True)
    flat = images.flatten(1)
    logits = 0.5 * torch.einsum("bi,ij,bj->b", flat, matrix, flat)
    penalty = r1_penalty(logits, images)
    gradient = flat.detach() @ matrix.detach()
    torch.testing.assert_close(penalty, gradient.square().sum(1), rtol=1e-4, atol=1e-4)
    penalty.sum().backward()
    outer = gradient.T @ flat.detach()
    torch.testing.assert_close(matrix.grad, outer + outer.T, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------- diffusion


def test_signal_to_noise_is_that_of_diffusers():
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(signal_to_noise(scheduler.alphas_cumprod), compute_snr(scheduler, torch.arange(100)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_every_prediction_as_the_same_error_of_x(prediction):
    """With x_t given, an error of the noise or of v implies one of x; the weighted errors are min(SNR, gamma) of that."""
    model = DiffusionModel.create(8, 1, 8, 100, prediction)
    torch.manual_seed(0)
    x, noise = torch.randn(100, 1, 8, 8).double(), torch.randn(100, 1, 8, 8).double()
    times = torch.arange(100)
    alpha = model.scheduler.alphas_cumprod.double().view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
    wrong = model.target(x, noise, times) + torch.randn_like(x)
    if prediction == "epsilon":
        implied = (noisy - (1 - alpha).sqrt() * wrong) / alpha.sqrt()
    else:
        implied = alpha.sqrt() * noisy - (1 - alpha).sqrt() * wrong
    snr = signal_to_noise(model.scheduler.alphas_cumprod.double())
    error = (wrong - model.target(x, noise, times)).square().flatten(1).sum(1)
    expected = snr.clamp(max=5.0) * (implied - x).square().flatten(1).sum(1)
    torch.testing.assert_close(min_snr_weight(snr, 5.0, prediction) * error, expected, rtol=1e-4, atol=1e-9)


def test_velocity_is_alpha_noise_minus_sigma_x():
    model = DiffusionModel.create(8, 1, 8, 50, "v_prediction")
    x, noise, time = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8), torch.tensor([20])
    alpha = model.scheduler.alphas_cumprod[20]
    torch.testing.assert_close(model.target(x, noise, time), alpha.sqrt() * noise - (1 - alpha).sqrt() * x)


def test_stratified_times_cover_the_schedule_and_belong_to_their_row():
    offset = torch.tensor(0.37)
    whole = stratified_timesteps(offset, slice(0, 50), 50, 1000)
    assert (whole // 20).tolist() == list(range(50))  # one time in each fiftieth
    halves = [stratified_timesteps(offset, rows, 50, 1000) for rows in (slice(0, 25), slice(25, 50))]
    assert torch.equal(torch.cat(halves), whole)
    grid = torch.stack([stratified_timesteps(u, slice(0, 4), 4, 8) for u in torch.arange(0.0, 1, 0.01)])
    assert torch.bincount(grid.flatten(), minlength=8).tolist() == [50] * 8  # each time is uniform


class Oracle(torch.nn.Module):
    """The exact velocity for a data set of one image."""

    def __init__(self, image, scheduler):
        super().__init__()
        self.image, self.alphas, self.config = image, scheduler.alphas_cumprod, None

    def forward(self, noisy, time):
        alpha = self.alphas[time]
        noise = (noisy - alpha.sqrt() * self.image) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": alpha.sqrt() * noise - (1 - alpha).sqrt() * self.image})


@pytest.mark.parametrize("steps", [1, 8, 50])
def test_ddim_with_the_exact_velocity_gives_back_the_only_image(steps):
    scheduler = DiffusionModel.create(8, 1, 8, 1000, "v_prediction").scheduler
    image = torch.rand(1, 1, 8, 8) * 1.8 - 0.9
    model = DiffusionModel(Oracle(image, scheduler), scheduler)
    made = model.generate(torch.randn(5, 1, 8, 8), steps=steps)
    torch.testing.assert_close(made, image.expand(5, 1, 8, 8), rtol=0, atol=2e-3)
