"""VIF (Sheikh and Bovik, IEEE TIP 2006)."""

from torch import Tensor

from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics._images import grey
from oodbench.quality_metrics._piq import by_piq


class VIF(QualityMetric):
    """Visual information fidelity in the pixel domain, computed by piq.

    The information about the scene that the distorted image holds, over what the reference holds, in a Gaussian scale mixture
    model at four scales with visual noise of variance 2. It may exceed 1 where contrast was enhanced. The paper uses a wavelet
    transform; this is the authors' later approximation on pixels (vifp_mscale). Luma is rounded to whole numbers; piq
    computes in float32, which is twenty times as fast as float64.
    """

    smallest_side = 41

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        return by_piq("vif", "vif_p", grey(references).float(), grey(distorted).float())
