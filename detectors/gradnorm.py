"""GradNorm (Huang, Geng and Li, NeurIPS 2021, arXiv 2110.00218)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.probe import Probe


class GradNorm(Detector):
    """Minus the L1 norm of the last layer's weight gradient of the cross-entropy from all ones to the softmax.

    With K classes, ∂(−Σ_c log p_c)/∂W = (K·p − 1) fᵀ, an outer product, so its L1 norm is ‖f‖₁·‖K·p − 1‖₁ and no
    backward pass is needed. The norm is large in distribution, and K times that of KL(uniform ‖ p), as in the authors' code.

    features (N, d), logits (N, K) -> (N,), at most 0
    """

    signals = ("logits", "features")

    def statistics(self, probe: Probe) -> Tensor:
        classes = probe.logits.shape[1]
        return -probe.features.double().abs().sum(1) * (classes * probe.softmax - 1).abs().sum(1)
