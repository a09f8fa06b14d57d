"""ODIN (Liang, Li and Srikant, ICLR 2018, arXiv 1706.02690)."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite, require_grid
from oodbench.probe import Probe

TEMPERATURES = (1.0, 10.0, 100.0, 1000.0)
EPSILONS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.005, 0.01, 0.05, 0.1, 0.2)


class ODIN(Detector):
    """Softmax at temperature T after a step that makes the network more confident in its prediction ŷ.

    x̃ = x − ε·sign(∇_x CE(z(x)/T, ŷ)), ε in pixel units of [0, 1], sign(0) = +1, not clipped;
    score 1 − max_c softmax(z(x̃)/T)_c. With T = 1 and ε = 0 it is MSP.

    logits (N, classes) of x and x̃ -> (N, settings), one column per setting (T, ε), in float64: at T = 1000 all scores are
    very close to 1 − 1/classes. T and ε are chosen on a validation shift if learning from one is allowed; otherwise they
    are the defaults of the authors' code, T = 1000 and ε = .0014. All ε of one T share one backward pass.
    """

    signals = ("logits", "input_gradient")
    shift_head = "choose"

    def __init__(
        self,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        temperatures: Sequence[float] = TEMPERATURES,
        epsilons: Sequence[float] = EPSILONS,
    ) -> None:
        require_finite("odin", "above 0", temperature=temperature)
        require_finite("odin", "of at least 0", epsilon=epsilon)
        require_grid("odin", "above 0", temperatures=temperatures)
        require_grid("odin", "of at least 0", epsilons=epsilons)
        self.temperature, self.epsilon = temperature, epsilon
        self.temperatures, self.epsilons = [*map(float, temperatures)], [*map(float, epsilons)]  # JSON values
        self.grid = [{"temperature": t, "epsilon": e} for t in self.temperatures for e in self.epsilons]

    def statistics(self, probe: Probe) -> Tensor:
        columns = []
        for setting in self.settings:
            temperature = setting["temperature"]
            loss = partial(_cross_entropy, temperature=temperature)
            stepped = probe.perturbed(setting["epsilon"], loss, key=("cross-entropy", temperature))
            columns.append(1 - (stepped.logits / temperature).softmax(1).max(1).values)
        return torch.stack(columns, 1)


def _cross_entropy(probe: Probe, temperature: float) -> Tensor:
    """CE(z/T, ŷ) of each image: (N,)."""
    return F.cross_entropy(probe.logits / temperature, probe.prediction, reduction="none")
