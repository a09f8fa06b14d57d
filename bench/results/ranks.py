"""Detectors over several sets: average ranks, Friedman's test, and Nemenyi's critical difference (Demšar, JMLR 7, 2006)."""

from typing import Any

import numpy as np

from oodbench.errors import BadData


def average_ranks(figures: Any, higher_is_better: bool = True) -> np.ndarray:
    """The average rank (k,) of each of k detectors over n sets, 1 for the best; ties share their mean rank.

    ``figures``: (n, k). Raises BadData for other shapes, for none, and for figures that are missing.
    """
    from scipy.stats import rankdata

    values = np.asarray(figures, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise BadData(f"figures of shape {values.shape}, or some missing; give one figure per set and detector")
    return np.asarray(rankdata(-values if higher_is_better else values, axis=1).mean(0))


def friedman(figures: Any) -> float:
    """The p value of Friedman's test that k detectors do not differ over n sets; 1 where all figures of each set are equal.

    ``figures``: (n, k). Raises BadData for fewer than three detectors or two sets.
    """
    from scipy.stats import friedmanchisquare

    values = np.asarray(figures, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3:
        raise BadData(f"figures of shape {values.shape}; Friedman's test needs two sets and three detectors")
    if (values == values[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*values.T).pvalue)


def critical_difference(detectors: int, sets: int) -> float:
    """Nemenyi's: average ranks of k detectors over n sets that differ by at least this differ at 5 %.

    Raises BadData for fewer than two detectors or no set.
    """
    from scipy.stats import studentized_range

    if detectors < 2 or sets < 1:
        raise BadData(f"{detectors} detectors and {sets} sets; a critical difference needs two detectors and a set")
    quantile = float(studentized_range.ppf(0.95, detectors, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(detectors * (detectors + 1) / (6 * sets)))


def groups(ranks: Any, difference: float) -> list[tuple[int, int]]:
    """First and last place of each largest group of ascending ``ranks`` (k,) that differ by less than ``difference``.

    Groups of one are left out.
    """
    ranks, found, reached = np.asarray(ranks), [], 0
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks - ranks[first] < difference)[-1])
        if last > max(first, reached):
            found.append((first, last))
            reached = last
    return found
