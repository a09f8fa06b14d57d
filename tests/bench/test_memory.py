"""Where memory is short, batches are halved: nothing finished is lost, and no figure changes."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import batching, passes
from oodbench.models.device import is_out_of_memory
from oodbench.passes.memory import limited
from oodbench.training_set import TrainingSet

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: 6.80 GB)."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    MemoryError(),
]


class Largest(oodbench.Detector):
    """Minus the largest logit; with ``most``, memory is short for more images than that while scoring or observing."""

    signals = ("logits",)

    def __init__(self, most: int = 100, where: str = "statistics") -> None:
        self.most, self.where, self.sizes = most, where, []
        self._seen: list[torch.Tensor] = []

    def _allocate(self, where, probe):
        if where == self.where and len(probe) > self.most:
            raise ERRORS[0]

    def observe(self, probe):
        self._seen.append(probe.logits)
        self._allocate("observe", probe)

    def finish(self):
        self.seen_ = torch.cat(self._seen)

    def statistics(self, probe):
        self._allocate("statistics", probe)
        self.sizes.append(len(probe))
        return -probe.logits.max(1).values


class Slope(oodbench.Detector):
    """The size of a gradient."""

    signals = ("input_gradient", "gradient_norms", "logits")

    def statistics(self, probe):
        return probe.input_gradient(lambda p: p.logits.max(1).values).flatten(1).norm(dim=1)


class Rank(Largest):
    """A score that depends on its batch by design."""

    whole_batches = True

    def statistics(self, probe):
        return super().statistics(probe).argsort().argsort().double()


@pytest.fixture
def images():
    return torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def statistics(classifier, images, *detectors, batch_size=8, **options):
    """The statistics of a pass, and what is said."""
    said = []
    pieces = batching.pieces_of(np.arange(len(images)), batch_size)
    with limited(said.append):
        found, _ = passes.statistics({d: [{}] for d in detectors}, classifier, images, pieces, **options)
    return found, said


def short_of_memory(classifier, most, error=ERRORS[0], where=lambda: True):
    """A network that memory is short for with more than ``most`` images; returns the sizes of the passes that end."""
    sizes = []

    def check(module, inputs):
        if len(inputs[0]) > most and where():
            raise error
        sizes.append(len(inputs[0]))

    classifier.register_forward_pre_hook(check)
    return sizes


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_is_halved(make_classifier, images, error):
    classifier = make_classifier(dtype=torch.float64)
    one, slope = Largest(), Slope()
    expected, _ = statistics(classifier, images, one, slope)
    sizes, logits = short_of_memory(classifier, 3, error), []
    found, said = statistics(classifier, images, one, slope, logits=logits)
    assert sizes == [2, 2, 2, 2, 2, 1]
    for detector in (one, slope):
        np.testing.assert_allclose(found[detector], expected[detector], rtol=1e-12)
    np.testing.assert_allclose(-np.concatenate(logits).max(1), found[one][:, 0, 0], rtol=1e-12)
    assert said == [
        "memory of cpu is too short for batches of 8 images; using 4 from now on",
        "memory of cpu is too short for batches of 4 images; using 2 from now on",
    ]


def test_other_errors_halve_nothing(classifier, images):
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))
    short_of_memory(classifier, 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        statistics(classifier, images.float(), Largest())


def test_the_smaller_size_is_kept_for_all_passes_of_a_run(classifier, images):
    sizes, said = short_of_memory(classifier, 5), []
    with limited(said.append):
        for _ in range(2):
            pieces = batching.pieces_of(np.arange(11), 8)
            passes.statistics({Largest(): [{}]}, classifier, images.float(), pieces)
    assert len(said) == 1
    assert sizes == [4, 4, 3, 4, 4, 3]


def test_a_batch_that_did_not_fit_late_leaves_the_earlier_ones(classifier, images):
    sizes = short_of_memory(classifier, 2, where=lambda: len(sizes) == 2)
    one = Largest()
    found, said = statistics(classifier, images.float(), one, batch_size=4)
    assert sizes == [4, 4, 1, 1, 1]
    assert found[one].shape == (11, 1, 1)
    assert len(said) == 1


def test_a_detector_that_does_not_fit_halves_the_batch_for_all(make_classifier, images):
    classifier = make_classifier(dtype=torch.float64)
    hungry, one = Largest(most=2), Largest()
    expected, _ = statistics(classifier, images, one)
    one.sizes.clear()
    found, said = statistics(classifier, images, one, hungry)
    assert len(said) == 2
    assert hungry.sizes == [2, 2, 2, 2, 2, 1]
    np.testing.assert_allclose(found[one], expected[one], rtol=1e-12)
    np.testing.assert_allclose(found[hungry], expected[one], rtol=1e-12)


@pytest.mark.parametrize("where", ["statistics", "observe"])
def test_a_detector_that_does_not_fit_alone_fails_alone(classifier, images, where):
    hungry, one, failed = Largest(most=0, where=where), Largest(), {}
    if where == "observe":
        train_set = TrainingSet(images.float(), None, np.zeros(11, bool))
        with limited([].append):
            passes.observe([hungry, one], classifier, train_set, 8, on_error=failed.__setitem__)
        assert len(one.seen_) == 11
    else:
        found, _ = statistics(classifier, images.float(), one, hungry, on_error=failed.__setitem__)
        assert found.keys() == {one}
        assert max(one.sizes[1:]) > 1, "the others go on with batches of one image"
    assert failed == {hungry: ERRORS[0]}


@pytest.mark.parametrize("of", ["network", "detector"])
def test_what_is_learnt_does_not_change(make_classifier, images, of):
    classifier = make_classifier(dtype=torch.float64)
    one, train_set = (
        Largest(most=3 if of == "detector" else 100, where="observe"),
        TrainingSet(images, None, np.zeros(11, bool)),
    )
    expected = classifier(images).detach()
    if of == "network":
        short_of_memory(classifier, 3)
    with limited([].append):
        passes.observe([one], classifier, train_set, 8)
    torch.testing.assert_close(one.seen_, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("of", ["network", "detector"])
def test_a_score_that_depends_on_its_batch_is_refused(classifier, images, of):
    one, rank, failed = Largest(), Rank(most=3 if of == "detector" else 100), {}
    if of == "network":
        short_of_memory(classifier, 3)
    found, said = statistics(classifier, images.float(), one, rank, on_error=failed.__setitem__)
    assert found.keys() == {one}
    assert bool(said) == (of == "network")  # halving would not help a detector that needs the whole batch
    assert (
        str(failed[rank])
        == "its score depends on its whole batch, and memory is too short for one; choose a smaller batch size"
    )
    assert oodbench.load_detector("lid", reference="paired").whole_batches
    assert not oodbench.load_detector("lid").whole_batches


def test_outside_a_run_it_is_a_warning(classifier, images):
    short_of_memory(classifier, 5)
    with pytest.warns(UserWarning, match="too short for batches of 11 images; using 5 from now on"):
        scores = oodbench.load_detector("msp").score(classifier, images.float())
    assert len(scores) == 11
