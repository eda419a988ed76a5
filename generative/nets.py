"""Small convolutional nets of the VAE and the GAN, for square images of any side from 4 up.

The side is halved until it is odd or at most 7 (8 -> 4, 28 -> 7, 32 -> 4), the channels double each time
(Radford et al. 2016, DCGAN), and two linear layers stand between that and a vector. There is no normalisation over
the batch: an image's output depends on that image alone, so ranks and batch sizes do not matter.
"""

from __future__ import annotations

from torch import Tensor, nn

SLOPE = 0.2


def halvings(side: int, largest: int = 7) -> int:
    """How often a side is halved: until it is odd or at most `largest`."""
    return 1 + halvings(side // 2, largest) if side > largest and side % 2 == 0 else 0


def initialise(net: nn.Module) -> None:
    """He et al. 2015 for leaky ReLU, zero biases; torch's own default shrinks the signal by layer."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Images (B, C, S, S) -> vectors (B, outputs)."""

    def __init__(self, image_size: int, channels: int, width: int, outputs: int) -> None:
        super().__init__()
        halved = halvings(image_size)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for k in range(halved):
            layers += [nn.Conv2d(width << k, width << (k + 1), 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        flat = (width << halved) * (image_size >> halved) ** 2
        hidden = 8 * width
        layers += [nn.Flatten(), nn.Linear(flat, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, outputs)]
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW)


class Decoder(nn.Module):
    """Vectors (B, inputs) -> images (B, C, S, S), not bounded."""

    def __init__(self, image_size: int, channels: int, width: int, inputs: int) -> None:
        super().__init__()
        halved = halvings(image_size)
        base, top, hidden = image_size >> halved, width << halved, 8 * width
        layers: list[nn.Module] = [
            *(nn.Linear(inputs, hidden), nn.LeakyReLU(SLOPE)),
            *(nn.Linear(hidden, top * base**2), nn.LeakyReLU(SLOPE)),
            nn.Unflatten(1, (top, base, base)),
        ]
        for k in reversed(range(halved)):
            layers += [nn.ConvTranspose2d(width << (k + 1), width << k, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, vectors_BZ: Tensor) -> Tensor:
        return self.layers(vectors_BZ)
