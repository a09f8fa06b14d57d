"""Introspective learning: closed forms against backward passes, H's training, its classifier, and the step on the input."""

import pytest
import torch
import torch.nn.functional as F
from heard import Heard
from training import prepared_detector, training_set_of

import oodbench
from oodbench.conformance.task import easy_shift, easy_task, trained_classifier
from oodbench.detectors.introspective import Introspective, introspect
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError
from oodbench.probe import Probe
from oodbench.training_set import TrainingSet

TRAIN, LABELS = easy_task(400, seed=0)
INSIDE, INSIDE_LABELS = easy_task(60, seed=1)
OUTSIDE = easy_shift(60, seed=2)
SHORT = {"epochs": 20, "lr": 0.005}


def training_set(images=TRAIN, labels=LABELS, seed=0):
    return training_set_of(images, labels, seed)


def prepared(classifier, train_set=None, progress=None, **parameters):
    return prepared_detector("introspective", classifier, train_set or training_set(), progress, **{**SHORT, **parameters})


@pytest.fixture(scope="module")
def classifier():
    return trained_classifier()


@pytest.fixture(scope="module")
def detector(classifier):
    return prepared(classifier)


def by_backward_passes(classifier, image, loss, contrast, target):
    """r_x of one image: backward passes of autograd through the last layer, one for all classes or one for each."""
    classes = classifier.head.out_features
    weight = classifier.head.weight.detach().clone().requires_grad_()
    features = Probe(classifier, image[None], {"features"}).features

    def gradient(label):
        logits = F.linear(features, weight, classifier.head.bias)[0]
        value = F.mse_loss(logits, target * label) if loss == "mse" else F.cross_entropy(logits, label)
        return torch.autograd.grad(value, weight)[0]

    if contrast == "ones":
        rows = gradient(torch.ones(classes, dtype=torch.float64))
    else:
        rows = torch.stack([gradient(label)[place] for place, label in enumerate(torch.eye(classes, dtype=torch.float64))])
    return (rows / rows.norm()).flatten()


def gradients(features, logits, loss, contrast, target):
    """r_x (N, classes·d) itself."""
    by_logit, features = introspect(features, logits, loss, contrast, target)
    return (by_logit[:, :, None] * features[:, None, :]).flatten(1)


@pytest.mark.parametrize("contrast", ["ones", "exact"])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_closed_forms_are_what_backward_passes_give(loss, contrast):
    double = trained_classifier(torch.float64)
    images = torch.cat([INSIDE[:5], OUTSIDE[:5]]).double()
    probe = Probe(double, images, {"logits", "features"})
    found = gradients(probe.features, probe.logits, loss, contrast, 7.5)
    expected = torch.stack([by_backward_passes(double, image, loss, contrast, 7.5) for image in images])
    assert found.shape == (10, 4 * 16)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_the_exact_contrast_leaves_out_is_the_same_for_every_class():
    double = trained_classifier(torch.float64)
    weight = double.head.weight.detach().clone().requires_grad_()
    features = Probe(double, INSIDE[:1].double(), {"features"}).features
    for loss in ("mse", "cross-entropy"):
        whole = []
        for label in torch.eye(4, dtype=torch.float64):
            logits = F.linear(features, weight, double.head.bias)[0]
            value = F.mse_loss(logits, 7.5 * label) if loss == "mse" else F.cross_entropy(logits, label)
            whole.append(torch.autograd.grad(value, weight)[0])
        for row in range(4):
            others = [gradient[row] for place, gradient in enumerate(whole) if place != row]
            torch.testing.assert_close(others[0], others[1])
            torch.testing.assert_close(others[0], others[2])
            assert not torch.allclose(whole[row][row], others[0])


def test_the_two_contrasts_differ_under_cross_entropy_alone():
    features, logits = torch.rand(6, 5), torch.randn(6, 3)
    same, other = (
        torch.equal(gradients(features, logits, loss, "ones", 2.0), gradients(features, logits, loss, "exact", 2.0))
        for loss in ("mse", "cross-entropy")
    )
    assert same
    assert not other


def test_a_row_has_norm_one_or_is_zero():
    features = torch.rand(4, 5) * 1e-3
    features[2] = 0
    norms = gradients(features, torch.randn(4, 3) * 100, "cross-entropy", "ones", 1.0).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))


def test_the_target_is_the_mean_largest_logit_of_what_is_not_held_out(classifier, detector):
    train_set = training_set()
    logits = classifier(TRAIN[torch.from_numpy(train_set.rows)])
    assert len(logits) == 360
    assert detector.target_ == pytest.approx(float(logits.max(1).values.mean()), rel=1e-5)


def test_scores_are_of_the_softmax_of_h(classifier, detector):
    probe = Probe(classifier, INSIDE, detector.signals)
    values = gradients(probe.features, probe.logits, "mse", "ones", detector.target_)
    assert [tuple(w.shape) for w in detector.weights_[::2]] == [(300, 64), (100, 300), (4, 100)]
    for weight, bias in zip(detector.weights_[:4:2], detector.weights_[1:4:2], strict=True):
        values = 1 / (1 + torch.exp(-(values @ weight.double().T + bias.double())))
    softmax = (values @ detector.weights_[4].double().T + detector.weights_[5].double()).softmax(1)
    torch.testing.assert_close(detector.probabilities(probe), softmax)
    torch.testing.assert_close(detector.statistics(probe)[:, 0], 1 - softmax.max(1).values)
    assert (softmax.argmax(1) == INSIDE_LABELS).float().mean() > 0.95


@pytest.mark.parametrize(("loss", "contrast"), [("mse", "ones"), ("cross-entropy", "ones"), ("cross-entropy", "exact")])
def test_odin_steps_along_the_gradient_through_network_and_h(loss, contrast):
    double = trained_classifier(torch.float64)
    detector = prepared(double, loss=loss, contrast=contrast, temperature=10.0, epsilon=0.01)
    inside = INSIDE[:8].double()
    images = inside.clone().requires_grad_()
    features = []
    hook = double.head.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    logits = double(images)
    hook.remove()

    def second(features, logits):
        values = gradients(features, logits, loss, contrast, detector.target_)
        for place in (0, 2):
            values = torch.sigmoid(values @ detector.weights_[place].double().T + detector.weights_[place + 1].double())
        return values @ detector.weights_[4].double().T + detector.weights_[5].double()

    surprise = second(features[0], logits)
    F.cross_entropy(surprise / 10, surprise.argmax(1), reduction="sum").backward()
    stepped = inside - 0.01 * torch.where(images.grad >= 0, 1.0, -1.0)
    probe = Probe(double, stepped, {"logits", "features"})
    expected = 1 - (second(probe.features, probe.logits) / 10).softmax(1).max(1).values
    found = detector.statistics(Probe(double, inside, detector.signals))
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found[:, 1], 1 - (surprise / 10).softmax(1).max(1).values, rtol=1e-9)


def test_without_a_step_odin_at_temperature_one_is_msp(classifier, detector):
    plain = Introspective(temperature=1.0, epsilon=0.0)
    plain.target_, plain.weights_ = detector.target_, detector.weights_
    msp, odin = plain.statistics(Probe(classifier, INSIDE, plain.signals)).unbind(1)
    assert torch.equal(msp, odin)


def test_another_seed_trains_another(classifier, detector):
    other = prepared(classifier, TrainingSet(TRAIN, LABELS, training_set().held_out, seed=1))
    assert not torch.equal(other.weights_[0], detector.weights_[0])


def test_progress_says_how_far_it_is(classifier):
    seen = Heard()
    prepared(classifier, progress=seen, epochs=25)
    assert seen.expected == seen.done == 360
    assert seen.stages[0] == "introspective: features of 360 training images"
    assert seen.stages[-1].startswith("introspective: epoch 25 of 25, loss 0.")
    assert len(seen.stages) < 12


def test_it_says_what_it_needs(classifier):
    with pytest.raises(Unsuitable, match="needs the labels of the training images"):
        prepared(classifier, training_set(labels=None))
    with pytest.raises(BadData, match=r"training labels range from 1 to 4, but tiny has 4 classes"):
        prepared(classifier, training_set(labels=LABELS + 1))
    with pytest.raises(Unsuitable, match="needs a classifier"):
        Introspective().check(None)
    with pytest.raises(Unsuitable, match="has no final linear layer"):
        Introspective().check(oodbench.Classifier(torch.nn.Flatten()))
    with pytest.raises(OodbenchError, match=r"introspective: training diverged in epoch 1 .*; lower lr"):
        prepared(classifier, lr=1e37)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "bce"}, "loss = 'bce'; give mse or cross-entropy"),
        ({"contrast": "one"}, "contrast = 'one'; give ones or exact"),
        ({"epochs": 0}, "epochs = 0; give a whole number of at least 1"),
        ({"temperature": 0}, "temperature = 0"),
        ({"epsilon": -0.1}, "epsilon = -0.1"),
    ],
)
def test_bad_hyper_parameters_are_refused(parameters, message):
    with pytest.raises(UsageError, match=message):
        oodbench.load_detector("introspective", **parameters)
