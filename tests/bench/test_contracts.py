"""The contract of a detector, from the smallest third-party one on: fit, score, save, load, and what it is told when wrong."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import protocols, registry
from oodbench.batching import as_images
from oodbench.errors import BadData, NotFitted, Unsuitable, UsageError
from oodbench.heads import Choose, Logistic, StandardisedSum
from oodbench.image_set import ImageSet
from oodbench.probe import Probe


@pytest.fixture
def images():
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class LargestLogit(oodbench.Detector):
    "Minus the largest logit."

    def statistics(self, probe):
        return -probe.logits.max(1).values


class Distance(oodbench.Detector):
    """Distance to the mean training feature, to a power: it observes, and may choose the power."""

    signals = ("features",)
    grid = ({"power": -1}, {"power": 1})
    shift_head = "choose"

    def __init__(self, power: int = 1) -> None:
        self.power = power
        self._features: list[torch.Tensor] = []

    def observe(self, probe):
        self._features.append(probe.features[~probe.held_out].double())

    def finish(self):
        self.mean_ = torch.cat(self._features).mean(0)

    def statistics(self, probe):
        distance = (probe.features.double() - self.mean_).norm(dim=1)
        return torch.stack([distance ** setting["power"] for setting in self.settings], 1)


class Columns(Distance):
    """One column a feature: a head must make one score of them."""

    grid = ()
    unsupervised_head = "standardised-sum"
    shift_head = "logistic"

    def statistics(self, probe):
        return (probe.features.double() - self.mean_).abs()


class Gives(oodbench.Detector):
    """Statistics as told."""

    signals = ("images",)

    def __init__(self, output) -> None:
        self.output = output

    def statistics(self, probe):
        return self.output


@pytest.fixture
def registered(monkeypatch):
    """The detectors above, found by name."""
    kinds, load = {"distance": Distance, "columns": Columns}, registry.load
    monkeypatch.setattr(registry, "load", lambda family, name: kinds.get(name) or load(family, name))


def test_the_smallest_detector_works(classifier, images):
    scores = LargestLogit().fit(classifier, images).score(classifier, images)
    assert (scores.dtype, scores.shape) == (np.float64, (40,))
    np.testing.assert_array_equal(scores, -classifier(images).double().max(1).values.numpy())


def test_it_needs_statistics():
    class Empty(oodbench.Detector):
        """Nothing."""

    with pytest.raises(NotImplementedError, match=r"Empty has no statistics\(probe\)"):
        Empty().score(None, torch.zeros(1, 3, 8, 8))


def test_images_in_every_form(classifier, images):
    stored = (images * 255).to(torch.uint8)
    expected = LargestLogit().score(classifier, stored.float() / 255)
    for form in (stored, stored.numpy(), ImageSet(stored), (stored.float() / 255).numpy(), stored.double() / 255):
        np.testing.assert_allclose(LargestLogit().score(classifier, form), expected, rtol=1e-6)


def test_fit_leaves_the_held_out_tenth_out(classifier, images):
    labels = torch.arange(40) % 4
    kept = torch.from_numpy(~protocols.held_out(40, labels.numpy(), 3))
    features = Probe(classifier, images, {"features"}).features.double()
    detector = Distance().fit(classifier, images, labels, seed=3, batch_size=7)
    torch.testing.assert_close(detector.mean_, features[kept].mean(0), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(detector.mean_, features.mean(0), rtol=1e-6, atol=1e-7)


def test_labels_must_fit(classifier, images):
    with pytest.raises(BadData, match="40 images and 5 labels; give one label per image"):
        Distance().fit(classifier, images, torch.zeros(5))


def test_unfitted_detectors_say_so(classifier, images):
    with pytest.raises(NotFitted, match=r"^Distance is not fitted; call fit\(classifier, images, labels\) first$"):
        Distance().score(classifier, images)
    detector = Columns()
    detector.mean_ = torch.zeros(16)
    with pytest.raises(NotFitted, match=r"^Columns is not calibrated; call fit"):
        detector.score(classifier, images)


def test_calibration_is_on_the_held_out_tenth(classifier, images):
    detector = Columns().fit(classifier, images)
    assert type(detector.head) is StandardisedSum
    columns = (Probe(classifier, images, {"features"}).features.double() - detector.mean_).abs().numpy()
    held_out = columns[protocols.held_out(40, None, 0)]
    spread = held_out.std(0) > 0
    expected = ((columns - held_out.mean(0)) / np.where(spread, held_out.std(0), 1))[:, spread].sum(1)
    np.testing.assert_allclose(detector.score(classifier, images), expected, rtol=1e-5, atol=1e-6)


def test_a_shift_may_be_learnt_from(classifier, images):
    shift = images * 0.1  # further from the mean in this network's features
    chosen = Distance(power=-1).fit(classifier, images, shift_images=shift)
    assert type(chosen.head) is Choose
    assert Distance.grid[chosen.head.setting_] == {"power": 1}
    logistic = Columns().fit(classifier, images, shift_images=shift)
    assert type(logistic.head) is Logistic
    for detector in (chosen, logistic):
        assert detector.score(classifier, shift).min() > np.median(detector.score(classifier, images))
    with pytest.raises(Unsuitable, match="LargestLogit learns nothing from a shift; leave out shift_images"):
        LargestLogit().fit(classifier, images, shift_images=shift)


@pytest.mark.parametrize(("name", "shifted"), [("distance", False), ("distance", True), ("columns", False), ("columns", True)])
def test_save_and_load(registered, tmp_path, classifier, images, name, shifted):
    detector = oodbench.load_detector(name, power=2).fit(classifier, images, shift_images=images * 0.1 if shifted else None)
    detector.save(tmp_path / "fitted")
    for loaded in (oodbench.Detector.load(tmp_path / "fitted"), type(detector).load(tmp_path / "fitted")):
        assert type(loaded) is type(detector)
        assert (loaded.name, loaded.parameters()) == (name, {"power": 2})
        np.testing.assert_array_equal(loaded.score(classifier, images), detector.score(classifier, images))


def test_another_class_refuses_the_file(tmp_path, classifier, images):
    Distance(power=2).fit(classifier, images).save(tmp_path / "fitted")
    with pytest.raises(BadData, match=r"does not hold a fitted LargestLogit .*; fit it again"):
        LargestLogit.load(tmp_path / "fitted")


def test_parameters(registered):
    assert Distance().parameters() == {"power": 1}
    assert repr(Distance(power=3)) == "Distance(power=3)"
    assert LargestLogit().parameters() == {}
    with pytest.raises(UsageError, match=r"unknown parameter 'powr' of distance; did you mean 'power'\? \(it has: power\)"):
        oodbench.load_detector("distance", powr=2)
    with pytest.raises(UsageError, match=r"unknown parameter 'k' of msp \(it has: none\)"):
        oodbench.load_detector("msp", k=2)


def test_settings_are_computed_within_a_context_only():
    detector = Distance(power=3)
    assert detector.settings == [{"power": 3}]
    with detector.computing(Distance.grid):
        assert detector.settings == list(Distance.grid)
    with pytest.raises(ZeroDivisionError), detector.computing(Distance.grid):
        1 / 0  # noqa: B018
    assert detector.settings == [{"power": 3}]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros(40), r"statistics\(probe\) gave ndarray; it must return a tensor"),
        (torch.tensor(1.0), r"gave shape \(\) for 40 images and 1 setting; it must return \(N,\) or \(N, D\)"),
        (torch.zeros(39), r"gave shape \(39,\) for 40 images"),
        (torch.zeros(40, 2, 2), r"gave shape \(40, 2, 2\) for 40 images"),
        (torch.full((40,), torch.nan), "40 of 40 images have scores that are not finite .NaN or infinity., the first in row 0"),
    ],
)
def test_wrong_statistics_are_named(images, output, message):
    with pytest.raises(BadData, match=message):
        Gives(output).score(None, images)


def test_several_columns_need_a_head(images):
    with pytest.raises(Unsuitable, match="gives 3 statistics per image and has no head"):
        Gives(torch.zeros(40, 3)).score(None, images)


def test_columns_must_divide_among_settings(images):
    detector = Gives(torch.zeros(40, 3))
    with detector.computing([{}, {}]), pytest.raises(BadData, match=r"gave shape \(40, 3\) for 40 images and 2 settings"):
        detector.grouped_statistics(Probe(None, images))
    detector.output = torch.arange(240.0).reshape(40, 6)
    with detector.computing([{}, {}]):
        grouped = detector.grouped_statistics(Probe(None, images))
    assert grouped[1].tolist() == [[6, 7, 8], [9, 10, 11]]


class Varied(Gives):
    """Two columns, its own score and one variant's."""

    variants = ("other",)
    shift_head = "choose"


def test_a_detector_with_variants_scores_by_the_columns_before_theirs(images):
    columns = torch.stack([torch.arange(40.0), -torch.arange(40.0)], 1)
    assert Varied(columns).fit(None, images).score(None, images).tolist() == list(range(40))
    grouped = np.arange(12).reshape(2, 3, 2)
    detector = Varied(columns)
    assert detector.columns_of(grouped).tolist() == grouped[:, :, :1].tolist()
    assert detector.columns_of(grouped, "other").tolist() == grouped[:, :, 1:].tolist()
    assert Gives(columns).columns_of(grouped).tolist() == grouped.tolist()
    wide = np.arange(24).reshape(2, 3, 4)
    assert detector.columns_of(wide).tolist() == wide[:, :, :3].tolist()
    assert detector.columns_of(wide, "other").tolist() == wide[:, :, 3:].tolist()


def test_a_detector_with_variants_gives_a_column_for_each_and_its_own(images):
    with pytest.raises(BadData, match="gave 1 columns per setting; it must return columns of its own and then one for each"):
        Varied(torch.zeros(40)).score(None, images)
    with pytest.raises(Unsuitable, match="gives 2 statistics per image and has no head that combines them"):
        Varied(torch.zeros(40, 3)).score(None, images)


def test_changed_parameters_are_those_that_differ_from_the_defaults():
    class Tuned(LargestLogit):
        """Three hyper-parameters, one without a default."""

        def __init__(self, k, layers=(1, 2), rate=0.1):
            self.k, self.layers, self.rate = k, layers, rate

    assert Tuned(5).non_default() == {}
    assert Tuned(5, layers=[1, 2]).non_default() == {}  # as it comes back from a file
    assert Tuned(5, rate=0.2, layers=[1]).non_default() == {"layers": [[1], (1, 2)], "rate": [0.2, 0.1]}
    assert LargestLogit().non_default() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 8, 8), r"images have shape \(3, 8, 8\); a batch is \(N, C, H, W\) with N of at least 1"),
        (torch.zeros(0, 3, 8, 8), r"images have shape \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "images are torch.int64; give uint8, or floats in .0, 1."),
        (np.zeros((2, 3, 8, 8), dtype=object), "images cannot be converted to a tensor .TypeError"),
        (torch.full((2, 3, 8, 8), 255.0), r"images range from 255 to 255; give floats in \[0, 1\] \(divide by 255"),
        (torch.full((2, 3, 8, 8), -0.5), r"images range from -0\.5 to -0\.5"),
    ],
)
def test_wrong_images_are_named(given, message):
    with pytest.raises(BadData, match=message) as raised:
        as_images(given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(classifier, images, value):
    images[[7, 9], 0, 0, 0] = value
    with pytest.raises(
        BadData, match=r"^2 of 40 images are not finite \(NaN or infinity\), the first in row 7; remove or repair"
    ):
        LargestLogit().score(classifier, images)


@pytest.mark.parametrize("call", [lambda d, c, x: d.fit(c, x), lambda d, c, x: d.score(c, x)], ids=["fit", "score"])
def test_images_that_the_network_does_not_take(classifier, call):
    detector = Distance()
    detector.mean_ = torch.zeros(16)
    with pytest.raises(Unsuitable, match=r"tiny does not take images of shape \(5, 8, 8\): .*; choose another model") as raised:
        call(detector, classifier, torch.zeros(4, 5, 8, 8))
    assert "\n" not in str(raised.value)


def test_an_error_of_the_detectors_own_stays_what_it_is(classifier, images):
    class Broken(LargestLogit):
        """Fails."""

        def statistics(self, probe):
            raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        Broken().score(classifier, images)


@pytest.mark.parametrize("name", ["knn", "vim", "she", "klm", "rmd", "mahalanobis-fe"])
def test_a_fit_that_broke_off_leaves_nothing_behind(classifier, name):
    images, labels = torch.rand(80, 3, 8, 8), torch.arange(80) % 4
    detector = oodbench.load_detector(name, **({"k": 5} if name == "knn" else {}))
    observe = type(detector).observe
    calls = []

    def observe_once(self, probe):
        calls.append(probe)
        if len(calls) > 1:
            raise MemoryError("no more")
        observe(self, probe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(detector), "observe", observe_once)
        with pytest.raises(MemoryError):
            detector.fit(classifier, images, labels, batch_size=32)
    fresh = oodbench.load_detector(name, **detector.parameters()).fit(classifier, images, labels, batch_size=32)
    again = detector.fit(classifier, images, labels, batch_size=32)
    np.testing.assert_array_equal(again.score(classifier, images), fresh.score(classifier, images))
