"""SHE: simplified Hopfield energy (Zhang, Fu, Chen, Du et al., ICLR 2023, openreview KkazG4lgKL)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._moments import ClassMeans, labels_of
from oodbench.probe import Probe
from oodbench.training_set import FitSize


class SHE(Detector):
    """−f·S_ŷ: minus the inner product with the stored pattern of the predicted class ŷ.

    S_c is the mean of the training features of class c that the network classifies correctly. The paper does not define it
    for a class without any: here it is the mean of all its features, and for a class without training images the mean of
    all features.

    features (N, d), logits (N, classes) -> (N,), float64
    """

    signals = ("logits", "features")
    _all: ClassMeans | None = None
    _correct: ClassMeans | None = None
    patterns_: Tensor  # S: (classes, d)

    def memory(self, size: FitSize) -> int:
        return 8 * 6 * size.classes * size.features

    def observe(self, probe: Probe) -> None:
        labels = labels_of(probe)
        if self._all is None or self._correct is None:
            self._all, self._correct = ClassMeans(probe.logits.shape[1]), ClassMeans(probe.logits.shape[1])
        correct = probe.prediction == labels
        self._all.add(probe.features, labels)
        self._correct.add(probe.features[correct], labels[correct])

    def finish(self) -> None:
        assert self._all is not None
        assert self._correct is not None
        self.patterns_ = self._correct.means(otherwise=self._all.means(otherwise=self._all.mean()))
        self._all = self._correct = None

    def statistics(self, probe: Probe) -> Tensor:
        return -(probe.features.double() * self.patterns_[probe.prediction]).sum(1)
