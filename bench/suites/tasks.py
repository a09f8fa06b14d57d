"""Suites of tasks other than detection: a key ``task`` in the file says which, and each task has a model of its own."""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from oodbench.errors import UsageError
from oodbench.registry import unknown
from oodbench.suite import MOST_SEED, FolderName, SetName, parsed_as, refuse_empty_lists
from oodbench.suites.load import refuse_foreign_code, suite_text

ALL = "all"  # metrics or strategies
DETECTION = "detection"  # the task of a suite without the key; ``oodbench.suites.load`` reads those


class TaskSuite(BaseModel, ABC):
    """The keys that the suites of all tasks have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: str
    name: FolderName = ""
    title: str = ""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)

    options: ClassVar[dict[str, str]] = {}  # by option of ``oodbench run``: the key of the suite that it overrides

    @property
    @abstractmethod
    def sets(self) -> list[str]:
        """Names of all sets or databases that a run reads."""

    def override(self, given: Mapping[str, Any]) -> Self:
        """The suite with what options give, by their names, in place of its own values; empty values change nothing.

        Raises UsageError for an option that the task does not take, and for invalid values.
        """
        changes: dict[str, Any] = {}
        for option, value in given.items():
            if value is None or value is False or value in ((), [], {}):
                continue
            if option not in self.options:
                raise UsageError(f"a suite of the task {self.task} takes no {option}; leave it out")
            key = self.options[option]
            if key == "parameters":
                own = getattr(self, key)
                value = own | {name: own.get(name, {}) | of for name, of in value.items()}
            elif key == "seeds":
                value = [value] if isinstance(value, int) else list(value)
            elif key in ("metrics", "databases", "strategies", "test_sets"):
                value = list(dict.fromkeys(value))
            elif key in ("model", "seed") and isinstance(value, list):
                if len(value) > 1:
                    raise UsageError(f"a suite of the task {self.task} takes {option} once, not {len(value)} times")
                value = value[0]
            changes[key] = value
        return parsed_as(type(self), self.model_dump() | changes, self.name)


class QualitySuite(TaskSuite):
    """Metrics of image quality on databases of images that people scored.

    ``metrics``: names, or ``all``; for ``scores:FILE``, whose values are computed already, ``all`` means all of its columns.
    """

    task: Literal["quality"] = "quality"
    metrics: list[str] = Field(min_length=1)
    databases: list[str] = Field(min_length=1)
    parameters: dict[str, dict[str, Any]] = {}  # by metric

    options: ClassVar[dict[str, str]] = {
        "--metric": "metrics", "--dataset": "databases", "--param": "parameters", "--seed": "seed",
    }  # fmt: skip

    @property
    def sets(self) -> list[str]:
        return self.databases


class ActiveLearningSuite(TaskSuite):
    """Strategies of active learning, each with the features of the network and of H.

    ``test_sets``: sets on which accuracy is measured after each round; by default the test images of the in-distribution set.
    ``protocol``: one of ``active_learning.protocol.PROTOCOLS``; ``start``, ``query``, ``rounds``,
    ``batch_size``, ``until`` and ``most_epochs`` take the place of its own. ``pool``: number of training images in the pool,
    drawn by the seed; None for all.
    ``seeds``: each is a run of its own.
    """

    task: Literal["active-learning"] = "active-learning"
    model: str
    in_distribution: SetName
    train_split: str = "train"
    test_sets: list[SetName] = []
    strategies: list[str] = Field(min_length=1)
    features: list[Literal["feed-forward", "introspective"]] = Field(default=["feed-forward"], min_length=1)
    protocol: Literal["gauss", "badge"] = "gauss"
    start: int | None = Field(default=None, ge=2)
    query: int | None = Field(default=None, ge=1)
    rounds: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    until: float | None = Field(default=None, gt=0, le=1)
    most_epochs: int | None = Field(default=None, ge=1)
    pool: int | None = Field(default=None, ge=2)
    parameters: dict[str, dict[str, Any]] = {}  # by strategy
    seeds: list[Annotated[int, Field(ge=0, le=MOST_SEED)]] = []

    options: ClassVar[dict[str, str]] = {
        "--strategy": "strategies", "--dataset": "test_sets", "--model": "model", "--param": "parameters", "--seed": "seeds",
    }  # fmt: skip

    @property
    def tested(self) -> list[str]:
        """The sets on which accuracy is measured."""
        return self.test_sets or [self.in_distribution]

    @property
    def sets(self) -> list[str]:
        return [self.in_distribution, *self.tested]


TASKS: dict[str, type[TaskSuite]] = {"quality": QualitySuite, "active-learning": ActiveLearningSuite}


def task_of(name: str | Path) -> str:
    """The task of a suite in the package, or of a file. Raises UsageError if there is none, and for an unknown task."""
    try:
        values = tomllib.loads(suite_text(name))
    except (ValueError, RecursionError):
        return DETECTION  # whose reader says what is wrong
    task = values.get("task", DETECTION)
    if task != DETECTION and task not in TASKS:
        known = [DETECTION, *TASKS]
        raise UsageError(f"suite {name}: {unknown('task', str(task), known, ', '.join(known))}")
    return str(task)


def load_task_suite(name: str | Path, *, trust_model: bool = False) -> TaskSuite:
    """Load a suite of another task than detection. ``trust_model`` as of ``load_study``.

    Raises UsageError that names the wrong key, and UntrustedModel for a model that is not trusted.
    """
    values = {"name": Path(name).stem} | tomllib.loads(suite_text(name))
    kind = TASKS[str(values["task"])]
    refuse_empty_lists(values, kind, name)
    suite = parsed_as(kind, values, name)
    if isinstance(suite, ActiveLearningSuite) and not trust_model:
        refuse_foreign_code(suite.model, name)
    return suite
