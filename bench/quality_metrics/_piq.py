"""The library piq, for metrics that it computes as their authors' code does."""

from typing import Any

import torch
from torch import Tensor

from oodbench.errors import OodbenchError


def by_piq(metric: str, function: str, references: Tensor, distorted: Tensor, **options: Any) -> Tensor:
    """Images from 0 to 255, (N, C, H, W) each -> (N,). Raises OodbenchError if piq is not installed.

    One image at a time, because some of its functions scale a map by the extremes of the whole batch. It names the reference
    last, which matters where a metric is not symmetric.
    """
    try:
        import piq
    except ImportError as error:
        raise OodbenchError(f"quality metric '{metric}' needs piq; run pip install 'oodbench[quality]'") from error
    compute, pairs = getattr(piq, function), zip(distorted.split(1), references.split(1), strict=True)
    return torch.cat([compute(*pair, data_range=255, reduction="none", **options) for pair in pairs])
