"""Intervals of FPR95 and AUPR: against a slow bootstrap, their coverage, and what no resampling shows."""

import numpy as np
import pytest
from scipy.stats import norm

import oodbench
from oodbench import metrics
from oodbench.errors import BadData, UsageError
from oodbench.results import intervals as fast
from oodbench.results.intervals import FIGURES, Bootstrap, intervals, intervals_of


def slow_replicates(inside, outside, clusters, seed):
    """In float64: each replicate holds the scores as often as their cluster was drawn, and is evaluated like any."""
    found = {figure: [] for figure in FIGURES}
    for drawn in metrics.draws(clusters.strata, seed, metrics.REPLICATES).T:
        sides = (np.repeat(inside, drawn[clusters.inside]), np.repeat(outside, drawn[clusters.outside]))
        of = oodbench.evaluate(*sides)
        for figure, values in found.items():
            values.append(getattr(of, figure))
    return {figure: np.array(values) for figure, values in found.items()}


def base_images(kind, n, m):
    if kind == "none":
        return None, None
    if kind == "shared":
        return np.arange(n), np.arange(m) % n
    return np.arange(n) // 2, n + np.arange(m) // 3  # several copies of each


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", ["none", "shared", "copies"])
def test_replicates_are_those_of_a_slow_bootstrap(kind, ties):
    random = np.random.default_rng(len(kind))
    inside, outside = random.normal(size=41), random.normal(1, 1, 30)
    if ties:
        inside, outside = inside.round(), outside.round()
    ids = base_images(kind, 41, 30)
    clusters = metrics.clusters_of(*ids, 41, 30) or metrics.Clusters(np.arange(41), 41 + np.arange(30), (41, 30, 0))
    found, expected = Bootstrap(3).replicates(inside, outside, clusters), slow_replicates(inside, outside, clusters, 3)
    for figure in FIGURES:
        np.testing.assert_allclose(found[figure], expected[figure], rtol=2e-6, atol=0)
    ends = intervals(inside, outside, in_clusters=ids[0], out_clusters=ids[1], seed=3)
    value = oodbench.evaluate(inside, outside)
    for figure in ("aupr_out", "aupr_in"):
        low, high = metrics.logit_interval(getattr(value, figure), expected[figure].std(ddof=1))
        assert ends[figure] == pytest.approx((low, high), rel=1e-5)
    low, high = np.quantile(expected["fpr95"], [0.025, 0.975])
    assert ends["fpr95"][0] <= low + 1e-6
    assert ends["fpr95"][1] >= high - 1e-6
    if kind != "copies":  # enough images for the bootstrap to be wider than the exact interval at a fixed threshold
        assert ends["fpr95"] == pytest.approx((min(low, value.fpr95), max(high, value.fpr95)), abs=0.03)


def population(shift, n, m):
    """FPR95 and AUPR of normal scores with this shift, at the sides' sizes."""
    t = np.linspace(-8, 8 + shift, 100_001)
    rejected_in, rejected_out = n * norm.sf(t), m * norm.sf(t - shift)
    accepted_in, accepted_out = n * norm.cdf(t), m * norm.cdf(t - shift)
    with np.errstate(invalid="ignore"):
        of_out, of_in = rejected_out / (rejected_out + rejected_in), accepted_in / (accepted_in + accepted_out)
    return {
        "aupr_out": np.trapezoid(np.nan_to_num(of_out, nan=1) * norm.pdf(t - shift), t),
        "aupr_in": np.trapezoid(np.nan_to_num(of_in, nan=1) * norm.pdf(t), t),
        "fpr95": norm.cdf(norm.ppf(0.95) - shift),
    }


@pytest.mark.parametrize(("n", "m", "shift"), [(100, 100, 1.0), (300, 200, 2.0), (200, 400, 4.0)])
def test_95_percent_of_the_intervals_hold_the_figure_of_the_population(n, m, shift):
    random, bootstrap, rounds = np.random.default_rng(5), Bootstrap(), 300
    truth = population(shift, n, m)
    held = dict.fromkeys(FIGURES, 0)
    for _ in range(rounds):
        found = intervals(random.normal(size=n), random.normal(shift, 1, m), bootstrap=bootstrap)
        for figure, (low, high) in found.items():
            held[figure] += low <= truth[figure] <= high
    for figure, count in held.items():
        assert 0.88 <= count / rounds <= 0.99, figure
    assert 0.915 <= sum(held.values()) / (3 * rounds) <= 0.975


def test_intervals_of_sides_that_share_images_hold_too():
    """A corruption of the same images; the in-distribution side moves with it."""
    random, bootstrap, rounds = np.random.default_rng(6), Bootstrap(), 150
    truth = population(1.5 / np.sqrt(2), 150, 150)  # both sides have the same image and noise of their own
    held = dict.fromkeys(FIGURES, 0)
    for _ in range(rounds):
        own = random.normal(size=150)
        inside, outside = ((own + shift + random.normal(size=150)) / np.sqrt(2) for shift in (0, 1.5))
        found = intervals(inside, outside, in_clusters=np.arange(150), out_clusters=np.arange(150), bootstrap=bootstrap)
        for figure, (low, high) in found.items():
            held[figure] += low <= truth[figure] <= high
    assert min(held.values()) / rounds >= 0.89


def test_copies_of_one_image_count_as_one():
    random = np.random.default_rng(7)
    inside, outside = random.normal(size=40), random.normal(1, 1, 40)
    once = intervals(inside, outside)
    ids = np.repeat(np.arange(80), 5)
    five_times = {
        "clustered": intervals(np.repeat(inside, 5), np.repeat(outside, 5), in_clusters=ids[:200], out_clusters=ids[200:]),
        "plain": intervals(np.repeat(inside, 5), np.repeat(outside, 5)),
    }
    for figure in FIGURES:
        width, clustered, plain = (np.ptp(one[figure]) for one in (once, *five_times.values()))
        assert clustered == pytest.approx(width, rel=0.1)
        assert plain < 0.6 * width


def test_what_no_resampling_shows():
    """All pairs agree, so that every replicate has the same figure."""
    inside, outside = np.arange(100.0), np.arange(200.0, 300)
    found = intervals(inside, outside)
    assert found["fpr95"] == (0, pytest.approx(1 - 0.025 ** (1 / 100)))
    for figure in ("aupr_out", "aupr_in"):
        low, high = found[figure]
        assert high == 1
        assert 0.85 < low < 0.97
    worse = intervals(outside, inside)
    assert worse["fpr95"] == (pytest.approx(0.025 ** (1 / 100)), 1)
    for figure in ("aupr_out", "aupr_in"):
        low, high = worse[figure]
        assert low < getattr(oodbench.evaluate(outside, inside), figure) < high
    tied = intervals(np.zeros(30), np.zeros(30))
    assert tied["aupr_out"] == tied["aupr_in"]
    assert tied["aupr_out"][0] < 0.5 < tied["aupr_out"][1]
    assert intervals([0.0, 1.0], [1.0, 2.0], in_clusters=[0, 0], out_clusters=[0, 0]) == dict.fromkeys(FIGURES, (0.0, 1.0))


def test_they_are_seeded_and_hold_the_figure():
    random = np.random.default_rng(8)
    inside, outside = random.normal(size=60), random.normal(1, 1, 50)
    first, again, other = (intervals(inside, outside, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert all(first[figure] != other[figure] for figure in FIGURES)
    value = oodbench.evaluate(inside, outside)
    for figure, (low, high) in first.items():
        assert 0 <= low <= getattr(value, figure) <= high <= 1
    shared = Bootstrap()
    for scores in (inside[:30], inside, inside[:10]):  # memory of another size
        assert intervals(scores, outside, bootstrap=shared) == intervals(scores, outside)
    assert list(intervals(inside, outside, ["fpr95"])) == ["fpr95"]


def test_a_stored_record_is_clustered_by_its_tested_rows():
    random = np.random.default_rng(9)
    arrays = {"in_scores": random.normal(size=30), "out_scores": random.normal(1, 1, 30)}
    arrays |= {"in_base": np.arange(40), "out_base": np.arange(40), "in_test": np.arange(10, 40), "out_test": np.arange(30)}
    expected = intervals(
        arrays["in_scores"], arrays["out_scores"], in_clusters=np.arange(10, 40), out_clusters=np.arange(30), seed=2
    )
    assert intervals_of(arrays, seed=2) == expected
    plain = {role: arrays[role] for role in ("in_scores", "out_scores")}
    assert intervals_of(plain) == intervals(*plain.values())


def test_wrong_usage_gets_one_line():
    with pytest.raises(UsageError, match=r"unknown figure 'auroc'.* \(intervals are computed of aupr_out"):
        intervals([0.0], [1.0], ["auroc"])
    with pytest.raises(BadData, match="there are no anomalous scores"):
        intervals([0.0], [])
    assert fast.REPLICATES % fast.STEP == 0


def test_what_a_bootstrap_could_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr(fast, "MOST", 9)
    scores = np.arange(5.0), np.arange(5.0) + 1
    with pytest.raises(BadData, match=r"^10 base images are too many .*; give the scores of at most 9, or take"):
        intervals(*scores)
    assert set(intervals(*scores, in_clusters=range(5), out_clusters=range(5))) == set(FIGURES)
