"""Each check of a metric can fail: for each there is one that breaks what it checks."""

import numpy as np
import pytest
import scipy.io
import torch

from oodbench.conformance.quality import CHECKS, Subject, subject
from oodbench.conformance.run import run
from oodbench.errors import MissingData, UsageError
from oodbench.quality.metric import QualityMetric
from oodbench.quality_metrics import TABLE
from oodbench.quality_metrics._sparse_autoencoder import SparseAutoencoder


class MeanError(QualityMetric):
    """Mean absolute difference."""

    higher_is_better = False
    smallest_side = 2

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def compare(self, references, distorted):
        return (references.double() - distorted.double()).abs().mean((1, 2, 3)) ** self.power


class NoDocstring(MeanError):
    pass


class NotAnAttribute(MeanError):
    """Keeps half of its hyper-parameter."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power / 2


class NoDirection(MeanError):
    """Does not know what is better."""

    higher_is_better = "lower"


class HalfASide(MeanError):
    """Has half a pixel."""

    smallest_side = 2.5


class Raises(MeanError):
    """Fails."""

    def compare(self, references, distorted):
        raise ValueError("my own fault")


class Float32(MeanError):
    """Overrides what the harness does."""

    def score(self, references, distorted):
        return super().score(references, distorted).float()


class Constant(MeanError):
    """Says the same of everything."""

    def compare(self, references, distorted):
        return torch.full((len(references),), 0.5)


class NoDigest(MeanError):
    """Names a file without its digest."""

    def files(self):
        return {"weights.mat": "?"}


class Random(MeanError):
    """Draws from the global generator."""

    def compare(self, references, distorted):
        return super().compare(references, distorted) + torch.rand(len(references))


class ScaledByTheBatch(MeanError):
    """Divides by the largest error of the batch."""

    def compare(self, references, distorted):
        error = super().compare(references, distorted)
        return error / error.max().clamp(min=1e-9)


class DependsOnOrder(MeanError):
    """Counts the row."""

    def compare(self, references, distorted):
        return super().compare(references, distorted) + torch.arange(len(references))


class WrongDirection(MeanError):
    """Says that a larger error is better."""

    higher_is_better = True


class Saturates(MeanError):
    """Knows no error above 1."""

    def compare(self, references, distorted):
        error = super().compare(references, distorted)
        return error.clamp(max=1) + 1e-9 * references.double().mean((1, 2, 3)) * (error > 0)


class TakesSmaller(MeanError):
    """Compares what it declares too small."""

    def score(self, references, distorted):
        return self.compare(references, distorted)


class NeedsMore(MeanError):
    """Needs more pixels than it declares."""

    def compare(self, references, distorted):
        if min(references.shape[2:]) < 8:
            raise ValueError("the kernel is larger than the image")
        return super().compare(references, distorted)


class TakesFloats(MeanError):
    """Compares any images."""

    def score(self, references, distorted):
        if min(references.shape[2:]) < self.smallest_side:
            return super().score(references, distorted)
        height = min(references.shape[2], distorted.shape[2])
        return self.compare(references[:, :, :height], distorted[:, :, :height])


class Writes(MeanError):
    """Writes into the distorted images."""

    def compare(self, references, distorted):
        values = super().compare(references, distorted)
        distorted[:] = references
        return values


BROKEN = [
    ("contract", NoDocstring, "NoDocstring has no docstring"),
    ("contract", NotAnAttribute, "created again from"),
    ("contract", NoDirection, "higher_is_better is 'lower'"),
    ("contract", HalfASide, "smallest_side is 2.5"),
    ("values", Raises, "my own fault"),
    ("values", Float32, "score gave torch.float32 (4,) on cpu"),
    ("values", Constant, "score gave 0.5 for each of 4 different images"),
    ("files", NoDigest, "no SHA-256 of weights.mat"),
    ("deterministic", Random, "then"),
    ("batches", ScaledByTheBatch, "alone"),
    ("batches", DependsOnOrder, "in another order"),
    ("best", WrongDirection, "for identical images, and weak noise"),
    ("best", Saturates, "for weak and strong noise"),
    ("smallest-side", TakesSmaller, "for images of 1 pixels per side"),
    ("smallest-side", NeedsMore, "the kernel is larger than the image"),
    ("other-images", TakesFloats, "for images of different sizes"),
    ("images-unchanged", Writes, "changed the distorted images"),
]


def outcomes(kind):
    return {outcome.check: outcome for outcome in run(CHECKS, kind if isinstance(kind, Subject) else Subject(kind))}


def test_a_sound_metric_passes_all():
    found = outcomes(MeanError)
    assert list(found) == list(CHECKS)
    assert {outcome.outcome for outcome in found.values()} == {"pass"}


@pytest.mark.parametrize(("check", "kind", "says"), BROKEN, ids=[kind.__name__ for _, kind, _ in BROKEN])
def test_a_broken_metric_fails_its_check(check, kind, says):
    outcome = outcomes(kind)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason


def test_every_check_of_metrics_has_one_that_fails_it():
    assert list(dict.fromkeys(case[0] for case in BROKEN)) == list(CHECKS)


def test_a_metric_without_values_fails_once():
    found = outcomes(Raises)
    assert [name for name, outcome in found.items() if outcome.outcome == "fail"] == ["values"]
    assert found["best"].reason == "has no values"


def test_a_metric_whose_files_are_missing_is_skipped_with_the_reason():
    class ReadsFiles(MeanError):
        """Reads what is not there."""

        def compare(self, references, distorted):
            raise MissingData("no weights.mat; fetch it")

    found = outcomes(ReadsFiles)
    assert found["best"] == ("best", "skip", "no weights.mat; fetch it")
    assert "fail" not in {outcome.outcome for outcome in found.values()}


def test_misspelt_names_and_parameters_are_the_callers_errors():
    with pytest.raises(UsageError, match="did you mean 'persim'"):
        subject("presim", {})
    with pytest.raises(UsageError, match="unknown parameter 'power' of psnr"):
        subject("psnr", {"power": 2})


@pytest.mark.parametrize("name", TABLE)
def test_built_in_metrics_pass(name, tmp_path):
    skipped = {outcome.check for outcome in outcomes(subject(name, {}, tmp_path)).values() if outcome.outcome != "pass"}
    if name in ("csv", "unique", "ms-unique", "introspective-unique"):  # their files are missing
        assert skipped == set(CHECKS) - {"contract"}
    else:
        assert skipped <= ({"smallest-side"} if name == "psnr" else set())


def test_csv_passes_with_a_table_of_names(tmp_path):
    (tmp_path / "models").mkdir()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(11), 32**3)
    scipy.io.savemat(tmp_path / "models" / "w2c.mat", {"w2c": probabilities})
    found = outcomes(subject("csv", {}, tmp_path))
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found


@pytest.mark.parametrize("name", ["unique", "ms-unique", "introspective-unique"])
def test_metrics_with_dictionaries_pass(name, tmp_path):
    (tmp_path / "models").mkdir()
    random = torch.Generator().manual_seed(0)
    for units in (81, 121, 169, 400, 625):
        shapes = ((units, 192), (units,), (192, units), (192,))
        weights = (torch.randn(shape, generator=random, dtype=torch.float64) / 4 for shape in shapes)
        SparseAutoencoder(*weights).save(tmp_path / "models" / f"unique-{units}.safetensors")
    found = outcomes(subject(name, {}, tmp_path))
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found
