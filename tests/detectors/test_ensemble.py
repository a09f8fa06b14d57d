"""Deep ensembles: members that are trained or loaded, their disagreement member by member, and their state."""

import shutil
import sys

import numpy as np
import pytest
import torch
from heard import Heard
from safetensors.torch import save_file
from torch import nn
from training import prepared_detector, training_set_of

import oodbench
from oodbench import state
from oodbench.conformance.task import easy_shift, easy_task, trained_classifier
from oodbench.detectors.ensemble import Ensemble
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError
from oodbench.image_set import ImageSet
from oodbench.models import weights
from oodbench.models.build import build
from oodbench.probe import Probe
from oodbench.training_set import TrainingSet

TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, INSIDE_LABELS = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)
SHORT = {"members": 3, "epochs": 4, "batch_size": 32}


def training_set(images=TRAIN, labels=LABELS, seed=0, data=None):
    return training_set_of(images, labels, seed, data)


def prepared(classifier, train_set=None, progress=None, **parameters):
    return prepared_detector("ensemble", classifier, train_set or training_set(), progress, **{**SHORT, **parameters})


@pytest.fixture(scope="module")
def classifier():
    return trained_classifier()


@pytest.fixture(scope="module")
def detector(classifier):
    return prepared(classifier)


def test_one_training_image_which_is_held_out_trains_nothing(classifier):
    alone = TrainingSet(TRAIN[:1], LABELS[:1], np.array([True]))
    with pytest.raises(Unsuitable, match="saw no training images to fit on; give more training images"):
        prepared(classifier, alone)


def members_of(detector, classifier):
    """The networks, the classifier first, filled by name from the flat list of weights."""
    found, weights = [classifier], list(detector.weights_)
    while weights:
        member = trained_classifier()
        names = list(member.module.state_dict())
        member.module.load_state_dict(dict(zip(names, weights[: len(names)], strict=True)))
        weights = weights[len(names) :]
        found.append(member)
    return found


def columns(detector, classifier, images):
    return detector.statistics(Probe(classifier, images, detector.signals)).numpy()


def test_statistics_are_the_disagreement_of_all_members(classifier, detector):
    images = torch.cat([INSIDE[:6], OUTSIDE[:6]])
    members = members_of(detector, classifier)
    assert len(members) == 3
    found = columns(detector, classifier, images)
    for place, image in enumerate(images):
        p = np.stack([member(image[None]).double().softmax(1)[0].numpy() for member in members])
        mean = p.mean(0)
        entropy = -(mean * np.log(mean)).sum()
        information = entropy + (p * np.log(p)).sum(1).mean()
        variance = ((p - mean) ** 2).mean(0).sum()
        np.testing.assert_allclose(found[place], [entropy, information, variance], rtol=1e-4, atol=1e-7)
    assert (found[:, 1] <= found[:, 0]).all()


def test_its_probabilities_are_the_mean_softmax(classifier, detector):
    expected = torch.stack([member(INSIDE).double().softmax(1) for member in members_of(detector, classifier)]).mean(0)
    found = detector.probabilities(Probe(classifier, INSIDE, detector.signals))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_members_learn_the_task_each_from_its_own_start(classifier, detector):
    first, second, third = members_of(detector, classifier)
    for member in (second, third):
        assert (member(INSIDE).argmax(1) == INSIDE_LABELS).float().mean() > 0.9
    for one, other in ((first, second), (first, third), (second, third)):
        for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
            assert not torch.equal(a, b)


def test_a_member_starts_from_weights_that_owe_nothing_to_the_classifier(classifier, detector):
    other = trained_classifier()
    with torch.no_grad():
        for value in other.module.state_dict().values():
            value.mul_(2)
    again = prepared(other)
    assert all(torch.equal(a, b) for a, b in zip(again.weights_, detector.weights_, strict=True))


def test_one_epoch_at_no_learning_rate_keeps_the_initial_weights(classifier):
    member = members_of(prepared(classifier, members=2, epochs=1, lr=1e-30), classifier)[1]
    fresh = trained_classifier()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in fresh.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
    for (name, found), expected in zip(member.module.named_parameters(), fresh.module.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=name)


def test_running_statistics_are_state_too(classifier, detector):
    member = members_of(detector, classifier)[1]
    counts = [v for name, v in member.module.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [4 * 12] * 2  # 360 images in 12 batches, 4 times
    means = [v for name, v in member.module.state_dict().items() if name.endswith("running_mean")]
    assert all(mean.abs().max() > 0 for mean in means)


def test_images_are_mirrored_only_where_their_set_allows_it(classifier):
    pixels = (TRAIN * 255).round().to(torch.uint8)
    weights = [
        prepared(classifier, training_set(images), members=2, epochs=1).weights_
        for images in (TRAIN, pixels, ImageSet(pixels, LABELS, flips=False), ImageSet(pixels, LABELS, flips=True))
    ]
    for other in weights[1:3]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
    assert not torch.equal(weights[0][0], weights[3][0])


def test_another_seed_trains_another(classifier, detector):
    other = prepared(classifier, TrainingSet(TRAIN, LABELS, training_set().held_out, seed=1))
    assert not torch.equal(other.weights_[0], detector.weights_[0])


def test_members_of_a_loaded_ensemble_may_be_built_in_inference_mode(classifier, detector, tmp_path):
    detector.save(tmp_path / "fitted.safetensors")
    loaded = oodbench.Detector.load(tmp_path / "fitted.safetensors")
    with torch.inference_mode():
        found = columns(loaded, classifier, INSIDE)
    np.testing.assert_array_equal(columns(loaded, classifier, INSIDE), found)


def test_members_take_the_classifiers_dtype(detector):
    double = trained_classifier(torch.float64)
    found = columns(detector, double, INSIDE.double())
    np.testing.assert_allclose(found, columns(detector, trained_classifier(), INSIDE), rtol=1e-3, atol=1e-6)
    trained_in_double = prepared(double, members=2, epochs=1)
    assert np.isfinite(columns(trained_in_double, double, OUTSIDE.double())).all()


def test_progress_counts_what_it_expects(classifier):
    seen = Heard()
    prepared(classifier, progress=seen)
    assert seen.expected == pytest.approx(2 * 4 * 360 * 3)
    assert seen.done == pytest.approx(seen.expected)
    assert seen.stages[-1].startswith("ensemble, member 3 of 3: epoch 4 of 4, loss ")


@pytest.fixture
def named(tmp_path):
    """A classifier of ten classes, the network of a member by name, and a data root that holds that one's weights."""
    member = build("resnet32-cifar10", seed=1)
    (tmp_path / "data" / "models").mkdir(parents=True)
    save_file(member.module.state_dict(), tmp_path / "data" / "models" / "resnet32-cifar10.safetensors")
    return build("resnet20-cifar10"), member, tmp_path / "data"


def test_members_by_name_join_the_classifier_without_training_or_labels(named, tmp_path):
    classifier, member, data = named
    detector = prepared(classifier, training_set(TRAIN[:20], None, data=data), members=["resnet32-cifar10"])
    p = torch.stack([network(INSIDE[:9]).double().softmax(1) for network in (classifier, member)])
    found = columns(detector, classifier, INSIDE[:9])
    torch.testing.assert_close(detector.probabilities(Probe(classifier, INSIDE[:9], detector.signals)), p.mean(0))
    np.testing.assert_allclose(found[:, 2], p.var(0, correction=0).sum(1).numpy(), rtol=1e-5)
    detector.save(tmp_path / "fitted.safetensors")
    shutil.rmtree(data)
    loaded = oodbench.Detector.load(tmp_path / "fitted.safetensors")
    assert loaded.members == ["resnet32-cifar10"]
    np.testing.assert_array_equal(columns(loaded, classifier, INSIDE[:9]), found)


def test_members_by_name_must_be_there_and_have_the_same_classes(named, classifier):
    ten, _, data = named
    with pytest.raises(MissingData, match="no weights for resnet44-cifar10"):
        prepared(ten, training_set(data=data), members=["resnet32-cifar10", "resnet44-cifar10"])
    with pytest.raises(
        Unsuitable, match="the member resnet32-cifar10 has 10 classes, but the classifier has 4; give one with as"
    ):
        prepared(classifier, training_set(data=data), members=["resnet32-cifar10"])


@pytest.fixture
def from_files(tmp_path, monkeypatch):
    """A classifier, the networks of its two members, and a data root: one member is in it, the other in the working folder."""
    others = [build("resnet20-cifar10", seed=seed) for seed in (1, 2)]
    (tmp_path / "data" / "models").mkdir(parents=True)
    weights.write(tmp_path / "seed1.safetensors", others[0].module)
    torch.save({"state_dict": others[1].module.state_dict()}, tmp_path / "data" / "models" / "seed2.pt")
    monkeypatch.chdir(tmp_path)
    return build("resnet20-cifar10"), others, tmp_path / "data"


FROM_FILES = ["seed1.safetensors", "seed2.pt"]


def test_members_from_files_join_the_classifier_without_training_or_labels(from_files, tmp_path):
    classifier, others, data = from_files
    detector = prepared(classifier, training_set(TRAIN[:20], None, data=data), members=FROM_FILES)
    p = torch.stack([network(INSIDE[:9]).double().softmax(1) for network in (classifier, *others)])
    found = columns(detector, classifier, INSIDE[:9])
    torch.testing.assert_close(detector.probabilities(Probe(classifier, INSIDE[:9], detector.signals)), p.mean(0))
    np.testing.assert_allclose(found[:, 2], p.var(0, correction=0).sum(1).numpy(), rtol=1e-5)


def test_a_saved_ensemble_holds_the_weights_and_opens_no_file_of_its_members(from_files, tmp_path, monkeypatch):
    classifier, _, data = from_files
    detector = prepared(classifier, training_set(TRAIN[:20], None, data=data), members=FROM_FILES)
    found = columns(detector, classifier, INSIDE[:9])
    detector.save(tmp_path / "fitted.safetensors")
    monkeypatch.setattr(weights, "read", lambda path: pytest.fail(f"read {path}"))
    loaded = oodbench.Detector.load(tmp_path / "fitted.safetensors")
    assert loaded.members == FROM_FILES
    np.testing.assert_array_equal(columns(loaded, classifier, INSIDE[:9]), found)
    header, fitted = state.load(tmp_path / "fitted.safetensors")
    for members in (["/etc/secret.pt"], ["a.pt"] * 1000):
        changed = {**header, "parameters": {**header["parameters"], "members": members}}
        state.save(tmp_path / "other.safetensors", changed, fitted)
        with pytest.raises(BadData, match="networks have another architecture than this classifier"):
            columns(oodbench.Detector.load(tmp_path / "other.safetensors"), classifier, INSIDE[:9])


def test_files_and_names_may_be_mixed(from_files):
    classifier, _, data = from_files
    save_file(build("resnet32-cifar10", seed=3).module.state_dict(), data / "models" / "resnet32-cifar10.safetensors")
    members = ["seed1.safetensors", "resnet32-cifar10", str(data / "models" / "seed2.pt")]
    mixed = prepared(classifier, training_set(data=data), members=members)
    assert mixed._logits(Probe(classifier, INSIDE[:2], mixed.signals)).shape == (4, 2, 10)


def test_members_from_files_must_be_there_fit_and_differ(from_files, tmp_path):
    classifier, others, data = from_files

    def refused(error, match, *members):
        with pytest.raises(error, match=match) as caught:
            prepared(classifier, training_set(data=data), members=list(members))
        assert "\n" not in str(caught.value)

    weights.write(tmp_path / "own.safetensors", classifier.module)
    torch.save(others[0].module.double().state_dict(), tmp_path / "again.pth")  # the same values, in another file
    weights.write(tmp_path / "deeper.safetensors", build("resnet32-cifar10").module)
    weights.write(tmp_path / "fewer.safetensors", build("resnet20-cifar10", 7).module)
    refused(MissingData, "weights file seed9.safetensors does not exist", "seed9.safetensors")
    refused(Unsuitable, "member own.safetensors has the same weights as the classifier resnet20-cifar10", "own.safetensors")
    for twice in (["seed1.safetensors", "again.pth"], ["seed1.safetensors"] * 2):
        refused(Unsuitable, f"the member {twice[1]} has the same weights as the member seed1.safetensors; give those", *twice)
    refused(
        BadData,
        r"the member deeper\.safetensors does not fit resnet20-cifar10: it has unknown .*; members from files have the arch",
        "deeper.safetensors",
    )
    refused(BadData, r"fewer\.safetensors does not fit .*: linear\.weight is \(7, 64\) instead of", "fewer.safetensors")


def test_members_by_name_must_differ_too(named):
    classifier, _, data = named
    with pytest.raises(Unsuitable, match="the member resnet32-cifar10 has the same weights as the member resnet32-cifar10"):
        prepared(classifier, training_set(data=data), members=["resnet32-cifar10"] * 2)


def test_another_architecture_than_it_was_fitted_on_is_refused(detector, tmp_path):
    detector.save(tmp_path / "fitted.safetensors")
    loaded = oodbench.Detector.load(tmp_path / "fitted.safetensors")
    with pytest.raises(BadData, match="networks have another architecture than this classifier; fit it again"):
        columns(loaded, build("resnet20-cifar10"), INSIDE)


def test_it_says_what_it_needs(classifier):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        prepared(classifier, training_set(labels=None))
    with pytest.raises(BadData, match=r"training labels range from 1 to 4, but tiny has 4 classes"):
        prepared(classifier, training_set(labels=LABELS + 1))
    with pytest.raises(Unsuitable, match="needs a classifier"):
        Ensemble().check(None)
    with pytest.raises(OodbenchError, match=r"member 2 of 3: training diverged in epoch 1 .*; lower lr"):
        prepared(classifier, lr=1e30)


def test_a_parameter_that_nothing_initialises_is_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x.mean((2, 3)) * self.scale)

    network = oodbench.Classifier(nn.Sequential(Scaled()), name="scaled")
    with pytest.raises(Unsuitable, match=r"no reset_parameters for '0\.scale', .*; add that method, or give members as a list"):
        Ensemble().check(network)
    Ensemble(["resnet20-cifar10"]).check(network)


@pytest.mark.parametrize("members", [1, 0, True, 2.5, [], [3], "resnet20-cifar10"])
def test_bad_members_are_refused(members):
    with pytest.raises(UsageError, match="give a whole number of at least 2, or a list of weights files or model names"):
        oodbench.load_detector("ensemble", members=members)


def test_a_member_that_is_code_is_refused_at_once():
    for name in ("subprocess:getoutput", "os:getcwd", ":x", "a:timm:b"):
        with pytest.raises(UsageError, match="is code to run; name a built-in, timm: or torchvision: model, or one that a"):
            oodbench.load_detector("ensemble", members=["resnet32-cifar10", name])
    assert Ensemble(["timm:resnet18", "torchvision:resnet18", "resnet20-cifar10"]).members[0] == "timm:resnet18"


def test_a_file_cannot_have_a_members_module_imported(detector, tmp_path, monkeypatch):
    (tmp_path / "evil_for_a_test.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "fitted.safetensors"
    detector.save(file)
    header, found = state.load(file)
    state.save(file, {**header, "parameters": {**header["parameters"], "members": ["evil_for_a_test:build"]}}, found)
    with pytest.raises(UsageError, match="the member 'evil_for_a_test:build' is code to run"):
        oodbench.Detector.load(file)
    assert "evil_for_a_test" not in sys.modules


@pytest.mark.parametrize("parameter", ["epochs", "lr", "batch_size"])
def test_bad_settings_are_refused(parameter):
    with pytest.raises(UsageError, match=f"ensemble: {parameter} = 0; give a (finite|whole) number"):
        oodbench.load_detector("ensemble", **{parameter: 0})
