"""GEN: generalised entropy (Liu, Lochman and Zach, CVPR 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from oodbench.detector import Detector
from oodbench.detectors._parameters import require_finite, require_grid, require_whole
from oodbench.probe import Probe

GAMMAS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
TOPS = (10, 50, 100, 200, 500, 1000)


class GEN(Detector):
    """Generalised entropy of the M largest softmax probabilities: Σ_{c ≤ M} p_(c)^γ (1 − p_(c))^γ.

    γ = .1 and M = 100 are the paper's; with fewer classes, M is their number. Both are chosen on a validation shift if
    learning from one is allowed: ``gammas`` and ``tops`` are those that OpenOOD tries.

    1 − p of the largest probability is computed as the sum of the others, which keeps all digits.

    logits (N, classes) -> (N, settings), at least 0
    """

    signals = ("logits",)
    shift_head = "choose"

    def __init__(
        self, gamma: float = 0.1, top: int = 100, gammas: Sequence[float] = GAMMAS, tops: Sequence[int] = TOPS
    ) -> None:
        require_finite("gen", "above 0", gamma=gamma)
        require_whole("gen", 1, top=top)
        require_grid("gen", "above 0", gammas=gammas)
        require_grid("gen", 1, tops=tops)
        self.gamma, self.top = gamma, top
        self.gammas, self.tops = [*map(float, gammas)], [*tops]  # JSON values
        self.grid = [{"gamma": g, "top": m} for g in self.gammas for m in self.tops]

    def statistics(self, probe: Probe) -> Tensor:
        largest = probe.softmax.sort(1, descending=True).values  # (N, classes)
        rest = torch.cat([largest[:, 1:].sum(1, keepdim=True), 1 - largest[:, 1:]], 1)
        terms = {gamma: (largest * rest).pow(gamma) for gamma in {setting["gamma"] for setting in self.settings}}
        return torch.stack([terms[setting["gamma"]][:, : setting["top"]].sum(1) for setting in self.settings], 1)
