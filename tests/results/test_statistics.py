"""Differences of two detectors: against slow references, in simulations, and from a run."""

import itertools

import numpy as np
import pytest

import oodbench
from oodbench.errors import BadData
from oodbench.results.statistics import area, deviation, difference, holm, p_value


def paired(rng, n, m, lead=0.0):
    """Scores of two detectors of the same images, which share half of what they see."""
    shared_in, shared_out = rng.normal(size=n), rng.normal(size=m)
    first = shared_in + rng.normal(size=n), shared_out + rng.normal(size=m) + 1 + lead
    return first, (shared_in + rng.normal(size=n), shared_out + rng.normal(size=m) + 1)


def kernel(inside, outside):
    """(n, m): 1 where the anomalous sample has the higher score, ½ where both are equal."""
    return np.array([[(b > a) + (b == a) / 2 for b in outside] for a in inside])


@pytest.mark.parametrize("digits", [1, 9])
def test_it_is_delongs_test(digits):
    """By the formula of the paper, one pair of samples after another; with one digit many scores tie."""
    rng = np.random.default_rng(0)
    first, second = ([side.round(digits) for side in pair] for pair in paired(rng, 40, 30, lead=0.5))
    over = kernel(*first) - kernel(*second)
    of_in, of_out, n, m = over.mean(1), over.mean(0), 40, 30
    variance = sum((of_in - over.mean()) ** 2) / (n - 1) / n + sum((of_out - over.mean()) ** 2) / (m - 1) / m
    found = difference(first, second)
    assert found.auroc == pytest.approx(over.mean(), abs=1e-12)
    assert found.auroc == pytest.approx(oodbench.evaluate(*first).auroc - oodbench.evaluate(*second).auroc, abs=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * variance**0.5, rel=1e-6)
    assert (found.n_in, found.n_out) == (40, 30)


# The data set aSAH of R's package pROC (Robin et al., BMC Bioinformatics 12, 2011; Turck et al. 2010): 72 patients with a good
# outcome and 41 with a poor one, in the same order for each marker. Ranks of the markers, equal where a test cannot tell them
# apart, from the placements in pROC's tests (helper-deLongPlacementsCpp-expected.R).
ASAH = {
    "wfns": (
        "0 0 0 0 4 0 1 1 0 1 1 0 0 0 1 0 1 0 0 2 3 0 3 0 4 4 0 0 1 3 0 0 1 1 0 1 0 1 1 0 0 0 0 1 0 1 0 0 2 1 3 1 0 3 0 0 4 3"
        " 1 1 0 0 0 2 0 1 1 3 3 0 0 0",
        "2 1 3 4 4 4 4 1 4 1 0 1 4 3 3 1 4 4 4 1 4 1 4 1 3 4 3 3 0 3 3 1 1 4 4 1 1 4 4 4 4",
    ),
    "ndka": (
        "0 8 6 17 4 34 4 38 29 38 36 46 10 4 23 4 4 50 25 13 13 38 2 6 4 12 27 6 33 44 6 4 23 10 6 27 42 40 15 21 48 4 36 13"
        " 17 17 33 2 36 23 10 17 38 17 21 6 13 17 42 8 23 26 44 19 23 10 42 15 31 40 4 29",
        "37 24 28 35 3 9 18 43 47 43 43 14 32 39 5 7 30 1 51 39 16 18 22 30 41 26 39 7 49 34 3 12 39 3 11 43 20 32 45 18 35",
    ),
    "s100b": (
        "8 9 5 1 26 12 5 5 1 3 1 4 6 2 12 2 6 8 12 1 11 9 20 4 29 26 11 2 24 26 6 3 4 3 1 8 5 9 10 1 1 4 1 4 3 11 4 3 19 6 16"
        " 2 5 18 2 1 14 22 5 10 3 9 5 2 1 12 10 26 12 10 29 27",
        "8 5 11 7 25 30 28 2 19 4 2 23 21 27 30 15 30 30 30 2 30 17 0 4 13 30 15 30 3 15 8 5 6 13 30 9 30 18 30 30 25",
    ),
}
PROC = [  # p and the 95 % interval of roc.test(method = "delong", paired = TRUE), from pROC's test-roc.test.R
    ("wfns", "s100b", 0.0271757822291882, 0.0104061769564846, 0.174214419249478),
    ("wfns", "ndka", 0.00514557970691098, 0.0634011709339876, 0.3600405634833566),
    ("ndka", "s100b", 0.164295175223054, -0.2876917446341914, 0.0488706064228094),
]


@pytest.mark.parametrize(("first", "second", "p", "low", "high"), PROC)
def test_it_gives_the_figures_of_proc(first, second, p, low, high):
    markers = [tuple(np.array(side.split(), dtype=int) for side in ASAH[name]) for name in (first, second)]
    found = difference(*markers)
    assert (found.p, found.low, found.high) == pytest.approx((p, low, high), rel=1e-12)
    assert (found.n_in, found.n_out) == (72, 41)


def test_the_sign_is_first_minus_second():
    first, second = paired(np.random.default_rng(1), 300, 300, lead=1.0)
    one, other = difference(first, second), difference(second, first)
    assert one.auroc > 0.05
    assert one.low > 0
    assert one.p < 0.001
    assert (other.auroc, other.low, other.high, other.p) == pytest.approx((-one.auroc, -one.high, -one.low, one.p))


def test_images_of_their_own_are_nearly_delongs():
    first, second = paired(np.random.default_rng(2), 200, 200)
    alone, apart = difference(first, second), difference(first, second, (np.arange(200), 200 + np.arange(200)))
    assert apart.high - apart.low == pytest.approx(alone.high - alone.low, rel=0.01)


def test_an_image_counts_once():
    """Each sample four times: the interval is that of single ones, but without clusters it would be half as wide."""
    first, second = paired(np.random.default_rng(3), 150, 150)
    four = [[np.repeat(side, 4) for side in pair] for pair in (first, second)]
    numbers = np.repeat(np.arange(150), 4), 150 + np.repeat(np.arange(150), 4)
    single, clustered, ignored = difference(first, second), difference(*four, numbers), difference(*four)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.01)
    assert ignored.high - ignored.low == pytest.approx((single.high - single.low) / 2, rel=0.01)


def changed(rng, size):
    """Two detectors of images and of changed copies of them, on both sides; both see the image more than the change."""
    image = rng.normal(size=size)
    return tuple((image + rng.normal(size=size) / 2, image + rng.normal(size=size) / 2 + 0.4) for _ in range(2))


def test_copies_on_both_sides_against_a_bootstrap():
    """Of images with all their copies, which is slow and assumes nothing."""
    rng = np.random.default_rng(4)
    first, second = changed(rng, 120)
    found = difference(first, second, (np.arange(120), np.arange(120)))
    drawn = []
    for _ in range(2000):
        rows = rng.integers(120, size=120)
        drawn.append(np.subtract(*(oodbench.metrics.auroc(a[rows], b[rows]) for a, b in (first, second))))
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.std(drawn), rel=0.08)


@pytest.mark.parametrize("kind", ["apart", "copies"])
def test_equal_detectors_differ_in_five_percent_of_draws(kind):
    rng, found = np.random.default_rng(5), 0
    for _ in range(2000):
        if kind == "apart":
            found += difference(*paired(rng, 60, 60)).p < 0.05
        else:
            found += difference(*changed(rng, 80), (np.arange(80), np.arange(80))).p < 0.05
    assert 0.035 <= found / 2000 <= 0.065


def test_without_an_error_nothing_is_known():
    perfect = np.zeros(5), np.ones(5)
    assert difference(perfect, perfect)[:4] == (0, -1, 1, 1)
    wrong = np.ones(5), np.zeros(5)
    assert difference(perfect, wrong)[:4] == (1, -1, 1, 1)


@pytest.mark.parametrize(
    ("second", "images", "says"),
    [
        ((np.zeros(4), np.zeros(6)), None, "give both detectors' scores of the same samples"),
        ((np.zeros(5), np.zeros((6, 1))), None, "give both detectors' scores of the same samples"),
        ((np.zeros(5), np.zeros(6)), (np.zeros(5), np.zeros(5)), "give one number per sample"),
        ((np.zeros(5), np.zeros(6)), (np.zeros(5), np.arange(6)), "fewer than two images on a side"),
    ],
)
def test_what_it_does_not_take(second, images, says):
    with pytest.raises(BadData, match=says):
        difference((np.arange(5.0), np.arange(6.0)), second, images)


def test_detectors_of_a_run(tmp_path):
    options = {"datasets": ["digits-heldout", "digits+noise@1"], "limit": 80, "measure_costs": False}
    results = oodbench.run("digits", out=tmp_path / "run", detectors=["msp", "pixels"], **options)
    frame = results.frame().set_index(["detector", "dataset", "protocol"])
    for dataset, name in (("digits-heldout", "digits-heldout"), ("digits+noise", "digits+noise@1")):
        found = results.difference("msp", "pixels", name)
        areas = (frame.loc[(detector, dataset, "unsupervised"), "auroc"] for detector in ("msp", "pixels"))
        assert found.auroc == pytest.approx(float(np.subtract(*areas)), abs=1e-12)
        assert found.low < found.auroc < found.high
    assert [found.n_in, found.n_out] == [80, 80]
    for pair in itertools.permutations(["msp", "odin"], 2):
        with pytest.raises(oodbench.OodbenchError, match="unknown detector 'odin'"):
            results.difference(*pair, "digits-heldout")


def test_holm_agrees_with_r():
    """The p values of statsmodels' tests, which quote Holm's adjustment by R's package multtest."""
    given = [
        0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238, 0.177096952723, 5.23656777208e-005,
        0.0202732688798, 0.00028140506198, 0.0149877310796,
    ]  # fmt: skip
    by_r = [5.23656777208e-04, 2.53264555782e-03, 1.1990184863680e-01, 1.4191288215860e-01, *[1.0] * 6]
    assert np.sort(holm(given)) == pytest.approx(by_r, rel=1e-10)
    assert (np.argsort(holm(given), kind="stable")[:4] == [6, 8, 9, 7]).all()


def test_holm_is_the_step_down_method():
    """One hypothesis after another, as Holm describes it: reject while p is at most 5 % over the number that is left."""
    rng = np.random.default_rng(8)
    for size in range(1, 9):
        p_values = rng.uniform(0, 0.06, size).round(3)
        rejected = []
        for place, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] * (size - place) > 0.05:
                break
            rejected.append(index)
        assert sorted(rejected) == np.flatnonzero(holm(p_values) <= 0.05).tolist()
    assert holm([]).size == 0


def test_pulls_add_up_to_the_difference():
    rng = np.random.default_rng(9)
    first, second = ([side.round(1) for side in pair] for pair in paired(rng, 50, 40, lead=0.3))
    one, other = area(*first), area(*second)
    for side in (*one[1:], *other[1:]):
        assert side.sum() == pytest.approx(0, abs=1e-12)
    assert one.auroc == pytest.approx(oodbench.evaluate(*first).auroc, abs=1e-12)
    apart = np.concatenate([one.inside - other.inside, one.outside - other.outside])
    alone = difference(first, second, (np.arange(50), 50 + np.arange(40)))
    assert one.auroc - other.auroc == pytest.approx(alone.auroc, abs=1e-12)
    assert deviation([apart]) == pytest.approx((alone.high - alone.low) / 2 / 1.959964, rel=1e-6)
    assert p_value(alone.auroc, deviation([apart])) == pytest.approx(alone.p, rel=1e-6)
    assert deviation([apart, apart]) == pytest.approx(2 * deviation([apart]))  # nothing is known of how they depend
    assert (deviation([np.zeros(3)]), p_value(0.1, 0.0)) == (0, 1)
