"""Each check of a detector can fail: for each there is one that breaks what it checks."""

import numpy as np
import pytest
import torch
from sound import Sound

from oodbench import conformance
from oodbench.conformance.detectors import CHECKS, Subject
from oodbench.conformance.outcomes import Outcome
from oodbench.conformance.run import run
from oodbench.errors import Unsuitable


class NoDocstring(Sound):
    def statistics(self, probe):
        return super().statistics(probe)


class HidesAParameter(Sound):
    """Keeps a hyper-parameter under another name."""

    def __init__(self, k=3):
        super().__init__()
        self.neighbours = k


class UnknownSignal(Sound):
    """Asks for a signal that there is not."""

    signals = ("logits", "telepathy")


class OneSignal(Sound):
    """Gives a name in place of a tuple of names."""

    signals = "logits"


class StrayGrid(Sound):
    """Its grid varies what is no parameter."""

    grid = ({"temperature": 1.0},)


class Constant(Sound):
    """Gives every image the same score."""

    def statistics(self, probe):
        return torch.ones(len(probe))


class TwoColumns(Sound):
    """Gives two columns and no head that makes one score of them."""

    def statistics(self, probe):
        return torch.stack([Sound.statistics(self, probe)] * 2, 1)


class Raises(Sound):
    """Fails on everything."""

    def statistics(self, probe):
        raise RuntimeError("my own fault")


class Random(Sound):
    """Adds global randomness that nobody seeded."""

    def finish(self):
        super().finish()
        self.mean_ = self.mean_ + torch.randn_like(self.mean_)


class Accumulates(Sound):
    """Keeps what an earlier fit saw, for it keeps its own fit."""

    seen = 0

    def finish(self):
        super().finish()
        Accumulates.seen += 1
        self.mean_ = self.mean_ * Accumulates.seen


class Transductive(Sound):
    """Scores an image by the others of its batch."""

    def statistics(self, probe):
        return super().statistics(probe) - probe.logits.mean()


class SinglePrecision(Sound):
    """Works in float32 alone."""

    def observe(self, probe):
        super().observe(probe)
        torch.mm(probe.images.flatten(1), torch.ones(192, 1))


class ScalesWithRange(Sound):
    """Takes pixels of 255 for brighter than 1."""

    def score(self, classifier, images, **options):
        brightness = images.double().mean() if isinstance(images, torch.Tensor) else 0
        return super().score(classifier, images, **options) + float(brightness)


class MovesStatistics(Sound):
    """Puts the network into training mode, and back."""

    signals = ("images", "logits")

    def observe(self, probe):
        super().observe(probe)
        module = probe.classifier.module
        for part in module.modules():
            part.training = True
        module(probe.images)
        for part in module.modules():
            part.training = False


class Unfreezes(Sound):
    """Leaves the network's parameters trainable."""

    def finish(self):
        super().finish()

    def observe(self, probe):
        super().observe(probe)
        probe.classifier.module.requires_grad_(True)


class LeavesAHook(Sound):
    """Leaves a hook on the network."""

    def check(self, classifier):
        classifier.module.register_forward_hook(lambda module, inputs, output: None)


class Peeks(Sound):
    """Looks at the labels of test images."""

    def score(self, classifier, images, **options):
        scores = super().score(classifier, images, **options)
        labels = getattr(images, "labels", None)
        return scores if labels is None else scores + labels.numpy()


class Forgets(Sound):
    """Keeps fitted state under a name that is not saved."""

    def finish(self):
        super().finish()
        self.scale_, self.factor = 1.0, 2.0

    def statistics(self, probe):
        return super().statistics(probe) * getattr(self, "factor", 1.0)


class Pickles(Sound):
    """Saves itself as a pickle."""

    def save(self, path):
        torch.save(vars(self), path)


class UnsavableState(Sound):
    """Has fitted state that cannot be stored."""

    def finish(self):
        super().finish()
        self.table_ = {1: object()}


class DividesByZero(Sound):
    """Divides by the spread of an image's pixels."""

    signals = ("images", "logits")

    def statistics(self, probe):
        return super().statistics(probe) / probe.images.flatten(1).std(1).double()


class UpsideDown(Sound):
    """Higher is more normal."""

    def statistics(self, probe):
        return -super().statistics(probe)


class BadVariant(Sound):
    """One of its variants is not a number on bright images."""

    signals = ("images", "logits")
    variants = ("log",)

    def statistics(self, probe):
        first = super().statistics(probe)
        return torch.stack([first, (0.45 - probe.images.double().flatten(1).mean(1)).log()], 1)


class TakesShiftsInSilence(Sound):
    """Takes a shift, and learns nothing from it."""

    def fit(self, classifier, images, labels=None, shift_images=None, **options):
        return super().fit(classifier, images, labels, **options)


class RefusesABatch(Sound):
    """Cannot be timed: it does not take a batch of 32."""

    def statistics(self, probe):
        if len(probe) == 32:
            raise ValueError("not 32")
        return super().statistics(probe)


class SeedsEverything(Sound):
    """Seeds torch's global generator."""

    def finish(self):
        super().finish()
        torch.manual_seed(0)


class WrongOrder(Sound):
    """Gives the settings of its grid in another order."""

    grid = ({"power": 1.0}, {"power": 2.0})

    def __init__(self, power=1.0):
        super().__init__()
        self.power = power

    def statistics(self, probe):
        columns = [Sound.statistics(self, probe).abs() ** s["power"] for s in self.settings]
        return torch.stack(columns[::-1], 1)


class NotProbabilities(Sound):
    """Gives logits for probabilities."""

    def probabilities(self, probe):
        return probe.logits


class ScoresUnfitted(Sound):
    """Scores without a fit, by a mean that it made up."""

    mean_ = 0.0

    def require_fitted(self):
        pass


class ReadsUndeclared(Sound):
    """Counts on what others declared."""

    signals = ("logits",)

    def statistics(self, probe):
        lone = "features" not in probe._signals
        return super().statistics(probe) if lone else probe.features.sum(1).double()


BROKEN = [
    ("contract", NoDocstring, "has no docstring"),
    ("contract", HidesAParameter, "has no attribute 'k'"),
    ("contract", UnknownSignal, "unknown signal 'telepathy' (known"),
    ("contract", OneSignal, "signals = 'logits'; give a tuple of names"),
    ("contract", StrayGrid, "temperature"),
    ("fits-and-scores", Constant, "separate nothing"),
    ("fits-and-scores", TwoColumns, "2 statistics per image and has no head"),
    ("fits-and-scores", Raises, "RuntimeError: my own fault"),
    ("deterministic", Random, "fitted twice, 60 of 60 scores differ"),
    ("deterministic", Accumulates, "fitted twice, 60 of 60 scores differ"),
    ("batch-size", Transductive, "in batches of 1"),
    ("dtype", SinglePrecision, "RuntimeError"),
    ("dtype", ScalesWithRange, "as uint8"),
    ("classifier-untouched", MovesStatistics, "layer1.1.running_mean"),
    ("classifier-untouched", Unfreezes, "conv1.weight"),
    ("classifier-untouched", LeavesAHook, "_forward_hooks"),
    ("labels-unseen", Peeks, "with true labels"),
    ("save-and-load", Forgets, "saved and loaded"),
    ("save-and-load", Pickles, "not an oodbench file"),
    ("save-and-load", UnsavableState, "cannot store fitted state"),
    ("finite", DividesByZero, "3 of 9 images have scores that are not finite"),
    ("easy-shift", UpsideDown, "is higher = more anomalous?"),
    ("easy-shift", BadVariant, "variant log is not finite"),
    ("learns-from-shift", TakesShiftsInSilence, "without a shift_head"),
    ("cost", RefusesABatch, "not 32"),
    ("leaves-all-else-alone", SeedsEverything, "torch's random state"),
    ("statistics", WrongOrder, "among others"),
    ("statistics", NotProbabilities, "do not sum to 1"),
    ("asks-to-be-fitted", ScoresUnfitted, "before it is fitted"),
    ("in-company", ReadsUndeclared, "without declaring it"),
]


def outcomes(kind, *checks) -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in run({name: CHECKS[name] for name in checks or CHECKS}, Subject(kind))}


def test_a_sound_detector_passes_all():
    found = outcomes(Sound)
    assert {name: o.reason for name, o in found.items() if o.outcome != "pass" and name != "device"} == {
        "held-out": "has no head that is calibrated on held-out images, and trains no network"
    }
    assert found["device"].outcome == ("pass" if torch.cuda.is_available() else "skip")


@pytest.mark.parametrize(("check", "kind", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_detector_fails_its_check(check, kind, says):
    with torch.random.fork_rng():
        outcome = outcomes(kind, check)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason
    assert "\n" not in outcome.reason


def test_what_learns_nothing_from_its_shift_fails():
    class Noise(Sound):
        """Its statistics are noise."""

        signals = ("images",)
        shift_head = "logistic"

        def observe(self, probe):
            pass

        def finish(self):
            self.fitted_ = True

        def statistics(self, probe):
            return (probe.images.double().flatten(1).sum(1) * 1e5) % 1

    outcome = outcomes(Noise, "learns-from-shift")["learns-from-shift"]
    assert outcome.outcome == "fail"
    assert "on the kind of noise learnt from" in outcome.reason


def test_every_check_has_a_detector_that_fails_it():
    elsewhere = {"no-pass-of-its-own", "held-out", "validation"}  # in test_cheats.py
    assert {check for check, _, _ in BROKEN} == CHECKS.keys() - elsewhere - {"device"}  # without CUDA nothing is to break


def test_a_detector_that_fails_to_fit_is_reported_once():
    found = outcomes(Raises)
    assert [name for name, o in found.items() if o.outcome == "fail"] == ["fits-and-scores"]
    assert found["batch-size"] == Outcome("batch-size", "skip", "could not be fitted")


def test_a_detector_that_the_network_does_not_suit_is_skipped():
    class WantsAttention(Sound):
        """Needs a transformer."""

        def check(self, classifier):
            raise Unsuitable("needs a transformer")

    found = outcomes(WantsAttention)
    assert found["contract"].outcome == "pass"
    assert found["fits-and-scores"] == Outcome(
        "fits-and-scores", "skip", "is unsuitable for the network of this check: needs a transformer"
    )


def test_a_detector_that_makes_the_network_unsuitable_fails():
    """Behind a hook that it leaves, all images have the same logits, which is refused as unsuitable."""

    class SilencesTheNetwork(Sound):
        """Leaves a hook."""

        def statistics(self, probe):
            scores = super().statistics(probe)
            probe.classifier.module.register_forward_hook(lambda module, inputs, output: output * 0)
            return scores

    found = outcomes(SilencesTheNetwork)
    assert "_forward_hooks" in found["classifier-untouched"].reason
    assert {name for name, o in found.items() if o.outcome == "fail"} >= {"fits-and-scores", "classifier-untouched"}


def test_checks_leave_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert {o.outcome for o in conformance.check("knn", parameters={"k": 5})} <= {"pass", "skip"}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert list(tmp_path.iterdir()) == []


def test_a_default_that_stays_changed_is_found_whatever_ran_before():
    class SetsTheDefault(Sound):
        """Computes in double precision."""

        def statistics(self, probe):
            torch.set_default_dtype(torch.float64)
            return super().statistics(probe)

    found = outcomes(SetsTheDefault)
    assert found["leaves-all-else-alone"].reason == "a fit and a score changed torch's default dtype"
    assert torch.get_default_dtype() is torch.float32
