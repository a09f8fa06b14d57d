"""Typed facts that records keep: how a set was made, and how good class probabilities are. Imports no torch."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NOISY = 0.5  # relative spread of the repeats of a cost above which its figure is marked
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # tables hold no larger whole number


class Facts(BaseModel):
    """Base: unknown fields and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class CorruptionRecord(Facts):
    """How a corrupted set was made."""

    corruption: str
    level: Int64
    origin: Literal["generated", "official"]
    seed: Int64 | None = None  # of a generated one


class AttackRecord(Facts):
    """What an attack did. Rates are fractions in [0, 1], distances in pixel units of [0, 1]."""

    attack: str
    network: str  # name and weights hash of the network that was attacked
    settings: dict[str, Any]
    attacked: Int64  # images
    clean_accuracy: float
    adversarial_accuracy: float
    success_rate: float  # share of the images that were right before and are wrong after
    kept: Int64  # images that the papers' filter keeps; all without the filter
    unchanged: float  # share of the kept images that did not change at all
    mean_l2: float
    mean_linf: float


class ProbabilityFigures(Facts):
    """Accuracy and calibration of class probabilities; see ``oodbench.calibration``."""

    accuracy: float
    ece: float
    nll: float
    brier: float


class RecognitionFigures(ProbabilityFigures):
    """The figures of a source of class probabilities on one set; see ``oodbench.calibration``."""

    aurc: float
    excess_aurc: float  # over the best possible order of the same answers


class CalibrationRecord(Facts):
    """A detector's own class probabilities on the in-distribution test images, beside the network's."""

    detector: ProbabilityFigures
    network: ProbabilityFigures | None = None


def mark(cost: Mapping[str, float | None], figure: str) -> str:
    """``~`` for a figure of a cost whose repeats differ too much, else nothing; earlier oodbench kept no spreads."""
    return "~" if (cost.get(f"{figure}_spread") or 0) > NOISY else ""


def finite_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for a number that could not be written again, such as NaN and 1e400."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a finite number")
    return value


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``name = 1, not 2``, of the first setting that differs; empty if all that both have are equal.

    Of tables with the same keys, the first key that differs.
    """
    for name, value in now.items():
        if name in before and (earlier := before[name]) != value:
            if isinstance(earlier, dict) and isinstance(value, dict) and earlier.keys() == value.keys():
                return f"{name}.{first_difference(earlier, value)}"
            return f"{name} = {earlier}, not {value}{_by_card(name, before, now)}"
    return ""


def _by_card(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why the same weights of the same model have another name, ``resnet18 (augmix)``; empty otherwise."""
    models = [str(settings.get("model")).partition(" (")[0] for settings in (before, now)]
    if name != "model" or models[0] != models[1] or before.get("weights") != now.get("weights"):
        return ""
    return ", for the same weights: their *.card.json, or network in the suite, was added, changed or removed"
