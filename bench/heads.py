"""Heads turn a detector's statistics into one score per image, higher = more anomalous.

Statistics are float64 arrays (N, S, D): S settings of the detector's hyper-parameters with D columns each. A head that
learns nothing sees one setting; a head that chooses sees the whole grid of the detector on validation samples and keeps
the best as ``setting_``. Unsupervised heads never see an anomalous sample.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import Unsuitable

Criterion = Literal["tnr95", "auroc"]

LEARNING_RATE, BETAS = 1e-3, (0.9, 0.999)  # of Adam


def separation(inside: np.ndarray, outside: np.ndarray, by: Criterion) -> float:
    """How well scores (n,) and (m,) separate: share of ``outside`` rejected with 95 % of ``inside`` accepted, or AUROC."""
    from oodbench import metrics

    return 1 - metrics.fpr95(inside, outside) if by == "tnr95" else metrics.auroc(inside, outside)


def inverse_spread(columns: np.ndarray) -> np.ndarray:
    """1 / standard deviation of each column of (n, D), and 0 for a constant column, so that it is ignored.

    Rounding of the mean can give equal values a tiny spread; such a column counts as constant.
    """
    spread = columns.std(0)
    return np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-12 * np.abs(columns).max(0))


class Head:
    """Base class; fitted state is kept in attributes that end in ``_``."""

    calibrates = False  # needs the statistics of held-out in-distribution images
    learns_from_shift = False  # needs the statistics of both sides of a validation split
    chooses = False  # needs them for every setting of the grid
    seed = 0  # of what it draws while it learns

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
            raise Unsuitable(f"gives {statistics.shape[2]} statistics per image and has no head that combines them")
        return statistics[:, 0, 0]


class StandardisedSum(Head):
    """The sum of columns, each standardised on held-out in-distribution images; constant columns are ignored."""

    calibrates = True
    mean_: list[float]
    scale_: list[float]  # 1 / standard deviation, 0 for a constant column

    def calibrate(self, inside: np.ndarray) -> None:
        columns = inside[:, 0, :]
        self.mean_, self.scale_ = columns.mean(0).tolist(), inverse_spread(columns).tolist()

    def _standardised(self, statistics: np.ndarray) -> np.ndarray:
        return (statistics[:, 0, :] - np.asarray(self.mean_)) * np.asarray(self.scale_)

    def score(self, statistics: np.ndarray) -> np.ndarray:
        return self._standardised(statistics).sum(1)


class StandardisedSquare(StandardisedSum):
    """Mean over columns of the squared standardised value: both unusually low and unusually high values are anomalous.

    Standardised on held-out in-distribution images; columns that are constant there are ignored.
    """

    def score(self, statistics: np.ndarray) -> np.ndarray:
        return (self._standardised(statistics) ** 2).sum(1) / max(1, np.count_nonzero(self.scale_))


class MahalanobisDistance(Head):
    """Squared Mahalanobis distance of the columns to those of held-out in-distribution images.

    The covariance is the estimate of Ledoit and Wolf (2004), shrunk towards its mean variance, so that a column that is
    constant in distribution still counts; all columns must have the same unit.
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
    """One column per setting: keeps the setting that separates the validation samples best.

    Nothing is fitted, so both halves of the validation samples are used for the choice, as in the papers.
    """

    learns_from_shift = True
    chooses = True

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        inside, outside = (np.concatenate(pair) for pair in zip(fit, choose, strict=True))
        self.setting_ = max(range(inside.shape[1]), key=lambda s: separation(inside[:, s, 0], outside[:, s, 0], by))

    def score(self, statistics: np.ndarray) -> np.ndarray:
        return Identity().score(statistics)


TOLERANCE = 1e-10  # of gradient entries, per row
STEPS, HALVINGS = 100, 30
ROUNDING = 1e-12  # relative to the objective: a smaller increase does not reject a step
STRENGTHS = np.logspace(-4, 4, 10)  # inverse regularisation


class Logistic(Head):
    """Logistic regression on standardised columns; the score is the log-odds of anomalous.

    Log-odds are used because probabilities round to 1 and tie. The inverse regularisation is cross-validated, as in
    Lee et al. 2018.
    """

    learns_from_shift = True
    mean_: list[float]
    scale_: list[float]
    weights_: list[float]
    bias_: float

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        self._fit_columns(*(side[:, 0, :] for side in fit))

    def _fit_columns(self, inside: np.ndarray, outside: np.ndarray) -> None:
        from sklearn.model_selection import StratifiedKFold
        from threadpoolctl import threadpool_limits

        columns = np.concatenate([inside, outside])
        mean, scale = columns.mean(0), inverse_spread(columns)
        columns = (columns - mean) * scale
        target = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        _require_two(inside, outside)
        splits = StratifiedKFold(min(5, len(inside), len(outside))).split(columns, target)
        left_out = np.stack([np.isin(np.arange(len(target)), rows) for _, rows in splits])  # (folds, n)
        with threadpool_limits(1, "blas"):  # for matrices this small, several threads are slower than one
            used = np.tile(~left_out, (len(STRENGTHS), 1)).astype(float)
            found = fit_logistic(columns, target, used, np.repeat(STRENGTHS, len(left_out)))
            odds = found[:, :-1] @ columns.T + found[:, -1:]  # (strengths · folds, n)
            losses = np.logaddexp(0, (1 - 2 * target) * odds) * (1 - used)  # of the rows left out
            mean_losses = (losses.sum(1) / (1 - used).sum(1)).reshape(len(STRENGTHS), -1).sum(1)
            best = STRENGTHS[[int(mean_losses.argmin())]]
            (whole,) = fit_logistic(columns, target, np.ones((1, len(target))), best)
        self.mean_, self.scale_ = mean.tolist(), scale.tolist()
        self.weights_, self.bias_ = whole[:-1].tolist(), float(whole[-1])

    def score(self, statistics: np.ndarray) -> np.ndarray:
        standard = (statistics[:, 0, :] - np.asarray(self.mean_)) * np.asarray(self.scale_)
        return standard @ np.asarray(self.weights_) + self.bias_


class ChooseLogistic(Logistic):
    """Logistic regression for each setting on half of the validation samples; the other half chooses the setting."""

    chooses = True

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        best = -np.inf
        kept: dict[str, Any] = {}
        for setting in range(fit[0].shape[1]):
            self._fit_columns(*(side[:, setting, :] for side in fit))
            inside, outside = (self.score(side[:, setting : setting + 1, :]) for side in choose)
            parted = separation(inside, outside, by)
            if parted > best:
                best, kept = parted, {**self.__dict__, "setting_": setting}
        self.__dict__.update(kept)


class MLP(Head):
    """Two fully connected layers on standardised columns, D -> 40 -> 1 with ReLU; the score is the log-odds of anomalous.

    Columns (n, D) are standardised on the half used for fitting. Training uses Adam with learning rate 1e-3 on the binary
    cross-entropy in minibatches of 50, until the loss on the other half has not fallen for 20 epochs (200 at most); the
    weights with the lowest loss are kept. Modelled on the head for gradient features in Lee et al. 2023 (arXiv
    2304.02834), who give neither width nor optimiser. Everything is float64, on one thread and seeded: the same
    samples give the same head.
    """

    learns_from_shift = True
    width, batch_size, patience, epochs = 40, 50, 20, 200

    mean_: Tensor  # (D,)
    scale_: Tensor  # (D,): 1 / standard deviation, 0 for a constant column
    hidden_: Tensor  # (40, D)
    hidden_bias_: Tensor  # (40,)
    output_: Tensor  # (1, 40)
    output_bias_: Tensor  # (1,)

    def fit(self, fit: tuple[np.ndarray, np.ndarray], choose: tuple[np.ndarray, np.ndarray], by: Criterion) -> None:
        from threadpoolctl import threadpool_limits

        _require_two(*fit)
        columns = np.concatenate([side[:, 0, :] for side in fit])
        self.mean_, self.scale_ = torch.from_numpy(columns.mean(0)), torch.from_numpy(inverse_spread(columns))
        random = torch.Generator().manual_seed(self.seed)
        shapes = (self.width, columns.shape[1]), (self.width,), (1, self.width), (1,)
        # Initialise like a torch linear layer: uniform, up to 1 / √inputs.
        bounds = (shape[-1] ** -0.5 for shape in (shapes[0], shapes[0], shapes[2], shapes[2]))
        weights = [
            ((2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1) * bound).numpy()
            for shape, bound in zip(shapes, bounds, strict=True)
        ]
        with threadpool_limits(1, "blas"):  # one thread is faster, and gives reproducible sums
            self._train(weights, self._samples(fit), self._samples(choose), random)

    def _train(
        self,
        initial: list[np.ndarray],
        fit: tuple[np.ndarray, np.ndarray],
        choose: tuple[np.ndarray, np.ndarray],
        random: torch.Generator,
    ) -> None:
        """Adam, with gradients written out: autograd takes four times as long on layers this small."""
        flat, weights = _flattened(initial)
        slope, slopes = _flattened(initial)
        mean, square, step = np.zeros_like(flat), np.zeros_like(flat), 0
        least, waited = float("inf"), 0
        self._keep(weights)
        for _ in range(self.epochs):
            order = torch.randperm(len(fit[0]), generator=random).numpy()
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                _gradients(weights, fit[0][rows], fit[1][rows], slopes)
                step += 1
                mean += (slope - mean) * (1 - BETAS[0])
                square += (slope * slope - square) * (1 - BETAS[1])
                root = np.sqrt(square / (1 - BETAS[1] ** step)) + 1e-8
                flat -= LEARNING_RATE / (1 - BETAS[0] ** step) * mean / root
            loss = _cross_entropy(weights, *choose)
            waited += 1
            if loss < least:
                least, waited = loss, 0
                self._keep(weights)
            if waited >= self.patience:
                break

    def _keep(self, weights: list[np.ndarray]) -> None:
        self.hidden_, self.hidden_bias_, self.output_, self.output_bias_ = (torch.tensor(weight) for weight in weights)

    def _samples(self, sides: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Standardised columns (n, D) of both sides, and which are anomalous (n,)."""
        target = np.concatenate([np.full(len(side), float(place)) for place, side in enumerate(sides)])
        return self._standardised(np.concatenate(sides)), target

    def _standardised(self, statistics: np.ndarray) -> np.ndarray:
        return (statistics[:, 0, :] - self.mean_.cpu().numpy()) * self.scale_.cpu().numpy()

    def score(self, statistics: np.ndarray) -> np.ndarray:
        weights = [w.cpu().numpy() for w in (self.hidden_, self.hidden_bias_, self.output_, self.output_bias_)]
        return _log_odds(weights, self._standardised(statistics))[0]


def _flattened(arrays: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A copy of all values in one array, and views of it in the arrays' shapes."""
    flat = np.concatenate([array.ravel() for array in arrays])
    parts = np.split(flat, np.cumsum([array.size for array in arrays])[:-1])
    return flat, [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _log_odds(weights: list[np.ndarray], columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds (n,) and the active hidden units (n, 40) of columns (n, D)."""
    hidden, hidden_bias, output, output_bias = weights
    active = np.maximum(columns @ hidden.T + hidden_bias, 0)
    return active @ output[0] + output_bias, active


def _cross_entropy(weights: list[np.ndarray], columns: np.ndarray, target: np.ndarray) -> float:
    return float(np.logaddexp(0, (1 - 2 * target) * _log_odds(weights, columns)[0]).mean())


def _gradients(weights: list[np.ndarray], columns: np.ndarray, target: np.ndarray, out: list[np.ndarray]) -> None:
    """Write the gradient of the mean cross-entropy by each weight into ``out``."""
    from scipy.special import expit

    odds, active = _log_odds(weights, columns)
    by_odds = (expit(odds) - target) / len(target)  # (n,)
    by_hidden = np.outer(by_odds, weights[2]) * (active > 0)  # (n, 40)
    np.matmul(by_hidden.T, columns, out=out[0])
    by_hidden.sum(0, out=out[1])
    np.matmul(by_odds, active, out=out[2][0])
    out[3][0] = by_odds.sum()


def _require_two(inside: np.ndarray, outside: np.ndarray) -> None:
    if min(len(inside), len(outside)) < 2:
        raise Unsuitable(
            f"needs at least 2 validation images per side, has {len(inside)} and {len(outside)};"
            " raise --limit or leave out per-shift"
        )


def fit_logistic(columns: np.ndarray, target: np.ndarray, used: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Weights and bias (P, D + 1) of P regressions, by Newton's method with halved steps.

    scikit-learn takes about 3 ms per fit on a thousand rows, mostly for checks; a run needs a hundred thousand fits.

    Each fit minimises Σ used·log(1 + exp(∓odds)) + ‖weights‖² / (2·strength) with an unpenalised bias, the same as
    scikit-learn's ``LogisticRegression(C=strength)`` on the rows used.

    Args:
        columns: (n, D), with about unit spread. target: (n,), 0 or 1.
        used: (P, n), 1 for the rows that a regression is fitted on, else 0. strengths: (P,).
    """
    from scipy.special import expit

    design = np.c_[columns, np.ones(len(columns))]
    places = np.arange(design.shape[1])
    penalty = np.r_[np.ones(columns.shape[1]), 0.0] / strengths[:, None]  # (P, D + 1)
    sign = 1 - 2 * target
    weights = np.zeros((len(used), len(places)))

    def objective(of: np.ndarray, which: np.ndarray) -> np.ndarray:
        losses = used[which] * np.logaddexp(0, sign * (of @ design.T))
        return losses.sum(1) + 0.5 * (penalty[which] * of * of).sum(1)

    left = np.arange(len(used))
    for _ in range(STEPS):
        chance = expit(weights[left] @ design.T)  # (left, n)
        gradient = (used[left] * (chance - target)) @ design + penalty[left] * weights[left]
        going = np.abs(gradient).max(1) > TOLERANCE * used[left].sum(1)
        left, chance, gradient = left[going], chance[going], gradient[going]
        if len(left) == 0:
            break
        curvature = used[left] * chance * (1 - chance)
        hessian = (design.T * curvature[:, None, :]) @ design  # (left, D + 1, D + 1)
        hessian[:, places, places] += penalty[left] + ROUNDING  # with separated classes the bias has no curvature left
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        before, slope, size = objective(weights[left], left), (gradient * step).sum(1), np.ones(len(left))
        for _ in range(HALVINGS):
            after = objective(weights[left] - size[:, None] * step, left)
            short = after > before - 1e-4 * size * slope + ROUNDING * np.abs(before)
            if not short.any():
                break
            size[short] /= 2
        weights[left] -= size[:, None] * step
    return weights


HEADS: dict[str, type[Head]] = {
    "identity": Identity,
    "standardised-sum": StandardisedSum,
    "standardised-square": StandardisedSquare,
    "mahalanobis": MahalanobisDistance,
    "choose": Choose,
    "logistic": Logistic,
    "choose-logistic": ChooseLogistic,
    "mlp": MLP,
}
