"""Energy (Liu, Wang, Owens and Li, NeurIPS 2020, arXiv 2010.03759)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors import _last_layer
from oodbench.detectors._parameters import require_finite
from oodbench.probe import Probe


class Energy(Detector):
    """Free energy: −T·log Σ_c exp(z_c / T); T = 1 as in the paper's post-hoc use.

    logits (N, classes) -> (N,)
    """

    signals = ("logits",)

    def __init__(self, temperature: float = 1.0) -> None:
        require_finite("energy", "above 0", temperature=temperature)
        self.temperature = temperature

    def statistics(self, probe: Probe) -> Tensor:
        return _last_layer.energy(probe.logits, self.temperature)
