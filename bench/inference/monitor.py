"""Watches the flagged rate of a service's images, and tells when it no longer fits the false-alarm rate of the fit."""

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from oodbench.errors import BadData, UsageError
from oodbench.inference.fitted import Fitted
from oodbench.metrics import binomial_interval

CONFIDENCE = 0.99
REMEDY = "give the second result of fitted(images), bool (N,)"
MOST_IMAGES = 10**8  # of a window; each takes a byte or more


class Report(NamedTuple):
    """The flagged rate of the last images, and the range of rates that the fit promises."""

    images: int
    flagged: int
    rate: float | None  # None without images
    low: float  # exact interval of Clopper and Pearson for the rate of the source of these images
    high: float
    promised_low: float
    promised_high: float
    drift: bool  # whether the two intervals have no rate in common

    def __str__(self) -> str:
        if self.rate is None:
            return "no images yet"
        verdict = "drift" if self.drift else "no drift"
        return (
            f"{verdict}: {self.rate:.2%} of the last {self.images:,} images are flagged (interval {self.low:.2%} to"
            f" {self.high:.2%}); promised: {self.promised_low:.2%} to {self.promised_high:.2%}"
        )


class Monitor:
    """Compares the flagged rate of the last images with the promised rate. Threads may share it.

    The promised range reaches from the smaller to the larger of the requested rate and the ends of the exact interval of
    the rate measured on held-out images. There is drift if the exact binomial interval of Clopper and Pearson (1934) of
    the last images lies wholly above or wholly below that range. Both intervals have the same confidence, so a report on
    images like the held-out ones says drift with a probability of at most about 1 − confidence. Reports are not corrected
    for how often they are requested.

    Args:
        fitted: the fitted detector to watch.
        window: number of last images that count.
        confidence: of both intervals.
    """

    def __init__(self, fitted: Fitted, window: int = 1000, confidence: float = CONFIDENCE) -> None:
        if not isinstance(fitted, Fitted):
            raise UsageError(f"a monitor takes what load_fitted returns, not {type(fitted).__name__}")
        if type(window) is not int or not 1 <= window <= MOST_IMAGES:
            raise UsageError(f"window = {window}; give a whole number from 1 to {MOST_IMAGES:,}")
        if not 0 < confidence < 1:
            raise UsageError(f"confidence = {confidence:g}; give a number between 0 and 1, such as {CONFIDENCE:g}")
        alarms = fitted.about.false_alarms
        low, high = binomial_interval(round(alarms.measured * alarms.measured_on), alarms.measured_on, confidence)
        asked = [] if alarms.asked is None else [alarms.asked]
        self.promised_low, self.promised_high = min([low, *asked]), max([high, *asked])
        self.confidence = confidence
        self._last: deque[bool] = deque(maxlen=window)
        self._lock = threading.Lock()

    def add(self, flagged: bool | np.bool_ | np.ndarray | Iterable[bool]) -> None:
        """Add the flags of new images: one, or (N,) as ``fitted(images)`` gives them. Raises BadData for other values."""
        try:
            flags = np.atleast_1d(np.asarray(list(flagged) if isinstance(flagged, Iterable) else flagged))
        except (TypeError, ValueError) as error:
            raise BadData(f"flags are a {type(flagged).__name__}; {REMEDY}") from error
        if flags.size and (flags.dtype != np.bool_ or flags.ndim != 1):
            raise BadData(f"flags are {flags.dtype} {flags.shape}; {REMEDY}")
        with self._lock:
            self._last.extend(flags.tolist())

    def report(self) -> Report:
        """Return the current state; ``str(report)`` is one line for a log."""
        with self._lock:
            images, flagged = len(self._last), sum(self._last)
        low, high = binomial_interval(flagged, images, self.confidence) if images else (0.0, 1.0)
        drift = low > self.promised_high or high < self.promised_low
        rate = flagged / images if images else None
        return Report(images, flagged, rate, low, high, self.promised_low, self.promised_high, drift)
