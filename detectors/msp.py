"""MSP: the maximum softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv 1610.02136)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.probe import Probe


class MSP(Detector):
    """One minus the largest softmax probability: 1 − max_c p_c, in float64, as many real images tie at 0 in float32.

    logits (N, classes) -> (N,) in [0, 1 − 1/classes]
    """

    signals = ("logits",)

    def statistics(self, probe: Probe) -> Tensor:
        return 1 - probe.softmax.max(1).values
