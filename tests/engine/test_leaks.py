"""A test image that is planted where something is learnt or calibrated: there is no figure, and the reason says so."""

from dataclasses import replace

import numpy as np
import pytest

import oodbench
from oodbench import protocols
from oodbench.engine import trials  # noqa: F401  before anything is planted in what it imports
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import OodbenchError
from oodbench.suites.load import load_suite

OPTIONS = {"detectors": ["msp", "pixels"], "datasets": ["photos", "uniform"], "limit": 60, "measure_costs": False}


def reasons(folder, protocol):
    """The status and the reason of each cell under a protocol."""
    frame = folder.frame()
    frame = frame[frame["protocol"] == protocol]
    assert len(frame)
    return set(zip(frame["status"], frame["reason"], strict=True))


@pytest.mark.parametrize("role", ["in_fit", "in_choose", "out_fit", "out_choose"])
def test_a_test_image_among_those_that_heads_learn_from(tmp_path, monkeypatch, role):
    made = protocols.Split

    def planted(*parts):
        split = made(*parts)
        tested = getattr(split, f"{role.partition('_')[0]}_test")
        return replace(split, **{role: np.append(getattr(split, role), tested[0])}) if len(split.in_fit) else split

    monkeypatch.setattr(protocols, "Split", planted)
    run = oodbench.run("digits", protocols=["unsupervised", "per-shift"], out=tmp_path / "run", **OPTIONS)
    says = "1 images of digits and {} would be both fitted and tested on"
    for protocol in ("unsupervised", "per-shift"):  # a set with such a split has no figures at all
        assert reasons(run, protocol) == {("failed", says.format(name)) for name in ("photos", "uniform")}


def test_an_image_that_transfer_learnt_from_among_the_test_images(tmp_path, monkeypatch):
    def planted(split, **tested):
        return replace(split, **tested | {"in_test": np.append(tested["in_test"], split.in_fit[0])})

    monkeypatch.setattr(protocols, "replace", planted)
    run = oodbench.run("digits", protocols=["transfer"], out=tmp_path / "run", **OPTIONS)
    assert reasons(run, "transfer") == {("failed", "1 images of digits and uniform would be both fitted and tested on")}


def test_a_validation_image_among_the_test_images(tmp_path, monkeypatch):
    suite = load_suite("digits").override(**{name: OPTIONS[name] for name in ("detectors", "datasets")})
    suite = suite.model_copy(update={"validation": 40})
    options = {name: OPTIONS[name] for name in ("limit", "measure_costs")}
    oodbench.run(suite, out=tmp_path / "sound", **options)
    monkeypatch.setattr(LoadedSuite, "_without_validation", lambda self, images: images)
    with pytest.raises(OodbenchError, match="of digits would be both set apart for validation and tested on; remove"):
        oodbench.run(suite, out=tmp_path / "leaking", **options)
    assert not list((tmp_path / "leaking").rglob("*.safetensors"))
