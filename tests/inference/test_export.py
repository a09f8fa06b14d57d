"""An exported detector is one plain module that gives the scores and logits of ``judge``."""

import numpy as np
import pytest
import torch
from torch import nn

import oodbench
from oodbench.errors import BadData, Unsuitable
from oodbench.inference import thresholds
from oodbench.inference.export import exported

FIT = {"model": "resnet8-digits", "dataset": "digits"}
LOGITS = ["msp", "maxlogit", "energy", "entropy", "klm", "gen", "tempscale"]
FEATURES = ["knn", "mahalanobis-v", "rmd", "she", "react", "ddu", "gradnorm", "vim"]
FEATURES += ["mahalanobis++", "nnguide", "neco", "kpca", "weiper"]  # of the more recent ones, those that keep most
DYNAMIC = ({0: torch.export.Dim("batch")},)


@pytest.fixture(scope="module")
def images():
    return oodbench.load_dataset("digits").images[:50].float() / 255


def close(found, judged):
    """Equal in float32, in which the network computes."""
    scores, logits = map(np.asarray, found)
    np.testing.assert_allclose(logits, judged.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, judged.scores, rtol=1e-4, atol=1e-4 * np.abs(judged.scores).max())


@pytest.mark.parametrize("name", [*LOGITS, *FEATURES])
def test_torch_export_takes_it_with_any_batch_size(name, images):
    fitted = thresholds.fit(name, **FIT)
    module, judged = fitted.export(), fitted.judge(images)
    assert type(module).__mro__[1] is nn.Module
    assert module.threshold == fitted.threshold
    scores, logits = module(images)
    assert (scores.dtype, logits.dtype) == (torch.float64, torch.float32)
    np.testing.assert_array_equal(scores, judged.scores)
    np.testing.assert_array_equal(logits.double(), judged.logits)
    program = torch.export.export(module, (images[:3],), dynamic_shapes=DYNAMIC).module()
    close(program(images), judged)
    close(program(images[:1]), oodbench.inference.fitted.Judgement(*(part[:1] for part in judged)))


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("name", ["energy", "knn", "mahalanobis-v", "vim"])
def test_onnx_takes_it(name, images, tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    import onnxruntime

    fitted = thresholds.fit(name, **FIT)
    torch.onnx.export(fitted.export(), (images[:3],), tmp_path / "it.onnx", dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    scores, logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert (scores.dtype, logits.dtype) == (np.float64, np.float32)
    close((scores, logits), fitted.judge(images))


def test_images_must_be_floats(images):
    with pytest.raises(BadData, match=r"images are torch.uint8; give floats in \[0, 1\] of the input size"):
        thresholds.fit("msp", **FIT).export()((images * 255).to(torch.uint8))


def test_the_network_itself_is_left_alone(images):
    fitted = thresholds.fit("knn", **FIT)
    hashed, before = fitted.classifier.weights_hash, fitted.judge(images)
    module = fitted.export()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert fitted.classifier.weights_hash == hashed
    assert type(fitted.classifier.head) is nn.Linear
    np.testing.assert_array_equal(fitted.judge(images).scores, before.scores)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("odin", "because it reads input_gradient"),
        ("mahalanobis-fe", "because it reads layers"),
        ("pixels", "because it reads images"),
        ("scale", "because torch.export does not take it"),  # it refuses a network by the sign of its features
    ],
)
def test_what_cannot_be_exported_says_what_can(name, why, capfd):
    fitted = thresholds.fit(name, **FIT)
    with pytest.raises(Unsuitable, match=rf"^{name} cannot be exported, {why}.*; only detectors that .* knn, .* and vim$"):
        fitted.export()
    assert capfd.readouterr() == ("", "")


class Doubling(nn.Linear):
    def forward(self, features):
        return 2 * super().forward(features)


def test_a_last_layer_of_another_kind(images):
    torch.manual_seed(0)
    network = oodbench.Classifier(nn.Sequential(nn.Flatten(), Doubling(192, 4)))
    detector = oodbench.load_detector("react").fit(network, images)
    with pytest.raises(Unsuitable, match=r"react cannot be exported: its last linear layer '1' is a Doubling, not nn.Linear"):
        exported(detector, network, (8, 8), 0.5)
    scores, _ = exported(oodbench.load_detector("msp"), network, (8, 8), 0.5)(images)  # which reads no features
    np.testing.assert_array_equal(scores, oodbench.load_detector("msp").score(network, images))


def test_a_network_that_normalises_inside_in_float64(make_classifier, images):
    network = make_classifier(dtype=torch.float64)
    detector = oodbench.load_detector("vim").fit(network, images)
    scores, logits = exported(detector, network, (8, 8), 0.5)(images)
    np.testing.assert_allclose(scores, detector.score(network, images), rtol=1e-12)
    assert logits.dtype == torch.float64
