"""Monte Carlo dropout (Gal and Ghahramani, ICML 2016, arXiv 1506.02142)."""

from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite, require_seed, require_whole
from oodbench.detectors._uncertainty import COLUMNS, uncertainties
from oodbench.probe import Probe

MOST_PASSES = 1000  # whose error is a tenth of that of the default


class MCDropout(Detector):
    """Entropy of the mean softmax of T = 10 passes with dropout on and BatchNorm in eval mode: H(p̄).

    Variants: ``mutual-information``, H(p̄) − mean H(p_t), the disagreement between passes; ``variance``, the variance of
    the softmax over passes, summed over classes.

    If the forward pass goes through dropout modules, they drop units with their own probabilities. In other networks,
    features are dropped with probability ``p`` before the head; this is not in the paper, as the network was not trained
    for it. ``F.dropout`` and the dropout inside ``nn.MultiheadAttention`` stay off. Each image has masks of its own, drawn
    from ``seed`` (None: the run's) and its pixels, so that a score does not depend on the batch. A network whose dropout
    has tokens as first dimension (``batch_first=False``) is unsuitable.

    logits (T, N, classes) -> (N, 3), float64, in nats and squared probability
    """

    signals = ("stochastic",)
    variants = COLUMNS

    def __init__(self, passes: int = 10, p: float = 0.5, seed: int | None = None) -> None:
        require_whole("mc-dropout", 2, MOST_PASSES, passes=passes)
        require_finite("mc-dropout", "between 0 and 1", p=p)
        require_seed("mc-dropout", seed)
        self.passes, self.p, self.seed = passes, p, seed

    def statistics(self, probe: Probe) -> Tensor:
        return uncertainties(self._logits(probe))

    def probabilities(self, probe: Probe) -> Tensor:
        """The mean softmax: (N, classes)."""
        return self._logits(probe).softmax(2).mean(0)

    def _logits(self, probe: Probe) -> Tensor:
        return probe.stochastic(self.passes, self.p, self.random_seed)
