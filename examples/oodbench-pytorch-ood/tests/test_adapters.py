"""Every detector keeps oodbench's contract, takes part in a run, and scores as pytorch-ood does."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import pytorch_ood.detector
import torch
from torch import nn

import oodbench
from oodbench.conformance import check

HERE = Path(__file__).resolve().parent.parent
ENTRIES = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["entry-points"]["oodbench.detectors"]
LEFT_OUT = {"MCM", "WeightedEBO"}

# What the checks find in pytorch-ood itself.
KNOWN = {
    ("pytorch-ood-klm", "batch-size"): "float32 has too few digits for divergences near 0",
    ("pytorch-ood-rmd", "batch-size"): "float32 has too few digits for a difference of two large distances",
    ("pytorch-ood-she", "deterministic"): "refuses training images of which no image of a class is recognised",
    ("pytorch-ood-rankfeat", "easy-shift"): "maps of 2 by 2 pixels have too little left without their first component",
}


@pytest.mark.parametrize("name", ENTRIES)
def test_it_keeps_the_contract(name):
    outcomes = list(check(name, "detectors"))
    assert len(outcomes) > 15
    failed = {outcome.check: outcome.reason for outcome in outcomes if outcome.outcome == "fail"}
    assert failed.keys() <= {fault for detector, fault in KNOWN if detector == name}, failed


def test_it_takes_part_in_a_run(tmp_path):
    options = {"datasets": ["digits-heldout"], "protocols": ["unsupervised"], "limit": 100, "measure_costs": False}
    results = oodbench.run("digits", detectors=["msp", *ENTRIES], out=tmp_path / "run", **options)
    assert set(results.frame()["status"]) == {"ok"}


def test_each_detector_of_pytorch_ood_is_registered_or_named_in_the_readme():
    kinds = {name for name in pytorch_ood.detector.__all__ if inspect.isclass(getattr(pytorch_ood.detector, name))}
    assert {target.removeprefix("oodbench_pytorch_ood:") for target in ENTRIES.values()} == kinds - LEFT_OUT
    readme = (HERE / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| left out", readme, re.MULTILINE)) == LEFT_OUT


@pytest.fixture(scope="module")
def task():
    """A trained network with training images, their labels, and test images, both also as pytorch-ood takes them."""
    classifier = oodbench.load_model("resnet8-digits")
    train, test = oodbench.load_dataset("digits", split="train"), oodbench.load_dataset("digits")
    images = [one.images[:500].float() / 255 for one in (train, test)]
    return classifier, images[0], train.labels[:500], images[1]


def outputs(classifier, images, place):
    """The features or logits (N, …) of images."""
    kept = []
    hook = classifier.head.register_forward_hook(lambda module, inputs, output: kept.append((inputs[0], output)))
    with torch.no_grad():
        classifier(images)
    hook.remove()
    return kept[0][place]


@pytest.mark.parametrize("name", ["knn", "vim", "mahalanobis", "she", "dice", "nnguide", "pnml", "gmm"])
def test_it_scores_as_pytorch_ood_does_from_features(name, task):
    classifier, train, labels, test = task
    detector = oodbench.load_detector(f"pytorch-ood-{name}")
    found = torch.from_numpy(detector.fit(classifier, train, labels).score(classifier, test))
    head = classifier.head
    parts = {"encoder": None, "head": head, "w": head.weight, "b": head.bias} | detector.parameters()
    kind = type(detector).kind
    theirs = kind(**{key: value for key, value in parts.items() if key in inspect.signature(kind).parameters})
    theirs.fit_features(outputs(classifier, train, 0), labels)
    wanted = theirs.predict_features(outputs(classifier, test, 0)).double()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_odin_scores_as_pytorch_ood_does_on_the_network_itself(task):
    classifier, _, _, test = task
    found = torch.from_numpy(oodbench.load_detector("pytorch-ood-odin").score(classifier, test))
    wanted = pytorch_ood.detector.ODIN(classifier).predict(test).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01 * float(wanted.std()))


def test_gram_scores_as_pytorch_ood_does_on_the_network_itself(task):
    classifier, train, labels, test = task
    detector = oodbench.load_detector("pytorch-ood-gram", seed=7).fit(classifier, train, labels)
    found = torch.from_numpy(detector.score(classifier, test))
    net = classifier.module
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    layers = [lambda images: stem(classifier.normalised(images)), net.layer1, net.layer2, net.layer3]
    theirs = pytorch_ood.detector.Gram(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear), layers, 8)
    torch.manual_seed(7)
    wanted = theirs.fit([(train, labels)]).predict(test).double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))


def test_an_image_has_the_same_openmax_score_in_a_batch_of_one_class(task):
    classifier, train, labels, test = task
    detector = oodbench.load_detector("pytorch-ood-openmax").fit(classifier, train, labels)
    theirs = pytorch_ood.detector.OpenMax(classifier).fit_logits(outputs(classifier, train, 1), labels)
    wanted = theirs.predict(test)  # images of all classes
    torch.testing.assert_close(torch.from_numpy(detector.score(classifier, test[:1])), wanted[:1], rtol=1e-4, atol=1e-6)
