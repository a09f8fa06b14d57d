"""pytorch-ood's Gram on row sums of Gram matrices that were computed batch by batch."""

import pytorch_ood.detector
import torch
from torch import Tensor


class PrecomputedGram(pytorch_ood.detector.Gram):
    """``feature_layers`` are the widths of the layers, poles·channels, and the data are the row sums of all layers."""

    row_sums = staticmethod(pytorch_ood.detector.Gram._gram_vector)

    def _create_feature_list(self, data: Tensor) -> tuple[None, list[Tensor]]:
        return None, list(torch.split(data, self.feature_layers, 1))

    def _gram_vector(self, feature: Tensor, p: int) -> Tensor:
        """The row sums of pole p among those of all poles, (N, poles·channels) -> (N, channels)."""
        place = list(self.num_poles_list).index(p)
        return feature.unflatten(1, (len(self.num_poles_list), -1))[:, place]
