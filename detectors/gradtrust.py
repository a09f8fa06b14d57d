"""GradTrust (Prabhushankar and AlRegib, Counterfactual gradients-based quantification of prediction trust in neural
networks, 2024, arXiv 2405.13758)."""

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.probe import Probe


class GradTrust(Detector):
    """Minus the ratio of the largest to the mean variance of squared last-layer gradients, over the classes.

    The loss is the squared error between the logits z and a vector of 1/C, C classes. Its gradient at the weights of class c
    is proportional to u_c f, with u_c = z_c − 1/C, so the variance of its squares over the features is proportional to u_c⁴,
    and the ratio is max_c u_c⁴ / mean_c u_c⁴: no backward pass is needed, and features cancel.

    logits (N, C) -> (N,) in [−C, −1], and 0 if all u_c are 0
    """

    signals = ("logits",)

    def statistics(self, probe: Probe) -> Tensor:
        fourth = (probe.logits - 1 / probe.logits.shape[1]).pow(4)  # (N, C)
        return -fourth.max(1).values / fourth.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
