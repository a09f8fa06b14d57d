"""Class means and covariances of streamed features, and Mahalanobis distances from them; everything in float64."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench.detector import Detector
from oodbench.errors import BadData, Unsuitable
from oodbench.probe import Probe

CHUNK = 64  # features of a class whose covariance is updated at once


def labels_of(probe: Probe) -> Tensor:
    """The training labels (N,). Raises Unsuitable if there are none, and BadData if the network has too few classes."""
    if probe.labels is None:
        raise Unsuitable("needs the labels of the training images; give labels, or a training set that has them")
    classes = probe.logits.shape[1]
    if len(probe.labels) and not 0 <= int(probe.labels.min()) <= int(probe.labels.max()) < classes:
        raise BadData(
            f"training labels range from {int(probe.labels.min())} to {int(probe.labels.max())}, but"
            f" {probe.classifier.name} has {classes} classes; train a network on this set"
        )
    return probe.labels


class ClassMeans:
    """Sums of values (d,) per class, streamed."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.count: Tensor | float = 0.0  # (classes,)
        self.sum: Tensor | None = None  # (classes, d)

    def add(self, values: Tensor, classes: Tensor) -> None:
        """Add values (n, d) of classes (n,)."""
        # A product with one-hot rows, because index_add is not deterministic on CUDA.
        one_hot = F.one_hot(classes, self.classes).double()  # (n, classes)
        self.count = self.count + one_hot.sum(0)
        if self.sum is None:
            self.sum = one_hot.new_zeros(self.classes, values.shape[1])
        self.sum = torch.addmm(self.sum, one_hot.T, values.double())

    def means(self, otherwise: Tensor) -> Tensor:
        """(classes, d): the mean of each class, or the row of ``otherwise`` (classes, d) for a class without values."""
        count = torch.as_tensor(self.count)[:, None]
        return torch.where(count > 0, torch.as_tensor(self.sum) / count.clamp_min(1), otherwise)

    def mean(self) -> Tensor:
        """(d,): the mean over all classes."""
        return torch.as_tensor(self.sum).sum(0) / torch.as_tensor(self.count).sum()


class Mean:
    """The mean of rows (d,), streamed."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows (n, d)."""
        self._count += len(rows)
        self._sum = self._sum + rows.double().sum(0)

    def mean(self) -> Tensor:
        """(d,), float64. Raises Unsuitable if there are no rows."""
        if not self._count:
            raise Unsuitable("saw no training images to fit on; give more training images")
        return torch.as_tensor(self._sum) / self._count


class OfMean(Detector):
    """A detector that learns the mean of training features, ``mean_`` (d,)."""

    mean_: Tensor

    def __init__(self) -> None:
        self._mean = Mean()

    def observe(self, probe: Probe) -> None:
        self._mean.add(probe.features)

    def finish(self) -> None:
        self.mean_, self._mean = self._mean.mean(), Mean()


class ClassMoments:
    """Class means and the covariances about them, streamed; no features are kept.

    Everything is relative to the mean of the first batch, so that a large mean costs no digits.
    """

    def __init__(self, classes: int) -> None:
        self._shift: Tensor | None = None  # (d,)
        self._sums = ClassMeans(classes)
        self._scatter: Tensor | None = None  # (d, d)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features (n, d) with labels (n,)."""
        if not len(features):
            return
        features = features.double()
        if self._shift is None:
            self._shift = features.mean(0)
        shifted = features - self._shift
        self._sums.add(shifted, labels)
        if self._scatter is None:
            self._scatter = shifted.new_zeros(shifted.shape[1], shifted.shape[1])
        self._scatter = torch.addmm(self._scatter, shifted.T, shifted)

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class means (C, d) of the C classes that occur, their tied covariance (d, d), the mean (d,), the covariance (d, d).

        Raises Unsuitable if no features were added.
        """
        if self._shift is None or self._scatter is None:
            raise Unsuitable("saw no training images to fit on; give more training images")
        count, total = torch.as_tensor(self._sums.count), torch.as_tensor(self._sums.sum)
        present = count > 0
        count, means = count[present], total[present] / count[present, None]
        mean = total.sum(0) / count.sum()
        second = self._scatter / count.sum()
        tied = second - (means * (count / count.sum())[:, None]).T @ means
        return self._shift + means, tied, self._shift + mean, second - torch.outer(mean, mean)


class ClassCovariances:
    """Mean and covariance of each class separately, streamed.

    ``CHUNK`` features of a class are gathered, centred and merged by the update of Chan, Golub and LeVeque (1983), which
    loses no digits.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[int, Tensor, Tensor]] = {}  # by class: images, mean (d,), scatter about it (d, d)
        self._waiting: dict[int, list[Tensor]] = {}  # by class: features (d,) that are not merged yet

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features (n, d) with labels (n,)."""
        for row, label in zip(features, labels.tolist(), strict=True):
            waiting = self._waiting.setdefault(label, [])
            waiting.append(row.clone())  # a view would keep the whole batch
            if len(waiting) == CHUNK:
                self._merge(label)

    def _merge(self, label: int) -> None:
        rows = torch.stack(self._waiting.pop(label)).double()
        count, mean = len(rows), rows.mean(0)
        if label not in self._of:
            self._of[label] = count, mean, (rows - mean).T @ (rows - mean)
            return
        before, mean_before, scatter = self._of[label]
        step, total = mean - mean_before, before + count
        # The distance between both means as one more centred row.
        centred = torch.cat([rows - mean, step[None] * (before * count / total) ** 0.5])
        self._of[label] = total, mean_before + step * (count / total), torch.addmm(scatter, centred.T, centred)

    def take(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean (d,) and covariance (d, d), divided by n − 1, of each class that occurs, in order; they are not kept.

        Raises Unsuitable if no features were added, or if a class has only one.
        """
        for label in list(self._waiting):
            self._merge(label)
        if not self._of:
            raise Unsuitable("saw no training images to fit on; give more training images")
        if few := [label for label, (count, _, _) in sorted(self._of.items()) if count < 2]:
            raise Unsuitable(
                f"class {few[0]} has one training image that is not held out, but a covariance needs 2; give more of it"
            )
        for label in sorted(self._of):
            count, mean, scatter = self._of.pop(label)
            yield mean, scatter / (count - 1)


def whitening(covariance: Tensor) -> Tensor:
    """W (r, d) with WᵀW the pseudo-inverse of a covariance (d, d) of rank r: ‖W x‖² is a Mahalanobis distance.

    Directions without variance are left out, with the usual cut-off for a pseudo-inverse: d·eps times the largest eigenvalue.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    keep = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return (vectors[:, keep] / values[keep].sqrt()).T.contiguous()


def memory_of_moments(features: int, classes: int) -> int:
    """Bytes that ``ClassMoments`` and ``whitening`` of two covariances take, in float64."""
    return 8 * (7 * features**2 + 6 * classes * features)


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """‖point − centre‖² of (N, r) and (C, r): (N, C), by a matrix product, without tensors (N, C, r) or (N, N)."""
    squares = points.square().sum(1, keepdim=True) + centres.square().sum(1)  # (N, C)
    return (squares - 2 * points @ centres.T).clamp_min(0)
