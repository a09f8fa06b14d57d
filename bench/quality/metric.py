"""The contract of every full-reference metric of image quality, built-in or third-party.

::

    class MeanError(QualityMetric):
        "Mean absolute difference of the pixels."

        higher_is_better = False

        def compare(self, references, distorted):
            return (references.double() - distorted.double()).abs().mean((1, 2, 3))
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from oodbench import code_hash
from oodbench.errors import BadData, Unsuitable, counted
from oodbench.hyperparameters import HasParameters, built
from oodbench.paths import DataRoots


class NotFinite(BadData):
    """The value of an image is not a finite number; ``row`` is that of the image in its batch."""

    def __init__(self, metric: str, row: int, value: float, image: str = "") -> None:
        where = image or f"row {row} of the batch"
        super().__init__(f"{metric}: its value for {where} is {value}; leave out that image or the metric")
        self.row, self.value = row, value


class QualityMetric(HasParameters):
    """Compares distorted images with their references: one number per image.

    Constructor arguments are hyper-parameters, kept as plain attributes of the same name.

    Class attributes:
        higher_is_better: whether a larger value means a better image.
        smallest_side: the fewest pixels per side that it can compare.

    Attributes:
        name: set by the registry.
        data: the data roots in which a metric that reads files looks for them; set by ``load_metric``.
    """

    name: str = ""
    higher_is_better: ClassVar[bool] = True
    smallest_side: ClassVar[int] = 1
    data: DataRoots = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        code_hash.remember(cls.__module__)

    def compare(self, references: Tensor, distorted: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) each -> (N,) of any real dtype. An image's value must not depend on the others."""
        raise NotImplementedError(f"{type(self).__name__} has no compare(references, distorted)")

    def files(self) -> dict[str, str]:
        """SHA-256 by path of each file that the values depend on, such as weights. Raises MissingData if one is missing."""
        return {}

    # The rest is the harness's side of the contract; a metric does not need to override it.

    def score(self, references: Tensor, distorted: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) each -> float64 (N,) on the CPU.

        Raises BadData for images of another dtype, of different shapes, or whose value is not a finite number, and Unsuitable
        for images that are too small for this metric.
        """
        name = self.name or type(self).__name__
        shapes = tuple(references.shape), tuple(distorted.shape)
        if not references.dtype == distorted.dtype == torch.uint8:
            raise BadData(f"{name}: the images are {references.dtype} and {distorted.dtype}; give uint8, from 0 to 255")
        if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][1] != 3:
            raise BadData(
                f"{name}: the references are {shapes[0]} and the distorted images {shapes[1]}; give (N, 3, H, W) twice"
            )
        if not len(references):
            return torch.zeros(0, dtype=torch.float64)
        if min(shapes[0][2:]) < self.smallest_side:
            height, width = shapes[0][2:]
            raise Unsuitable(
                f"{name}: compares images of at least {self.smallest_side} pixels per side, and these have {height}x{width};"
                " use larger images or another metric"
            )
        with torch.no_grad():
            values = self.compare(references, distorted)
        if not isinstance(values, Tensor) or values.shape != (len(references),) or values.is_complex():
            found = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise BadData(f"{name}: compare gave {found} for {counted(len(references), 'image')}; return real numbers (N,)")
        values = values.detach().cpu().double()
        if len(rows := (~values.isfinite()).nonzero()):
            row = int(rows[0])
            raise NotFinite(name, row, float(values[row]))
        return values


def load_metric(name: str, *, data: DataRoots = None, **parameters: Any) -> QualityMetric:
    """Load a metric by name, built-in or third-party, with the given hyper-parameters.

    ``data``: the data root, or several, for metrics that read files. Raises UsageError for an unknown name, or for a
    parameter that the metric does not have.
    """
    metric: QualityMetric = built("quality_metrics", name, QualityMetric, parameters, "oodbench.quality.metric.QualityMetric")
    metric.name, metric.data = name, data
    return metric
