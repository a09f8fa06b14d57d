"""LARS: layer-wise adaptive rates (You et al. 2017, arXiv 1708.03888), as SimCLR's authors train with it."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """For each tensor w with gradient g:

        g ← g + decay · w        v ← momentum · v + lr · trust · g        w ← w − v

    where trust = 0.001 ‖w‖ / ‖g‖ in groups with ``adapted``, or 1 if either norm is 0, and trust = 1 in the other groups:
    SGD with momentum, whose velocity has the rate within.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapted": True}
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None:
            raise NotImplementedError("LARS takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad + group["weight_decay"] * weight
                lr = group["lr"]
                if group["adapted"]:
                    ratio = weight.norm() / gradient.norm()
                    lr = lr * torch.where((ratio > 0) & ratio.isfinite(), group["trust"] * ratio, 1.0)
                state = self.state[weight]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(weight)
                state["velocity"].mul_(group["momentum"]).add_(gradient * lr)
                weight -= state["velocity"]
        return None
