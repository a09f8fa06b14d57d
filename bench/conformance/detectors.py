"""Requirements for every detector, built-in or third-party, on a tiny network that learnt an easy task.

Each check is a function of a ``Subject``, the detector under check. It returns its finding, or raises: ``Skipped`` if there
is nothing to check, and any other error if the detector does not fulfil the contract.
"""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench import batching, metrics, passes, protocols, state
from oodbench.conformance.outcomes import Failed, Skipped, require
from oodbench.conformance.subject import INSIDE, INSIDE_LABELS, LABELS, MANY, OUTSIDE, TRAIN, Subject, columns, probing, subject
from oodbench.conformance.task import easy_shift, extreme_images, trained_classifier
from oodbench.conformance.watch import other_randomness
from oodbench.detector import Detector, load_detector
from oodbench.engine import timing
from oodbench.engine.sound_detector import check_signals
from oodbench.errors import NotFitted, Unsuitable, counted, reason
from oodbench.heads import HEADS
from oodbench.image_set import ImageSet
from oodbench.models.device import name_of, resolve_device
from oodbench.paths import separate_cache
from oodbench.probe import SIGNALS
from oodbench.results.facts import mark
from oodbench.training_set import TrainingSet

__all__ = ["CHECKS", "Subject", "subject"]

EASY_AUROC = 0.7  # for a shift as obvious as OUTSIDE
LEARNT_AUROC = 0.95  # for the same shift after learning from it
COMPANY = ("msp", "odin", "mahalanobis-fe")  # together they need a graph, logits and layers


def contract(subject: Subject) -> str:
    """A docstring; hyper-parameters that are attributes and JSON values; known signals, heads and variants."""
    detector = subject.make()
    kind, parameters = type(detector), detector.parameters()
    require(bool((kind.__doc__ or "").strip()), f"{kind.__name__} has no docstring; say in it what it computes")
    for name in parameters:
        require(not name.endswith("_"), f"the parameter {name} ends in _, which marks fitted state")
    again = kind(**json.loads(json.dumps(parameters, allow_nan=False))).parameters()
    require(json.dumps(again) == json.dumps(parameters), f"created again from {parameters} it has {again}")
    check_signals(detector)
    for head in (kind.unsupervised_head, kind.shift_head):
        require(head is None or head in HEADS, f"names the unknown head {head} (known: {', '.join(HEADS)})")
    for setting in detector.grid:
        require(setting.keys() == detector.setting.keys() <= parameters.keys(), f"{setting} in its grid has other parameters")
    require(detector.settings == [detector.setting], f"computes {detector.settings} instead of {detector.setting}")
    chooses = kind.shift_head is not None and HEADS[kind.shift_head].chooses
    require(bool(detector.grid) or not chooses, f"the head {kind.shift_head} has no grid to choose from")
    require(kind.quick.keys() <= parameters.keys(), f"quick has parameters other than {', '.join(parameters) or 'none'}")
    sound = all(name and ":" not in name for name in kind.variants) and len(set(kind.variants)) == len(kind.variants)
    require(sound, f"variants {kind.variants} must be different names without a colon")
    if subject.record and subject.record.distribution == "oodbench":
        listed = subject.record
        require(all((listed.summary, listed.source, listed.learns_from)), "its row in the table has empty fields")
        require(listed.parameters.split() == list(parameters), f"the table lists '{listed.parameters}', not {list(parameters)}")
    graph = "; declares no signals, so every pass keeps a graph" if detector.signals is None else ""
    return f"{counted(len(parameters), 'parameter')}{graph}"


def fits_and_scores(subject: Subject) -> str:
    """Scores are a finite float64 array (N,), and not all equal."""
    if isinstance(subject.first, Exception) and not isinstance(subject.first, Unsuitable):
        raise subject.first
    scores = subject.scores
    require(isinstance(scores, np.ndarray), f"score gives {type(scores).__name__}, not an array")
    require(scores.dtype == np.float64 and scores.shape == (len(INSIDE),), f"scores are {scores.dtype} {scores.shape}")
    require(bool(np.isfinite(scores).all()), "scores are not finite")
    require(not metrics.alike(scores), f"all scores are {scores[0] + 0:g}, up to rounding, so they separate nothing")
    return f"{len(scores)} scores, float64"


def deterministic(subject: Subject) -> str:
    """Fitted again with the same seed, also after a fit on other images, it gives the same scores bit for bit."""
    scores = subject.scores
    _same(subject.fitted.score(subject.classifier, INSIDE), scores, 0, "scored twice")
    with other_randomness(), separate_cache():
        again = subject.fit()
        _same(again.score(subject.classifier, INSIDE), scores, 0, "fitted twice")
        refitted = subject.fit(detector=subject.fit(images=1 - TRAIN))
        _same(refitted.score(subject.classifier, INSIDE), scores, 0, "fitted after a fit on other images")
    return "3 fits, identical bit for bit"


def batch_size(subject: Subject) -> str:
    """An image has the same score alone, in any batch, in any order; the batch size of the fit does not matter."""
    whole, detector, rtol = subject.scores, subject.fitted, subject.rtol
    for size in (1, 7):
        _same(detector.score(subject.classifier, INSIDE, batch_size=size), whole, rtol, f"in batches of {size}")
    _same(detector.score(subject.classifier, INSIDE.flip(0))[::-1], whole, rtol, "in reverse order")
    classifier, double = subject.double
    exact = double.score(classifier, INSIDE)
    _same(double.score(classifier, INSIDE, batch_size=7), exact, 1e-6, "in batches of 7, in float64")
    among = torch.cat([MANY[:100], INSIDE, MANY[100:]])
    found = detector.score(subject.classifier, among, batch_size=len(among))[100:160]
    _same(found, whole, rtol, f"in one batch among {len(MANY)} others")
    again = subject.fit(batch_size=33, labels=LABELS.to(torch.int32))
    _same(again.score(subject.classifier, INSIDE), whole, rtol, "fitted in batches of 33")
    return f"batches of 1, 7, {len(INSIDE)} and {len(among)}"


def dtype(subject: Subject) -> str:
    """A float64 network works, with matching scores; uint8 images score the same as the equivalent floats."""
    classifier, detector = subject.double
    scores = detector.score(classifier, INSIDE)
    require(
        scores.dtype == np.float64 and bool(np.isfinite(scores).all()), "on a float64 network scores are not finite float64"
    )
    if not detector.prepares:  # training diverges slowly between dtypes
        _same(scores, subject.scores, 1e-2, "on a float64 network")
    pixels = _uint8(INSIDE)
    as_floats = subject.fitted.score(subject.classifier, pixels.float() / 255)
    _same(subject.fitted.score(subject.classifier, pixels), as_floats, subject.rtol, "as uint8")
    return "float32 and float64 networks, uint8 and float images"


def device(subject: Subject) -> str:
    """It works on the accelerator, if there is one, with matching scores."""
    scores, accelerator = subject.scores, resolve_device("auto")
    if accelerator.type == "cpu":
        raise Skipped("no accelerator: checked only on the CPU")
    classifier = trained_classifier(device=accelerator)
    detector = subject.fit(classifier)
    found = detector.score(classifier, INSIDE)
    if not detector.prepares:
        _same(found, scores, 1e-2, f"on {accelerator}")
    moved = _saved_and_loaded(detector, "cpu").score(subject.classifier, INSIDE)
    _same(moved, found, 1e-2, f"fitted on {accelerator}, loaded on the CPU")
    return name_of(accelerator) or str(accelerator)


def classifier_untouched(subject: Subject) -> str:
    """Weights, buffers, training flags, requires_grad, gradients and hooks of the network are unchanged."""
    faults = subject.watched.of_classifier
    require(not faults, f"a fit and a score changed the classifier: {', '.join(faults)}")
    subject.sound()
    return "weights, buffers, modes, requires_grad, hooks"


def no_pass_of_its_own(subject: Subject) -> str:
    """The network runs only through the probe: own passes of a detector are not shared and not part of any cost."""
    ran = subject.watched.own_passes
    where = f"ran {ran[0]} outside the probe, {counted(len(ran), 'call')} in total" if ran else ""
    require(not ran, f"{where}; use the probe, with the signals declared")
    subject.sound()
    return "the network ran only through the probe"


def held_out(subject: Subject) -> str:
    """Replacing held-out training images by noise changes no fitted state, if a head is calibrated on these images."""
    detector = subject.fitted
    heads = [HEADS[name] for name in (detector.unsupervised_head, detector.shift_head) if name]
    if not (detector.observes or detector.prepares) or not (detector.prepares or any(head.calibrates for head in heads)):
        raise Skipped("has no head that is calibrated on held-out images, and trains no network")
    rows = torch.from_numpy(protocols.held_out(len(TRAIN), LABELS.numpy(), 0))
    images = TRAIN.clone()
    images[rows] = easy_shift(int(rows.sum()), seed=4)
    wanted, found = (state.fitted_state(one) for one in (detector, subject.fit(images=images)))
    changed = [name for name in wanted if name not in found or not _equal(wanted[name], found[name])]
    require(not changed, f"fitted {', '.join(changed)} on held-out images too; leave out the images in probe.held_out")
    return f"{int(rows.sum())} held-out images are not used in the fit"


def validation(subject: Subject) -> str:
    """It works where a suite sets images apart to calibrate on, so that no training image is held out; sets as in a run."""
    if not (subject.fitted.observes or subject.fitted.prepares):
        raise Skipped("learns nothing from training images")
    detector, classifier = subject.make(), subject.classifier
    apart = ImageSet(_uint8(INSIDE), INSIDE_LABELS)
    train_set = TrainingSet(ImageSet(_uint8(TRAIN), LABELS), LABELS, np.zeros(len(TRAIN), dtype=bool), validation=apart)
    pieces = batching.pieces_of(np.arange(len(INSIDE)), 32)
    try:
        passes.learn([detector], classifier, train_set, batch_size=32)
        passes.statistics({detector: [detector.setting]}, classifier, INSIDE, pieces)
    except Exception as error:
        remedy = "" if detector.calibrates else "; a detector that learns from probe.held_out sets calibrates = True"
        raise Failed(f"calibrated on images of a validation set: {reason(error)}{remedy}") from error
    return f"calibrated on {len(apart)} images set apart" if detector.calibrates else "no training image is held out"


def labels_unseen(subject: Subject) -> str:
    """Labels of test images are not available, and change no score."""
    require(not subject.watched.labels_seen, f"the probe had labels while scoring {subject.watched.labels_seen} batches")
    pixels = _uint8(INSIDE)
    shuffled = INSIDE_LABELS[torch.randperm(len(INSIDE), generator=torch.Generator().manual_seed(0))]
    unlabelled = subject.fitted.score(subject.classifier, ImageSet(pixels))
    for what, labels in (("true", INSIDE_LABELS), ("shuffled", shuffled)):
        found = subject.fitted.score(subject.classifier, ImageSet(pixels, labels))
        _same(found, unlabelled, 0, f"with {what} labels beside the images")
    return "equal scores with true, shuffled and no labels"


def save_and_load(subject: Subject) -> str:
    """Saved files are safetensors and JSON, never pickle; a loaded detector gives the same scores."""
    detectors = {"": subject.fitted} | ({" after a shift": subject.shifted} if subject.fitted.shift_head else {})
    for what, detector in detectors.items():
        loaded = _saved_and_loaded(detector)
        require(
            loaded is not detector and type(loaded) is type(detector), f"load gives {loaded!r}, not a new detector of its class"
        )
        require(loaded.parameters() == json.loads(json.dumps(detector.parameters())), f"load gives {loaded!r}")
        wanted, found = (state.fitted_state(d).keys() for d in (detector, loaded))
        require(wanted == found, f"fitted state {sorted(wanted ^ found)} differs after loading")
        scores = detector.score(subject.classifier, INSIDE)
        _same(loaded.score(subject.classifier, INSIDE), scores, 0, f"saved and loaded{what}")
    return f"{counted(len(state.fitted_state(subject.fitted)), 'attribute')} of fitted state"


def finite(subject: Subject) -> str:
    """Constant and extreme images have finite scores."""
    extreme = extreme_images()
    for what, images in (("floats", extreme), ("uint8", _uint8(extreme)), ("one alone", extreme[:1])):
        scores = subject.fitted.score(subject.classifier, images)
        bad = int((~np.isfinite(scores)).sum())
        require(not bad, f"{bad} of {len(images)} constant and extreme images ({what}) have scores that are not finite")
    return f"{len(extreme)} images: constant ones, checkerboards, one pixel, noise"


def easy_shift_scores_higher(subject: Subject) -> str:
    """Uniform noise scores higher than images of the task; the columns of variants are finite."""
    sides = [columns(subject.classifier, subject.fitted, images) for images in (INSIDE, OUTSIDE)]
    own = sides[0].shape[1] - len(subject.fitted.variants)
    for place, name in enumerate(subject.fitted.variants, own):
        require(all(np.isfinite(side[:, place]).all() for side in sides), f"the variant {name} is not finite")
    found = metrics.auroc(subject.scores, subject.fitted.score(subject.classifier, OUTSIDE))
    require(found > EASY_AUROC, f"AUROC {found:.3f} on uniform noise, expected above {EASY_AUROC}; is higher = more anomalous?")
    rows = [f"{v} {metrics.auroc(*(side[:, i] for side in sides)):.3f}" for i, v in enumerate(subject.fitted.variants, own)]
    return ", ".join([f"AUROC {found:.3f}", *rows])


def learns_from_shift(subject: Subject) -> str:
    """With a shift to learn from, it detects that shift; a detector that learns nothing from a shift refuses it."""
    if subject.fitted.shift_head is None:
        try:
            subject.fit(shift_images=OUTSIDE)
        except Unsuitable:
            return "learns nothing from a shift, and refuses it"
        raise Failed("accepts shift_images without a shift_head to learn from them")
    head = subject.shifted.head
    require(not head.chooses or 0 <= head.setting_ < len(subject.fitted.grid), "its head chose no setting of the grid")
    scores = [subject.shifted.score(subject.classifier, images) for images in (INSIDE, easy_shift(60, seed=3))]
    found = metrics.auroc(*scores)
    require(found > LEARNT_AUROC, f"AUROC {found:.3f} on the kind of noise learnt from, expected above {LEARNT_AUROC}")
    return f"AUROC {found:.3f}"


def cost(subject: Subject) -> str:
    """Its cost can be measured: milliseconds per image, and multiples of a forward pass."""
    detector = subject.fitted
    jobs = {"it": timing.Job(detector, detector.setting)}
    found = timing.standalone_costs(jobs, subject.classifier, INSIDE[: timing.BATCH_SIZE], repeats=3)["it"]
    ms = found["ms_per_image"]
    require(ms is not None and np.isfinite(ms) and ms > 0, f"{ms} ms per image")
    of_pass = f"{mark(found, 'overhead')}{found['overhead']:.3g} times a forward pass"
    return f"{mark(found, 'ms_per_image')}{ms:.3g} ms per image, {of_pass}"


def leaves_all_else_alone(subject: Subject) -> str:
    """Images, labels and global random states are unchanged."""
    require(not subject.watched.of_others, f"a fit and a score changed {', '.join(subject.watched.of_others)}")
    subject.sound()
    return "images, labels, global randomness, torch's settings"


def statistics(subject: Subject) -> str:
    """(N,) or (N, D), the same number of columns for one image and many, and the same result for a setting in any grid."""
    detector = subject.fitted
    settings = list(detector.grid) or [detector.setting]
    with probing(subject.classifier, detector, INSIDE) as probe, detector.computing(settings):
        together = detector.grouped_statistics(probe)
    for place, setting in list(enumerate(settings))[:: max(1, len(settings) // 4)]:
        with probing(subject.classifier, detector, INSIDE) as probe, detector.computing([setting]):
            alone = detector.grouped_statistics(probe)
        _same(together[:, place], alone[:, 0], subject.rtol, f"statistics at {setting} among others")
    width = together.shape[2]
    one = columns(subject.classifier, detector, INSIDE[:1]).shape[1]
    require(one == width, f"{width} columns for {len(INSIDE)} images and {one} for one")
    named = len(detector.variants)
    require(not named or width > named, f"{width} columns, but {named} names for the last of them")
    with probing(subject.classifier, detector, INSIDE) as probe:
        own = detector.probabilities(probe)
    if own is not None:
        sums = own.double().sum(1)
        require(own.dim() == 2 and len(own) == len(INSIDE), f"probabilities are {tuple(own.shape)}, not (N, classes)")
        sound = bool((own >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
        require(sound, "probabilities are negative, or do not sum to 1")
    return f"{counted(width, 'column')}, {counted(len(settings), 'setting')}{'' if own is None else ', own probabilities'}"


def asks_to_be_fitted(subject: Subject) -> str:
    """A detector that learns raises NotFitted when it is asked for scores before it is fitted."""
    subject.fitted  # noqa: B018  # skipped where a fit does not help either
    detector = subject.make()
    if not (detector.observes or detector.prepares or HEADS[detector.unsupervised_head].calibrates):
        detector.score(subject.classifier, INSIDE)
        return "learns nothing, scores without a fit"
    try:
        detector.score(subject.classifier, INSIDE)
    except NotFitted:
        return "raises NotFitted"
    raise Failed("gives scores before it is fitted, although it learns")


def in_company(subject: Subject) -> str:
    """On a probe shared with other detectors, it computes the same scores, and so do they."""
    company = {d: [d.setting] for d in (subject.fitted, *_company())}
    pieces = batching.pieces_of(np.arange(len(INSIDE)), len(INSIDE))
    together, _ = passes.statistics(company, subject.classifier, INSIDE, pieces, signals=SIGNALS)
    for detector in company:
        alone, _ = passes.statistics({detector: [detector.setting]}, subject.classifier, INSIDE, pieces)
        who = "in company" if detector is subject.fitted else f"{detector.name} beside it"
        rtol = subject.rtol if detector is subject.fitted else 1e-2
        _same(together[detector], alone[detector], rtol, who)
    return f"with {', '.join(COMPANY)}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "contract": contract,
    "fits-and-scores": fits_and_scores,
    "deterministic": deterministic,
    "batch-size": batch_size,
    "dtype": dtype,
    "device": device,
    "classifier-untouched": classifier_untouched,
    "no-pass-of-its-own": no_pass_of_its_own,
    "held-out": held_out,
    "validation": validation,
    "labels-unseen": labels_unseen,
    "save-and-load": save_and_load,
    "finite": finite,
    "easy-shift": easy_shift_scores_higher,
    "learns-from-shift": learns_from_shift,
    "cost": cost,
    "leaves-all-else-alone": leaves_all_else_alone,
    "statistics": statistics,
    "asks-to-be-fitted": asks_to_be_fitted,
    "in-company": in_company,
}


def _same(found: np.ndarray, wanted: np.ndarray, rtol: float, what: str) -> None:
    """Raise Failed if values differ by more than ``rtol`` of their size and spread; ``rtol`` 0 requires equality bit by bit."""
    limit = rtol * (np.abs(wanted) + wanted.std(axis=0))
    far = np.abs(found - wanted)
    bad = ~(far <= limit)
    require(found.shape == wanted.shape, f"{what}: {found.shape} scores instead of {wanted.shape}")
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        allowed = (
            f"; the tolerance is {rtol:g} times their size and spread (if it is rounding, compute in float64)" if rtol else ""
        )
        raise Failed(f"{what}, {bad.sum()} of {bad.size} scores differ, that of image {row} by {np.max(far[row]):.3g}{allowed}")


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of fitted state are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_equal(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _uint8(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _saved_and_loaded(detector: Detector, device: str = "cpu") -> Detector:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        detector.save(path)
        state.load(path)  # raises for anything but safetensors with a JSON header
        return type(detector).load(path, device)


@cache
def _company() -> list[Detector]:
    classifier = trained_classifier()
    return [load_detector(name).fit(classifier, TRAIN, LABELS) for name in COMPANY]
