"""The second control: what ``purview`` detects on the same network before any training.

A shift that it detects needs the architecture and the images, but no training. The idea is that of Adebayo et al., Sanity
checks for saliency maps, NeurIPS 2018 (arXiv 1810.03292).
"""

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from oodbench.classifier import Classifier
from oodbench.detectors import _training
from oodbench.detectors.purview import Purview, logarithms
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

CALIBRATION = 10_000  # training images that BatchNorm sees, at most
BATCH_SIZE = 256


class Untrained(Purview):
    """``purview`` on a copy of the network with random weights: its columns, its heads, its confounding label.

    Every layer is initialised by its own ``reset_parameters``, seeded by the run. A network of oodbench, timm or torchvision
    with parameters that have none, such as a class token, is built anew. The statistics of BatchNorm are then those of at
    most 10,000 training images, none of them held out, because otherwise activations would grow or vanish.

    It has no variants. Parameter gradients of the copy (N, parameter tensors) -> (N, parameter tensors), float64
    """

    variants = ()
    signals = ("logits",)  # not read, but a network that cannot be read is a reason to skip this detector too

    weights_: list[Tensor]  # of the copy

    def __init__(self, label: float = 1.0) -> None:
        super().__init__(label)
        self._network: Classifier | None = None

    def check(self, classifier: Classifier | None) -> None:
        network = _training.require_network(classifier)
        _training.require_initialisable(network)

    def prepare(self, train_set: TrainingSet, classifier: Classifier | None, progress: Progress) -> None:
        network = _training.reinitialised(_training.require_network(classifier), train_set.seed)
        norms = [part for part in network.module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        rows = np.random.default_rng(train_set.seed).permutation(train_set.rows)[:CALIBRATION]
        if norms and len(rows):
            progress.stage(f"untrained: BatchNorm over {len(rows):,} training images")
            progress.expect(len(rows))
            _calibrate(network, norms, train_set, rows, progress)
        self._network = None
        self.weights_ = [value.detach().clone() for value in network.module.state_dict().values()]

    def statistics(self, probe: Probe) -> Tensor:
        with torch.inference_mode(False):  # a graph cannot start from a tensor of inference mode
            inner = Probe(self._copy(probe.classifier), probe.images, Purview.signals)
            with inner.mode():
                return logarithms(self.norms(inner))

    def _copy(self, classifier: Classifier) -> Classifier:
        """The copy, on the device of the classifier and in its dtype."""
        if self._network is None:
            (self._network,) = _training.filled([copy.deepcopy(classifier)], self.weights_)
        _training.place_like(self._network, classifier)
        return self._network


def _calibrate(
    network: Classifier, norms: list[_BatchNorm], train_set: TrainingSet, rows: np.ndarray, progress: Progress
) -> None:
    """Set running statistics to the mean over batches of nearly equal size."""
    for norm in norms:
        norm.momentum = None  # the cumulative mean
        norm.train()
    with torch.no_grad():
        for part in np.array_split(rows, -(-len(rows) // BATCH_SIZE)):
            for _, images in train_set.batches(part, len(part), network):
                network(images)
            progress.advance(len(part))
    network.module.eval()
