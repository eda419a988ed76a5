"""Shapes for every size, and that an image's output depends on that image alone."""

import pytest
import torch

from generative import GAN, VAE, DiffusionModel
from generative.nets import Decoder, Encoder, halvings


def test_halvings():
    assert [halvings(s) for s in (4, 7, 8, 9, 12, 16, 28, 30, 32, 64)] == [0, 0, 1, 0, 1, 2, 2, 1, 3, 4]
    assert [halvings(s, largest=2) for s in (2, 4, 8, 28, 32)] == [0, 1, 2, 2, 4]


@pytest.mark.parametrize("side", [4, 5, 8, 16, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_models_map_noise_to_bounded_images_of_their_size(side, channels):
    torch.manual_seed(0)
    diffusion = DiffusionModel.create(side, channels, 8, 10, "epsilon")
    for model, options in ((VAE(side, channels, 8, 3), {}), (GAN(side, channels, 8, 3), {}), (diffusion, {"steps": 2})):
        images = model.generate(10 * torch.randn(2, *model.noise_shape), **options)
        assert images.shape == (2, channels, side, side)
        assert images.abs().max() <= 1 and not images.requires_grad
    with pytest.raises(ValueError, match="3 steps do not divide the schedule's 10"):
        diffusion.generate(torch.randn(2, *diffusion.noise_shape), steps=3)


def test_unet_has_a_level_for_each_halving_and_four_at_most():
    channels = {
        s: DiffusionModel.create(s, 1, 8, 10, "epsilon").unet.config.block_out_channels for s in (8, 16, 28, 64)
    }
    assert channels == {8: (8, 16, 32), 16: (8, 16, 32, 32), 28: (8, 16, 32), 64: (8, 16, 32, 32)}


def test_an_output_depends_on_its_own_image_alone():
    """R1 sums gradients over the batch, and samples must not depend on their neighbours: no batch statistics."""
    torch.manual_seed(0)
    images = torch.randn(3, 1, 8, 8, requires_grad=True)
    Encoder(8, 1, 4, 2)(images)[1].sum().backward()
    assert images.grad[1].abs().sum() > 0 and images.grad[[0, 2]].abs().sum() == 0
    noise = torch.randn(3, 5, requires_grad=True)
    Decoder(8, 1, 4, 5)(noise)[1].sum().backward()
    assert noise.grad[1].abs().sum() > 0 and noise.grad[[0, 2]].abs().sum() == 0


def test_signal_keeps_its_size_through_the_layers():
    """He's initialisation: the last hidden layer of a deep encoder is as large as its input, up to a factor of 3."""
    torch.manual_seed(0)
    encoder = Encoder(64, 1, 16, 4)
    images = torch.randn(8, 1, 64, 64)
    hidden = encoder.layers[:-1](images)
    assert 1 / 3 < hidden.square().mean().sqrt() / images.square().mean().sqrt() < 3
