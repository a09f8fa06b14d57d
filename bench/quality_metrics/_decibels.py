"""Decibels of a mean squared error."""

import torch
from torch import Tensor

IDENTICAL = 100_000.0  # dB, of images without any error


def decibels(error: Tensor) -> Tensor:
    """10 log₁₀(255² / error), and ``IDENTICAL`` where the error is 0."""
    return torch.where(error == 0, IDENTICAL, 10 * (255**2 / error).log10())
