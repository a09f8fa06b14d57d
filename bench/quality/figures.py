"""The figures of one metric on one database, apart from the code that computes them: records are read without scipy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QualityFigures:
    """Figures of one metric on one database of N images, with the ends of their 95 % intervals (see ``statistics``).

    Attributes:
        outlier_ratio: share of images whose mapped value differs from the score by more than 2 of the score's standard
            deviations over subjects; None if these are not known.
        rmse: root of the mean squared difference of mapped values and scores, in units of the scores.
        plcc: Pearson's correlation of mapped values and scores.
        srcc: Spearman's rank correlation of values and scores.
        krcc: Kendall's tau-b of values and scores.
        b1, b2, b3, b4, b5: the mapping (see ``oodbench.quality.mapping``).
        collapsed: whether the logistic mapping is a straight line.

    The ends are None if all images belong to one group, and if no two replicates differ.
    """

    outlier_ratio: float | None
    outlier_ratio_low: float | None
    outlier_ratio_high: float | None
    rmse: float
    rmse_low: float | None
    rmse_high: float | None
    plcc: float
    plcc_low: float | None
    plcc_high: float | None
    srcc: float
    srcc_low: float | None
    srcc_high: float | None
    krcc: float
    krcc_low: float | None
    krcc_high: float | None
    b1: float
    b2: float
    b3: float
    b4: float
    b5: float
    collapsed: bool
