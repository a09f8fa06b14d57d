"""Networks that return more than logits: a tuple, a dict, or an object as those of Hugging Face."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oodbench
from oodbench.classifier import Classifier, logits_of
from oodbench.conformance.task import easy_task, trained_classifier
from oodbench.datasets.adversarial.attacks import attack
from oodbench.errors import Unsuitable
from oodbench.gradients import squared_norms
from oodbench.inference.export import exported

IMAGES, LABELS = easy_task(60, seed=1)


class ModelOutput(OrderedDict):
    """As that of transformers: a dict without what is None, whose keys are attributes."""

    def __getattr__(self, name):
        return self[name]


class Named(NamedTuple):
    """Features first."""

    features: Tensor
    logits: Tensor


@dataclass
class Record:
    """No dict and no tuple."""

    logits: Tensor


OUTPUTS = {
    "tuple": lambda logits, x: (logits, x, None),
    "list": lambda logits, x: [logits],
    "dict": lambda logits, x: {"features": x.flatten(1), "logits": logits},
    "ModelOutput": lambda logits, x: ModelOutput(logits=logits, hidden_states=(x, x)),
    "namedtuple": lambda logits, x: Named(x.flatten(1), logits),
    "dataclass": lambda logits, x: Record(logits),
}


class Wrapped(nn.Module):
    """The network of the conformance checks, with more in its output."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.kind = trained_classifier().module, kind

    def forward(self, x):
        return OUTPUTS[self.kind](self.body(x), x)


@pytest.fixture(params=list(OUTPUTS))
def pair(request):
    plain = trained_classifier()
    layers = [f"body.{name}" for name in plain.layer_names]
    return plain, Classifier(Wrapped(request.param), (0.5,) * 3, (0.25,) * 3, layers=layers)


def test_all_work_as_with_logits_alone(pair):
    plain, wrapped = pair
    wrapped.check(IMAGES[:4])
    assert torch.equal(wrapped(IMAGES), plain(IMAGES))
    for name in ("msp", "odin", "knn", "mahalanobis-fe", "purview"):  # logits, gradient, features, layers, gradient norms
        scores = [oodbench.load_detector(name).fit(each, IMAGES, LABELS).score(each, IMAGES[:9]) for each in pair]
        np.testing.assert_array_equal(*scores)
    changed = [attack(each, IMAGES[:6], LABELS[:6], "pgd", steps=2) for each in pair]
    assert torch.equal(*changed)
    assert not torch.equal(changed[0], IMAGES[:6])
    norms = [squared_norms(each, IMAGES[:4]) for each in pair]
    assert all(torch.equal(value, norms[1][f"body.{name}"]) for name, value in norms[0].items())
    detector = oodbench.load_detector("vim").fit(wrapped, IMAGES, LABELS)
    scores, logits = exported(detector, wrapped, (8, 8), 0.0)(IMAGES[:5])
    torch.testing.assert_close(logits, plain(IMAGES[:5]))
    np.testing.assert_allclose(scores.detach(), detector.score(wrapped, IMAGES[:5]))


UNSURE = [(), [torch.zeros(4, 3)] * 2, (torch.zeros(4, 3, 8, 8), torch.zeros(4, 3)), {"scores": torch.zeros(4, 3)}, None, 7]


@pytest.mark.parametrize("output", UNSURE, ids=lambda value: type(value).__name__)
def test_what_is_unsure_is_named(output):
    class Gives(nn.Module):
        def forward(self, x):
            return output

    assert logits_of(output) is output
    with pytest.raises(Unsuitable, match=rf"gives {type(output).__name__} for 4 images, not logits \(4, classes\); wrap it in"):
        Classifier(Gives()).check(IMAGES[:4])
