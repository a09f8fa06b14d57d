"""What every built-in detector must do, on a tiny network that learnt an easy task: a new one is swept in by its name."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import oodbench
from oodbench import registry, state
from oodbench.detector import Detector
from oodbench.errors import NotFitted, Unsuitable, UsageError
from oodbench.heads import HEADS
from oodbench.passes import pieces_of, signals_of, statistics

NAMES = [name for name, record in registry.records("detectors").items() if record.distribution == "oodbench"]
LEARNS_FROM_SHIFT = [name for name in NAMES if oodbench.load_detector(name).shift_head is not None]
NEEDS_LABELS = ["mahalanobis-v", "mahalanobis-p", "mahalanobis-fe", "mahalanobis-pfe", "rmd", "she"]
STEPS_ON_INPUT = [name for name in NAMES if "input_gradient" in oodbench.load_detector(name).declared_signals]


def easy_task(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (size, 3, 8, 8) of four classes: which quadrant is bright, and in which colour."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 4
    images = 0.3 + 0.05 * torch.randn(size, 3, 8, 8, generator=random)
    colours = torch.tensor([[0.6, 0.1, 0.1], [0.1, 0.6, 0.1], [0.1, 0.1, 0.6], [0.5, 0.5, 0.0]])
    for row, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, :, top : top + 4, left : left + 4] += colours[label][:, None, None]
    return images.clamp(0, 1), labels


def easy_shift(size: int, seed: int) -> torch.Tensor:
    """Uniform noise, (size, 3, 8, 8): it shows none of the classes.

    Not one that takes contrast away: features then grow alike, and SCALE's factor, the exponential of the sum of all 16
    over that of the top 2, takes it for the surest of all.
    """
    return torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, _ = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)


@pytest.fixture(scope="module")
def learnt():
    """Weights of the trained network, and detectors fitted on it, by name: each made once."""
    return {}


@pytest.fixture
def trained(make_classifier, learnt):
    if "weights" not in learnt:
        module = make_classifier().module.requires_grad_().train()
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        normalised = (TRAIN - 0.5) / 0.25
        for step in range(40):
            rows = torch.arange(step % 4, len(TRAIN), 5)
            optimiser.zero_grad()
            F.cross_entropy(module(normalised[rows]), LABELS[rows]).backward()
            optimiser.step()
        learnt["weights"] = {name: value.detach().clone() for name, value in module.state_dict().items()}
    classifier = make_classifier()
    classifier.module.load_state_dict(learnt["weights"])
    assert (classifier(TRAIN).argmax(1) == LABELS).float().mean() > 0.95
    return classifier


@pytest.fixture
def fitted(trained, learnt):
    def fit(name: str) -> Detector:
        if name not in learnt:
            learnt[name] = oodbench.load_detector(name).fit(trained, TRAIN, LABELS)
        return learnt[name]

    return fit


def tolerance(name: str) -> dict[str, float]:
    """A step on the input follows the sign of a float32 gradient, which rounding turns where it is next to nothing."""
    return {"rtol": 1e-2, "atol": 1e-3} if name in STEPS_ON_INPUT else {"rtol": 1e-4, "atol": 1e-5}


def test_the_table_names_every_file_and_says_where_each_method_comes_from():
    for name in NAMES:
        record = registry.records("detectors")[name]
        kind = registry.load("detectors", name)
        assert issubclass(kind, Detector)
        assert record.summary
        assert record.source
        assert record.learns_from
        assert record.parameters.split() == list(kind().parameters())
        assert kind.__doc__
        assert kind.signals is not None, f"{name} declares no signals, so every pass would keep a graph"
        assert kind.unsupervised_head in HEADS
        assert kind.shift_head is None or kind.shift_head in HEADS


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_attributes_and_the_grid_varies_them(name):
    detector = oodbench.load_detector(name)
    for parameter, value in detector.parameters().items():
        assert getattr(detector, parameter) == value
        assert inspect.signature(type(detector)).parameters[parameter].default == value
    for setting in detector.grid:
        assert setting.keys() <= detector.parameters().keys()
    assert detector.settings == [detector.setting]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_float64_and_the_same_again(name, fitted, trained):
    detector = fitted(name)
    weights = trained.weights_hash
    scores = detector.score(trained, INSIDE)
    assert scores.shape == (len(INSIDE),)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0
    np.testing.assert_array_equal(scores, detector.score(trained, INSIDE))
    assert trained.weights_hash == weights
    assert not trained.training


@pytest.mark.parametrize("name", NAMES)
def test_a_second_fit_starts_afresh(name, fitted, trained):
    again = oodbench.load_detector(name).fit(trained, 1 - TRAIN, LABELS).fit(trained, TRAIN, LABELS)
    np.testing.assert_array_equal(again.score(trained, INSIDE), fitted(name).score(trained, INSIDE))


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_neither_on_the_batch_nor_on_the_order(name, fitted, trained):
    detector = fitted(name)
    whole = detector.score(trained, INSIDE)
    np.testing.assert_allclose(detector.score(trained, INSIDE, batch_size=7), whole, **tolerance(name))
    np.testing.assert_allclose(detector.score(trained, INSIDE.flip(0))[::-1], whole, **tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_fitting_depends_neither_on_the_batch_size_nor_on_the_device_of_labels(name, fitted, trained):
    again = oodbench.load_detector(name).fit(trained, TRAIN, LABELS.to(torch.int32), batch_size=33)
    np.testing.assert_allclose(again.score(trained, INSIDE), fitted(name).score(trained, INSIDE), **tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_easy_shift_scores_higher(name, fitted, trained):
    detector = fitted(name)
    inside, outside = detector.score(trained, INSIDE), detector.score(trained, OUTSIDE)
    target = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    assert roc_auc_score(target, np.r_[inside, outside]) > 0.8  # SCALE's is the lowest: with 16 features its k is 2


@pytest.mark.parametrize("name", LEARNS_FROM_SHIFT)
def test_what_learns_from_a_shift_tells_it_apart(name, trained):
    detector = oodbench.load_detector(name).fit(trained, TRAIN, LABELS, shift_images=OUTSIDE)
    inside, outside = detector.score(trained, INSIDE), detector.score(trained, easy_shift(60, seed=3))
    target = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    assert roc_auc_score(target, np.r_[inside, outside]) > 0.95
    if detector.head.chooses:
        assert 0 <= detector.head.setting_ < len(detector.grid)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEARNS_FROM_SHIFT])
def test_what_learns_nothing_from_a_shift_says_so(name, trained):
    with pytest.raises(Unsuitable, match=f"{name} learns nothing from a shift"):
        oodbench.load_detector(name).fit(trained, TRAIN, LABELS, shift_images=OUTSIDE)


@pytest.mark.parametrize("name", NAMES)
def test_what_learns_must_be_fitted(name, trained):
    detector = oodbench.load_detector(name)
    if detector.observes or HEADS[detector.unsupervised_head].calibrates:
        with pytest.raises(NotFitted, match=name):
            detector.score(trained, INSIDE)
    else:
        detector.score(trained, INSIDE)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_give_equal_scores(name, fitted, trained, tmp_path):
    detector = fitted(name)
    detector.save(tmp_path / "fitted.safetensors")
    loaded = Detector.load(tmp_path / "fitted.safetensors")
    assert type(loaded) is type(detector)
    assert loaded.name == name
    assert state.fitted_state(loaded).keys() == state.fitted_state(detector).keys()
    np.testing.assert_array_equal(loaded.score(trained, INSIDE), detector.score(trained, INSIDE))


@pytest.mark.parametrize("name", LEARNS_FROM_SHIFT)
def test_a_head_that_learnt_from_a_shift_survives_too(name, trained, tmp_path):
    detector = oodbench.load_detector(name).fit(trained, TRAIN, LABELS, shift_images=OUTSIDE)
    detector.save(tmp_path / "fitted.safetensors")
    loaded = Detector.load(tmp_path / "fitted.safetensors")
    np.testing.assert_array_equal(loaded.score(trained, INSIDE), detector.score(trained, INSIDE))


@pytest.mark.parametrize("name", NAMES)
def test_float64_networks_work_and_agree(name, fitted, make_classifier, learnt, trained):
    double = make_classifier(dtype=torch.float64)
    double.module.load_state_dict(learnt["weights"])
    scores = oodbench.load_detector(name).fit(double, TRAIN, LABELS).score(double, INSIDE)
    np.testing.assert_allclose(scores, fitted(name).score(trained, INSIDE), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_extreme_images_have_finite_scores(name, fitted, trained):
    checkers = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    extreme = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.full((3, 8, 8), 0.5), checkers.expand(3, 8, 8)])
    assert np.isfinite(fitted(name).score(trained, extreme)).all()
    assert np.isfinite(fitted(name).score(trained, (extreme * 255).to(torch.uint8))).all()


@pytest.mark.parametrize("name", NAMES)
def test_in_company_a_score_is_the_same(name, fitted, trained):
    """All detectors on one probe: what one computes first must serve the others, the graph that steps need included."""
    company = [fitted(other) for other in NAMES]
    alone, _ = statistics({fitted(name): [fitted(name).setting]}, trained, INSIDE, pieces_of(np.arange(60), 60))
    together, _ = statistics(
        {d: [d.setting] for d in company}, trained, INSIDE, pieces_of(np.arange(60), 60), signals=signals_of(company)
    )
    np.testing.assert_allclose(together[fitted(name)], alone[fitted(name)], **tolerance(name))


@pytest.mark.parametrize("name", NEEDS_LABELS)
def test_labels_are_asked_for(name, trained):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        oodbench.load_detector(name).fit(trained, TRAIN)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_LABELS])
def test_the_rest_fit_without_labels(name, trained):
    assert np.isfinite(oodbench.load_detector(name).fit(trained, TRAIN).score(trained, INSIDE)).all()


def test_the_control_never_sees_the_network():
    detector = oodbench.load_detector("pixels").fit(None, TRAIN)
    assert np.isfinite(detector.score(None, INSIDE)).all()
    for name in NAMES:
        if name != "pixels":
            with pytest.raises(Unsuitable, match="needs a classifier"):
                oodbench.load_detector(name).fit(None, TRAIN, LABELS).score(None, INSIDE)


@pytest.mark.parametrize("name", NEEDS_LABELS)
def test_a_class_without_training_images_is_no_trouble(name, trained):
    some = LABELS != 2
    scores = oodbench.load_detector(name).fit(trained, TRAIN[some], LABELS[some]).score(trained, INSIDE)
    assert np.isfinite(scores).all()


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
    with pytest.raises(Unsuitable, match="those of tiny are negative too"):
        oodbench.load_detector(name).score(trained, INSIDE)
