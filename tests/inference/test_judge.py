"""``Fitted.judge`` gives the network's logits from the pass that gives the scores."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench.inference import thresholds


@pytest.fixture(scope="module")
def images():
    return oodbench.load_dataset("digits").images[:70]


# One each that reads logits, features, layers, gradients and all of the network's parameters.
@pytest.mark.parametrize("name", ["msp", "knn", "mahalanobis-fe", "purview"])
def test_logits_are_those_of_a_bare_pass_and_the_network_runs_once(name, images):
    fitted = thresholds.fit(name, model="resnet8-digits", dataset="digits")
    with torch.inference_mode():
        bare = fitted.classifier(images.float() / 255)
    calls = []
    handle = fitted.classifier.module.register_forward_hook(lambda *_: calls.append(None))
    judged = fitted.judge(images)
    handle.remove()
    assert len(calls) == 1
    np.testing.assert_array_equal(judged.logits, bare.double().numpy())
    assert judged.logits.dtype == np.float64
    scores, flagged = fitted(images)
    np.testing.assert_array_equal(judged.scores, scores)
    np.testing.assert_array_equal(judged.flagged, flagged)


def test_logits_of_several_batches_are_joined(images):
    fitted = thresholds.fit("energy", model="resnet8-digits", dataset="digits")
    whole = fitted.judge(images).logits
    fitted.batch_size = 16
    np.testing.assert_allclose(fitted.judge(images).logits, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [None, "resnet8-digits"])
def test_a_detector_that_only_reads_images_has_no_logits(model, images):
    judged = thresholds.fit("pixels", model=model, dataset="digits").judge(images)
    assert judged.logits is None
    assert len(judged.scores) == len(images)
