"""A detector that changes what others share fails alone, and their figures are those of a run without it."""

import os

import numpy as np
import pytest
import torch
from run_folders import figures
from torch import nn

import oodbench
from oodbench import registry
from oodbench.engine import timing

OTHERS = ["msp", "mahalanobis-fe", "odin"]
SETS = ["digits-heldout", "photos"]


class Plugin(oodbench.Detector):
    """Minus the largest softmax probability; a subclass does more."""

    name = "plugin"
    signals = ("logits",)

    def statistics(self, probe):
        return -probe.softmax.max(1).values


class TrainingMode(Plugin):
    """Switches the network to training mode."""

    def statistics(self, probe):
        probe.classifier.module.train()
        return super().statistics(probe)


class HasOf(TrainingMode):
    """Switches the network to training mode, and has a hyper-parameter of a name that the harness uses too."""

    def __init__(self, of: int = 3) -> None:
        self.of = of


class Scales(Plugin):
    """Changes weights while it learns, in a way that leaves no trace in autograd's version counter."""

    def observe(self, probe):
        for parameter in probe.classifier.module.parameters():
            parameter.data.mul_(1.01)

    def finish(self):
        self.seen_ = True


class ScalesAtTheEnd(Plugin):
    """Changes weights after it has learnt."""

    def observe(self, probe):
        self.network = probe.classifier

    def finish(self):
        self.network.module.linear.weight.numpy()[:] *= 1.01
        self.seen_ = True


class Trains(Plugin):
    """Trains the shared network itself."""

    def prepare(self, train_set, classifier, progress):
        with torch.no_grad():
            classifier.module.linear.bias.add_(0.5)
        self.trained_ = torch.ones(1)


class Halves(Plugin):
    """Changes the dtype of the network."""

    def statistics(self, probe):
        probe.classifier.module.half()
        return torch.zeros(len(probe))


class Hooks(Plugin):
    """Leaves a hook that makes the network sure of everything."""

    def statistics(self, probe):
        scores = super().statistics(probe)
        probe.classifier.module.linear.register_forward_hook(lambda module, inputs, output: output * 100)
        return scores


class Patches(Plugin):
    """Replaces a forward and a layer."""

    def statistics(self, probe):
        scores, module = super().statistics(probe), probe.classifier.module
        module.forward = lambda images: torch.zeros(len(images), 8)
        module.linear = nn.Linear(*reversed(module.linear.weight.shape))
        return scores


class Unfreezes(Plugin):
    """Lets the parameters require gradients."""

    def check(self, classifier):
        classifier.module.requires_grad_(True)


class LateAndFailing(Plugin):
    """Changes a running mean on its third batch, and fails."""

    def __init__(self):
        self.batches = 0

    def statistics(self, probe):
        self.batches += 1
        if self.batches > 2:
            probe.classifier.module.bn1.running_mean.add_(1)
            raise RuntimeError("after the harm")
        return super().statistics(probe)


class DefaultDtype(Plugin):
    """Makes float64 the default dtype."""

    def statistics(self, probe):
        torch.set_default_dtype(torch.float64)
        return super().statistics(probe)


class DtypeOfItsOwn(Plugin):
    """Makes float64 the default dtype when it is built."""

    def __init__(self):
        torch.set_default_dtype(torch.float64)


class Probabilities(Plugin):
    """Changes weights where it is asked for probabilities."""

    def probabilities(self, probe):
        probe.classifier.module.linear.weight.data.mul_(2)
        return probe.softmax


class PatchesTorch(Plugin):
    """Replaces a function that networks call."""

    def statistics(self, probe):
        torch.nn.functional.relu = lambda x, inplace=False: x
        return super().statistics(probe)


class PatchesTensors(Plugin):
    """Replaces a method that tensors inherit."""

    def statistics(self, probe):
        torch.Tensor.softmax = lambda self, dim: torch.softmax(self / 100, dim)
        return super().statistics(probe)


class PatchesNumpy(Plugin):
    """Replaces a function of numpy by one that fails."""

    def statistics(self, probe):
        np.sort = lambda *_: 1 / 0
        return super().statistics(probe)


class PatchesItsClass(Plugin):
    """Replaces what a class inherits."""

    def statistics(self, probe):
        kind = type(probe.classifier)
        kind.__call__ = lambda self, images: super(kind, self).__call__(1 - images)
        return super().statistics(probe)


class DefaultDevice(Plugin):
    """Makes a device without values the default device."""

    def statistics(self, probe):
        torch.set_default_device("meta")
        return super().statistics(probe)


class Umask(Plugin):
    """Hides files that are created from now on."""

    def statistics(self, probe):
        os.umask(0o777)
        return super().statistics(probe)


CHANGES = {
    TrainingMode: "training", HasOf: "training", Scales: "conv1.weight", ScalesAtTheEnd: "linear.weight", Trains: "linear.bias",
    Halves: "conv1.weight", Hooks: "linear._forward_hooks", Patches: "forward", Unfreezes: "conv1.weight",
    LateAndFailing: "bn1.running_mean", DefaultDtype: "torch's default dtype", DtypeOfItsOwn: "torch's default dtype",
    Probabilities: "linear.weight", PatchesTorch: "functions of torch or numpy", PatchesItsClass: "Classifier.__call__",
    PatchesTensors: "functions of torch or numpy", PatchesNumpy: "functions of torch or numpy",
    DefaultDevice: "torch's default device", Umask: "the umask",
}  # fmt: skip


class WritesIntoTheProbe(Plugin):
    """Writes into everything that a probe gives."""

    signals = ("images", "logits", "features", "layers", "input_gradient")

    def observe(self, probe):
        probe.labels.zero_()
        probe.held_out.fill_(True)
        probe.images.zero_()

    def finish(self):
        self.seen_ = True

    def statistics(self, probe):
        def loss(p):
            return p.logits.sum(1)

        stepped = probe.perturbed(0.01, loss, key="sum")
        for tensor in (
            probe.images, probe.logits, probe.softmax, probe.prediction, probe.features, *probe.layers, stepped.images,
            stepped.logits, probe.input_gradient(loss, key="sum"),
        ):  # fmt: skip
            tensor.zero_()
        return super().statistics(probe)


class WritesIntoTheTrainingSet(Plugin):
    """Writes into the images and labels that it trains on."""

    def prepare(self, train_set, classifier, progress):
        train_set.images.images.zero_()
        train_set.labels.zero_()
        train_set.held_out[:] = False
        self.trained_ = torch.ones(1)


@pytest.fixture
def register(monkeypatch):
    def it(kind: type) -> None:
        monkeypatch.setattr(registry, "_added", {})
        record = registry.Record("detectors", "plugin", "tests:plugin", distribution="troublemakers")
        registry._added["detectors", "plugin"] = record
        resolve = registry.resolve
        monkeypatch.setattr(registry, "resolve", lambda target: kind if target == "tests:plugin" else resolve(target))

    return it


def run(out, detectors, **options):
    """The run, the culprit first, so that all others come after it."""
    options = {"protocols": ["unsupervised", "per-shift"], "measure_costs": True, "device": "cpu"} | options
    return oodbench.run("digits", out=out, detectors=detectors, datasets=SETS, limit=80, batch_size=32, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Figures of a run without the plug-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return figures(run(tmp_path_factory.mktemp("alone") / "run", OTHERS))


def of_others(folder):
    return {place: record for place, record in figures(folder).items() if "plugin" not in place}


@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_what_changes_the_network_fails_alone(kind, register, alone, tmp_path):
    register(kind)
    folder = run(tmp_path / "run", ["plugin", *OTHERS])
    assert of_others(folder) == alone
    own = [record for record in folder.records() if record.detector == "plugin"]
    assert {record.status for record in own} == {"failed"}
    assert all("it changes what all detectors share" in record.reason for record in own)
    assert all(CHANGES[kind] in record.reason for record in own)
    assert torch.get_default_dtype() == torch.float32
    frame = folder.frame()
    assert np.isfinite(frame.overhead[frame.detector != "plugin"].astype(float)).all()


@pytest.mark.parametrize("kind", [WritesIntoTheProbe, WritesIntoTheTrainingSet])
def test_what_writes_into_its_copies_harms_nobody(kind, register, alone, tmp_path):
    register(kind)
    folder = run(tmp_path / "run", ["plugin", *OTHERS])
    assert of_others(folder) == alone
    assert {record.status for record in folder.records() if record.detector == "plugin"} == {"ok"}


@pytest.mark.parametrize("others", [["msp"], ["knn", "msp"]], ids=["alone", "beside a detector that declares it"])
@pytest.mark.parametrize("declares", [("logits",), ("images",)])
def test_a_signal_that_is_not_declared_fails_alone(declares, others, register, tmp_path):
    class Undeclared(Plugin):
        """Reads what it does not declare."""

        signals = declares

        def statistics(self, probe):
            return probe.features.sum(1) if declares == ("logits",) else -probe.logits.max(1).values

    register(Undeclared)
    folder = run(tmp_path / "run", [*others, "plugin"])
    for record in folder.records():
        assert record.status == ("failed" if record.detector == "plugin" else "ok")
        assert record.detector != "plugin" or ("add" in record.reason and "to" in record.reason)


def test_the_networks_own_changes_are_nobodys(register, alone, tmp_path, monkeypatch):
    """A network that counts its passes, in a buffer, in a number and in a dict."""
    from oodbench.models.cifar_resnet import CifarResNet

    forward = CifarResNet.forward
    passes = []

    def counting(self, images):
        passes.append(len(images))
        self.conv1.count = len(passes)
        self.seen = {len(passes): None}
        self.bn1.num_batches_tracked.add_(1)
        return forward(self, images)

    monkeypatch.setattr(CifarResNet, "forward", counting)
    without = {place: record | {"weights_hash": ""} for place, record in alone.items()}
    folder = run(tmp_path / "run", OTHERS)
    assert {place: record | {"weights_hash": ""} for place, record in figures(folder).items()} == without
    once = sum(passes)
    passes.clear()
    register(TrainingMode)
    folder = run(tmp_path / "again", ["plugin", *OTHERS])
    assert {place: record | {"weights_hash": ""} for place, record in of_others(folder).items()} == without
    assert sum(passes) < 2 * once  # only the pass in which it changed something was done again


def test_a_detector_that_fails_in_a_later_repeat_loses_only_its_own_cost(register, tmp_path):
    class Tires(Plugin):
        """Works a few times."""

        def __init__(self):
            self.batches = 0

        def statistics(self, probe):
            self.batches += 1
            if self.batches > 12:
                raise RuntimeError("tired")
            return super().statistics(probe)

    register(Tires)
    folder = run(tmp_path / "run", ["plugin", "msp"], protocols=["unsupervised"])
    assert {record.status for record in folder.records()} == {"ok"}
    overhead = folder.frame().set_index("detector").overhead
    assert np.isfinite(overhead["msp"]).all()
    assert overhead["plugin"].isna().all()


def test_a_change_in_the_cost_stage_costs_the_detector_its_cost(register, tmp_path):
    class Nudges(Plugin):
        """Changes a bias where it is timed."""

        def __init__(self):
            self.batches = 0

        def statistics(self, probe):
            if len(probe) == timing.BATCH_SIZE:
                with torch.no_grad():
                    next(probe.classifier.parameters()).add_(1)
            return super().statistics(probe)

    register(Nudges)
    options = {"datasets": ["photos"], "protocols": ["unsupervised"], "limit": 48, "batch_size": 64}
    folder = oodbench.run("digits", out=tmp_path / "run", detectors=["plugin", "msp"], **options)
    overhead = folder.frame().set_index("detector").overhead
    assert np.isfinite(overhead["msp"])
    assert np.isnan(overhead["plugin"])
