"""What a lower precision of forward passes changes: AUROC of each detector in it and in float32, on a part of each set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oodbench import metrics, passes, protocols
from oodbench.batching import pieces_of
from oodbench.datasets.name import MISCLASSIFIED
from oodbench.detector import Detector
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import counted
from oodbench.heads import HEADS, Head
from oodbench.image_set import ImageSet
from oodbench.probe import NEED_GRAPH
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.precision import KEY, PrecisionShift, stored

MOST_IMAGES = 1000  # of each set, drawn by a seeded stratified shuffle


def uses(detector: Detector) -> bool:
    """Whether a detector reads forward passes and needs no gradient, so that they may be of a lower precision."""
    return detector.reads_network and not detector.declared_signals & NEED_GRAPH


def announced(loaded: LoadedSuite) -> str:
    """Which detectors of a run read forward passes of a lower precision, in one line."""
    own = [name for name, detector in loaded.detectors.items() if not uses(detector)]
    count = counted(len(loaded.detectors) - len(own), "detector")
    rest = f"; float32 for {', '.join(own)}" if own else ""
    return f"forward passes in {loaded.suite.precision} for {count}{rest}"


def measure(folder: RunFolder, fitting: Fitting, progress: Progress) -> None:
    """Add the figures that the run lacks to its provenance; nothing in a run in float32."""
    loaded = fitting.loaded
    if loaded.precision is None or loaded.unsuitable:
        return
    earlier = stored(folder.manifest().provenance)
    found = {name: dict(of) for name, of in earlier.auroc.items()} if earlier else {}
    sets = {one.name: one.images for one in loaded.test_sets if one.images is not None and one.kind != MISCLASSIFIED}
    readers = [detector for detector in fitting.sound(fitting.detectors) if uses(detector)]
    new = {detector.name for detector in readers if not sets.keys() <= found.get(detector.name, {}).keys()}
    if not new:
        return
    fitting.fit(new)
    detectors = fitting.sound(new)
    progress.stage(f"comparing {loaded.suite.precision} with float32")
    heads = {detector: HEADS[detector.unsupervised_head]() for detector in detectors}
    if fitting.train_set is not None:
        options: dict[str, Any] = {"batch_size": loaded.batch_size, "workers": loaded.workers, "guard": loaded.guard}
        passes.calibrate(heads, loaded.classifier, fitting.train_set, on_error=lambda one, error: None, **options)
    inside = _scores(loaded.in_distribution, heads, fitting)
    for name, images in sets.items():
        outside = _scores(images, heads, fitting)
        for detector, pair in inside.items():
            if detector in outside:
                full, lower = (metrics.auroc(*sides) for sides in zip(pair, outside[detector], strict=True))
                found.setdefault(detector.name, {})[name] = full, lower
    if not found:
        return
    shift = PrecisionShift(precision=loaded.suite.precision, images=MOST_IMAGES, auroc=found)
    folder.add_provenance(**{KEY: shift.model_dump()})
    progress.say(shift.sentence())


def _scores(images: ImageSet, full: Mapping[Detector, Head], fitting: Fitting) -> dict[Detector, Sequence[np.ndarray]]:
    """Scores in float32, by the heads ``full``, and in the precision of the run. Detectors that fail have none."""
    loaded, found = fitting.loaded, dict[Detector, list[np.ndarray]]()
    drawn = protocols.limited(images, MOST_IMAGES, loaded.suite.seed)
    for precision, heads in ((None, full), (loaded.precision, fitting.heads)):
        values, _ = passes.statistics(
            {detector: [detector.setting] for detector in full},
            loaded.classifier,
            drawn,
            pieces_of(np.arange(len(drawn)), loaded.batch_size),
            precision=precision,
            workers=loaded.workers,
            guard=loaded.guard,
            on_error=lambda detector, error: None,  # which the run has reported
        )
        for detector, columns in values.items():
            scores = heads[detector].score(detector.columns_of(columns))
            if np.isfinite(scores).all():
                found.setdefault(detector, []).append(scores)
    return {detector: pair for detector, pair in found.items() if len(pair) == 2}
