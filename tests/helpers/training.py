"""Detectors that train something, prepared by themselves."""

import oodbench
from oodbench import protocols
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet


def training_set_of(images, labels, seed=0, data=None):
    """These images with a seeded tenth held out, as a run makes it."""
    held_out = protocols.held_out(len(images), None if labels is None else labels.numpy(), seed)
    return TrainingSet(images, labels, held_out, seed, data)


def prepared_detector(name, classifier, train_set, progress=None, **parameters):
    """The detector after ``check`` and ``prepare``, without the cache."""
    detector = oodbench.load_detector(name, **parameters)
    detector.check(classifier)
    detector.prepare(train_set, classifier, progress or Progress())
    return detector
