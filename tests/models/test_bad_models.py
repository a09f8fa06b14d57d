"""Networks that something is wrong with: one line says what a detector needs, and the cells are skipped with it."""

import re
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import oodbench
from oodbench import batching, passes, registry
from oodbench.classifier import Classifier
from oodbench.conformance.task import TinyResNet, easy_task
from oodbench.engine import timing
from oodbench.engine.recognition import Source
from oodbench.errors import BadData, OodbenchError, Unsuitable
from oodbench.image_set import ImageSet
from oodbench.inference import thresholds
from oodbench.probe import NEED_GRAPH
from oodbench.suite import Suite

DETECTORS = [name for name, record in registry.records("detectors").items() if record.distribution == "oodbench"]
GRADIENTS = {name for name in DETECTORS if oodbench.load_detector(name).declared_signals & NEED_GRAPH}
IMAGES, LABELS = easy_task(80, seed=0)


class NoLinearHead(nn.Module):
    """Ends in a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.head(self.conv1(x).relu().mean((2, 3), keepdim=True)).flatten(1)


class HeadInTheMiddle(NoLinearHead):
    """Its last linear layer does not give the logits."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        maps = self.conv1(x).relu()
        return self.head(maps * self.gate(maps.mean((2, 3)))[:, :, None, None]).mean((2, 3))


class FunctionalDropout(TinyResNet):
    """Drops features in eval mode too."""

    def forward(self, x):
        return super().forward(F.dropout(x))


class StaysInTraining(nn.Dropout):
    """A layer that eval() does not reach."""

    def train(self, mode=True):
        return super().train(True)


class BatchStatistics(TinyResNet):
    """Normalises with the statistics of the batch, also in eval mode."""

    def __init__(self, classes):
        super().__init__(classes)
        self.layer1[1] = nn.BatchNorm2d(12, track_running_stats=False)


class GivesTuple(TinyResNet):
    """Two tensors that may be logits."""

    def forward(self, x):
        return super().forward(x), x.mean((2, 3))


class GivesDict(TinyResNet):
    """Logits under a name of its own."""

    def forward(self, x):
        return {"answer": super().forward(x)}


class WantsMore(TinyResNet):
    """Needs a mask beside the images."""

    def forward(self, x, mask):
        return super().forward(x * mask)


class WantsAnotherSize(TinyResNet):
    """Says so with an assertion, as timm's transformers do."""

    def forward(self, x):
        assert x.shape[2] == 224, "Input height (8) doesn't match model (224)."


class GivesIntegers(TinyResNet):
    """Rounds its logits."""

    def forward(self, x):
        return super().forward(x).mul(100).long()


class GivesProbabilities(TinyResNet):
    """Ends in softmax."""

    def forward(self, x):
        return super().forward(x).softmax(1)


class GivesLogProbabilities(TinyResNet):
    """Ends in log-softmax."""

    def forward(self, x):
        return super().forward(x).log_softmax(1)


class GivesSigmoids(TinyResNet):
    """Ends in a sigmoid, which leaves no layer of its own, and a view."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x)).view(len(x), -1)


class GivesLogSigmoids(TinyResNet):
    """Ends in the layer ``LogSigmoid``."""

    def __init__(self, classes):
        super().__init__(classes)
        self.last = nn.LogSigmoid()

    def forward(self, x):
        return self.last(super().forward(x))


class SmallLogits(TinyResNet):
    """Its logits are within [0, 1], and come after a gate by sigmoid."""

    def forward(self, x):
        return super().forward(x * torch.sigmoid(x)).mul(0.1).add(0.5)


class CallsByKeyword(NoLinearHead):
    """Calls its head by keyword."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(input=super().forward(x))


class LayerGivesTuple(TinyResNet):
    """Has a layer whose output is no tensor."""

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    def __init__(self, num_classes=8):
        super().__init__(num_classes)
        self.conv0 = self.Pair()

    def forward(self, x):
        return super().forward(self.conv0(x)[0])


class WithoutGradients(TinyResNet):
    """Leaves torch on the way."""

    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy()))


class FewAtOnce(TinyResNet):
    """Takes as many images as its check gives, but not a batch."""

    def forward(self, x):
        if len(x) > 2:
            raise RuntimeError("at most 2 images a batch")
        return super().forward(x)


def staying() -> nn.Module:
    return nn.Sequential(nn.Flatten(), StaysInTraining(0.5), nn.Linear(192, 8))


def network(make) -> Classifier:
    """Of 8 classes, for 8x8 images, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make(8) if issubclass(make, TinyResNet) else make()
    layers = [name for name in ("conv0", "conv1", "layer1", "layer2") if hasattr(module, name)]
    return Classifier(module, (0.5,) * 3, (0.25,) * 3, layers=layers, name=make.__name__)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(classifier, *detectors) -> (status, reason) by detector, on the embedded sets."""

    def run(classifier, *detectors, **parameters):
        module = types.ModuleType("bad_model_for_a_test")
        module.build = lambda: classifier
        monkeypatch.setitem(sys.modules, module.__name__, module)
        suite = Suite(
            name="bad",
            model="bad_model_for_a_test:build",
            in_distribution="digits",
            detectors=list(detectors),
            parameters=parameters,
            sets=[{"name": "photos"}],
        )
        folder = oodbench.run(suite, out=tmp_path / "run", limit=40)
        return {cell.detector: (cell.status, cell.reason) for cell in folder.records()}

    return run


UNUSABLE = [
    (FunctionalDropout, "gives the same images different logits each time; turn off its randomness"),
    (BatchStatistics, "gives an image different logits in different batches; make it use running statistics"),
    (GivesTuple, r"gives tuple for 2 images, not logits \(2, classes\); wrap it in a module that returns only the logits"),
    (GivesDict, r"gives dict for 2 images, not logits \(2, classes\); wrap it in a module that returns only the logits"),
    (GivesIntegers, "gives logits in int64; wrap it in a module that returns real floats"),
    (
        GivesProbabilities,
        r"gives probabilities, which have the same sum for each image, not logits; leave out its last \(log-\)softmax",
    ),
    (
        GivesLogProbabilities,
        "gives log-probabilities, whose exponentials have the same sum for each image, not logits; leave out its",
    ),
    (GivesSigmoids, r"ends in a \(log-\)sigmoid, so it does not give logits; leave out that layer"),
    (GivesLogSigmoids, r"ends in a \(log-\)sigmoid, so it does not give logits; leave out that layer"),
    (WantsMore, r"needs more inputs than images: .*missing 1 required positional argument: 'mask'; wrap it in a module whose"),
    (
        WantsAnotherSize,
        r"does not take images of shape \(3, 8, 8\): Input height .* \(test_bad_models\.py, line \d+\); choose",
    ),
]


@pytest.mark.parametrize(("make", "says"), UNUSABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_no_detector_can_read_is_said_in_one_line(make, says):
    with pytest.raises(Unsuitable, match=f"^{make.__name__} {says}") as raised:
        network(make).check(IMAGES[:2])
    assert "\n" not in str(raised.value)


def test_a_layer_that_stays_in_training_mode_is_named():
    with pytest.raises(
        Unsuitable, match=r"Sequential: '1' stays in training mode after eval\(\); its train\(mode\) must apply the mode"
    ):
        Classifier(staying()).check(IMAGES[:2])


@pytest.mark.parametrize("make", [TinyResNet, NoLinearHead, HeadInTheMiddle, SmallLogits])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sound_networks_pass(make, dtype):
    network(make).to(dtype).check(IMAGES[:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [GivesProbabilities, GivesLogProbabilities])
def test_probabilities_are_no_logits_in_any_dtype(make, dtype):
    with pytest.raises(Unsuitable, match="the same sum for each image"):
        network(make).to(dtype).check(IMAGES[:8])
    large = torch.linspace(-3e3, 3e3, 8 * 1000, dtype=torch.float32).view(1000, 8).T.contiguous()
    Classifier(Fixed(large)).check(IMAGES[:8])
    for shifted in (large.log_softmax(1), large.log_softmax(1) + 3):
        with pytest.raises(Unsuitable, match="log-probabilities"):
            Classifier(Fixed(shifted)).check(IMAGES[:8])
    with pytest.raises(Unsuitable, match="gives probabilities"):
        Classifier(Fixed(100 * (large / 1e3).softmax(1))).check(IMAGES[:8])
    nearly = torch.linspace(0, 0.03, 8 * 1000).view(8, 1000).mul(1e-4).add(torch.linspace(-0.02, 0.02, 1000))
    Classifier(Fixed(nearly)).check(IMAGES[:8])  # as an untrained ShuffleNet gives
    same = large[:1].expand(8, -1)  # of eight equal images: nothing can be told from their sums
    Classifier(Fixed(same)).check(IMAGES[:8])


class Fixed(nn.Module):
    """Gives the first rows of what it holds."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs[: len(x)]


def test_dropout_layers_are_put_into_eval_mode():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 8)).train()
    classifier = Classifier(module)
    classifier.check(IMAGES[:4])
    assert torch.equal(classifier(IMAGES), classifier(IMAGES))


def test_logits_that_are_not_finite_are_bad_data():
    classifier = network(TinyResNet)
    classifier.module.linear.weight.data.fill_(torch.nan)
    with pytest.raises(BadData, match="logits that are not finite"):
        classifier.check(IMAGES[:2])


@pytest.mark.parametrize(("make", "says"), UNUSABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_its_cells_are_skipped_and_the_control_runs(run, make, says):
    found = run(network(make), "msp", "knn", "odin", "purview", "mahalanobis-fe", "pixels")
    assert found.pop("pixels") == ("ok", "")
    assert {status for status, _ in found.values()} == {"skipped"}
    assert len({reason for _, reason in found.values()}) == 1
    with pytest.raises(Unsuitable, match=says):
        raise Unsuitable(found["msp"][1])


def test_without_a_linear_head_logits_and_layers_still_serve(run):
    quick = {name: registry.load("detectors", name).quick for name in DETECTORS}
    found = run(network(NoLinearHead), *DETECTORS, **{name: given for name, given in quick.items() if given})
    served = {name for name, (status, _) in found.items() if status == "ok"}
    assert {"msp", "maxlogit", "energy", "entropy", "klm", "odin", "mahalanobis-fe", "lid", "gram", "pixels"} <= served
    for name in DETECTORS:
        status, why = found[name]
        assert (
            status == "ok"
            or (status == "skipped" and "has no final linear layer; name one with Classifier" in why)
            or (name == "ensemble" and status == "skipped")
        ), f"{name}: {status}, {why}"
    assert found["knn"][0] == found["gradnorm"][0] == "skipped"


def test_a_linear_layer_that_does_not_give_the_logits_is_no_head(run):
    found = run(network(HeadInTheMiddle), "msp", "knn")
    assert found["msp"][0] == "ok"
    assert found["knn"][0] == "skipped"
    assert "its logits do not come from 'gate', its last linear layer; name the one that gives them" in found["knn"][1]


NO_GRADIENTS = r"^bad_model_for_a_test:build does not work with gradients \(RuntimeError: Can't call numpy.*; leave this"
TUPLE = (
    r"^bad_model_for_a_test:build: its layer 'conv0' cannot be read \(TypeError: it gives tuple, not a tensor\); name others"
)
FEW = r"^RuntimeError: at most 2 images a batch \(test_bad_models\.py, line \d+\)$"


@pytest.mark.parametrize(
    ("make", "fail", "work"),
    [
        (CallsByKeyword, {}, ["msp", "knn"]),
        (LayerGivesTuple, {"mahalanobis-fe": TUPLE, "gram": TUPLE}, ["msp", "knn", "odin"]),
        (WithoutGradients, {"odin": NO_GRADIENTS, "mahalanobis-p": NO_GRADIENTS}, ["msp", "knn", "purview"]),
        (FewAtOnce, {"msp": FEW, "knn": FEW, "odin": FEW}, []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_shared_pass_raises_fails_only_the_detectors_that_ask(run, make, fail, work):
    found = run(network(make), *fail, *work, "pixels")
    for name, says in fail.items():
        status, why = found.pop(name)
        assert status == ("failed" if make is FewAtOnce else "skipped")
        assert re.search(says, why), why
    assert found == dict.fromkeys([*work, "pixels"], ("ok", ""))


@pytest.mark.filterwarnings("ignore")
def test_layers_of_torchscript_fail_only_the_detectors_that_ask(run):
    scripted = Classifier(torch.jit.script(network(TinyResNet).module), layers=["conv1", "layer1"], name="scripted")
    found = run(scripted, "msp", "mahalanobis-fe")
    assert found["msp"] == ("ok", "")
    assert found["mahalanobis-fe"] == (
        "skipped",
        "bad_model_for_a_test:build: 'conv1' is TorchScript, whose layers cannot be read; give the Python module",
    )


def test_others_keep_their_figures_bit_for_bit():
    classifier, pieces = network(WithoutGradients), [np.arange(5), np.arange(5, 12)]
    sound, failed = {oodbench.load_detector(name): [{}] for name in ("energy", "purview")}, {}
    alone, _ = passes.statistics(sound, classifier, IMAGES[:12], pieces)
    odin = oodbench.load_detector("odin")
    beside, _ = passes.statistics({odin: [odin.setting], **sound}, classifier, IMAGES[:12], pieces, on_error=failed.__setitem__)
    assert list(failed) == [odin]
    for detector in sound:
        np.testing.assert_array_equal(beside[detector], alone[detector])


def test_a_network_that_fails_does_not_hide_the_probabilities_and_costs_of_others():
    class OfPixels(oodbench.Detector):
        """Reads the images alone."""

        signals = ("images",)

        def statistics(self, probe):
            return probe.images.mean((1, 2, 3))

        def probabilities(self, probe):
            return probe.images.mean((2, 3)).softmax(1)

    classifier, detector, failed = network(FewAtOnce), OfPixels(), {}
    images, jobs = ImageSet((IMAGES * 255).byte()), {Source(): [{}], Source(detector): [{}]}
    pieces = batching.pieces_of(np.arange(len(images)), 8)
    found, _ = passes.statistics(
        jobs, classifier, images, pieces, signals=frozenset({"logits", "images"}), on_error=failed.__setitem__
    )
    assert [source.name for source in failed] == ["network"]
    assert [values.shape for values in found.values()] == [(len(IMAGES), 1, 3)]
    failed.clear()
    jobs = {"pixels": timing.Job(detector, {}), "msp": timing.Job(oodbench.load_detector("msp"), {})}
    assert list(timing.seconds_per_image({job.detector: [{}] for job in jobs.values()}, classifier, IMAGES)[1]) == [detector]
    costs = timing.standalone_costs(jobs, classifier, IMAGES, 1, on_error=failed.__setitem__)
    assert list(costs) == ["pixels"]
    assert costs["pixels"]["overhead"] is None
    assert [str(error) for error in failed.values()] == ["at most 2 images a batch"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_in_half_precision_what_takes_gradients_says_what_it_needs(run, dtype):
    quick = {name: registry.load("detectors", name).quick for name in DETECTORS}
    names = [name for name in DETECTORS if not name.startswith("gradcon")]  # they train for a while, and read images alone
    gradients = GRADIENTS | {"untrained"}  # that of its own copy of the network
    assert {"odin", "mahalanobis-p", "purview"} <= gradients
    found = run(network(TinyResNet).to(dtype), *names, **{name: quick[name] for name in names if quick[name]})
    for name in names:
        status, why = found[name]
        if name in gradients:
            assert status == "skipped", f"{name}: {status}, {why}"
            short = str(dtype).removeprefix("torch.")
            assert why.startswith(f"needs a network in float32 or float64, because {short} loses gradients"), f"{name}: {why}"
        else:
            assert status == "ok" or (name == "ensemble" and status == "skipped"), f"{name}: {status}, {why}"


@pytest.mark.parametrize("make", [GivesTuple, GivesDict, WantsMore])
@pytest.mark.parametrize("name", ["msp", "knn", "odin", "vim", "purview"])
def test_from_python_too_it_is_one_line(make, name):
    with pytest.raises(Unsuitable) as raised:
        oodbench.load_detector(name, **({"k": 5} if name == "knn" else {})).fit(network(make), IMAGES, LABELS).score(
            network(make), IMAGES
        )
    assert str(raised.value).startswith(make.__name__)
    assert "\n" not in str(raised.value)


def test_no_threshold_is_found_for_a_network_that_answers_at_random(monkeypatch):
    module = types.ModuleType("random_model_for_a_test")
    module.build = lambda: network(FunctionalDropout)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(OodbenchError, match="gives the same images different logits each time"):
        thresholds.fit("msp", model="random_model_for_a_test:build", dataset="digits")
