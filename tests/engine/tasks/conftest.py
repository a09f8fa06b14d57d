"""A tiny suite of active learning, and strategies of another package."""

import numpy as np
import pytest

from oodbench import registry
from oodbench.active_learning.strategy import Strategy
from oodbench.errors import Unsuitable
from oodbench.suites.tasks import ActiveLearningSuite


class Gives(Strategy):
    """Gives what a test says, from a round on that is known by the number of labelled images."""

    name = "gives"

    def __init__(self, what="rows", labelled=0):
        self.what, self.labelled = what, labelled

    def select(self, pool, count, random):
        rows = np.arange(count)
        if len(pool.labelled) < self.labelled or self.what == "rows":
            return rows
        if self.what == "an error":
            raise ValueError("out of luck\nand of lines")
        if self.what == "exit":
            raise SystemExit(3)
        if self.what == "unsuitable":
            raise Unsuitable("needs more classes")
        return {"twice": np.zeros(count, int), "unknown": rows + len(pool), "few": rows[1:]}[self.what]


class NotAStrategy:
    pass


class CannotBeMade(Gives):
    """Fails when it is made."""

    def __init__(self):
        raise RuntimeError("no licence")


KINDS = {"gives": Gives, "no-strategy": NotAStrategy, "cannot-be-made": CannotBeMade}


@pytest.fixture
def plugins(monkeypatch):
    """The strategies above by name, beside the built-in ones."""
    added = {("strategies", name): registry.Record("strategies", name, f"tests:{name}", distribution="tests") for name in KINDS}
    monkeypatch.setattr(registry, "_added", added)
    resolve = registry.resolve
    known = {f"tests:{name}": kind for name, kind in KINDS.items()}
    monkeypatch.setattr(registry, "resolve", lambda target: known.get(target) or resolve(target))


@pytest.fixture(scope="session")
def tiny():
    """tiny(**changes) -> a suite of three rounds that runs in a second."""

    def make(**changes) -> ActiveLearningSuite:
        values = {
            "name": "tiny", "model": "resnet8-digits", "in_distribution": "digits", "test_sets": ["digits", "digits+noise@3"],
            "strategies": ["bald", "badge"], "start": 24, "query": 16, "rounds": 2, "batch_size": 16, "until": 0.9,
            "most_epochs": 15, "pool": 150, "parameters": {"introspective": {"epochs": 3}},
        }  # fmt: skip
        parameters = values["parameters"] | changes.pop("parameters", {})
        return ActiveLearningSuite.model_validate(values | changes | {"parameters": parameters})

    return make
