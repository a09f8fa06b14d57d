"""Thresholds from the scores of held-out images: half of them set the threshold, the other half measure how often it errs."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from oodbench.errors import UsageError
from oodbench.metrics import binomial_interval


class Part(BaseModel):
    """A part of a file's header, in which unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class FalseAlarms(Part):
    """Shares of flagged in-distribution images: the requested maximum, and the share measured on other held-out images."""

    asked: float | None = Field(gt=0, lt=1)  # None if the threshold was set directly
    drawn_from: int  # number of held-out images used to set the threshold
    measured: float  # share of flagged images among other held-out images
    measured_low: float  # exact 95 % interval of Clopper and Pearson
    measured_high: float
    measured_on: int
    exceeds: bool = False  # whether the whole interval is above the requested share


class HeldOut(Part):
    """Scores of held-out in-distribution images."""

    thresholding: list[float] = Field(min_length=1)  # of the images that set a threshold
    measuring: list[float] = Field(min_length=1)  # of those that measure how often it errs

    def at_rate(self, asked: float) -> tuple[float, FalseAlarms]:
        """The threshold that flags at most this share of new images on average, and its measured rate."""
        if not 0 < asked < 1:
            raise UsageError(f"false alarms = {asked:g}; give a share between 0 and 1, such as 0.05")
        threshold = threshold_of(np.asarray(self.thresholding), asked)
        return threshold, measured(np.asarray(self.measuring), threshold, asked, len(self.thresholding))

    def at_threshold(self, threshold: float) -> FalseAlarms:
        """The measured rate of a given threshold. It may have come from the other images, so only these measure it."""
        return measured(np.asarray(self.measuring), threshold, None, 0)


def measured(scores: np.ndarray, threshold: float, asked: float | None, drawn_from: int) -> FalseAlarms:
    """The rate of a threshold on scores (n,) that did not set it."""
    flagged = int((scores > threshold).sum())
    low, high = binomial_interval(flagged, len(scores))
    return FalseAlarms(
        asked=asked,
        drawn_from=drawn_from,
        measured=flagged / len(scores),
        measured_low=low,
        measured_high=high,
        measured_on=len(scores),
        exceeds=asked is not None and low > asked,
    )


def threshold_of(scores: np.ndarray, share: float) -> float:
    """The smallest of the scores (n,) that a new exchangeable image exceeds with a probability of at most ``share``.

    It is the k-th largest, k = ⌊share · (n + 1)⌋. The new score exceeds the k-th largest of the others only if it is among
    the k largest of all n + 1, which has probability k / (n + 1), or less with ties: the rank of split conformal
    prediction (Vovk et al. 2005). This is the mean over draws of held-out images; the rate for the threshold of one draw
    is above or below it. Raises UsageError if k is 0.
    """
    return float(np.sort(scores)[len(scores) - rank_of(len(scores), share)])


def rank_of(count: int, share: float) -> int:
    """Rank (1 = largest) of the threshold among ``count`` held-out scores. Raises UsageError if the rate is too small."""
    rank = int(np.floor(share * (count + 1) + 1e-9))  # .29 · 100 is a little less than 29
    if rank < 1:
        raise UsageError(
            f"{count:,} held-out images are too few for a false-alarm rate of {share:g}; ask for at least"
            f" {np.ceil(1e6 / (count + 1)) / 1e6:g}, or hold out at least {2 * (int(np.ceil(1 / share - 1e-9)) - 1):,} images"
        )
    return rank
