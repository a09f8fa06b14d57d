"""The built-in strategies against slow, obvious references, and against scikit-activeml."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from pools import GivenPool, network_pool, random_pool
from skactiveml.pool import CoreSet
from skactiveml.pool._badge import _d_2
from skactiveml.pool._bald import batch_bald
from skactiveml.pool._uncertainty_sampling import uncertainty_scores

from oodbench.active_learning.strategy import Ranked, load_strategy, selected
from oodbench.errors import BadData, UsageError
from oodbench.strategies import TABLE

RANKED = ["entropy", "least-confidence", "margin", "bald"]
SEEDS = range(5)


def chosen(name, pool, count, seed=0, **parameters):
    return selected(load_strategy(name, **parameters), pool, count, np.random.default_rng(seed))


def scores(name, pool, **parameters):
    return load_strategy(name, **parameters).scores(pool, np.random.default_rng(0))


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def embeddings(pool):
    """g of each image, made explicitly: (N, classes · d)."""
    found = []
    for features, probabilities in zip(pool.features, pool.probabilities, strict=True):
        predicted = np.eye(len(probabilities))[probabilities.argmax()]
        found.append(np.outer(probabilities - predicted, features.astype(np.float64)).ravel())
    return np.array(found)


class Follows:
    """Stands for a generator: gives the choices that it is told, and keeps the probabilities that they were drawn with."""

    def __init__(self, choices):
        self.choices, self.drawn_with = list(choices), []

    def choice(self, among, p=None):
        self.drawn_with.append(p)
        return self.choices.pop(0)


# Scores


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_equal_their_formulas_in_loops(seed):
    pool = random_pool(seed=seed)
    pool.probabilities[0] = [1, 0, 0, 0, 0]  # 0 log 0 is 0
    pool.passes[:, 0] = [0, 1, 0, 0, 0]
    rows, passes = range(len(pool)), len(pool.passes)
    two = [sorted(p)[::-1][:2] for p in pool.probabilities]
    mean = [sum(pool.passes[t, n] for t in range(passes)) / passes for n in rows]
    expected = {
        "entropy": [entropy(p) for p in pool.probabilities],
        "least-confidence": [1 - max(p) for p in pool.probabilities],
        "margin": [-(first - second) for first, second in two],
        "bald": [entropy(mean[n]) - sum(entropy(pool.passes[t, n]) for t in range(passes)) / passes for n in rows],
    }
    for name, values in expected.items():
        parameters = {"passes": passes} if name == "bald" else {}
        np.testing.assert_allclose(scores(name, pool, **parameters), values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_equal_those_of_scikit_activeml(seed):
    pool = random_pool(images=300, classes=10, passes=9, seed=seed)
    for name, method, offset in (
        ("entropy", "entropy", 0),
        ("least-confidence", "least_confident", 0),
        ("margin", "margin_sampling", 1),  # theirs is 1 − (p₁ − p₂)
    ):
        np.testing.assert_allclose(
            scores(name, pool) + offset, uncertainty_scores(pool.probabilities, method=method), rtol=1e-12
        )
    (theirs,) = batch_bald(pool.passes.copy(), 1, eps=1e-15)
    np.testing.assert_allclose(scores("bald", pool, passes=9), theirs, rtol=1e-9)


def test_bald_is_zero_where_passes_agree_and_log_two_where_two_contradict_each_other():
    pool = random_pool(images=2, classes=2, passes=2)
    pool.passes[:] = [[[0.3, 0.7], [1, 0]], [[0.3, 0.7], [0, 1]]]
    np.testing.assert_allclose(scores("bald", pool, passes=2), [0, math.log(2)], atol=1e-15)


@pytest.mark.parametrize("name", RANKED)
def test_ranked_strategies_take_the_highest_scores(name):
    pool = random_pool()
    parameters = {"passes": 6} if name == "bald" else {}
    by_loop = sorted(range(len(pool)), key=lambda row: -scores(name, pool, **parameters)[row])
    assert chosen(name, pool, 10, **parameters).tolist() == by_loop[:10]


@pytest.mark.parametrize("name", RANKED)
def test_of_equal_scores_the_first_in_the_pool_count(name):
    pool = random_pool(images=40)
    pool.probabilities[:] = pool.probabilities[0]
    pool.passes[:] = pool.passes[:, :1]
    assert chosen(name, pool, 7, **{"passes": 6} if name == "bald" else {}).tolist() == list(range(7))


# Coreset


def farthest_first(pool, count):
    """Greedy k-centre in loops."""
    centres, found = [row.astype(np.float64) for row in pool.labelled], []
    for _ in range(count):
        best = max(
            (row for row in range(len(pool)) if row not in found),
            key=lambda row: min(math.dist(pool.features[row].astype(np.float64), centre) for centre in centres),
        )
        found.append(best)
        centres.append(pool.features[best].astype(np.float64))
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("labelled", [1, 33, 70])  # in less than a block, and in several
def test_coreset_takes_the_farthest_image_each_time(seed, labelled):
    pool = random_pool(images=80, labelled=labelled, seed=seed)
    assert chosen("coreset", pool, 12).tolist() == farthest_first(pool, 12)


@pytest.mark.parametrize("seed", SEEDS)
def test_coreset_chooses_as_scikit_activeml(seed):
    pool = random_pool(images=200, features=20, labelled=15, seed=seed)
    labels = np.array([0.0] * len(pool.labelled) + [np.nan] * len(pool))
    theirs = CoreSet(random_state=0).query(np.concatenate([pool.labelled, pool.features]), labels, batch_size=40)
    assert chosen("coreset", pool, 40).tolist() == (theirs - len(pool.labelled)).tolist()


def test_coreset_sees_small_distances_between_large_features():
    """In single precision, distances below about 1e-3 of the features' norm would be noise."""
    pool = random_pool(images=50, features=64, labelled=2)
    for features in (pool.features, pool.labelled):
        features[:] = 100 + 1e-2 * features
    assert chosen("coreset", pool, 20).tolist() == farthest_first(pool, 20)


def test_coreset_without_labelled_images_begins_at_random():
    pool = random_pool(labelled=0)
    firsts = {int(chosen("coreset", pool, 2, seed)[0]) for seed in range(20)}
    assert len(firsts) > 5
    first, second = chosen("coreset", pool, 2)
    pool.labelled = pool.features[[first]]
    assert farthest_first(pool, 1) == [second]


# BADGE


@pytest.mark.parametrize("seed", SEEDS)
def test_badge_draws_by_the_squared_distances_of_explicit_embeddings(seed):
    pool = random_pool(seed=seed)
    g = embeddings(pool)
    follows = np.random.default_rng(seed).permutation(len(pool))[:9]
    first = int((g**2).sum(1).argmax())
    follows = [first, *(row for row in follows.tolist() if row != first)]
    random = Follows(follows[1:])
    assert selected(load_strategy("badge"), pool, len(follows), random).tolist() == follows
    for place, drawn_with in enumerate(random.drawn_with, 1):
        nearest = np.array([min(((g[row] - g[centre]) ** 2).sum() for centre in follows[:place]) for row in range(len(pool))])
        np.testing.assert_allclose(drawn_with, nearest / nearest.sum(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_badge_draws_by_the_distances_of_scikit_activeml(seed):
    """Its ``Badge`` itself also takes the squared norm for a distance, as if 0 were chosen, which the paper's code does not."""
    pool = random_pool(images=100, features=20, classes=6, seed=seed)
    g = embeddings(pool)
    follows = [int((g**2).sum(1).argmax()), *(row for row in range(0, 60, 5) if row != (g**2).sum(1).argmax())]
    random, nearest = Follows(follows[1:]), np.full(len(pool), np.inf)
    selected(load_strategy("badge"), pool, len(follows), random)
    for latest, drawn_with in zip(follows, random.drawn_with, strict=False):
        nearest = _d_2(g, [latest], nearest)
        np.testing.assert_allclose(drawn_with, nearest / nearest.sum(), rtol=1e-9, atol=1e-15)


def test_badge_draws_in_proportion_to_squared_distance():
    pool = GivenPool(
        np.array([[8.0], [0], [2], [4]], np.float32), np.full((4, 2), [0.6, 0.4]), np.zeros((0, 1), np.float32)
    )  # on one line: squared distances to the first, which is the longest, are 0, 64, 36 and 16 times the same number
    second = np.array([chosen("badge", pool, 2, seed)[1] for seed in range(3000)])
    share = np.bincount(second, minlength=4) / len(second)
    np.testing.assert_allclose(share, np.array([0, 64, 36, 16]) / 116, atol=0.03)


@pytest.mark.parametrize("name", ["badge", "coreset"])
def test_fewer_different_images_than_wanted(name):
    """All different ones are chosen before any twin is."""
    pool = random_pool(images=40)
    pool.features, pool.probabilities = pool.features[np.arange(40) % 4], pool.probabilities[np.arange(40) % 4]
    for seed in SEEDS:
        rows = chosen(name, pool, 10, seed)
        assert sorted(rows[:4] % 4) == [0, 1, 2, 3]


def test_badge_draws_what_is_left_with_equal_probability():
    pool = random_pool(images=20)
    pool.features[:], pool.probabilities[:] = pool.features[0], pool.probabilities[0]
    third = np.bincount([chosen("badge", pool, 3, seed)[2] for seed in range(2000)], minlength=20)
    assert third[0] == 0  # which is chosen first
    assert (abs(third[1:] - 2000 / 19) < 45).all()


def test_badge_of_certain_images_draws_at_random():
    pool = random_pool(classes=3)
    pool.probabilities[:] = [0, 1, 0]
    assert len({*map(tuple, (chosen("badge", pool, 5, seed).tolist() for seed in range(5)))}) == 5


# All


def made(name):
    return load_strategy(name, **{"passes": 6} if name == "bald" else {})


@pytest.mark.parametrize("name", TABLE)
def test_the_whole_pool_is_each_row_once(name):
    pool = random_pool(images=30)
    assert sorted(selected(made(name), pool, 30, np.random.default_rng(0))) == list(range(30))


@pytest.mark.parametrize("name", TABLE)
def test_one_predicted_class(name):
    pool = random_pool(classes=3)
    pool.probabilities[:, 1] += 10
    pool.probabilities /= pool.probabilities.sum(1, keepdims=True)
    assert len(np.unique(selected(made(name), pool, 9, np.random.default_rng(0)))) == 9


@pytest.mark.parametrize("name", TABLE)
def test_all_randomness_comes_from_the_generator(name):
    pool = network_pool()
    once = load_strategy(name).select(pool, 12, np.random.default_rng(3)).tolist()
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert load_strategy(name).select(pool, 12, np.random.default_rng(3)).tolist() == once
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    others = [load_strategy(name).select(pool, 12, np.random.default_rng(seed)).tolist() for seed in range(4, 8)]
    assert any(other != once for other in others) == (name in ("random", "bald", "badge"))


def test_random_chooses_each_image_equally_often():
    pool = random_pool(images=10)
    counts = np.bincount(np.concatenate([chosen("random", pool, 3, seed) for seed in range(2000)]), minlength=10)
    assert (abs(counts - 600) < 90).all()


# What a strategy may give


class Gives(Ranked):
    """Gives what a test says."""

    name = "gives"

    def __init__(self, scores):
        self.given = scores

    def scores(self, pool, random):
        return self.given


@pytest.mark.parametrize("given", [np.ones((60, 2)), np.ones(59), np.r_[np.nan, np.ones(59)]])
def test_scores_that_are_not_one_number_per_image(given):
    with pytest.raises(BadData, match=r"strategy 'gives' gave scores \(\d+.*, not one number per image \(60,\)"):
        selected(Gives(given), random_pool(), 4, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([1, 2, 2], "gave row 2 twice"),
        ([1, 2, 60], "gave row 60, but the pool has 60"),
        ([1, 2, -1], "gave row -1, but the pool has 60"),
        ([1, 2], r"gave int64 \(2,\), not 3 row numbers"),
        ([1, 2, 3, 4], r"gave int64 \(4,\), not 3 row numbers"),
        ([1.0, 2, 3], r"gave float64 \(3,\), not 3 row numbers"),
        ([True, False, True], r"gave bool \(3,\), not 3 row numbers"),
        (None, r"gave object \(\), not 3 row numbers"),
    ],
)
def test_rows_that_are_not_a_choice(rows, says):
    strategy = load_strategy("random")
    strategy.select = lambda pool, count, random: rows
    with pytest.raises(BadData, match=f"^strategy 'random' {says}; give each row of the pool to label once$"):
        selected(strategy, random_pool(), 3, np.random.default_rng(0))


def test_a_pool_with_fewer_images_than_a_query():
    with pytest.raises(UsageError, match="a query of 61 images needs a pool of as many images, and 60 are left; query fewer"):
        chosen("random", random_pool(), 61)


@pytest.mark.parametrize("parameters", [{"passes": 1}, {"passes": 1001}, {"passes": 2.5}, {"passes": True}])
def test_passes_are_checked(parameters):
    with pytest.raises(UsageError, match=f"^bald: passes = {parameters['passes']}; give a whole number between 2 and 1000$"):
        load_strategy("bald", **parameters)


@pytest.mark.parametrize("p", [0, 1, -0.1, float("nan"), "0.4"])
def test_p_is_checked(p):
    with pytest.raises(UsageError, match=r"^bald: p = .*; give a number between 0 and 1$"):
        load_strategy("bald", p=p)


def test_unknown_names_and_parameters():
    with pytest.raises(UsageError, match="unknown strategy 'bagde'; did you mean 'badge'"):
        load_strategy("bagde")
    with pytest.raises(UsageError, match="unknown parameter 'pases' of bald"):
        load_strategy("bald", pases=5)


# Memory


@pytest.mark.parametrize(
    ("name", "bound"), [("badge", 8 * 50_000 * (512 + 2 * 10 + 12)), ("coreset", 8 * 50_000 * (512 + 64 + 8))]
)
def test_memory_stays_below_what_the_docstring_says(name, bound):
    """g would take 50,000 × 5,120 numbers, which is 8 to 10 times as much."""
    random = np.random.default_rng(0)
    pool = GivenPool(
        random.random((50_000, 512), np.float32), random.dirichlet(np.ones(10), 50_000), random.random((40, 512), np.float32)
    )
    strategy = load_strategy(name)
    tracemalloc.start()
    try:
        rows = selected(strategy, pool, 4, np.random.default_rng(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 4
    assert 0.5 * bound < peak < bound
    assert bound < 50_000 * 5_120 * 8 / 8
