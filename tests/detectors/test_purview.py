"""Purview against backward passes of the plain loss, and its two heads on an easy shift."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import oodbench
from oodbench.errors import UsageError
from oodbench.probe import Probe


@pytest.mark.parametrize("label", [1.0, 0.0])
def test_columns_are_log_norms_of_every_parameter_tensor(make_classifier, label):
    classifier = make_classifier(dtype=torch.float64)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    detector = oodbench.load_detector("purview", label=label)
    found = detector.statistics(Probe(classifier, images, detector.declared_signals))
    parameters = list(classifier.module.parameters())
    assert len(parameters) == 12
    assert found.shape == (3, len(parameters) + 2)
    for image, row in zip(images.split(1), found, strict=True):
        for parameter in parameters:
            parameter.requires_grad_(True)
        logits = classifier(image)
        loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="sum")
        norms = torch.stack([g.square().sum() for g in torch.autograd.grad(loss, parameters)])
        halves = [norms[:5].mean(), norms[6:].mean()]  # of twelve tensors, as the authors split them
        expected = torch.cat([norms.log(), torch.stack(halves)])
        for parameter in parameters:
            parameter.requires_grad_(False)
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_a_gradient_of_zero_stays_finite(classifier):
    with torch.no_grad():
        classifier.module.layer2[1].weight[:] = 0  # no gradient comes back from behind it
    images = torch.rand(50, 3, 8, 8)
    assert np.isfinite(oodbench.load_detector("purview").fit(classifier, images).score(classifier, images)).all()


def test_a_label_outside_is_refused():
    with pytest.raises(UsageError, match=r"label = 2; give a finite number from 0 to 1"):
        oodbench.load_detector("purview", label=2)
