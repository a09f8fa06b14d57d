"""Requirements for every strategy of active learning, built-in or third-party, on a small pool with both kinds of features.

Each check is a function of a ``Subject``, the strategy under check. It returns its finding, or raises: ``Skipped`` if there is
nothing to check, and any other error if the strategy does not fulfil the contract.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from oodbench import registry
from oodbench.active_learning.pool import Pool, outputs_of
from oodbench.active_learning.strategy import Strategy, load_strategy, selected
from oodbench.conformance.outcomes import Skipped, require
from oodbench.conformance.task import easy_task, trained_classifier
from oodbench.conformance.watch import other_randomness
from oodbench.detectors.introspective import Introspective
from oodbench.errors import UsageError, contained
from oodbench.image_set import ImageSet
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

LABELLED, IMAGES, COUNT = 20, 60, 12
SEED = 3  # of the generator that strategies are given


class Subject:
    """A strategy under check; ``make`` builds it."""

    def __init__(self, make: Callable[[], Strategy]) -> None:
        self.make = make

    def select(self, pool: Pool, count: int, strategy: Strategy | None = None) -> np.ndarray:
        """By a new strategy, or by this one. Raises what is wrong with the rows."""
        with contained():
            return selected(strategy or self.make(), pool, count, np.random.default_rng(SEED))

    @cached_property
    def first(self) -> np.ndarray | Exception:
        """What it selects of the pool with the network's features, or the error that it raised."""
        try:
            return self.select(pool(), COUNT)
        except Exception as error:
            return error

    @property
    def sound(self) -> np.ndarray:
        """``first``. Raises Skipped if there is none."""
        if isinstance(self.first, Exception):
            raise Skipped("selects no rows")
        return self.first


def subject(name: str, parameters: Mapping[str, Any]) -> Subject:
    """A strategy by name, with these hyper-parameters."""

    def make() -> Strategy:
        return load_strategy(name, **parameters)

    registry.find("strategies", name)
    try:
        make()
    except Exception as error:
        if isinstance(error, UsageError):  # of a misspelt parameter; the first check reports all others
            raise
    return Subject(make)


def pool(introspective: bool = False, equal: bool = False) -> Pool:
    """Images of an easy task, of which a small network has learnt others; ``equal``: the same image each time."""
    classifier = trained_classifier()
    pixels, labels = easy_task(LABELLED + IMAGES, seed=4)
    images = ImageSet((255 * pixels).to(torch.uint8), labels, name="easy task")
    train_set = TrainingSet(images, labels, np.arange(len(labels)) >= LABELLED)
    left = np.flatnonzero(train_set.held_out)
    left = left[:1].repeat(IMAGES) if equal else left
    unlabelled, labelled = (outputs_of(train_set, classifier, of) for of in (left, train_set.rows))
    h = None
    if introspective:
        h = Introspective(**Introspective.quick)
        h.prepare(train_set, classifier, Progress())
    return Pool(unlabelled, labelled, classifier.head, h)


def contract(subject: Subject) -> str:
    """A docstring; hyper-parameters that are attributes and JSON values."""
    strategy = subject.make()
    kind, parameters = type(strategy), strategy.parameters()
    require(bool((kind.__doc__ or "").strip()), f"{kind.__name__} has no docstring; say in it what it selects")
    again = kind(**json.loads(json.dumps(parameters, allow_nan=False))).parameters()
    require(json.dumps(again) == json.dumps(parameters), f"created again from {parameters} it has {again}")
    return ", ".join(f"{name} = {value!r}" for name, value in parameters.items()) or "no hyper-parameters"


def rows(subject: Subject) -> str:
    """As many rows as asked for, each once and within the pool."""
    if isinstance(subject.first, Exception):
        raise subject.first
    return f"{COUNT} of {IMAGES} images"


def whole_pool(subject: Subject) -> str:
    """All rows of the pool, and a single one."""
    subject.sound  # noqa: B018  # a strategy without rows raises for any number
    for count in (IMAGES, 1):
        subject.select(pool(), count)
    return f"{IMAGES} and 1 of {IMAGES} images"


def introspective(subject: Subject) -> str:
    """The same for introspective features, whose number differs from that of the network's."""
    subject.sound  # noqa: B018
    subject.select(pool(introspective=True), COUNT)
    return f"{COUNT} of {IMAGES} images"


def equal_images(subject: Subject) -> str:
    """Also of a pool whose images are all the same."""
    subject.sound  # noqa: B018
    subject.select(pool(equal=True), COUNT)
    return f"{COUNT} of {IMAGES} equal images"


def deterministic(subject: Subject) -> str:
    """The same rows again with the same generator, whatever the global random state and the calls before."""
    found, strategy = subject.sound, subject.make()
    with other_randomness():
        again = subject.select(pool(), COUNT, strategy)
    require(np.array_equal(again, found), f"gave {found.tolist()}, then {again.tolist()}; draw from random alone")
    later = subject.select(pool(), COUNT, strategy)
    said = f"gave {found.tolist()}, in a second call {later.tolist()}; keep nothing between calls, which a resumed run lacks"
    require(np.array_equal(later, found), said)
    return "the same again"


def pool_unchanged(subject: Subject) -> str:
    """It does not write into the pool that it is given."""
    subject.sound  # noqa: B018
    given, before = pool(), pool()
    subject.select(given, COUNT)
    for name in ("features", "probabilities", "labelled"):
        require(np.array_equal(getattr(given, name), getattr(before, name)), f"changed {name} of the pool; change a copy")
    again = next(given.dropped(1, 0.5, np.random.default_rng(SEED)))
    require(np.array_equal(again, next(before.dropped(1, 0.5, np.random.default_rng(SEED)))), "changed what dropped() gives")
    return "unchanged"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "contract": contract,
    "rows": rows,
    "whole-pool": whole_pool,
    "introspective": introspective,
    "equal-images": equal_images,
    "deterministic": deterministic,
    "pool-unchanged": pool_unchanged,
}
