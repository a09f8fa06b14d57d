"""A fitted detector with its threshold, in one file: flags new images on which not to rely on the network's answer.

``oodbench.inference.thresholds.fit`` creates one.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from oodbench import registry, standalone, state
from oodbench.batching import as_images, pieces_of
from oodbench.classifier import Classifier
from oodbench.datasets import resize
from oodbench.datasets.transform import Transform
from oodbench.detector import Detector
from oodbench.errors import BadData, UsageError, reason
from oodbench.heads import HEADS
from oodbench.image_set import ImageSet
from oodbench.inference.false_alarms import FalseAlarms, HeldOut, Part
from oodbench.models import imports_code
from oodbench.paths import DataRoots

SCHEMA_VERSION = 1
MOST_PIXELS = 2**20  # of an image, which decides the memory that a network takes; a file that asks for more must be trusted


class Input(Part):
    """The format that images are converted to before the network: RGB, of this size (H, W), as by ``datasets.resize.fit``."""

    size: tuple[int, int]
    resize: str
    shorter_side: int | None = None
    channels: int = Field(default=3, ge=3, le=3)

    def of(self, image: Tensor) -> Tensor:
        """The image, uint8 (1 or 3, h, w), as the network takes it. Raises BadData for any other input."""
        return resize.fit(image, self.size, self.resize, self.shorter_side)


class Model(Part):
    """The network: its name, its weights file and the part of it that was read, the hashes of both, and its layers."""

    name: str
    weights: str | None  # path; None if the model brings its own
    weights_key: str | None = None
    weights_sha256: str | None
    weights_hash: str
    layers: list[str] | None = None  # that layered detectors read; None in files of older versions


class Training(Part):
    """The training images that it was fitted on."""

    dataset: str
    split: str
    images: int
    fingerprint: str
    held_out_split: str
    held_out_fingerprint: str
    seed: int


class About(Part):
    """Everything the file holds besides the detector: see docs/inference.md."""

    schema_version: int = SCHEMA_VERSION
    threshold: float
    false_alarms: FalseAlarms
    input: Input
    model: Model | None  # None for a detector that only reads images
    training: Training
    cost: dict[str, float | None]
    provenance: dict[str, Any]
    held_out: HeldOut | None = None  # None in files of older versions, whose threshold cannot be moved


class Judgement(NamedTuple):
    """What ``Fitted.judge`` gives, one row per image."""

    scores: np.ndarray  # float64 (N,), higher = more anomalous
    flagged: np.ndarray  # bool (N,): whether each score is above the threshold
    logits: np.ndarray | None  # float64 (N, classes); None for a detector that only reads images


class Fitted:
    """``fitted(images)`` gives (scores, flagged) of images (N, C, H, W), and ``fitted.judge(images)`` the logits too.

    detector, classifier: compute the scores; classifier is None for a detector that only reads images.
    about: everything the file holds besides the detector.
    """

    def __init__(self, detector: Detector, classifier: Classifier | None, about: About, batch_size: int = 128) -> None:
        self.detector, self.classifier, self.about, self.batch_size = detector, classifier, about, batch_size

    @property
    def threshold(self) -> float:
        """An image whose score is above it is flagged."""
        return self.about.threshold

    @property
    def false_alarms(self) -> float | None:
        """The requested maximum share of flagged in-distribution images; ``about`` has the measured share.

        None for a threshold that was given to ``with_threshold``.
        """
        return self.about.false_alarms.asked

    @property
    def cost(self) -> dict[str, float | None]:
        """ms_per_image, overhead in multiples of a bare forward pass, peak_memory_mb, and the relative spread of the repeats
        of the first two (``ms_per_image_spread``, ``overhead_spread``), measured when it was fitted."""
        return self.about.cost

    def __call__(self, images: Tensor | ImageSet | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 scores (N,), higher = more anomalous, and bool (N,): whether each is above the threshold.

        Images (N, 1 or 3, H, W): uint8 of any size, resized as in training, or floats in [0, 1] of the input size; grey
        images are repeated to three channels. Raises BadData for others.
        """
        return self.judge(images)[:2]

    def judge(self, images: Tensor | ImageSet | np.ndarray) -> Judgement:
        """Scores and flags of the same images, with the network's logits of the pass that gives the scores."""
        images = as_images(images)
        pieces = pieces_of(np.arange(len(images)), self.batch_size)
        found = [self._judge(images.read(rows) if isinstance(images, ImageSet) else images[rows]) for rows in pieces]
        scores = np.concatenate([part for part, _ in found])
        logits = [part for _, part in found if part is not None]
        return Judgement(scores, scores > self.threshold, np.concatenate(logits) if logits else None)

    def _judge(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        fitting = (
            torch.stack([self.about.input.of(image) for image in images.cpu()])
            if images.dtype == torch.uint8
            else self._as_they_are(images)
        )
        return standalone.scores_and_logits(self.detector, self.classifier, fitting, batch_size=self.batch_size)

    def _as_they_are(self, images: Tensor) -> Tensor:
        height, width = self.about.input.size
        if images.shape[1] not in (1, 3) or tuple(images.shape[2:]) != (height, width):
            raise BadData(
                f"images are floats {tuple(images.shape[1:])}; give uint8, which is resized as in training, or floats of"
                f" (3, {height}, {width})"
            )
        return images.expand(-1, 3, -1, -1)

    def with_threshold(self, threshold: float) -> "Fitted":
        """The same detector with this threshold, whose false alarms are measured on held-out images."""
        found = _number(threshold)
        if found is None or not np.isfinite(found):
            raise UsageError(f"threshold = {threshold!r}; give a finite number")
        return self._moved(found, self._held_out().at_threshold(found))

    def with_false_alarms(self, rate: float) -> "Fitted":
        """The same detector with the threshold that ``oodbench fit --false-alarms RATE`` would set, without a new fit."""
        if (found := _number(rate)) is None:
            raise UsageError(f"false alarms = {rate!r}; give a share between 0 and 1, such as 0.05")
        return self._moved(*self._held_out().at_rate(found))

    def export(self) -> torch.nn.Module:
        """A plain module for ``torch.export`` and ONNX: images (N, 3, H, W), floats in [0, 1] of the input size, to float64
        scores (N,) and logits (N, classes). A score above its ``threshold`` is flagged.

        It holds a copy of the network, on its device. Raises Unsuitable for a detector that reads more than logits and
        features, or that ``torch.export`` does not take.
        """
        from oodbench.inference.export import exported

        return exported(self.detector, self.classifier, self.about.input.size, self.threshold)

    def _moved(self, threshold: float, alarms: FalseAlarms) -> "Fitted":
        about = self.about.model_copy(update={"threshold": threshold, "false_alarms": alarms})
        return Fitted(self.detector, self.classifier, about, self.batch_size)

    def _held_out(self) -> HeldOut:
        if self.about.held_out is None:
            name = self.detector.name
            raise UsageError(
                f"{name}: its threshold cannot be moved, because an older oodbench, which wrote its file, kept no scores of"
                " held-out images; fit it again"
            )
        return self.about.held_out

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file with a JSON header; ``oodbench.load_fitted`` reads it."""
        with tempfile.TemporaryDirectory() as folder:
            self.detector.save(Path(folder) / "detector")
            header, fitted_state = state.load(Path(folder) / "detector")
        state.save(Path(path), {**header, "fitted": self.about.model_dump(mode="json")}, fitted_state)


def load_fitted(
    path: str | Path,
    classifier: Classifier | None = None,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    data: DataRoots = None,
    device: str = "cpu",
    batch_size: int = 128,
    trust_model: bool = False,
) -> Fitted:
    """Load the detector that ``oodbench fit`` wrote: ``scores, flagged = load_fitted(path)(images)``.

    Args:
        classifier: the network it was fitted on; by default the model named in the file is loaded.
        weights: the model's weights file; by default the one used for fitting, else the one that ``load_model`` finds.
        weights_key: which part of the weights file to read; by default the one used for fitting.
        data: the data root, or several.
        trust_model: whether a model ``module:function`` that the file names may be imported, which runs its code, and whether
            images may have more than 1024·1024 pixels.

    No other code in the file is executed: it is safetensors and JSON, and its detector must be registered. Raises BadData
    for a damaged file, for other weights than it was fitted on, or for scores that are not finite.
    """
    from oodbench.models.device import resolve_device

    path = Path(path)
    about, detector_name = _read(path)
    height, width = about.input.size
    if height * width > MOST_PIXELS and not trust_model:
        raise UsageError(
            f"{path} asks for images of {height}×{width} pixels, more than {MOST_PIXELS:,}, which may take all memory; if you"
            " trust the file, use --trust-model (in Python trust_model=True)"
        )
    if classifier is not None and not isinstance(classifier, Classifier):
        raise UsageError(
            f"classifier is {type(classifier).__name__}; give an oodbench.Classifier, such as"
            " oodbench.Classifier(module, mean, std)"
        )
    target = classifier.device if classifier else resolve_device(device)
    if about.model is None:
        classifier = None
    elif classifier is None:
        classifier = _rebuilt(path, about.model, weights, weights_key, data, str(target), trust_model)
    if classifier is not None and about.model is not None and classifier.weights_hash != about.model.weights_hash:
        gone = about.model.weights if about.model.weights and not Path(about.model.weights).exists() else ""
        why = f" (its file {gone} is gone)" if gone and weights is None else ""
        raise BadData(
            f"{path} was fitted on {about.model.name} with weights {about.model.weights_hash}{why}, not"
            f" {classifier.weights_hash}; give the original weights file with --weights, or fit again"
        )
    if detector_name not in registry.records("detectors"):
        raise UsageError(
            f"{path} holds the detector '{detector_name}', which no package here registers; install its package, or name it"
            " with --plugin MODULE:CLASS (in Python oodbench.registry.add_plugin)"
        )
    try:
        detector = Detector.load(path, target)
        _check_head(detector)
        _check_layers(path, detector, classifier, about.model)
        fitted = Fitted(detector, classifier, about, batch_size)
        fitted(torch.full((1, 3, *about.input.size), 127, dtype=torch.uint8))
    except Exception as error:  # state that does not fit the detector may raise any error
        why = reason(error).removesuffix("; fit it again")
        why = why if why.startswith(f"{path} ") else f"{path} does not hold what {detector_name} needs ({why})"
        raise BadData(f"{why}; fit it again") from error
    return fitted


def _check_head(detector: Detector) -> None:
    """The state of another kind of head, or a setting that it did not choose, may give scores too, but meaningless ones."""
    names = [name for name in (detector.unsupervised_head, detector.shift_head) if name]
    if type(detector.head) not in [HEADS[name] for name in names]:
        raise BadData(f"its head is {type(detector.head).__name__}, not {' or '.join(names)}")
    if detector.head.chooses and vars(detector.head).get("setting_") not in range(len(detector.grid)):
        raise BadData("its head has not chosen a setting of the grid")


def _check_layers(path: Path, detector: Detector, classifier: Classifier | None, model: Model | None) -> None:
    """Other layers of the same width would give scores too, of something else."""
    if classifier is None or model is None or model.layers is None or not detector.declared_signals & {"layers", "maps"}:
        return
    if [*classifier.layer_names] != model.layers:
        now = ", ".join(classifier.layer_names) or "none"
        raise BadData(f"{path} was fitted on the layers {', '.join(model.layers)} of {model.name}, not {now}")


def _read(path: Path) -> tuple[About, str]:
    """The content of the file's header, and the name of its detector."""
    header, _ = state.load(path)
    if "fitted" not in header:
        raise BadData(f"{path} holds no threshold; create the file with oodbench fit")
    version = header["fitted"].get("schema_version") if isinstance(header["fitted"], dict) else None
    if version != SCHEMA_VERSION:
        raise BadData(f"{path} has schema version {version}; this oodbench reads version {SCHEMA_VERSION}; fit it again")
    try:
        about = About.model_validate(header["fitted"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadData(f"{path} was not written by oodbench fit ({where}: {first['msg']}); fit it again") from error
    try:
        for side in about.input.size:
            Transform(side, about.input.resize, about.input.shorter_side)
    except UsageError as error:
        raise BadData(f"{path} asks for images of {about.input.size} by {about.input.resize}; do not use this file") from error
    return about, str(header.get("detector"))


def _rebuilt(
    path: Path,
    model: Model,
    weights: str | Path | None,
    weights_key: str | None,
    data: DataRoots,
    device: str,
    trust_model: bool,
) -> Classifier:
    """The network named in the file."""
    from oodbench.models.load import check_weights, load_model

    if imports_code(model.name) and not trust_model:
        raise UsageError(
            f"{path} names the model {model.name}, and loading it would run that code; if you trust the file, use"
            " --trust-model (in Python trust_model=True), or pass the classifier to load_fitted"
        )
    if weights is None and model.weights is not None and Path(model.weights).is_file():
        weights = model.weights
        if sha256_of(Path(weights)) != model.weights_sha256:
            raise BadData(f"{weights} has changed since {path} was fitted; give --weights FILE, or fit again")
    check_weights(model.name, weights, data)  # before a network is built, which may be of any size
    key = weights_key or model.weights_key
    given: dict[str, Any] = {"weights_key": key, "layers": model.layers, "data": data}
    return load_model(model.name, weights, device=device, require_weights=True, **given)


def _number(value: object) -> float | None:
    """A number, also one in a tensor or an array; None for anything else."""
    if isinstance(value, Tensor | np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return float(value)
    return None


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
