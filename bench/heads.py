"""Heads turn a detector's statistics into one score an image, higher = more anomalous.

Statistics are float64 arrays (N, S, D): S settings of the detector's hyper-parameters, D columns each. A head that
learns nothing sees one setting; one that chooses sees the detector's whole grid on validation samples and keeps the
best as ``setting_``. Heads on the unsupervised side never see an anomalous sample.
"""

from typing import Any, Literal

import numpy as np

from oodbench.errors import Unsuitable

Criterion = Literal["tnr95", "auroc"]


def goodness(inside: np.ndarray, outside: np.ndarray, by: Criterion) -> float:
    """How well scores (n,) and (m,) part: the share of ``outside`` rejected while 95 % of ``inside`` are accepted, or AUROC."""
    from oodbench import metrics

    return 1 - metrics.fpr95(inside, outside) if by == "tnr95" else metrics.auroc(inside, outside)


class Head:
    """Base: fitted state is attributes that end in ``_``."""

    calibrates = False  # wants the statistics of held-out in-distribution images
    learns_from_shift = False  # wants statistics of both sides of a validation split
    chooses = False  # wants them for every setting of the grid

    setting_: int = 0  # which setting of the grid it keeps

    def calibrate(self, inside: np.ndarray) -> None:
        """Statistics (n, 1, D) of held-out in-distribution images."""

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        """Statistics (n, S, D) of (in-distribution, anomalous) images: half to fit on, half to choose by."""

    def score(self, statistics: np.ndarray) -> np.ndarray:
        """Statistics (N, 1, D) at the kept setting -> scores (N,)."""
        raise NotImplementedError


class Identity(Head):
    """The statistic is the score."""

    def score(self, statistics: np.ndarray) -> np.ndarray:
        if statistics.shape[1:] != (1, 1):
            raise Unsuitable(f"gives {statistics.shape[2]} statistics an image and no head that makes one score of them")
        return statistics[:, 0, 0]


class StandardisedSum(Head):
    """The sum of columns, each standardised on held-out in-distribution images; a column without spread counts nothing."""

    calibrates = True
    mean_: list[float]
    std_: list[float]

    def calibrate(self, inside: np.ndarray) -> None:
        columns = inside[:, 0, :]
        self.mean_, self.std_ = columns.mean(0).tolist(), columns.std(0).tolist()

    def score(self, statistics: np.ndarray) -> np.ndarray:
        std = np.asarray(self.std_)
        standard = (statistics[:, 0, :] - np.asarray(self.mean_)) / np.where(std > 0, std, 1)
        return (standard * (std > 0)).sum(1)


class MahalanobisDistance(Head):
    """Squared Mahalanobis distance of the columns to those of held-out in-distribution images.

    The covariance is Ledoit and Wolf's (2004), shrunk towards its mean variance, so that a column without spread in
    distribution still tells: columns must share a unit.
    """

    calibrates = True
    mean_: list[float]
    precision_: list[list[float]]

    def calibrate(self, inside: np.ndarray) -> None:
        from sklearn.covariance import LedoitWolf

        model = LedoitWolf().fit(inside[:, 0, :])
        self.mean_, self.precision_ = model.location_.tolist(), model.precision_.tolist()

    def score(self, statistics: np.ndarray) -> np.ndarray:
        centred = statistics[:, 0, :] - np.asarray(self.mean_)
        return ((centred @ np.asarray(self.precision_)) * centred).sum(1)


class Choose(Head):
    """One column a setting: keeps the setting that parts the validation samples best.

    Nothing is fitted, so both halves of the validation samples choose, as in the papers.
    """

    learns_from_shift = True
    chooses = True

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        inside, outside = (np.concatenate(pair) for pair in zip(fit, choose, strict=True))
        self.setting_ = max(range(inside.shape[1]), key=lambda s: goodness(inside[:, s, 0], outside[:, s, 0], by))

    def score(self, statistics: np.ndarray) -> np.ndarray:
        return Identity().score(statistics)


class Logistic(Head):
    """Logistic regression on standardised columns; the score is the log-odds of anomalous.

    Log-odds, for probabilities round to 1 and tie. The inverse regularisation is cross-validated, as in Lee et al. 2018.
    """

    learns_from_shift = True
    mean_: list[float]
    std_: list[float]
    weights_: list[float]
    bias_: float

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        self._fit_columns(*(side[:, 0, :] for side in fit))

    def _fit_columns(self, inside: np.ndarray, outside: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold
        from threadpoolctl import threadpool_limits

        columns = np.concatenate([inside, outside])
        mean, std = columns.mean(0), columns.std(0)
        std = np.where(std > 0, std, 1)
        columns = (columns - mean) / std
        target = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        folds = min(5, len(inside), len(outside))
        if folds < 2:
            raise Unsuitable(
                f"needs at least 2 validation images a side, has {len(inside)} and {len(outside)};"
                " raise --limit or leave out per-shift"
            )
        splits = list(StratifiedKFold(folds).split(columns, target))

        def fitted(strength: float, rows: np.ndarray) -> LogisticRegression:
            return LogisticRegression(C=strength, solver="newton-cholesky", max_iter=1000).fit(columns[rows], target[rows])

        def loss(strength: float) -> float:
            """Negative log-likelihood of the rows left out: GridSearchCV's, without its cost a fit, 30 times the fit's own."""
            odds = (fitted(strength, rows).decision_function(columns[left_out]) for rows, left_out in splits)
            signs = (1 - 2 * target[left_out] for _, left_out in splits)
            return sum(np.logaddexp(0, sign * odd).mean() for sign, odd in zip(signs, odds, strict=True))

        with threadpool_limits(1, "blas"):  # threads on matrices this small only wait for each other
            model = fitted(min(np.logspace(-4, 4, 10), key=loss), np.arange(len(target)))
        self.mean_, self.std_ = mean.tolist(), std.tolist()
        self.weights_, self.bias_ = model.coef_[0].tolist(), float(model.intercept_[0])

    def score(self, statistics: np.ndarray) -> np.ndarray:
        standard = (statistics[:, 0, :] - np.asarray(self.mean_)) / np.asarray(self.std_)
        return standard @ np.asarray(self.weights_) + self.bias_


class ChooseLogistic(Logistic):
    """Logistic regression for every setting on one half of the validation samples; the other half chooses the setting."""

    chooses = True

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        best = -np.inf
        kept: dict[str, Any] = {}
        for setting in range(fit[0].shape[1]):
            self._fit_columns(*(side[:, setting, :] for side in fit))
            inside, outside = (self.score(side[:, setting : setting + 1, :]) for side in choose)
            parted = goodness(inside, outside, by)
            if parted > best:
                best, kept = parted, {**self.__dict__, "setting_": setting}
        self.__dict__.update(kept)


HEADS: dict[str, type[Head]] = {
    "identity": Identity,
    "standardised-sum": StandardisedSum,
    "mahalanobis": MahalanobisDistance,
    "choose": Choose,
    "logistic": Logistic,
    "choose-logistic": ChooseLogistic,
}
