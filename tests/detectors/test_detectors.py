"""Every built-in detector passes every check of ``oodbench check``, a new one by its name, and what each alone must do."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import registry
from oodbench.conformance.detectors import CHECKS, Subject, subject
from oodbench.conformance.run import run
from oodbench.conformance.subject import INSIDE, LABELS, TRAIN
from oodbench.conformance.task import trained_classifier
from oodbench.errors import Unsuitable, UsageError

RECORDS = {name: record for name, record in registry.records("detectors").items() if record.distribution == "oodbench"}
# Scores that say little on the checks' small network: the ratio over four classes, and what is left of maps of four places.
SAYS_LITTLE = {"gradtrust", "rankfeat"}
NEEDS_LABELS = [name for name, record in RECORDS.items() if record.learns_from.startswith("labelled")]


def quick(name: str) -> oodbench.Detector:
    return oodbench.load_detector(name, **registry.load("detectors", name).quick)


FROM_IMAGES_ALONE = [name for name in RECORDS if quick(name).declared_signals <= {"images"}]


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    """Detectors under check, by name: what several checks need of one is fitted once."""
    return {}


@pytest.fixture
def trained():
    return trained_classifier()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", RECORDS)
def test_keeps_the_contract(name, check, subjects):
    if name not in subjects:
        subjects[name] = subject(name, {})
    (outcome,) = run({check: CHECKS[check]}, subjects[name])
    if check == "device" and outcome.outcome == "skip":
        pytest.skip(outcome.reason)
    if check == "easy-shift" and name in SAYS_LITTLE:
        assert outcome.outcome == "fail"
        assert "on uniform noise, expected above" in outcome.reason
        return
    # Who fits nothing has nothing to fit on what was held out or set apart.
    assert outcome.outcome == "pass" or (check in ("held-out", "validation") and outcome.outcome == "skip"), outcome.reason


def test_each_declares_its_signals():
    for name in RECORDS:
        assert type(quick(name)).signals is not None, f"{name}: every pass would keep a graph"


@pytest.mark.parametrize("name", NEEDS_LABELS)
def test_labels_are_asked_for(name, trained):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        quick(name).fit(trained, TRAIN)


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in NEEDS_LABELS])
def test_the_rest_fit_without_labels(name, trained):
    assert np.isfinite(quick(name).fit(trained, TRAIN).score(trained, INSIDE)).all()


@pytest.mark.parametrize("name", NEEDS_LABELS)
def test_a_class_without_training_images_is_no_trouble(name, trained):
    some = LABELS != 2
    assert np.isfinite(quick(name).fit(trained, TRAIN[some], LABELS[some]).score(trained, INSIDE)).all()


@pytest.mark.parametrize("name", RECORDS)
def test_only_what_reads_images_alone_works_without_a_network(name):
    if name in FROM_IMAGES_ALONE:
        assert np.isfinite(quick(name).fit(None, TRAIN, LABELS).score(None, INSIDE)).all()
    else:
        with pytest.raises(Unsuitable, match="needs a classifier"):
            quick(name).fit(None, TRAIN, LABELS).score(None, INSIDE)


def test_the_control_reads_images_alone():
    assert "pixels" in FROM_IMAGES_ALONE


def test_bad_hyper_parameters_are_refused_by_name():
    for name, parameters in [
        ("knn", {"k": 0}),
        ("odin", {"temperature": 0}),
        ("odin", {"epsilon": -0.1}),
        ("mahalanobis-p", {"epsilon": -0.1}),
        ("mahalanobis-pfe", {"epsilon": -0.1}),
        ("energy", {"temperature": -1}),
        ("vim", {"dimension": 0}),
        ("ash", {"percentile": 100}),
        ("scale", {"percentile": 0}),
        ("react", {"percentile": 101}),
    ]:
        (parameter,) = parameters
        with pytest.raises(UsageError, match=parameter):
            oodbench.load_detector(name, **parameters)


def test_more_neighbours_than_images_and_more_dimensions_than_features_are_refused(trained):
    with pytest.raises(Unsuitable, match="k = 50 neighbours, but only 20 training images; lower k"):
        oodbench.load_detector("knn").fit(trained, TRAIN[:20], LABELS[:20])
    with pytest.raises(Unsuitable, match="lower dimension"):
        oodbench.load_detector("vim", dimension=16).fit(trained, TRAIN, LABELS)


@pytest.mark.parametrize("name", ["ash", "scale"])
def test_negative_features_are_refused_with_the_networks_name(name, trained):
    trained.module.layer2[2] = torch.nn.Tanh()
    with pytest.raises(Unsuitable, match="but tiny also has negative ones"):
        oodbench.load_detector(name).score(trained, INSIDE)
