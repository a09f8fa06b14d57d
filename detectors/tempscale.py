"""Temperature scaling (Guo, Pleiss, Sun and Weinberger, ICML 2017, arXiv 1706.04599)."""

import torch
from torch import Tensor

from oodbench.calibration import fitted_temperature
from oodbench.detector import Detector
from oodbench.detectors._moments import labels_of
from oodbench.errors import Unsuitable
from oodbench.probe import Probe


class TemperatureScaling(Detector):
    """Log-odds against the prediction ŷ at calibrated logits: log (1 − p)/p with p = max_c softmax(z / T)_c.

    They have the order of 1 − p, which rounds to 0 for a network that is always right: T is then the lowest.

    T has the least negative log-likelihood of the labels of held-out in-distribution images, within [.05, 20]. As in the
    paper, it is fitted to calibrate the network, not to detect anything.

    logits (N, classes) -> (N,), at most log(classes − 1). Keeps the logits of held-out images until ``finish``.
    """

    signals = ("logits",)
    calibrates = True
    temperature_: float

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def observe(self, probe: Probe) -> None:
        labels = labels_of(probe)
        self._logits.append(probe.logits[probe.held_out])
        self._labels.append(labels[probe.held_out])

    def finish(self) -> None:
        logits, labels = (torch.cat(parts).cpu().numpy() for parts in (self._logits, self._labels))
        self._logits, self._labels = [], []
        if not len(logits):
            raise Unsuitable("needs held-out training images, but there are none; give more training images")
        self.temperature_ = fitted_temperature(logits, labels)

    def statistics(self, probe: Probe) -> Tensor:
        largest = (probe.logits / self.temperature_).sort(1, descending=True).values  # (N, classes)
        return largest[:, 1:].logsumexp(1) - largest[:, 0]
