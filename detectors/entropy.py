"""Predictive entropy, as in Lakshminarayanan, Pritzel and Blundell (NeurIPS 2017, arXiv 1612.01474), of a single network."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.probe import Probe


class Entropy(Detector):
    """Entropy of the softmax, in nats: −Σ_c p_c log p_c.

    logits (N, classes) -> (N,) in [0, log classes]
    """

    signals = ("logits",)

    def statistics(self, probe: Probe) -> Tensor:
        # log p by log_softmax: finite even if p underflows to 0.
        return -(probe.softmax * probe.logits.log_softmax(1)).sum(1)
