"""Watches a detector during fit and score, and reports what it changed that does not belong to it."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oodbench import classifier as network
from oodbench import forward, gradients, probe
from oodbench.classifier import Classifier
from oodbench.conformance import task
from oodbench.detector import Detector
from oodbench.errors import contained
from oodbench.forward.guard import TORCH, Guard
from oodbench.models.device import random_state, seeded
from oodbench.probe import Probe

PROBE = probe.__file__
# Modules whose frames are between the network and its caller.
RUN_FOR_OTHERS = tuple(
    str(path)
    for path in (
        *(Path(str(package.__file__)).parent for package in (torch, gradients, forward)),
        *(module.__file__ for module in (network, task)),
    )
)


@dataclass
class Watched:
    """Changes left by a fit and a score, in words; the number of batches scored with labels in the probe; and own passes."""

    of_classifier: list[str] = field(default_factory=list)
    of_others: list[str] = field(default_factory=list)
    labels_seen: int = 0
    own_passes: list[str] = field(default_factory=list)  # modules of the network that ran outside the probe


def watch(detector: Detector, classifier: Classifier, train: Tensor, labels: Tensor, test: Tensor) -> Watched:
    """Fit a detector of the same class on ``train`` with ``labels``, and score ``test``, (N, C, H, W) each."""
    watched = Watched()
    spied = _spied(type(detector), watched)(**detector.parameters())
    spied.name = detector.name
    given = {"training images": train.clone(), "labels": labels.clone(), "test images": test.clone()}
    with other_randomness():  # a random state that does not result from the detector's own seed
        guard, surroundings = Guard(classifier), _of_surroundings()
        with suppress(Exception), contained():  # other checks report it
            spied.fit(classifier, given["training images"], given["labels"])
            spied.score(classifier, given["test images"])
        changed = guard.restore()
        watched.of_classifier += [name for name in changed if name not in TORCH]
        watched.of_others += [name for name in changed if name in TORCH]
        watched.of_others += _changed(surroundings, _of_surroundings())
    watched.of_others += _changed({"training images": train, "labels": labels, "test images": test}, given)
    return watched


def _spied(kind: type[Detector], watched: Watched) -> type[Detector]:
    """A subclass that notes what its methods do to the shared probe."""

    def statistics(self: Detector, probe: Probe) -> Tensor:
        watched.labels_seen += probe.labels is not None
        with _passes_seen(probe, watched):
            return kind.statistics(self, probe)

    def observe(self: Detector, probe: Probe) -> None:
        with _passes_seen(probe, watched):
            kind.observe(self, probe)

    members: dict[str, Any] = {"statistics": statistics, "__doc__": kind.__doc__, "__module__": kind.__module__}
    if kind.observe is not Detector.observe:  # a detector observes if it overrides the method
        members["observe"] = observe
    return type(kind.__name__, (kind,), members)


@contextmanager
def _passes_seen(probe: Probe, watched: Watched) -> Iterator[None]:
    """Notes each module of the network that runs outside this probe and the probes made from it."""
    if probe._classifier is None:
        yield
        return

    def note(name: str, own: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if module is own and not _run_by(probe):  # a copy, such as an ensemble member, has the hook too
                watched.own_passes.append(name)

        return hook

    with ExitStack() as hooks:
        for name, module in probe._classifier.named_modules():
            hooks.callback(module.register_forward_pre_hook(note(name or "the whole network", module)).remove)
        yield


def _run_by(probe: Probe) -> bool:
    """Whether the innermost caller outside the network, torch and the gradient rules is a method of this probe."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == PROBE and isinstance(runs := frame.f_locals.get("self"), Probe):
            return any(runs is one for one in _with_steps(probe))
        if file != PROBE and not file.startswith(RUN_FOR_OTHERS):
            return False
        frame = frame.f_back
    return True  # a thread of autograd


def _with_steps(probe: Probe) -> Iterator[Probe]:
    """A probe and the probes of its perturbed images."""
    yield probe
    for value in list(probe._memo.values()):
        if isinstance(value, Probe) and value is not probe:
            yield from _with_steps(value)


def _of_surroundings() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()
    return {
        "torch's random state": torch.get_rng_state(),
        "the accelerator's random state": random_state(),
        "numpy's random state": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "python's random state": random.getstate(),
        "torch's gradient mode": torch.is_grad_enabled(),
    }


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return [name for name in before if not equal(before[name], after[name])]


@contextmanager
def other_randomness() -> Iterator[None]:
    """Use another global random state; the outer one is restored in the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with seeded(12345):
        np.random.seed(12345)
        random.seed(12345)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
