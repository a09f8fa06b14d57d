"""The convolutional autoencoders of GradCon, plain and variational, on images of 28x28 pixels."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 28
LATENT = (64, 3, 3)  # input shape of the decoder


def resized(images: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1], resized to 28x28 whatever their aspect ratio.

    Uses ``torch.nn.functional.interpolate``, bilinear with antialiasing; the authors use PIL's Lanczos filter and 8 bits.
    """
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


class Autoencoder(nn.Module):
    """Four convolutions down, four up: (N, C, 28, 28) -> reconstructions of that shape in [0, 1].

    Encoder: Conv(k4, s2, p2) and ReLU each, C→32→32→64→64 channels, 28→15→8→5→3 pixels per side. Decoder:
    ConvTranspose(k4, s2), paddings 2, 1, 2, 1, 64→64→32→32→C channels, 3→4→8→14→28 pixels; ReLU between, sigmoid at the end.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 32, 32, 64, 64)
        down = [nn.Conv2d(a, b, 4, stride=2, padding=2) for a, b in pairwise(widths)]
        self.encoder = nn.Sequential(*(part for conv in down for part in (conv, nn.ReLU())))
        widths = (64, 64, 32, 32, channels)
        up = [
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=padding)
            for (a, b), padding in zip(pairwise(widths), (2, 1, 2, 1), strict=True)
        ]
        ends = (nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Sigmoid())
        self.decoder = nn.Sequential(*(part for pair in zip(up, ends, strict=True) for part in pair))

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decoder(self.encoder(images))

    @staticmethod
    def reconstruction_loss(outputs: Tensor, images: Tensor) -> Tensor:
        """Mean squared error of each image: (N,)."""
        return (outputs - images).square().flatten(1).mean(1)

    def loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The training loss, a mean over images; ``generator``, on the CPU, draws the random numbers."""
        return self.reconstruction_loss(self(images), images).mean()

    def decoder_weights(self) -> dict[str, Tensor]:
        """The weights, without biases, of the four transposed convolutions, by parameter name."""
        return {
            name: part for name, part in self.named_parameters() if name.startswith("decoder.") and name.endswith(".weight")
        }


class VariationalAutoencoder(Autoencoder):
    """The same convolutions around a Gaussian code: μ, log σ² and the map back are linear layers, 576 to 576.

    The loss is the binary cross-entropy of the pixels plus the KL divergence of N(μ, σ²) from N(0, 1), both divided by the
    number of values of an image. The minimum is that of their sums, and like the mean squared error they are per value, so
    that a weight on a third term means the same in both networks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        size = LATENT[0] * LATENT[1] * LATENT[2]
        self.mean, self.log_variance, self.back = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction from the mean code, z = μ."""
        return self._decode(self.mean(self.encoder(images).flatten(1)))

    @staticmethod
    def reconstruction_loss(outputs: Tensor, images: Tensor) -> Tensor:
        """Mean binary cross-entropy of the pixels of each image: (N,)."""
        return F.binary_cross_entropy(outputs, images, reduction="none").flatten(1).mean(1)

    def latent_loss(self, images: Tensor) -> Tensor:
        """KL divergence of each image's code from N(0, 1), divided by the number of values of an image: (N,)."""
        return _divergence(*self._encode(images)) / images[0].numel()

    def loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw z ~ N(μ, σ²) per image, or z = μ without a generator."""
        mean, log_variance = self._encode(images)
        code = mean
        if generator is not None:
            code = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        latent = _divergence(mean, log_variance) / images[0].numel()
        return (self.reconstruction_loss(self._decode(code), images) + latent).mean()

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(images).flatten(1)
        return self.mean(code), self.log_variance(code)

    def _decode(self, code: Tensor) -> Tensor:
        return self.decoder(self.back(code).unflatten(1, LATENT))


def _divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over the code (N, d): (N,)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
