"""The contract of every detector, built-in or third-party: a docstring and ``statistics``; the rest has defaults.

::

    class LargestLogit(oodbench.Detector):
        "Minus the largest logit."

        def statistics(self, probe):
            return -probe.logits.max(1).values
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from oodbench import code_hash, standalone, state
from oodbench.classifier import Classifier
from oodbench.errors import BadData, NotFitted, reason
from oodbench.heads import HEADS, Head, Identity
from oodbench.hyperparameters import HasParameters, built
from oodbench.image_set import ImageSet
from oodbench.probe import SIGNALS, Probe
from oodbench.progress import Progress
from oodbench.training_set import FitSize, TrainingSet

SCHEMA_VERSION = 1


class Detector(HasParameters):
    """Rates how anomalous an image is, from what a network computes for it.

    Constructor arguments are hyper-parameters, kept as plain attributes of the same name. Fitted state is stored in
    attributes that end in ``_``; saving, loading and hashing rely on this. Data gathered before ``finish`` is kept in
    attributes that start with ``_``. A detector that draws random numbers has a hyper-parameter ``seed``, by default None,
    and draws with ``random_seed``.

    Class attributes:
        signals: what ``observe`` and ``statistics`` read from the probe (names of ``oodbench.probe.SIGNALS``). None, the
            default, allows everything, which keeps a graph of each forward pass: declare signals to be fast. The
            constructor may set them if they depend on a hyper-parameter.
        variants: names for the last columns of ``statistics``. Each is a score of its own, with its own row
            ``NAME:VARIANT``; the columns before them are the detector's own. All rows share one fit.
        quick: hyper-parameters for ``oodbench check``, which shorten training or suit its network of 16 features.
        calibrates: whether ``observe`` learns from the images in ``probe.held_out``. Where a suite has validation images,
            they come in separate batches that other detectors do not get, and no training image is held out.
        whole_batches: whether a score depends by design on the other images of its batch; the constructor may set it. If
            memory is too short for a batch, which is then halved, such a detector fails instead.
        caches: whether the result of ``prepare`` may be cached; False for a detector that reads files that may change.
        grid: settings (dicts of constructor arguments) to choose from when learning from a shift is allowed; set by the
            constructor if hyper-parameters define it. ``check`` and ``finish`` may leave out the last ones if the network or
            the training images cannot serve them; a saved head stores the index of its setting.
        unsupervised_head, shift_head: names of ``oodbench.heads.HEADS``; a detector without a ``shift_head`` learns
            nothing from a shift and has no row under ``per-shift``. One that chooses from the grid has a row under
            ``validation``, where its setting is chosen for the unsupervised head.
    """

    name: str = ""
    variants: ClassVar[tuple[str, ...]] = ()
    quick: ClassVar[dict[str, Any]] = {}
    calibrates: ClassVar[bool] = False
    whole_batches: bool = False
    caches: bool = True
    signals: tuple[str, ...] | None = None
    grid: Sequence[dict[str, Any]] = ()
    unsupervised_head: ClassVar[str] = "identity"
    shift_head: ClassVar[str | None] = None

    run_seed_: int  # set before each fit of a detector that has a hyper-parameter ``seed``
    _settings: list[dict[str, Any]] | None = None
    _head: Head | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Passes keep what belongs to a detector in dicts. A dataclass compares by value, and would have no hash without this.
        cls.__hash__ = object.__hash__  # type: ignore[method-assign]
        code_hash.remember(cls.__module__)

    def check(self, classifier: Classifier | None) -> None:
        """Raise Unsuitable if this detector cannot work with this classifier; called once, before any pass."""

    def memory(self, size: FitSize) -> int:
        """About how many bytes the fit takes at most, beside the network and a batch; 0, the default, if that is little."""
        return 0

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        """Train the detector's own network, before the first pass; the harness caches the resulting fitted state.

        It is not called if the cache holds a result for the same code, parameters, weights, images and seed.
        """

    def probabilities(self, probe: Probe) -> Tensor | None:
        """(N, classes) if the detector builds its own classifier; its accuracy and calibration are then reported."""
        return None

    def observe(self, probe: Probe) -> None:
        """One batch of in-distribution training images, with ``probe.labels`` and ``probe.held_out``."""

    def finish(self) -> None:
        """After the last batch: turn the gathered data into fitted state."""

    def statistics(self, probe: Probe) -> Tensor:
        """(N,) or (N, D), higher = more anomalous; for several ``settings`` the columns of each, one after the other."""
        raise NotImplementedError(f"{type(self).__name__} has no statistics(probe)")

    # The rest is the harness's side of the contract; a detector does not need to override it.

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The settings that ``statistics`` computes now; by default the values given to the constructor."""
        return [self.setting] if self._settings is None else self._settings

    @property
    def random_seed(self) -> int:
        """What a detector that draws seeds its generator with: its hyper-parameter ``seed``, or if that is None the run's."""
        own = getattr(self, "seed", None)
        return vars(self).get("run_seed_", 0) if own is None else own

    @property
    def setting(self) -> dict[str, Any]:
        """The value given to the constructor for each argument that the grid varies."""
        return {name: getattr(self, name) for name in (self.grid[0] if self.grid else ())}

    @property
    def shift_settings(self) -> list[dict[str, Any]]:
        """The settings that the shift head sees: the grid if it chooses, else the values given to the constructor."""
        return list(self.grid) if self.is_tunable else [self.setting]

    @property
    def is_tunable(self) -> bool:
        """Whether it declares hyper-parameters to choose: a grid, and a shift head that chooses from it."""
        return self.shift_head is not None and HEADS[self.shift_head].chooses

    @property
    def chooses_setting(self) -> bool:
        """Whether the shift head sees other settings than the detector's own."""
        return self.shift_settings != [self.setting]

    @contextmanager
    def computing(self, settings: Sequence[dict[str, Any]]) -> Iterator[None]:
        """Within this context ``statistics`` computes these settings."""
        self._settings = list(settings)
        try:
            yield
        finally:
            self._settings = None

    @property
    def observes(self) -> bool:
        """Whether it must see the training set before it scores."""
        return type(self).observe is not Detector.observe

    @property
    def prepares(self) -> bool:
        """Whether it trains its own network."""
        return type(self).prepare is not Detector.prepare

    @property
    def gives_probabilities(self) -> bool:
        """Whether it builds its own classifier."""
        return type(self).probabilities is not Detector.probabilities

    @property
    def declared_signals(self) -> frozenset[str]:
        """``signals``, or all signals if none are declared."""
        return SIGNALS if self.signals is None else frozenset(self.signals)

    @property
    def reads_network(self) -> bool:
        """Whether it reads more than the images."""
        return bool(self.declared_signals - {"images"})

    def columns_of(self, statistics: np.ndarray, variant: str = "") -> np.ndarray:
        """The part of statistics (N, S, D) that the head of one row sees: a variant's column, or all that are no variant's."""
        own = statistics.shape[2] - len(self.variants)
        if not variant:
            return statistics[:, :, :own]
        place = own + self.variants.index(variant)
        return statistics[:, :, place : place + 1]

    def head_of(self, variant: str, own: Head) -> Head:
        """The head of one row: the detector's ``own``, and for a variant the identity."""
        return Identity() if variant else own

    def grouped_statistics(self, probe: Probe) -> np.ndarray:
        """``statistics`` as float64 (N, S, D), S = len(settings). Raises BadData for another shape or dtype."""
        found: np.ndarray = self.grouped(probe).cpu().double().numpy()
        return found

    def grouped(self, probe: Probe) -> Tensor:
        """``grouped_statistics`` as a tensor of any dtype, still on its device."""
        values = self.statistics(probe)
        if not isinstance(values, Tensor):
            raise BadData(f"statistics(probe) gave {type(values).__name__}; it must return a tensor (N,) or (N, D)")
        if values.dim() not in (1, 2) or len(values) != len(probe) or values.numel() % (len(probe) * len(self.settings)):
            raise BadData(
                f"statistics(probe) gave shape {tuple(values.shape)} for {len(probe)} images and"
                f" {len(self.settings)} setting{'s' * (len(self.settings) != 1)}; it must return (N,) or (N, D)"
            )
        # A copy, because a view would keep all that it is a part of.
        grouped = values.detach().clone().reshape(len(probe), len(self.settings), -1)
        if self.variants and grouped.shape[2] <= len(self.variants):
            raise BadData(
                f"statistics(probe) gave {grouped.shape[2]} columns per setting; it must return columns of its own and then"
                f" one for each of its variants {', '.join(self.variants)}"
            )
        return grouped

    def fit(
        self,
        classifier: Classifier | None,
        images: Tensor | ImageSet,
        labels: Tensor | None = None,
        *,
        shift_images: Tensor | ImageSet | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> "Detector":
        """Fit on in-distribution training images (N, C, H, W), floats in [0, 1] or uint8, or an ImageSet, with labels (N,).

        A random tenth (set by ``seed``) is held out for thresholds and calibration. With ``shift_images`` (M, C, H, W) of
        one shift, a detector that learns from shifts fits its supervised head on that tenth against these images.
        """
        standalone.fit(self, classifier, images, labels, shift_images=shift_images, batch_size=batch_size, seed=seed)
        return self

    def score(self, classifier: Classifier | None, images: Tensor | ImageSet, *, batch_size: int = 128) -> np.ndarray:
        """float64 scores (N,), higher = more anomalous, of images (N, C, H, W), floats in [0, 1] or uint8, or an ImageSet.

        Raises NotFitted if the detector must be fitted first, and BadData for images that are not finite.
        """
        return standalone.score(self, classifier, images, batch_size=batch_size)

    @property
    def head(self) -> Head:
        """The head fitted last; by default the unsupervised one. Raises NotFitted if that one needs calibration."""
        if self._head is None:
            head = HEADS[self.unsupervised_head]()
            if head.calibrates:
                raise NotFitted(f"{self.name or type(self).__name__} is not calibrated; call fit(classifier, images, labels)")
            return head
        return self._head

    @head.setter
    def head(self, head: Head) -> None:
        self._head = head

    def require_fitted(self) -> None:
        """Raise NotFitted if the detector learns from training images and has not been fitted."""
        if (self.observes or self.prepares) and not state.fitted_state(self):
            raise NotFitted(f"{self.name or type(self).__name__} is not fitted; call fit(classifier, images, labels) first")

    def save(self, path: str | Path) -> None:
        """Write hyper-parameters, fitted state and head to one safetensors file; ``Detector.load`` reads it."""
        head = next((n for n, kind in HEADS.items() if type(self._head) is kind), None)
        header = {
            "schema_version": SCHEMA_VERSION,
            "detector": self.name or type(self).__name__,
            "parameters": self.parameters(),
            "head": head,
        }
        inner = {f"head:{k}": v for k, v in state.fitted_state(self._head).items()} if head else {}
        state.save(Path(path), header, state.fitted_state(self) | inner)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Detector":
        """Load the detector that ``save`` wrote: of this class, or, from ``Detector`` itself, by its registered name."""
        header, found = state.load(Path(path), device)
        if header.get("schema_version") != SCHEMA_VERSION:
            raise BadData(
                f"{path} has schema version {header.get('schema_version')}; this oodbench reads version {SCHEMA_VERSION};"
                " fit the detector again"
            )
        try:
            name, parameters, head = header["detector"], header["parameters"], header["head"]
            detector = load_detector(name, **parameters) if cls is Detector else cls(**parameters)
            detector.name = name
            if head:
                detector.head = HEADS[head]()
        except (KeyError, TypeError) as error:
            raise BadData(f"{path} does not hold a fitted {cls.__name__} ({reason(error)}); fit it again") from error
        of_head = {name.removeprefix("head:"): value for name, value in found.items() if name.startswith("head:")}
        state.restore(detector, {name: value for name, value in found.items() if not name.startswith("head:")}, Path(path))
        if head:
            state.restore(detector.head, of_head, Path(path))
        return detector


def load_detector(name: str, **parameters: Any) -> Detector:
    """Load a detector by name, built-in or third-party, with the given hyper-parameters.

    Raises UsageError for an unknown name, or for a parameter that the detector does not have.
    """
    detector: Detector = built("detectors", name, Detector, parameters, "oodbench.Detector")
    detector.name = name
    return detector
