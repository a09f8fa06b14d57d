"""One image for which the network gives NaN: the detectors that read it fail, and the reason names the image."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import oodbench
from oodbench import protocols, registry
from oodbench.conformance.task import TinyResNet, easy_task
from oodbench.datasets import load
from oodbench.errors import BadData
from oodbench.probe import Probe

DETECTORS = [name for name, record in registry.records("detectors").items() if record.distribution == "oodbench"]
LAYERED = {"mahalanobis-fe", "mahalanobis-pfe", "lid"}  # their layers are finite
LEARNING = ("knn", "vim")
OWN = {"gradcon", "gradcon-vae", "pixels"}  # do not read the network
IMAGES, LABELS = easy_task(80, seed=0)
WITH_WHITE = IMAGES.clone()
WITH_WHITE[17] = 1


class Standardises(TinyResNet):
    """Divides by the spread of the image, which is 0 for a white one, before its first layer or before its last one."""

    def __init__(self, classes=4, late=False):
        super().__init__(classes)
        self.late = late

    def forward(self, x):
        spread = x.std((1, 2, 3), unbiased=False)[:, None]
        if not self.late:
            return super().forward((x - x.mean((1, 2, 3), keepdim=True)) / spread[:, :, None, None])
        features = self.layer2(self.layer1(self.conv1(x).relu())).mean((2, 3))
        return self.linear(features * spread / spread)


def network(classes=4, late=False):
    torch.manual_seed(0)
    module = Standardises(classes, late)
    return oodbench.Classifier(module, layers=["conv1", "layer1", "layer2"], name="standardises")


def detector(name):
    quick = registry.load("detectors", name).quick
    return oodbench.load_detector(name, **quick | ({"k": 5} if name == "knn" else {}))


@pytest.mark.parametrize("name", sorted({*DETECTORS} - LAYERED - OWN))
def test_an_image_without_finite_logits_has_no_score(name):
    fitted = detector(name).fit(network(late=True), IMAGES, LABELS)
    with pytest.raises(BadData, match=r"^1 of 80 images have scores that are not finite .*, the first in row 17$"):
        fitted.score(network(late=True), WITH_WHITE)


@pytest.mark.parametrize("name", [name for name in DETECTORS if oodbench.load_detector(name).observes])
def test_nothing_is_learnt_from_an_image_without_finite_logits(name):
    made = detector(name)
    if name in OWN:
        made.fit(network(), WITH_WHITE, LABELS)
        return
    with pytest.raises(BadData, match=r"^standardises gives logits that are not finite \(NaN or infinity\) for row 17; check"):
        made.fit(network(), WITH_WHITE, LABELS)


@pytest.mark.parametrize("name", ["duq", "introspective"])
def test_a_head_is_not_trained_on_it_either(name):
    images = IMAGES.clone()
    images[row := int(np.flatnonzero(~protocols.held_out(80, LABELS.numpy(), 0))[-1])] = 1
    with pytest.raises(BadData, match=rf"not finite \(NaN or infinity\) for row {row}; check"):
        detector(name).fit(network(), images, LABELS)


def test_there_is_no_step_along_a_gradient_of_nan():
    probe = Probe(network(), WITH_WHITE[16:19], ("logits", "input_gradient"))
    with probe.mode():
        stepped = probe.perturbed(0.01, lambda probe: probe.logits.logsumexp(1))
        assert stepped.images.isnan().flatten(1).all(1).tolist() == [False, True, False]
        assert not stepped.images.isnan()[[0, 2]].any()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(grey training rows, grey test rows) -> status and reason, after a run on digits with these rows painted grey.

    The images of ``folder:own`` have one bright pixel each, but for the grey 21st.
    """
    (tmp_path / "own").mkdir()
    for place in range(30):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[place % 8, place // 8] = 200
        Image.fromarray(pixels if place != 21 else np.full_like(pixels, 50)).save(tmp_path / "own" / f"{place:02}.png")
    module = types.ModuleType("gives_nan_for_a_test")
    module.build = lambda: network(10, late=True)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    original, grey = load.original, {}

    def painted(*args):
        images = original(*args)
        if images.name == "digits":
            images.images[grey[images.split]] = 100 if images.split == "train" else 150
        return images

    monkeypatch.setattr(load, "original", painted)

    def run(train, test):
        grey.update(train=train, test=test)
        results = oodbench.run(
            "digits", model="gives_nan_for_a_test:build", detectors=["msp", *LEARNING, "purview", "mahalanobis-fe", "pixels"],
            datasets=["folder:own", "photos"], protocols=["unsupervised", "per-shift"], data=tmp_path, out=tmp_path / "run",
            device="cpu", measure_costs=False,
        )  # fmt: skip
        return results.frame().set_index(["detector", "protocol", "dataset"])[["status", "reason"]].sort_index()

    return run


def test_cells_fail_on_the_set_that_holds_it_and_name_it(run, tmp_path):
    frame = run([], [])
    file = tmp_path / "own" / "21.png"
    for name, protocol in [("msp", "unsupervised"), ("knn", "unsupervised"), ("vim", "unsupervised"), ("purview", "per-shift")]:
        status, why = frame.loc[(name, protocol, "folder:own")]
        assert status == "failed"
        assert why.startswith("1 of ")
        assert why.endswith(f"not finite (NaN or infinity), the first in row 21 of folder:own (test), {file}")
    assert set(frame.xs("photos", level="dataset").status) == {"ok"}
    assert set(frame.loc[["mahalanobis-fe", "pixels"]].status) == {"ok"}


def test_in_distribution_images_fail_every_set_but_do_not_end_the_run(run):
    """Not even the first two, on which the network is checked."""
    frame = run([], [0, 1, 40]).xs("unsupervised", level="protocol")
    for name in ("msp", *LEARNING):
        assert set(frame.loc[name].status) == {"failed"}
        assert set(frame.loc[name].reason) == {
            "3 of 577 images have scores that are not finite (NaN or infinity), the first in row 0 of digits (test)"
        }
    assert set(frame.loc["pixels"].status) == {"ok"}


def test_training_images_fail_the_detectors_that_learn_from_them(run):
    frame = run([5, 70], [])
    for name in (*LEARNING, "mahalanobis-fe"):
        assert set(frame.loc[name].status) == {"failed"}
        assert set(frame.loc[name].reason) == {
            "gives_nan_for_a_test:build gives logits that are not finite (NaN or infinity) for row 5 of digits (train); check"
            " its weights and normalisation, or remove the image"
        }
    assert set(frame.loc[["msp", "pixels"]].xs("photos", level="dataset").status) == {"ok"}
