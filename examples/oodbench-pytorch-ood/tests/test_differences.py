"""Where oodbench has a detector too, both order images alike; where they do not, what docs/pytorch-ood.md names makes them.

Each difference is proven by a class that takes it away from one side.
"""

import oodbench_pytorch_ood as theirs
import pytest
import torch
from oodbench_pytorch_ood.adapters import own_graphs
from scipy.stats import spearmanr

import oodbench
from oodbench.detectors.mahalanobis import MahalanobisFE, MahalanobisP
from oodbench.detectors.mc_dropout import MCDropout
from oodbench.detectors.react import ReAct

ALIKE = 0.99999  # rank correlation: few neighbours in order change places


class InFloat64:
    def read(self, probe):
        return [probe.logits]


class MaxSoftmaxInFloat64(InFloat64, theirs.MaxSoftmax): ...


class EntropyInFloat64(InFloat64, theirs.Entropy): ...


class KLMatchingInFloat64(InFloat64, theirs.KLMatching): ...


class ReActOnTraining(ReAct):
    def observe(self, probe):
        self._features.append(probe.features)


class GMMWithoutHeldOut(theirs.GMM):
    def observe(self, probe):
        super().observe(probe)
        self._labels[-1][probe.held_out] = -1  # pytorch-ood leaves these out


class MahalanobisPOnAll(MahalanobisP):
    spares_held_out = False


class SumOfLayers(MahalanobisFE):
    spares_held_out = False
    unsupervised_head = "identity"

    def statistics(self, probe):
        return super().statistics(probe).sum(1)


class VarianceOfDropout(MCDropout):
    variants = ()

    def statistics(self, probe):
        return super().statistics(probe)[:, 2]


class GramLikeOurs(theirs.Gram):
    """Bounds by predicted class instead of label, expected deviations of held-out images, and division by the confidence."""

    calibrates = True

    def observe(self, probe):
        with own_graphs():
            self._inputs.append(self.read(probe))
            self._labels.append(torch.where(probe.held_out, -1, probe.prediction))

    def train(self, detector, inputs, labels):
        detector.validation_fraction = 0.0
        super().train(detector, inputs, labels)
        logits, *vectors = (part[labels < 0] for part in inputs)
        alone = torch.eye(len(vectors)).reciprocal()  # infinite for all layers but one
        expected = []
        for detector.layer_norm in alone:
            expected.append(detector.predict_structured(logits, vectors).mean())
        detector.layer_norm = torch.stack(expected)

    def statistics(self, probe):
        return super().statistics(probe) / probe.softmax.max(1).values


@pytest.fixture(scope="module")
def images():
    """Training images with labels, and images to score: of the same digits, of others, and of anything else."""
    train = oodbench.load_dataset("digits", split="train")
    scored = [oodbench.load_dataset(name).images[:100] for name in ("digits", "digits-heldout", "photos")]
    return train.images, train.labels, torch.cat(scored)


def load(detector, **parameters):
    return oodbench.load_detector(detector, **parameters) if isinstance(detector, str) else detector(**parameters)


def correlation(one, other, images):
    """The rank correlation of the scores of two detectors, fitted on the same images."""
    train, labels, scored = images
    classifier = oodbench.load_model("resnet8-digits")
    return spearmanr(*(each.fit(classifier, train, labels).score(classifier, scored) for each in (one, other))).statistic


SAME = [
    ("maxlogit", {}, "pytorch-ood-maxlogit", {}),
    ("energy", {}, "pytorch-ood-energy", {}),
    ("odin", {}, "pytorch-ood-odin", {}),
    ("knn", {}, "pytorch-ood-knn", {}),
    ("vim", {}, "pytorch-ood-vim", {}),
    ("mahalanobis-v", {}, "pytorch-ood-mahalanobis", {}),
    ("rmd", {}, "pytorch-ood-rmd", {}),
    ("she", {}, "pytorch-ood-she", {}),
    ("gradnorm", {}, "pytorch-ood-gradnorm", {}),
    ("msp", {}, MaxSoftmaxInFloat64, {}),
    ("entropy", {}, EntropyInFloat64, {}),
    ("klm", {}, KLMatchingInFloat64, {}),
    (ReActOnTraining, {}, "pytorch-ood-react", {}),
    ("ash", {}, "pytorch-ood-ash", {"variant": "ash-b", "percentile": 0.9}),
    ("scale", {}, "pytorch-ood-scale", {"percentile": 0.85}),
    ("ddu", {}, GMMWithoutHeldOut, {"reg": 1e-8}),
    (MahalanobisPOnAll, {"epsilon": 0.002}, "pytorch-ood-mahalanobis-odin", {}),
    (SumOfLayers, {}, "pytorch-ood-multi-mahalanobis", {}),
    (VarianceOfDropout, {}, "pytorch-ood-mcd", {"samples": 10}),
    ("gram", {"powers": 4}, GramLikeOurs, {}),
]


@pytest.mark.parametrize(("one", "of_one", "other", "of_other"), SAME, ids=lambda part: getattr(part, "__name__", str(part)))
def test_both_order_images_alike(one, of_one, other, of_other, images):
    assert correlation(load(one, **of_one), load(other, **of_other), images) > ALIKE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((name, f"pytorch-ood-{name}") for name in ("react", "ash", "scale", "gram")),
        ("mahalanobis-p", "pytorch-ood-mahalanobis-odin"),
        ("mahalanobis-fe", "pytorch-ood-multi-mahalanobis"),
        (VarianceOfDropout, "pytorch-ood-mcd"),
    ],
)
def test_without_the_change_they_differ(one, other, images):
    assert correlation(load(one), load(other), images) < ALIKE
