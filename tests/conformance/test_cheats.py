"""What looks sound and is not: detectors that score by company, run the network themselves, or fit on held-out images."""

import pytest
import torch
from sound import Sound

import oodbench
from oodbench.conformance.detectors import CHECKS, Subject, subject
from oodbench.conformance.run import run
from oodbench.probe import Probe


class ScoresByLargeCompany(Sound):
    """Subtracts the mean of a batch of more than 60."""

    def statistics(self, probe):
        scores = super().statistics(probe)
        return scores - scores.mean() if len(probe) > 60 else scores


class RunsTheNetwork(Sound):
    """Runs the network for itself."""

    def statistics(self, probe):
        return super().statistics(probe) + 0 * probe.classifier(probe.images).double().sum(1)


class RunsItWhileItObserves(Sound):
    """Runs the bare module, past the hooks of the whole."""

    def observe(self, probe):
        super().observe(probe)
        probe.classifier.module.forward(probe.images)


class RunsItInALoss(Sound):
    """Runs a layer in a loss that the probe calls."""

    signals = ("images", "logits", "input_gradient")

    def statistics(self, probe):
        def loss(given):
            return probe.classifier.module.conv1(given.images.requires_grad_()).flatten(1).sum(1) + given.logits.sum(1)

        return super().statistics(probe) + 0 * probe.input_gradient(loss).double().flatten(1).sum(1)


class AsksAProbeOfItsOwn(Sound):
    """Makes a probe of the same images."""

    def statistics(self, probe):
        return super().statistics(probe) + 0 * Probe(probe.classifier, probe.images, ("logits",)).logits.sum(1)


class FitsOnHeldOut(Sound):
    """Calibrates its head on images that it fitted."""

    unsupervised_head = "standardised-sum"


class TrainsOnHeldOut(oodbench.Detector):
    """Distance to the mean image, trained on all."""

    signals = ("images",)

    def prepare(self, train_set, classifier, progress):
        self.mean_ = train_set.images.double().mean(0)

    def statistics(self, probe):
        return (probe.images.double() - self.mean_).flatten(1).norm(dim=1)


class CalibratesInSecret(oodbench.Detector):
    """Learns from held-out images without declaring it, so it is never shown a validation set."""

    signals = ("logits",)

    def observe(self, probe):
        self._seen = [*getattr(self, "_seen", []), probe.logits[probe.held_out]]

    def finish(self):
        self.centre_ = torch.cat(self._seen).double().mean(0)

    def statistics(self, probe):
        return (probe.logits.double() - self.centre_).norm(dim=1)


class Calibrates(CalibratesInSecret):
    """The same, declared."""

    calibrates = True


class FitsOnOthers(Sound):
    """As it should be."""

    unsupervised_head = "standardised-sum"

    def observe(self, probe):
        fitted = probe.logits[~probe.held_out]
        self._sum, self._count = self._sum + fitted.sum(0), self._count + len(fitted)


CHEATS = [
    ("validation", CalibratesInSecret, "a detector that learns from probe.held_out sets calibrates = True"),
    ("batch-size", ScoresByLargeCompany, "in one batch among 200 others, 60 of 60 scores differ"),
    (
        "batch-size",
        ScoresByLargeCompany,
        "; the tolerance is 0.0001 times their size and spread (if it is rounding, compute in float64)",
    ),
    ("no-pass-of-its-own", RunsTheNetwork, "ran the whole network outside the probe"),
    ("no-pass-of-its-own", RunsItWhileItObserves, "ran module.conv1 outside the probe"),
    ("no-pass-of-its-own", RunsItInALoss, "ran module.conv1 outside the probe"),
    ("no-pass-of-its-own", AsksAProbeOfItsOwn, "ran the whole network outside the probe"),
    ("held-out", FitsOnHeldOut, "fitted mean_ on held-out images too"),
    ("held-out", TrainsOnHeldOut, "fitted mean_ on held-out images too"),
]


def outcomes(kind, *checks):
    return {outcome.check: outcome for outcome in run({name: CHECKS[name] for name in checks}, Subject(kind))}


@pytest.mark.parametrize(("check", "kind", "says"), CHEATS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_cheat_fails_its_check(check, kind, says):
    outcome = outcomes(kind, check)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason
    assert "\n" not in outcome.reason


@pytest.mark.parametrize(
    "name", ["odin", "mahalanobis-v", "lid", "mc-dropout", "purview", "gradnorm", "introspective", "ensemble"]
)
def test_what_the_probe_runs_is_no_pass_of_the_detectors(name):
    checks = {check: CHECKS[check] for check in ("no-pass-of-its-own", "held-out")}
    found = {outcome.check: outcome for outcome in run(checks, subject(name, {}))}
    assert found["no-pass-of-its-own"].outcome == "pass", found
    assert found["held-out"].outcome != "fail", found


def test_what_leaves_held_out_images_out_passes_and_what_needs_not_is_skipped():
    assert outcomes(FitsOnOthers, "held-out")["held-out"].outcome == "pass"
    assert outcomes(Sound, "held-out")["held-out"].outcome == "skip"


def test_what_declares_that_it_calibrates_passes():
    assert outcomes(Calibrates, "validation")["validation"].outcome == "pass"
    assert outcomes(FitsOnOthers, "validation")["validation"].outcome == "pass"
