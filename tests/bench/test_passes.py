"""The passes that all detectors share: the same figures at any batch size, and one that fails takes no other down."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import batching, passes
from oodbench.errors import BadData, Unsuitable
from oodbench.image_set import ImageSet
from oodbench.probe import Probe
from oodbench.training_set import TrainingSet


class Mean(oodbench.Detector):
    """Mean training image: sees images only."""

    signals = ("images",)

    def __init__(self) -> None:
        self._seen: list[torch.Tensor] = []
        self.finished = 0

    def observe(self, probe):
        self._seen.append(torch.cat([probe.images.double().flatten(1), probe.labels[:, None], probe.held_out[:, None]], 1))

    def finish(self):
        self.finished += 1
        self.seen_ = torch.cat(self._seen)

    def statistics(self, probe):
        return probe.images.double().flatten(1).mean(1)


class Logit(oodbench.Detector):
    """A gradient's size and the largest logit."""

    signals = ("logits", "input_gradient")

    def statistics(self, probe):
        gradient = probe.input_gradient(lambda p: p.logits.max(1).values)
        return torch.stack([gradient.flatten(1).norm(dim=1).double(), probe.logits.max(1).values], 1)


class Fails(Mean):
    """Fails where it is told to, from the second batch on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def _maybe(self, where):
        self.calls += where == self.where
        if where == self.where and (self.calls >= 2 or where == "finish"):
            raise ValueError(f"broken {where}")

    def observe(self, probe):
        self._maybe("observe")

    def finish(self):
        self._maybe("finish")

    def statistics(self, probe):
        self._maybe("statistics")
        values = super().statistics(probe)
        if self.where == "nan":
            values[1] = torch.nan
        if self.where == "uneven" and probe.images[0, 0, 0, 0] != 0:
            return values[:, None].expand(-1, 2)
        return values


class OnDemand:
    """Images that decode when asked for."""

    def __init__(self, stored):
        self.stored, self.shape = stored, tuple(stored.shape)

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, rows):
        return self.stored[list(rows)]


@pytest.fixture
def stored():
    images = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(11)
    return images


def pieces(size, batch_size):
    return batching.pieces_of(np.arange(size), batch_size)


def test_pieces_cover_every_row_once():
    assert [piece.tolist() for piece in batching.pieces_of(np.array([4, 2, 9, 0, 1]), 2)] == [[4, 2], [9, 0], [1]]


@pytest.mark.parametrize("batch_size", [1, 3, 11, 100])
def test_statistics_do_not_depend_on_the_batch_size(make_classifier, stored, batch_size):
    classifier = make_classifier(dtype=torch.float64)
    jobs = {Mean(): [{}], Logit(): [{}]}
    whole = passes.statistics(jobs, classifier, stored, [np.arange(11)])[0]
    found, seconds = passes.statistics(jobs, classifier, stored, pieces(11, batch_size))
    for detector in jobs:
        np.testing.assert_allclose(found[detector], whole[detector], rtol=1e-12)
        assert seconds[detector] > 0


def test_rows_come_in_the_order_asked_for(stored):
    detector, rows = Mean(), np.array([7, 2, 2, 10])
    found = passes.statistics({detector: [{}]}, None, stored, batching.pieces_of(rows, 3))[0][detector]
    np.testing.assert_allclose(found[:, 0, 0], stored[rows].double().flatten(1).mean(1).numpy() / 255, rtol=1e-6)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("form", ["tensor", "set", "on-demand-0", "on-demand-2"])
def test_every_way_to_the_images_gives_the_same_batches(monkeypatch, classifier, stored, form, resident):
    if not resident:
        monkeypatch.setattr(batching, "RESIDENT_BYTES", 0)
    source = {"tensor": stored, "set": ImageSet(stored)}.get(form) if "on" not in form else ImageSet(OnDemand(stored))
    workers = 2 if form.endswith("2") else 0
    found = list(batching.batches(source, classifier, pieces(11, 4), workers))
    assert [rows.tolist() for rows, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert torch.equal(torch.cat([batch for _, batch in found]), stored.float() / 255)


def test_batches_have_the_networks_dtype(make_classifier, stored):
    _, batch = next(batching.batches(stored, make_classifier(dtype=torch.float64), pieces(11, 4)))
    assert torch.equal(batch, stored[:4].double() / 255)
    _, batch = next(batching.batches(stored, None, pieces(11, 4)))
    assert batch.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_statistics_are_kept_in_memory_of_numpy(stored, dtype):
    """Small tensors that live on between those of forward passes would make memory grow."""

    class Means(Mean):
        def statistics(self, probe):
            return super().statistics(probe).to(dtype)

    detector = Means()
    found = passes.computed({detector: [{}]}, None, stored, batching.pieces_of(np.arange(len(stored)), 4))
    assert all(part.base is None and part.dtype == np.float64 for part in found.parts[detector])


def test_one_forward_pass_a_batch_for_all_detectors(classifier, stored):
    counted: list[int] = []
    classifier.register_forward_hook(lambda module, inputs, output: counted.append(len(output)))
    passes.statistics({Logit(): [{}], Logit(): [{}], Mean(): [{}]}, classifier, stored, pieces(11, 4))
    assert counted == [4, 4, 3]
    counted.clear()
    passes.statistics({Mean(): [{}]}, classifier, stored, pieces(11, 4))
    assert counted == []  # nobody asked what the network makes of them


def test_observe_shows_every_image_once_with_its_label_and_mark(stored):
    detector, labels, held_out = Mean(), torch.arange(11), np.arange(11) % 3 == 0
    done: list[int] = []
    passes.observe([detector], None, TrainingSet(ImageSet(stored), labels, held_out), 4, on_batch=done.append)
    assert done == [4, 4, 3]
    assert torch.equal(detector.seen_[:, -2], labels.double())
    assert torch.equal(detector.seen_[:, -1], torch.from_numpy(held_out).double())
    assert torch.equal(detector.seen_[:, :-2], (stored.float() / 255).double().flatten(1))
    assert detector.finished == 1


@pytest.mark.parametrize("where", ["observe", "finish"])
def test_a_detector_that_fails_to_learn_is_set_apart(stored, where):
    bad, good, failed = Fails(where), Mean(), []
    train_set = TrainingSet(stored, torch.arange(11), np.zeros(11, bool))
    passes.observe([bad, good], None, train_set, 3, on_error=lambda d, e: failed.append((d, str(e))))
    assert failed == [(bad, f"broken {where}")]
    assert len(good.seen_) == 11


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("statistics", "broken statistics"),
        ("nan", "4 of 11 images have scores that are not finite (NaN or infinity), the first in row 1"),
        ("uneven", "statistics(probe) gave 1 and 2 columns on different batches"),
    ],
)
def test_a_detector_that_fails_to_score_is_set_apart(stored, where, message):
    bad, good, failed = Fails(where), Mean(), []
    found, seconds = passes.statistics(
        {bad: [{}], good: [{}]}, None, stored, pieces(11, 3), on_error=lambda d, e: failed.append((d, str(e)))
    )
    assert failed == [(bad, message)]
    assert set(found) == set(seconds) == {good}
    assert found[good].shape == (11, 1, 1)


def test_failures_are_raised_where_nobody_takes_them(stored):
    with pytest.raises(ValueError, match="broken statistics"):
        passes.statistics({Fails("statistics"): [{}]}, None, stored, pieces(11, 3))
    with pytest.raises(BadData, match="not finite"):
        passes.statistics({Fails("nan"): [{}]}, None, stored, pieces(11, 3))


def test_more_signals_may_be_computed_than_asked_for(classifier, stored):
    """So that a few detectors get the very arithmetic that they would get in a larger group."""
    detector = Logit()
    alone = passes.statistics({detector: [{}]}, classifier, stored, pieces(11, 4))[0][detector]
    among = passes.statistics({detector: [{}]}, classifier, stored, pieces(11, 4), signals=oodbench.probe.SIGNALS)[0][detector]
    np.testing.assert_array_equal(alone, among)


class Moved(oodbench.Detector):
    """How far the mean has moved from the clean twin's."""

    signals = ("images", "base")

    def statistics(self, probe):
        return (probe.images.double() - probe.base.images.double()).flatten(1).mean(1)


@pytest.mark.parametrize("form", ["tensor", "on demand"])
def test_clean_twins_come_row_by_row(stored, form):
    clean = torch.randint(0, 200, stored.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    twins = clean if form == "tensor" else OnDemand(clean)
    images = ImageSet(stored, kind="corruption", clean=twins)
    rows = torch.tensor([9, 2, 2, 5])
    for some, where in ((images, slice(None)), (images.select(rows), rows)):
        expected = (stored.double() - clean.double())[where].flatten(1).mean(1) / 255
        np.testing.assert_allclose(Moved().score(None, some, batch_size=3), expected, rtol=1e-6, atol=1e-7)


def test_a_set_without_clean_twins_is_refused_where_they_are_asked_for(stored):
    with pytest.raises(Unsuitable, match="needs the clean twin of each image"):
        Moved().score(None, stored)
    own = ImageSet(stored, clean=stored)
    assert not Moved().score(None, own).any()
    assert not Moved().score(None, own.select(torch.tensor([3, 1]))).any()
    with pytest.raises(BadData, match="has 11 images and 10 clean twins"):
        ImageSet(stored, clean=stored[:10])


@pytest.mark.parametrize("name", ["lid", "mc-dropout"])
def test_a_detector_draws_with_the_runs_seed_unless_it_has_its_own(name, make_classifier, tmp_path):
    classifier = make_classifier()
    images = torch.rand(150, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def statistics(of_run, **parameters):
        detector = oodbench.load_detector(name, **parameters)
        passes.learn([detector], classifier, TrainingSet(images, None, np.arange(150) % 10 == 0, of_run), batch_size=50)
        detector.save(tmp_path / "file")
        found = [each.statistics(Probe(classifier, images[:9])) for each in (detector, type(detector).load(tmp_path / "file"))]
        assert torch.equal(*found)
        return found[0]

    assert torch.equal(statistics(3), statistics(3))
    assert not torch.equal(statistics(3), statistics(4))
    assert torch.equal(statistics(4), statistics(3, seed=4))
    assert torch.equal(statistics(0), statistics(3, seed=0))
