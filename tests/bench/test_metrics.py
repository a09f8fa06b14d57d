"""The metrics against scikit-learn, against examples worked by hand, and against slow, obvious references."""

import dataclasses
import subprocess
import sys
from math import erf, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import oodbench
from oodbench import metrics
from oodbench.errors import BadData
from oodbench.metrics import ranks
from oodbench.metrics.ranks import Ranked

few_values = st.lists(st.integers(-3, 3), min_size=1, max_size=30).map(lambda v: np.array(v, dtype=float))
floats = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30).map(np.array)
any_scores = few_values | floats


def slow_components(inside, outside):
    """Structural components by pair counting, O(n m): of anomalous samples (m,), of in-distribution samples (n,)."""
    kernel = np.array([[1.0 if o > i else 0.5 if o == i else 0.0 for o in outside] for i in inside])
    return kernel.mean(0), kernel.mean(1)


# Worked by hand. Thresholds accept scores <= t.
#
#   in 1 2 2 3, out 2 3 3 4:
#     pairs below / tied for each anomaly: 2 -> 1 + 2/2 = 2; 3 -> 3 + 1/2 = 3.5 (twice); 4 -> 4; sum 13 of 16.
#     t = 95 % of 4 in -> the 4th smallest, 3; accepted anomalies: 2, 3, 3 -> 3/4.
#     t:            none   1     2     3     4
#     in accepted   0      1     3     4     4
#     out rejected  4      4     3     1     0       best ½(3/4 + 3/4) = 3/4 at t = 2; wrong there: 1 in + 1 out of 8.
#     AUPR out, from the top: >= 4: 1/1; >= 3: 3/4; >= 2: 4/7 -> ¼·1 + ½·¾ + ¼·4/7 = .25 + .375 + .142857
#     AUPR in, from the bottom: <= 1: 1/1; <= 2: 3/4; <= 3: 4/7 -> the same by symmetry.
#
#   in 0 0 0 0, out 0 (all tie): AUROC ½; the anomaly is accepted; precision is the share of each side: 1/5, 4/5;
#     best threshold is none of use: accuracy ½; accepting all gets 1 of 5 wrong.
HAND_WORKED = [
    (
        [1, 2, 2, 3],
        [2, 3, 3, 4],
        {
            "auroc": 13 / 16,
            "fpr95": 3 / 4,
            "detection_accuracy": 3 / 4,
            "detection_error": 1 / 4,
            "detection_error_weighted": 2 / 8,
            "aupr_out": 0.25 + 0.375 + 1 / 7,
            "aupr_in": 0.25 + 0.375 + 1 / 7,
        },
    ),
    (
        [0, 0, 0, 0],
        [0],
        {
            "auroc": 0.5,
            "fpr95": 1.0,
            "detection_accuracy": 0.5,
            "detection_error": 0.5,
            "detection_error_weighted": 1 / 5,
            "aupr_out": 1 / 5,
            "aupr_in": 4 / 5,
        },
    ),
    (
        [5, 6],
        [1, 2, 3],  # the wrong way round: the best threshold accepts all or nothing, and 2 of 5 are wrong at best
        {
            "auroc": 0.0,
            "fpr95": 1.0,
            "detection_accuracy": 0.5,
            "detection_error": 0.5,
            "detection_error_weighted": 2 / 5,
            "aupr_out": (1 / 3 + 2 / 4 + 3 / 5) / 3,
            "aupr_in": (1 / 4 + 2 / 5) / 2,
        },
    ),
]


@pytest.mark.parametrize(("inside", "outside", "expected"), HAND_WORKED)
def test_hand_worked_examples(inside, outside, expected):
    found = dataclasses.asdict(metrics.evaluate(inside, outside))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_fpr95_takes_the_order_statistic_and_accepts_ties():
    inside = np.arange(1, 101)  # 95 of 100 are <= 95
    assert metrics.fpr95(inside, [94, 95, 95, 96]) == 3 / 4
    assert metrics.fpr95(np.arange(1, 102), [96, 97]) == 1 / 2  # ⌈95.95⌉ = 96 of 101
    assert metrics.fpr95(np.arange(1, 21), [19, 20]) == 1 / 2  # exactly 19 of 20, though .95 · 20 is no binary fraction
    assert metrics.fpr95([1, 2, 2, 2], [2, 2.5]) == 1 / 2


@settings(max_examples=150, deadline=None)
@given(any_scores, any_scores)
def test_agrees_with_scikit_learn(inside, outside):
    found = metrics.evaluate(inside, outside)
    target, scores = np.r_[np.zeros(len(inside)), np.ones(len(outside))], np.r_[inside, outside]
    # Ranks, for scikit-learn's own curves are rounded where scores are huge.
    ranks = np.unique(scores, return_inverse=True)[1]
    assert found.auroc == pytest.approx(roc_auc_score(target, ranks))
    assert found.aupr_out == pytest.approx(average_precision_score(target, ranks))
    assert found.aupr_in == pytest.approx(average_precision_score(1 - target, -ranks))
    # In-distribution as the positive class on negated scores: "true positives" are in-distribution samples accepted.
    accepted_out, accepted_in, _ = roc_curve(1 - target, -ranks, drop_intermediate=False)
    first = np.flatnonzero(np.round(accepted_in * len(inside)) >= 0.95 * len(inside) - 1e-9)[0]
    assert found.fpr95 == pytest.approx(accepted_out[first])
    assert found.detection_accuracy == pytest.approx(((accepted_in + 1 - accepted_out) / 2).max())
    assert found.detection_error == pytest.approx(((1 - accepted_in + accepted_out) / 2).min())
    wrong = (1 - accepted_in) * len(inside) + accepted_out * len(outside)
    assert found.detection_error_weighted == pytest.approx(wrong.min() / len(scores))
    assert metrics.auroc(inside, outside) == found.auroc
    assert metrics.fpr95(inside, outside) == found.fpr95
    assert 0 <= found.auroc_low <= found.auroc <= found.auroc_high <= 1


@settings(max_examples=100, deadline=None)
@given(any_scores, any_scores)
def test_auroc_and_delong_against_pair_counting(inside, outside):
    of_outside, of_inside = slow_components(inside, outside)
    area = of_outside.mean()
    assert metrics.auroc(inside, outside) == pytest.approx(area)
    if min(len(inside), len(outside)) < 2 or of_outside.var() + of_inside.var() < 1e-20:
        return  # degenerate: tested below
    variance = of_outside.var(ddof=1) / len(outside) + of_inside.var(ddof=1) / len(inside)
    reach = 1.959963984540054 * sqrt(variance) / (area * (1 - area))
    odds = area / (1 - area)
    low, high = odds * np.exp(-reach), odds * np.exp(reach)
    found = metrics._delong_interval(Ranked(inside, outside), metrics.auroc(inside, outside))
    assert found == pytest.approx((low / (1 + low), high / (1 + high)))


@settings(max_examples=100, deadline=None)
@given(any_scores, any_scores, st.sampled_from([1, 2, 5]))
def test_figures_are_the_same_block_by_block(inside, outside, block):
    whole = metrics.evaluate(inside, outside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "SORTED", block)
        pieces = list(Ranked(inside, outside))
        parts = dataclasses.asdict(metrics.evaluate(inside, outside))
    assert parts == pytest.approx(dataclasses.asdict(whole), rel=0, abs=1e-12)
    assert sum(len(one.inside) for one in pieces) == len(np.union1d(inside, outside)), "no score is in two blocks"
    most = max(np.unique(side, return_counts=True)[1].max() for side in (inside, outside))
    assert all(max(one.inside.sum(), one.outside.sum()) < 2 * block + most for one in pieces)


def test_float32_scores_are_sorted_as_they_are():
    random = np.random.default_rng(0)
    inside, outside = random.normal(size=500).astype(np.float32), random.normal(1, 1, 400).astype(np.float32)
    before = inside.copy(), outside.copy()
    assert metrics.evaluate(inside, outside) == metrics.evaluate(inside.astype(float), outside.astype(float))
    assert metrics.evaluate(inside, outside.astype(float)) == metrics.evaluate(inside.astype(float), outside)
    assert (inside.tolist(), outside.tolist()) == (before[0].tolist(), before[1].tolist())
    assert Ranked(inside, outside).inside.dtype == np.float32


def test_the_interval_of_many_clusters_is_nearly_that_of_the_bootstrap(monkeypatch):
    random = np.random.default_rng(0)
    ids = np.arange(400).repeat(4)
    own = random.normal(size=(2, 400))[:, ids] + 0.5 * random.normal(size=(2, 1600))
    for inside, outside, others in ((own[0], own[1] + 1, ids + 400), (own[0], own[0] + random.normal(1, 0.5, 1600), ids)):
        drawn = metrics.evaluate(inside, outside, in_clusters=ids, out_clusters=others)
        for limit, value in (("MOST_CLUSTERS", 399), ("MOST_SAMPLES", 3199)):
            with monkeypatch.context() as patch:
                patch.setattr(metrics, limit, value)
                found = metrics.evaluate(inside, outside, in_clusters=ids, out_clusters=others)
            assert found.auroc == drawn.auroc
            width = drawn.auroc_high - drawn.auroc_low
            ends = found.auroc_low, found.auroc_high
            assert ends == pytest.approx((drawn.auroc_low, drawn.auroc_high), rel=0, abs=0.1 * width)
            assert ends != (drawn.auroc_low, drawn.auroc_high)


def test_the_variance_of_clusters_of_one_sample_is_delongs():
    random = np.random.default_rng(0)
    inside, outside = random.normal(size=300), random.normal(1, 1, 200)
    ranked, area = Ranked(inside, outside), metrics.auroc(inside, outside)
    alone = metrics.clusters_of(np.arange(300), np.arange(300, 500), 300, 200)
    found = metrics._clustered_deviation(ranked, inside, outside, alone, area)
    of_outside, of_inside = slow_components(inside, outside)
    pulls = np.concatenate([(of_inside - area) / 300, (of_outside - area) / 200])
    assert found == pytest.approx(sqrt((pulls**2).sum() * 500 / 499), rel=1e-12)
    assert metrics.logit_interval(area, found) == pytest.approx(metrics._delong_interval(ranked, area), abs=1e-3)


def test_large_scores_keep_their_order():
    assert metrics.auroc([1e300, 2e300], [1.5e300, 3e300]) == 3 / 4
    assert metrics.auroc([1e6, 1e6 + 1e-9], [1e6 + 1e-9, 1e6 + 2e-9]) == 7 / 8


@settings(max_examples=50, deadline=None)
@given(few_values, few_values)
def test_only_ranks_matter_and_negation_mirrors(inside, outside):
    found = metrics.evaluate(inside, outside)
    assert metrics.evaluate(np.exp(inside), np.exp(outside)) == found
    mirrored = metrics.evaluate(-outside, -inside)
    assert (mirrored.auroc, mirrored.detection_accuracy) == pytest.approx((found.auroc, found.detection_accuracy))
    assert (mirrored.aupr_in, mirrored.aupr_out) == pytest.approx((found.aupr_out, found.aupr_in))


def test_interval_where_all_pairs_agree():
    perfect = metrics.evaluate(np.zeros(1000), np.ones(2000))
    assert (perfect.auroc, perfect.auroc_high) == (1, 1)
    assert perfect.auroc_low == pytest.approx(0.025 ** (1 / 1000))
    reverse = metrics.evaluate(np.ones(1000), np.zeros(2000))
    assert (reverse.auroc, reverse.auroc_low, reverse.auroc_high) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 1000)))
    tied = metrics.evaluate(np.zeros(10), np.zeros(10))
    assert tied.auroc == 0.5
    assert (tied.auroc_low + tied.auroc_high) / 2 == pytest.approx(0.5)
    assert tied.auroc_low == pytest.approx(0.025 ** (1 / 10) / 2)


def test_interval_of_a_single_sample():
    one = metrics.evaluate([1.0], [0.0, 2.0, 3.0])
    assert (one.auroc, one.auroc_low, one.auroc_high) == (pytest.approx(2 / 3), 0, 1)
    perfect = metrics.evaluate([1.0], [2.0])
    assert (perfect.auroc_low, perfect.auroc_high) == pytest.approx((0.025, 1))


def covered(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def test_delong_interval_covers():
    random = np.random.default_rng(0)
    for shift in (0.5, 2.5):
        truth = (1 + erf(shift / 2)) / 2  # Φ(shift / √2)
        found = [metrics.evaluate(random.normal(size=60), random.normal(shift, size=40)) for _ in range(600)]
        assert 0.92 <= covered([(f.auroc_low, f.auroc_high) for f in found], truth) <= 0.98


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 300), (300, 19)])
@pytest.mark.parametrize("truth", [0.6, 0.97])
def test_the_interval_of_few_samples_covers(n, m, truth):
    random = np.random.default_rng(0)
    shift = sqrt(2) * NormalDist().inv_cdf(truth)
    found = [metrics.evaluate(random.normal(size=n), random.normal(shift, size=m)) for _ in range(400)]
    assert covered([(f.auroc_low, f.auroc_high) for f in found], truth) >= 0.92


def test_the_interval_of_few_samples_is_that_of_its_equation():
    found = metrics.evaluate([1, 2, 3, 4, 6.0], [2.5, 3.5, 5, 7, 8, 9, 10])
    assert found.auroc == pytest.approx(29 / 35)
    for end in (found.auroc_low, found.auroc_high):
        variance = end * (1 - end) * (1 + 5 * (1 - end) / (2 - end) + 5 * end / (1 + end)) / 35
        assert abs(found.auroc - end) == pytest.approx(1.959963984540054 * sqrt(variance), rel=1e-12)
    assert found.auroc_low < found.auroc < found.auroc_high
    side = np.arange(20.0)  # of twenty it is DeLong's
    twenty, nineteen = metrics.evaluate(side, side + 2.5), metrics.evaluate(side[1:], side + 2.5)
    for found, expected in ((twenty, True), (nineteen, False)):
        ranked = Ranked(side if expected else side[1:], side + 2.5)
        assert ((found.auroc_low, found.auroc_high) == metrics._delong_interval(ranked, found.auroc)) == expected


def test_clustered_interval_covers_where_delong_does_not():
    """Five noisy copies of 50 images on each side: DeLong counts 250 independent samples where there are 50."""
    random = np.random.default_rng(1)
    images = np.arange(50).repeat(5)
    clustered, plain = [], []
    for _ in range(200):
        own = random.normal(size=(2, 50))[:, images] + 0.5 * random.normal(size=(2, 250))
        inside, outside = own[0], own[1] + 1
        clusters = {"in_clusters": images, "out_clusters": images + 50}
        for kept, given_clusters in ((clustered, clusters), (plain, {})):
            found = metrics.evaluate(inside, outside, **given_clusters)
            kept.append((found.auroc_low, found.auroc_high))
    truth = (1 + erf(1 / sqrt(2 * 1.25) / sqrt(2))) / 2  # Φ(1 / √(2 · (1 + .25)))
    assert covered(clustered, truth) >= 0.9
    assert covered(plain, truth) <= 0.8


def test_clustered_interval_is_narrower_where_sides_share_images():
    """The same images on both sides vary together, which DeLong does not know."""
    random = np.random.default_rng(2)
    truth = (1 + erf(0.5 / sqrt(2 * 1.09) / sqrt(2))) / 2
    images = np.arange(80)
    clustered, plain = [], []
    for _ in range(150):
        own = random.normal(size=80)
        inside, outside = own + 0.3 * random.normal(size=80), own + 0.5 + 0.3 * random.normal(size=80)
        for kept, ids in ((clustered, images), (plain, None)):
            found = metrics.evaluate(inside, outside, in_clusters=ids, out_clusters=ids)
            kept.append((found.auroc_low, found.auroc_high))
    assert np.ptp(clustered, axis=1).mean() < 0.8 * np.ptp(plain, axis=1).mean()
    assert covered(clustered, truth) >= 0.9


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_bootstrap_against_a_loop_over_resampled_samples(data):
    """The same draws, each replicate built by concatenating the drawn images' samples; in chunks of any size."""
    inside, outside = data.draw(few_values), data.draw(few_values)
    ids = st.integers(0, 6)
    in_ids, out_ids = (data.draw(st.lists(ids, min_size=len(s), max_size=len(s))) for s in (inside, outside))
    clusters = metrics.clusters_of(in_ids, out_ids, len(inside), len(outside))
    only_in, only_out, shared = set(in_ids) - set(out_ids), set(out_ids) - set(in_ids), set(in_ids) & set(out_ids)
    assert clusters.strata == (len(only_in), len(only_out), len(shared))
    numbered = [*sorted(only_in), *sorted(only_out), *sorted(shared)]
    assert [numbered[c] for c in clusters.inside] == in_ids
    assert [numbered[c] for c in clusters.outside] == out_ids
    random = np.random.default_rng(7)
    expected = []
    for _ in range(20):
        drawn = []
        for stratum in (only_in, only_out, shared):
            drawn += [sorted(stratum)[int(random.integers(0, len(stratum)))] for _ in range(len(stratum))]
        sides = [
            np.concatenate([side[np.array(its_ids) == image] for image in drawn])
            for side, its_ids in ((inside, in_ids), (outside, out_ids))
        ]
        expected.append(slow_components(*sides)[0].mean())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MOST_ELEMENTS", data.draw(st.sampled_from([1, 100, 2**20])))
        block, parts = data.draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 3), (256, 16)]))
        patch.setattr(metrics, "BLOCK", block)
        patch.setattr(metrics, "PARTS", parts)
        metrics.draws.cache_clear()
        found = metrics.bootstrap_auroc(inside, outside, clusters, seed=7, replicates=20)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weights_of_many_samples_do_not_overflow():
    """Twice the weight of all pairs is more than 32 bits hold."""
    inside, ids = np.arange(40_000.0), np.arange(40_000)
    clusters = metrics.clusters_of(ids, ids + len(ids), len(ids), len(ids))
    assert metrics.bootstrap_auroc(inside, inside + len(ids), clusters, seed=0, replicates=2).tolist() == [1, 1]


def test_clustered_interval_is_seeded_and_contains_the_estimate():
    random = np.random.default_rng(3)
    inside = random.normal(size=30)
    ids = np.arange(30)
    first, again, other = (
        metrics.evaluate(inside, inside + 0.2, in_clusters=ids, out_clusters=ids, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    # A shift so mild that each copy ranks just above its original: every replicate lies above the estimate.
    mild = metrics.evaluate(inside, inside + 1e-9, in_clusters=ids, out_clusters=ids)
    assert mild.auroc_low <= mild.auroc <= mild.auroc_high


def test_clustered_interval_of_few_images():
    assert metrics.evaluate([0, 0], [1, 1], in_clusters=[0, 1], out_clusters=[0, 1]).auroc_low == pytest.approx(0.025)
    one = metrics.evaluate([0.0, 2.0], [1.0, 3.0], in_clusters=[0, 0], out_clusters=[1, 1])
    assert (one.auroc_low, one.auroc_high) == (0, 1)
    alone = metrics.evaluate([0.0], [1.0], in_clusters=[0], out_clusters=[0])
    assert (alone.auroc_low, alone.auroc_high) == (0, 1)


@pytest.mark.parametrize(
    ("strata", "pairs"), [((3, 1, 4), 4), ((0, 0, 5), 2), ((5, 0, 1), 1), ((1, 6, 0), 1), ((6, 1, 0), 1), ((2, 2, 1), 2)]
)
def test_independent_pairs_use_no_image_twice(strata, pairs):
    assert metrics.Clusters(np.arange(0), np.arange(0), strata).independent_pairs == pairs


def test_the_bootstrap_draws_a_thousand_times_and_shares_its_draws():
    random = np.random.default_rng(4)
    inside, outside = random.normal(size=20), random.normal(1, 1, 20)
    clusters = metrics.clusters_of(np.arange(20), np.arange(20, 40), 20, 20)
    assert metrics.bootstrap_auroc(inside, outside, clusters, seed=0).shape == (1000,)
    assert not metrics.draws(clusters.strata, 0, 1000).flags.writeable
    ids = {"in_clusters": np.arange(20), "out_clusters": np.arange(20, 40)}
    assert metrics.evaluate(inside, outside, **ids) == metrics.evaluate(inside, outside, **ids, seed=0)


@pytest.mark.parametrize(("area", "low", "high"), [(0.5, 0.025, 0.975), (0.01, 0.01, 0.975), (0.99, 0.025, 0.99)])
def test_the_percentile_interval_contains_the_estimate(area, low, high):
    assert metrics.percentile_interval(np.arange(1001) / 1000, area) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "no in-distribution scores"),
        ([1.0], [], "no anomalous scores"),
        ([1.0, np.nan], [1.0], "1 of 2 in-distribution scores are not finite .* position 1"),
        ([1.0], [np.inf, 1.0], "1 of 2 anomalous scores are not finite .* position 0"),
        ([[1.0]], [1.0], r"in-distribution scores have shape \(1, 1\)"),
        (1.0, [1.0], r"shape \(\)"),
        (["a"], [1.0], "not an array of numbers"),
        ([[1.0], [1.0, 2.0]], [1.0], "not an array of numbers"),
        (None, [1.0], "shape"),
    ],
)
def test_bad_scores_get_one_line(inside, outside, message):
    for function in (metrics.evaluate, metrics.auroc, metrics.fpr95):
        with pytest.raises(BadData, match=message) as raised:
            function(inside, outside)
        assert "\n" not in str(raised.value)


def test_bad_clusters_get_one_line():
    with pytest.raises(BadData, match="no base-image ids for 2 anomalous scores"):
        metrics.evaluate([1], [2, 3], in_clusters=[0])
    with pytest.raises(BadData, match=r"shape \(2,\) for 1 in-distribution"):
        metrics.evaluate([1], [2, 3], in_clusters=[0, 1], out_clusters=[0, 1])


def test_takes_tensors_and_is_public():
    import torch

    assert oodbench.evaluate is metrics.evaluate
    assert oodbench.evaluate(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])).auroc == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        oodbench.evaluate([0.0], [1.0]).auroc = 0


def test_imports_nothing_heavy():
    heavy = "{'torch', 'scipy', 'sklearn', 'pandas'}"
    code = f"import sys, oodbench.metrics; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


ULP = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("scores", "alike"),
    [
        ([0.0, 0.0, 0.0], True),
        ([1.0, 1.0 + ULP, 1.0 - ULP / 2], True),  # rounding of float32
        ([-700.0, -700.0 - 2**-14], True),
        ([0.1 + 0.2, 0.3, 0.3], True),  # rounding of float64
        ([1e-9, 2e-9], False),  # small, but far apart
        ([1.0, 1.0 + 1e-6], False),
        ([-1 + 1e-9, -1 + 2e-9, -1 + 3e-10], False),  # largest softmax probabilities of a confident network
        ([1e300, 2e300], False),
    ],
)
def test_scores_are_alike_up_to_rounding(scores, alike):
    assert metrics.alike(np.array(scores)) is alike
