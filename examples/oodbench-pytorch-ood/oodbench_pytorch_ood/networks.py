"""Networks that pytorch-ood's detectors may call: they answer with what the probe has computed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import oodbench


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen layer with copies of weight (classes, features) and bias (classes,)."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)


class Leaf(nn.Module):
    """Features as they are, at which a gradient may be taken."""

    def forward(self, features: Tensor) -> Tensor:
        return features.detach().clone().requires_grad_()


class Replay(nn.Module):
    """A network that gives the passes of ``logits`` (N, samples, classes) one after the other."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.passes = iter(logits.unbind(1))

    def forward(self, images: Tensor) -> Tensor:
        return next(self.passes)


class OneStep(nn.Module):
    """A network for the images of a probe: called again, for the images after a step against the gradient asked for first.

    The step is the probe's, as no detector runs the network. It moves a pixel whose gradient is 0 too, and pytorch-ood's does
    not. ``read`` takes the output from a probe.
    """

    def __init__(self, probe: oodbench.Probe, eps: float, read: Callable[[oodbench.Probe], Tensor]) -> None:
        super().__init__()
        self.probe, self.eps, self.read = probe, eps, read
        self.loss: Any = None

    def forward(self, images: Tensor) -> Tensor:
        if self.loss is None:
            return _FromProbe.apply(images, self)
        return self.read(self.probe.perturbed(self.eps, self.loss)).cpu()


class _FromProbe(torch.autograd.Function):
    """Output of the probe's network, whose gradient at the images is the probe's too."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: OneStep) -> Tensor:
        ctx.network = network
        return network.read(network.probe).cpu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        network = ctx.network

        def loss(probe: oodbench.Probe) -> Tensor:
            output = network.read(probe)
            return (output * gradient.to(output)).sum(1)

        network.loss = loss
        return network.probe.input_gradient(network.loss).cpu(), None


def logits_of(probe: oodbench.Probe) -> Tensor:
    return probe.logits.float()


def features_of(probe: oodbench.Probe) -> Tensor:
    return probe.features.float()
