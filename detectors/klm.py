"""KL matching (Hendrycks et al., Scaling Out-of-Distribution Detection, ICML 2022, arXiv 1911.11132)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMeans
from oodbench.probe import Probe


class KLMatching(Detector):
    """min_k KL(p ‖ d_k), d_k the mean softmax of held-out in-distribution images *predicted* as k.

    A class that is never predicted gets its one-hot vector. Zeros in d count as the smallest float64, so that the
    divergence stays finite.

    logits (N, classes) -> (N,), float64, at least 0 up to rounding
    """

    signals = ("logits",)
    calibrates = True
    _means: ClassMeans | None = None
    typical_: Tensor  # d: (classes, classes)

    def observe(self, probe: Probe) -> None:
        if self._means is None:
            self._means = ClassMeans(probe.logits.shape[1])
        self._means.add(probe.softmax[probe.held_out], probe.prediction[probe.held_out])

    def finish(self) -> None:
        assert self._means is not None
        classes, device = self._means.classes, torch.as_tensor(self._means.sum).device
        self.typical_ = self._means.means(otherwise=torch.eye(classes, dtype=torch.float64, device=device))
        self._means = None

    def statistics(self, probe: Probe) -> Tensor:
        log_typical = self.typical_.clamp_min(torch.finfo(torch.float64).tiny).log()
        own = (probe.softmax * probe.logits.log_softmax(1)).sum(1)  # Σ p log p
        return (own[:, None] - probe.softmax @ log_typical.T).min(1).values  # (N, classes) -> (N,)
