"""Purview: gradient norms under a confounding label.

Lee, Lehman, Prabhushankar and AlRegib, Probing the Purview of Neural Networks via Gradient Analysis, IEEE Access 2023
(arXiv 2304.02834); precursors at ICIP 2020 and 2021.
"""

from typing import ClassVar

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite
from oodbench.gradients.losses import confounding
from oodbench.probe import Probe


class Purview(Detector):
    """How much every parameter tensor would have to change to fit a label that no training image had.

    J = Σ_c BCE(σ(z_c), y) with the confounding label y for every class, all ones as in the paper. For every parameter
    tensor p (weights and biases separately, norm layers included) the column is log ‖∇_θp J‖², the gradient of that image
    alone, in eval mode.

    The paper says only that its classifier on them has two linear layers: here a shift head with 40 hidden units, Adam, and
    early stopping on the validation samples used for choosing. Without a shift to learn from, the paper has no score; here
    it is the mean square of the columns, each standardised on held-out in-distribution images.

    The variants are unsupervised scores of the authors' later code (GradTrust, arXiv 2405.13758), which need no training
    images: ``initial`` is the mean of ‖∇_θp J‖² over the first half of the P tensors, ``final`` over the last half. As in that
    code, a half has ⌊(P − 1)/2⌋ and P − ⌈(P − 1)/2⌉ tensors, but at least one.

    Parameter gradients (N, P) -> (N, P + 2), float64
    """

    signals = ("gradient_norms",)
    unsupervised_head = "standardised-square"
    shift_head = "mlp"
    variants: ClassVar[tuple[str, ...]] = ("initial", "final")

    def __init__(self, label: float = 1.0) -> None:
        require_finite("purview", "from 0 to 1", label=label)
        self.label = label

    def statistics(self, probe: Probe) -> Tensor:
        norms = self.norms(probe)
        last = norms.shape[1] - 1
        halves = norms[:, : max(1, last // 2)], norms[:, (last + 1) // 2 :]
        return torch.cat([logarithms(norms), *(half.mean(1, keepdim=True) for half in halves)], 1)

    def norms(self, probe: Probe) -> Tensor:
        """‖∇_θp J‖² of every parameter tensor: (N, P)."""
        return probe.gradient_norms(confounding(self.label), key=("confounding", self.label)).double()


def logarithms(norms: Tensor) -> Tensor:
    """log ‖∇_θp J‖², finite also for a gradient of exactly zero, of a layer whose units are all inactive."""
    return norms.clamp_min(torch.finfo(torch.float32).tiny).log()
