"""Per-sample gradients: for one batch, each sample's squared gradient norm at every parameter tensor, and its inner product
with a direction, without a loop over samples and without keeping per-sample gradients.

The pass is recorded (``record``): where a function with a rule (``rules``) is called with a parameter, what went in and the
gradient of what came out are all that its per-sample gradients (``parts``) are made of. Each network is tried once
against plain autograd (``coverage``); what no rule covers goes through ``torch.func`` (``slow``).
"""

from oodbench.gradients.norms import Recording, inner_products, norms_and_products, squared_norms

__all__ = ["Recording", "inner_products", "norms_and_products", "squared_norms"]
