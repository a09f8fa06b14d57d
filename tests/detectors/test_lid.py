"""LID: the estimate against a loop over images, the sample that it refers to, and images that stand in that sample."""

import numpy as np
import pytest
import torch

import oodbench
from oodbench import protocols
from oodbench.errors import Unsuitable, UsageError
from oodbench.image_set import ImageSet
from oodbench.probe import Probe


def smooth(size: int, seed: int) -> torch.Tensor:
    """Smooth random images (size, 3, 8, 8), float32."""
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(size, 3, 3, 3, generator=random), size=8, mode="bilinear")


TRAIN, TEST = smooth(150, 0), smooth(12, 1)


@pytest.fixture
def network(make_classifier):
    return make_classifier(seed=3, dtype=torch.float64)


def layers_of(network, images):
    """By hand: numpy arrays (N, d_l)."""
    module = network.module
    stem = module.conv1((images.double() - 0.5) / 0.25)
    first = module.layer1(stem.relu())
    return [layer.mean((2, 3)).numpy() for layer in (stem, first, module.layer2(first))]


def minibatches(size, most=100, seed=0):
    """Rows of TRAIN that LID refers to: in the order of their keys, of images that are not held out."""
    keys = np.random.default_rng(seed).random(len(TRAIN))
    held_out = protocols.held_out(len(TRAIN), None, 0)
    keys[held_out] = np.inf
    count = min(most, (~held_out).sum() // size)
    return np.argsort(keys)[: count * size].reshape(count, size)


def sample(size, seed=0):
    """The only minibatch, where there is one."""
    (only,) = minibatches(size, seed=seed)
    return only


def dimension(point, references, k):
    """One image against one minibatch, from the formula."""
    distances = sorted(np.linalg.norm(reference - point) for reference in references)
    assert distances[0] > 0
    return -k / sum(np.log(distance / distances[k - 1]) for distance in distances[:k])


@pytest.mark.parametrize(("size", "most", "count"), [(100, 100, 1), (40, 100, 3), (30, 2, 2)])
def test_every_k_at_every_layer_equals_a_loop_over_images(network, size, most, count):
    detector = oodbench.load_detector("lid", k=10, size=size, references=most).fit(network, TRAIN, batch_size=32)
    batches = minibatches(size, most)
    assert len(batches) == count
    train, test = layers_of(network, TRAIN), layers_of(network, TEST)
    with detector.computing(detector.grid):
        actual = detector.statistics(Probe(network, TEST.double(), {"layers"}))
    assert [setting["k"] for setting in detector.grid] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    expected = [
        [
            np.mean([dimension(test[layer][row], train[layer][batch], min(k, size - 1)) for batch in batches])
            for k in range(10, 91, 10)
            for layer in range(3)
        ]
        for row in range(len(TEST))
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_unsupervised_is_the_sum_of_standardised_layers_at_20_neighbours(network):
    scores = oodbench.load_detector("lid").fit(network, TRAIN, batch_size=32).score(network, TEST, batch_size=5)
    held_out = protocols.held_out(len(TRAIN), None, 0)
    expected = np.zeros(len(TEST))
    for train, test in zip(layers_of(network, TRAIN), layers_of(network, TEST), strict=True):
        inside, outside = (
            np.array([dimension(row, train[sample(100)], 20) for row in rows]) for rows in (train[held_out], test)
        )
        expected += (outside - inside.mean()) / inside.std()
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_paired_refers_to_the_clean_minibatch_and_drops_the_nearest(network):
    """The papers': each image against the clean twins of its own batch, its nearest, whatever it is, left out."""
    detector = oodbench.load_detector("lid", reference="paired").fit(network, TRAIN, batch_size=32)
    clean = smooth(48, 2)
    changed = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    attacked = ImageSet(changed, kind="adversarial", clean=clean)
    test, twins, held_out = layers_of(network, changed), layers_of(network, clean), protocols.held_out(len(TRAIN), None, 0)

    def papers(points, references, k):
        distances = [np.sort(np.linalg.norm(references - point, axis=1))[1 : k + 1] for point in points]
        return np.array([-k / np.log(near / near[-1]).sum() for near in distances])

    expected = np.zeros(len(changed))
    for layer, train in enumerate(layers_of(network, TRAIN)):
        inside = papers(train[held_out], train[held_out], held_out.sum() - 1)  # of 15 images, 14 others
        batches = [slice(0, 24), slice(24, 48)]
        outside = np.concatenate([papers(test[layer][batch], twins[layer][batch], 20) for batch in batches])
        expected += (outside - inside.mean()) / inside.std()
    np.testing.assert_allclose(detector.score(network, attacked, batch_size=24), expected, rtol=1e-6)


def test_paired_refers_to_each_clean_image_once(network):
    """Among the papers' negatives an image and its noisy twin, which are of one clean image, may share a batch."""
    detector = oodbench.load_detector("lid", reference="paired").fit(network, TRAIN)
    clean = smooth(30, 2)
    noisy = (clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    negatives = ImageSet(torch.cat([clean, noisy]), kind="adversarial", clean=torch.cat([clean, clean]))
    together = detector.score(network, negatives, batch_size=60)
    apart = [detector.score(network, ImageSet(some, kind="adversarial", clean=clean), batch_size=30) for some in (clean, noisy)]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=1e-9)


def test_paired_needs_twins_and_company(network):
    detector = oodbench.load_detector("lid", reference="paired").fit(network, TRAIN)
    assert np.isfinite(detector.score(network, ImageSet(TEST, kind="adversarial", clean=TEST))).all()
    with pytest.raises(Unsuitable, match="needs the clean twin of each image"):
        detector.score(network, TEST)
    with pytest.raises(Unsuitable, match="'paired' needs 3 clean images per batch, a batch has 2; use larger batches"):
        detector.score(network, ImageSet(TEST, kind="adversarial", clean=TEST), batch_size=10)


@pytest.mark.parametrize("batch_size", [1, 7, 150])
def test_the_sample_depends_on_the_seed_and_on_nothing_else(network, batch_size):
    kept = oodbench.load_detector("lid").fit(network, TRAIN, batch_size=batch_size)
    other = oodbench.load_detector("lid", seed=1).fit(network, TRAIN, batch_size=32)
    for place, layer in enumerate(layers_of(network, TRAIN)):
        for detector, seed in ((kept, 0), (other, 1)):
            found = detector.references_[place][0] + detector.offset_[place]
            np.testing.assert_allclose(found, layer[sample(100, seed)], rtol=1e-9)
    assert not np.array_equal(sample(100), sample(100, 1))


def test_a_reference_image_is_not_its_own_neighbour(network):
    detector = oodbench.load_detector("lid").fit(network, TRAIN)
    rows = sample(100)
    statistics = detector.statistics(Probe(network, TRAIN[rows[:3]].double(), {"layers"}))
    for layer, train in enumerate(layers_of(network, TRAIN)):
        expected = [dimension(train[row], train[rows[rows != row]], 20) for row in rows[:3]]
        np.testing.assert_allclose(statistics[:, layer], expected, rtol=1e-6)


def test_float32_rounding_does_not_hide_that_an_image_is_itself(make_classifier):
    single = make_classifier(seed=3)
    detector = oodbench.load_detector("lid").fit(single, TRAIN, batch_size=32)
    rows = sample(100)
    together = detector.score(single, TRAIN[rows], batch_size=100)
    alone = np.concatenate([detector.score(single, TRAIN[row : row + 1]) for row in rows])
    np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-3)
    double = make_classifier(seed=3, dtype=torch.float64)
    exact = oodbench.load_detector("lid").fit(double, TRAIN).score(double, TRAIN[rows])
    np.testing.assert_allclose(together, exact, rtol=1e-3, atol=1e-3)


def test_at_no_distance_of_one_layer_only_an_image_is_still_another(network):
    detector = oodbench.load_detector("lid").fit(network, TRAIN)
    layer = detector.references_[0]
    layer[:] = layer[:, :1]  # as of a layer that is dead: all references coincide
    probe = Probe(network, TRAIN[sample(100)[:1]].double(), {"layers"})
    dead = detector.statistics(probe)
    assert dead[0, 0] == 0  # a point's dimension
    detector = oodbench.load_detector("lid").fit(network, TRAIN)
    detector.references_[1] += 1.0  # at the other layer the nearest is far: no reference is this image
    rows, first = sample(100), layers_of(network, TRAIN)[0]
    logs = sorted(np.log(max(np.linalg.norm(first[row] - first[rows[0]]), detector.resolution_[0])) for row in rows)[:20]
    np.testing.assert_allclose(detector.statistics(probe)[0, 0], -20 / sum(log - logs[-1] for log in logs), rtol=1e-8)


def test_images_that_are_all_alike_score_alike_and_finite(network):
    constant = torch.full((60, 3, 8, 8), 0.5)
    detector = oodbench.load_detector("lid").fit(network, constant)
    scores = detector.score(network, torch.cat([constant[:3], torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]))
    assert np.isfinite(scores).all()
    with detector.computing(detector.grid):
        statistics = detector.statistics(Probe(network, constant[:2].double(), {"layers"}))
    assert (statistics == 0).all()


def test_what_cannot_be_done_is_said(network):
    with pytest.raises(UsageError, match="lid: k = 1; give a whole number of at least 2"):
        oodbench.load_detector("lid", k=1)
    with pytest.raises(UsageError, match="lid: size = 20; give a whole number above k = 20"):
        oodbench.load_detector("lid", size=20)
    with pytest.raises(UsageError, match="lid: references = 0; give a whole number of at least 1"):
        oodbench.load_detector("lid", references=0)
    with pytest.raises(UsageError, match="lid: reference = 'papers'; give one of fixed, paired"):
        oodbench.load_detector("lid", reference="papers")
    with pytest.raises(Unsuitable, match="needs 3 training images to refer to, has 2"):
        oodbench.load_detector("lid").fit(network, TRAIN[:3])
