"""Detectors and networks that train something, by themselves."""

import pytest
import torch

import oodbench
from oodbench import protocols
from oodbench.models.checkpoint import Checkpoint
from oodbench.models.train import train
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


def trained_whole_and_resumed(name, images, folder, **settings):
    """The weights files of a training of three epochs, and of one that was interrupted after its second and resumed."""
    settings |= {"epochs": 3, "batch_size": 32, "device": "cpu", "progress": False}
    whole, resumed = folder / "whole.safetensors", folder / "resumed.safetensors"
    train(name, images, out=whole, **settings)
    store = Checkpoint.store

    def store_and_stop(self, done):
        store(self, done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "store", store_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(name, images, out=resumed, **settings)
    torch.rand(3)  # the state of global randomness must not matter
    train(name, images, out=resumed, **settings)
    return whole, resumed
