"""What fits keep of training images: the same as if all were kept, in memory that they announce."""

import numpy as np
import pytest
import torch
from heard import Heard

import oodbench
from oodbench import protocols, training_set
from oodbench.conformance.task import easy_task, trained_classifier
from oodbench.detectors import TABLE, _bank, _moments, gram
from oodbench.detectors._bank import Bank
from oodbench.detectors._moments import ClassCovariances
from oodbench.detectors._sample import Sample
from oodbench.detectors.introspective import _mlp, introspect
from oodbench.detectors.react import percentiles_of
from oodbench.errors import BadData, Unsuitable
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import FitMemory, FitSize, TrainingSet

TRAIN, LABELS = easy_task(400, seed=0)
TEST, _ = easy_task(30, seed=1)


@pytest.fixture(scope="module")
def classifier():
    return trained_classifier(torch.float64)


def features_of(classifier, images):
    probe = Probe(classifier, images.double(), {"features", "logits"})
    return probe.features, probe.logits


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_bank_holds_the_rows_in_order(monkeypatch, batch):
    monkeypatch.setattr(_bank, "BLOCK", 20)
    rows, bank = torch.randn(53, 3), Bank()
    for start in range(0, 53, batch):
        bank.add(rows[start : start + batch])
    blocks = bank.blocks()
    assert [len(block) for block in blocks] == [20, 20, 13]
    assert len(bank) == 53
    assert torch.equal(torch.cat(blocks), rows)
    assert len(blocks[-1].untyped_storage()) == 13 * 3 * 4, "no room for rows that never came"


def test_a_bank_without_rows_has_no_blocks():
    bank = Bank()
    bank.add(torch.zeros(0, 3))
    assert (len(bank), bank.blocks()) == (0, [])


@pytest.mark.parametrize("size", [1, 30, 200])
@pytest.mark.parametrize("batch", [1, 16, 100])
def test_a_sample_is_of_the_smallest_keys(size, batch):
    rows, chosen = torch.arange(100.0)[:, None] * torch.ones(2), torch.arange(100) % 3 != 0
    sample = Sample(size, seed=5)
    for start in range(0, 100, batch):
        part = slice(start, start + batch)
        sample.add([rows[part], rows[part, 0]], chosen[part])
    keys = np.random.default_rng(5).random(100)
    expected = [row for row in np.argsort(keys) if chosen[row]][:size]
    first, second = sample.columns()
    assert len(sample) == len(expected)
    assert first[:, 1].tolist() == second.tolist() == expected


def test_covariances_do_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(_moments, "CHUNK", 8)
    features, labels = torch.randn(200, 5) + 100, torch.arange(200) % 3
    found = []
    for batch in (1, 33, 200):
        streamed = ClassCovariances()
        for start in range(0, 200, batch):
            streamed.add(features[start : start + batch], labels[start : start + batch])
        found.append([torch.cat([mean[None], covariance]) for mean, covariance in streamed.take()])
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))
    for label, one in enumerate(found[0]):
        np.testing.assert_allclose(one[1:], np.cov(features[labels == label].double().T), rtol=1e-9, atol=1e-12)


def test_vim_takes_its_subspace_from_all_images_and_alpha_from_a_sample(classifier):
    detector = oodbench.load_detector("vim", size=50, seed=3).fit(classifier, TRAIN.double(), LABELS)
    features, logits = (part.numpy() for part in features_of(classifier, TRAIN))
    centred = features - detector.origin_.numpy()
    vectors = np.linalg.eigh(centred.T @ centred / 400)[1]
    rows = np.argsort(np.random.default_rng(3).random(400))[:50]
    for dimension, alpha in zip(detector.dimensions_, detector.alphas_, strict=True):
        norms = np.linalg.norm(centred[rows] @ vectors[:, : 16 - dimension], axis=1)
        assert alpha == pytest.approx(logits[rows].max(1).mean() / norms.mean(), rel=1e-9)
    whole = oodbench.load_detector("vim").fit(classifier, TRAIN.double(), LABELS)
    assert detector.alphas_ == pytest.approx(whole.alphas_, rel=0.1)
    assert detector.alphas_ != whole.alphas_


def test_gram_drops_held_out_values_that_bounds_have_reached(classifier, monkeypatch):
    def fitted(least):
        monkeypatch.setattr(gram, "LEAST_OUTSIDE", least)
        looked, look = [], gram.Gram._still_outside
        monkeypatch.setattr(gram.Gram, "_still_outside", lambda detector: looked.append(1) or look(detector))
        detector = oodbench.load_detector("gram").fit(classifier, TRAIN.double(), LABELS, batch_size=16)
        monkeypatch.undo()
        return detector, len(looked)

    (often, more), (never, fewer) = fitted(10), fitted(10**9)
    assert more > fewer == 1
    torch.testing.assert_close(often.expected_, never.expected_, rtol=1e-12, atol=0)
    assert torch.equal(often.low_, never.low_)


def test_h_is_the_network_of_the_gradient_itself():
    random = torch.Generator().manual_seed(0)
    features, logits = (torch.randn(7, width, generator=random, dtype=torch.float64) for width in (6, 4))
    shapes = [(5, 24), (5,), (3, 5), (3,), (4, 3), (4,)]
    weights = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    by_logit, normal = introspect(features, logits, "mse", "ones", 2.0)
    values = torch.stack([torch.outer(g, f).flatten() for g, f in zip(by_logit, normal, strict=True)])
    for place in (0, 2):
        values = torch.sigmoid(values @ weights[place].T + weights[place + 1])
    torch.testing.assert_close(_mlp(by_logit, normal, weights), values @ weights[4].T + weights[5], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_percentiles_in_place_are_numpys(size):
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    percentiles = [0.0, 12.3, 50.0, 99.9, 100.0]
    expected = np.percentile(values.astype(np.float64), percentiles)
    np.testing.assert_allclose(percentiles_of(values.copy(), percentiles), expected, rtol=1e-14)


def memory_of(detectors, classifier, progress=None):
    held_out = protocols.held_out(400, LABELS.numpy(), 0)
    return FitMemory(detectors, classifier, TrainingSet(TRAIN, LABELS, held_out), progress or Progress())


def test_detectors_are_told_how_large_the_fit_is(classifier):
    layered, alone = (memory_of([oodbench.load_detector(name)], classifier).size for name in ("lid", "knn"))
    assert alone == FitSize(400, 40, features=16, classes=4, channels=(), itemsize=8)
    assert layered.channels == tuple(layer.shape[1] for layer in Probe(classifier, TRAIN[:1].double()).layers)
    pixels = memory_of([oodbench.load_detector("pixels")], None).size
    assert pixels == FitSize(400, 40)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("gradcon", "gradcon-vae", "untrained")])
def test_memory_is_flat_in_images_or_grows_with_them(name):
    """Only detectors with a bank, and those that calibrate on all held-out features, take more for more images."""
    detector = oodbench.load_detector(name)
    sizes = [FitSize(n, n // 10, 2048, 1000, (256, 2048), 4) for n in (10**5, 10**6, 10**7)]
    needed = [detector.memory(size) for size in sizes]
    bank = {"knn": 4 * 2048, "introspective": 4 * 3048, "duq": 4 * 5096, "react": 0.8 * 2048}
    per_image = bank.get(name, 0.1 * (4 * 2048 + 24 * 64) if name == "vra" else 0)
    assert np.diff(needed) == pytest.approx([per_image * 9e5, per_image * 9e6])


def test_the_bank_of_imagenet_takes_its_float32_rows():
    assert oodbench.load_detector("knn").memory(FitSize(1_280_000, 0, 2048, 1000)) == 1_280_000 * 2048 * 4


@pytest.mark.parametrize("given", [-1, float("nan"), float("inf"), 10**400, "much", None, ValueError("no")])
def test_a_detector_that_does_not_tell_its_memory_fails_alone(classifier, given):
    class Odd(oodbench.Detector):
        """A score with a strange memory."""

        signals = ("logits",)

        def observe(self, probe):
            pass

        def memory(self, size):
            if isinstance(given, Exception):
                raise given
            return given

        def statistics(self, probe):
            return -probe.logits.max(1).values

    odd, knn = Odd(), oodbench.load_detector("knn")
    why = "no" if isinstance(given, Exception) else r"its memory\(size\) gave .*, which is not a number of bytes"
    with pytest.raises((BadData, ValueError), match=f"^{why}$"):
        odd.fit(classifier, TRAIN, LABELS)
    failed = {}
    memory = memory_of([odd, knn], classifier)
    memory.note_all(failed.__setitem__)
    assert (list(failed), memory.needed) == ([odd], {knn: 400 * 16 * 8})


def test_memory_may_be_a_float():
    knn = oodbench.load_detector("knn")
    knn.memory = lambda size: np.float64(1.5e9)
    assert training_set.fit_memory(knn, FitSize(1, 1)) == 1_500_000_000


def test_a_large_fit_is_announced_and_one_that_does_not_fit_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(training_set, "LARGE", 400 * 16 * 8)
    heard, detectors = Heard(), [oodbench.load_detector(name) for name in ("knn", "she", "msp")]
    monkeypatch.setattr(training_set, "available_memory", lambda device: 60_000)
    memory = memory_of(detectors, classifier, heard)
    for detector in detectors:
        memory.require(detector)
    memory.report()
    assert heard.lines == ["knn: the fit takes about 51 kB of memory"]
    assert memory.together == 400 * 16 * 8 + 8 * 6 * 4 * 16
    monkeypatch.setattr(training_set, "available_memory", lambda device: 52_000)
    memory = memory_of(detectors, classifier, heard)
    for detector in detectors:
        memory.require(detector)
    memory.report()
    assert heard.lines[-1] == (
        "the fits take about 54 kB of memory together, and 52 kB are free; learn from fewer training images (fit_images in a"
        " suite, oodbench run --fit-images), or run fewer detectors at once"
    )
    monkeypatch.setattr(training_set, "available_memory", lambda device: 50_000)
    with pytest.raises(
        Unsuitable, match=r"^its fit takes about 51 kB of memory, and 50 kB are free; learn from fewer training"
    ):
        oodbench.load_detector("knn").fit(classifier, TRAIN, LABELS)
    oodbench.load_detector("she").fit(classifier, TRAIN, LABELS)
    monkeypatch.setattr(training_set, "available_memory", lambda device: 1000)
    with pytest.raises(Unsuitable, match=r"memory, and 1 kB are free; leave it out, or use a machine with more$"):
        oodbench.load_detector("ddu").fit(classifier, TRAIN, LABELS)
    monkeypatch.setattr(training_set, "available_memory", lambda device: None)  # not known: nothing is refused
    oodbench.load_detector("ddu").fit(classifier, TRAIN, LABELS)
