"""MaxLogit: the largest logit (Hendrycks et al., Scaling Out-of-Distribution Detection, ICML 2022, arXiv 1911.11132)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.probe import Probe


class MaxLogit(Detector):
    """Minus the largest logit: −max_c z_c.

    logits (N, classes) -> (N,)
    """

    signals = ("logits",)

    def statistics(self, probe: Probe) -> Tensor:
        return -probe.logits.max(1).values
