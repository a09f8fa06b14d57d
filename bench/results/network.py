"""How often the network is right on in-distribution images: no detector can make up for a network that is not.

Imports no torch: leaderboards read what a run measured.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from oodbench.errors import counted
from oodbench.results.facts import Facts, Int64

KEY = "accuracy"  # in the provenance of a run or of a fitted detector
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[Int64, Field(ge=0)]


class Accuracy(Facts):
    """The share of right answers with its exact 95 % interval (Clopper and Pearson 1934)."""

    right: Share
    low: Share
    high: Share
    largest_class: Share  # share of the most frequent class: what a network that always names it reaches
    chance: bool  # whether a one-sided binomial test at 5 % cannot tell ``right`` from ``largest_class``


class NetworkAccuracy(Facts):
    """What is known of a network on one set with labels. None as ``accuracy``: the network gives fewer classes."""

    network: str
    dataset: str  # with its split, ``digits (test)``
    gives: Count  # classes of the network
    classes: Count  # of the labels
    images: Count  # that the network was tried on
    drawn_from: Count  # images of the set
    accuracy: Accuracy | None

    def sentence(self) -> str | None:
        """The accuracy in words; None where there is none."""
        if self.accuracy is None:
            return None
        drawn = f", drawn from {self.drawn_from:,}" if self.images < self.drawn_from else ""
        return (
            f"accuracy of {self.network} on {self.dataset}: {percent(self.accuracy.right)} of"
            f" {counted(self.images, 'image')}{drawn}"
            f" (95 % interval {100 * self.accuracy.low:.1f} to {100 * self.accuracy.high:.1f})"
        )

    def warnings(self) -> list[str]:
        """What is wrong with the network, one line each."""
        found = []
        if self.gives != self.classes:
            gives = "1 class" if self.gives == 1 else f"{self.gives:,} classes"
            measured = "" if self.accuracy else ", so its accuracy is not measured"
            found.append(
                f"{self.network} gives {gives}, but the labels of {self.dataset} have {self.classes:,}{measured}; use weights"
                " that were trained on these classes"
            )
        if self.accuracy is not None and self.accuracy.chance:
            found.append(
                f"{self.network} may be no better than chance on {self.dataset}: it is right on"
                f" {percent(self.accuracy.right)}, and always naming the largest class on"
                f" {percent(self.accuracy.largest_class)}; check its weights, its normalisation and the order of its classes"
            )
        return found

    def lines(self) -> list[str]:
        """Everything that a user reads of it."""
        said = self.sentence()
        return [*([said] if said else []), *self.warnings()]


def as_provenance(found: NetworkAccuracy | None) -> dict[str, Any]:
    """What the provenance says of it."""
    return {} if found is None else {KEY: found.model_dump()}


def stored(provenance: Mapping[str, Any]) -> NetworkAccuracy | None:
    """What a run or a fitted detector recorded; None where it is missing, as in files of an earlier oodbench."""
    try:
        return NetworkAccuracy.model_validate(provenance.get(KEY))
    except ValidationError:
        return None


def percent(share: float) -> str:
    """``97.2 %``."""
    return f"{100 * share:.1f} %"
