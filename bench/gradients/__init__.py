"""Per-sample gradients: for one batch, each sample's squared gradient norm for every parameter tensor, and its inner
product with a direction, without a loop over samples and without storing per-sample gradients.

The pass is recorded (``record``): if a function with a rule (``rules``) is called with a parameter, its input and the
gradient of its output are all that its per-sample gradients (``factors``) need. Each network is tested once against plain
autograd (``coverage``); parameters without a rule use ``torch.func`` (``slow``).
"""

from oodbench.gradients.norms import Recording, inner_products, norms_and_products, squared_norms

__all__ = ["Recording", "inner_products", "norms_and_products", "squared_norms"]
