"""Uncertainty of several predictions for one image: Gal (2016), Lakshminarayanan et al. (NeurIPS 2017)."""

import torch
from torch import Tensor

COLUMNS = ("mutual-information", "variance")  # the columns of ``uncertainties`` after the first


def uncertainties(logits: Tensor) -> Tensor:
    """Logits (members, N, classes) -> (N, 3), float64: predictive entropy, mutual information, variance.

    With p_m the softmax of member m and p̄ their mean: H(p̄), in nats; H(p̄) − mean H(p_m), at least 0; and
    Σ_c mean (p_mc − p̄_c)², the variance over members (divided by their number), summed over classes.
    """
    members = logits.double().softmax(2)
    mean = members.mean(0)
    entropy = torch.special.entr(mean).sum(1)
    information = (entropy - torch.special.entr(members).sum(2).mean(0)).clamp_min(0)
    return torch.stack([entropy, information, members.var(0, correction=0).sum(1)], 1)
