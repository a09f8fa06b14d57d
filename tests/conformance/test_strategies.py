"""Each check of a strategy can fail: for each there is one that breaks what it checks."""

import numpy as np
import pytest

from oodbench.active_learning.strategy import Ranked, Strategy
from oodbench.conformance.run import run
from oodbench.conformance.strategies import CHECKS, COUNT, IMAGES, Subject, pool, subject
from oodbench.errors import UsageError
from oodbench.strategies import TABLE


class Longest(Ranked):
    """Longest features, of which some are drawn."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def scores(self, pool, random):
        return np.linalg.norm(pool.features, axis=1) * (random.random(len(pool)) < self.share)


class NoDocstring(Longest):
    pass


class NotAnAttribute(Longest):
    """Keeps half of its hyper-parameter."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share / 2


class Raises(Longest):
    """Fails."""

    def scores(self, pool, random):
        raise ValueError("my own fault")


class Exits(Longest):
    """Ends the process."""

    def scores(self, pool, random):
        raise SystemExit(3)


class Twice(Strategy):
    """The same row each time."""

    def select(self, pool, count, random):
        return np.zeros(count, int)


class Outside(Strategy):
    """Counts from one."""

    def select(self, pool, count, random):
        return 1 + np.arange(len(pool))[::-1][:count]


class TooFew(Strategy):
    """All but one."""

    def select(self, pool, count, random):
        return np.arange(count - 1)


class Half(Strategy):
    """Never more than half of the pool."""

    def select(self, pool, count, random):
        return np.arange(len(pool) // 2)[:count]


class OnlyTheNetworks(Longest):
    """Knows how many features the network has."""

    def scores(self, pool, random):
        return pool.features @ np.ones(16)


class Different(Strategy):
    """Drops images with equal features."""

    def select(self, pool, count, random):
        return np.unique(pool.features, axis=0, return_index=True)[1][:count]


class GlobalRandom(Strategy):
    """Draws from the global generator."""

    def select(self, pool, count, random):
        return np.random.permutation(len(pool))[:count]


class Remembers(Strategy):
    """Begins where it ended."""

    def __init__(self) -> None:
        self.called = 0

    def select(self, pool, count, random):
        self.called += 1
        return (np.arange(count) + self.called) % len(pool)


class Writes(Longest):
    """Normalises the features in place."""

    def scores(self, pool, random):
        pool.features /= 1 + np.linalg.norm(pool.features, axis=1, keepdims=True)
        return super().scores(pool, random)


class WritesProbabilities(Longest):
    """Clips probabilities in place."""

    def scores(self, pool, random):
        return pool.probabilities.clip(0.3, 0.4, out=pool.probabilities).max(1)


class WritesOutputs(Longest):
    """Reaches below."""

    def scores(self, pool, random):
        pool._unlabelled.logits[:] = 0
        pool._head.weight.data[:] = 0
        return np.ones(len(pool))


BROKEN = [
    ("contract", NoDocstring, "NoDocstring has no docstring"),
    ("contract", NotAnAttribute, "created again from"),
    ("rows", Raises, "my own fault"),
    ("rows", Exits, "would end the process"),
    ("rows", Twice, "gave row 0 twice"),
    ("rows", Outside, f"gave row {IMAGES}, but the pool has {IMAGES}"),
    ("rows", TooFew, f"gave int64 ({COUNT - 1},), not {COUNT} row numbers"),
    ("whole-pool", Half, f"gave int64 ({IMAGES // 2},), not {IMAGES} row numbers"),
    ("introspective", OnlyTheNetworks, "mismatch"),
    ("equal-images", Different, f"gave int64 (1,), not {COUNT} row numbers"),
    ("deterministic", GlobalRandom, "draw from random alone"),
    ("deterministic", Remembers, "keep nothing between calls"),
    ("pool-unchanged", Writes, "changed features of the pool"),
    ("pool-unchanged", WritesProbabilities, "changed probabilities of the pool"),
    ("pool-unchanged", WritesOutputs, "changed what dropped() gives"),
]


def outcomes(kind):
    return {outcome.check: outcome for outcome in run(CHECKS, kind if isinstance(kind, Subject) else Subject(kind))}


def test_a_sound_strategy_passes_all():
    found = outcomes(Longest)
    assert list(found) == list(CHECKS)
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found


@pytest.mark.parametrize(("check", "kind", "says"), BROKEN, ids=[kind.__name__ for _, kind, _ in BROKEN])
def test_a_broken_strategy_fails_its_check(check, kind, says):
    outcome = outcomes(kind)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason


def test_every_check_of_strategies_has_one_that_fails_it():
    assert list(dict.fromkeys(case[0] for case in BROKEN)) == list(CHECKS)


def test_a_strategy_without_rows_fails_once():
    found = outcomes(Raises)
    assert [name for name, outcome in found.items() if outcome.outcome == "fail"] == ["rows"]
    assert found["deterministic"].reason == "selects no rows"


def test_the_pools_of_the_checks_are_what_they_say():
    assert (len(pool()), pool().features.shape[1], pool(introspective=True).features.shape) == (IMAGES, 16, (IMAGES, 100))
    assert len(np.unique(pool(equal=True).features.round(5), axis=0)) == 1
    assert len(np.unique(pool().features, axis=0)) == IMAGES


def test_misspelt_names_and_parameters_are_the_callers_errors():
    with pytest.raises(UsageError, match="did you mean 'coreset'"):
        subject("corset", {})
    with pytest.raises(UsageError, match="unknown parameter 'share' of margin"):
        subject("margin", {"share": 2})


@pytest.mark.parametrize("name", TABLE)
def test_built_in_strategies_pass(name):
    found = outcomes(subject(name, {}))
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found
