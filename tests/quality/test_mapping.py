"""The mapping of values to scores: its optimum, its units, and collapsed fits."""

import numpy as np
import pytest
from scipy.optimize import OptimizeWarning, curve_fit

from oodbench.errors import BadData
from oodbench.quality.mapping import Mapping, fit, is_straight, logistic

PLANTED = (3.0, 4.0, 0.6, 1.5, 2.0)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, 400)


def squared_error(mapping: Mapping, values: np.ndarray, scores: np.ndarray) -> float:
    return float(((mapping(values) - scores) ** 2).sum())


def vqeg(x, b1, b2, b3, b4, b5):
    """As the report of VQEG writes it."""
    return b1 * (0.5 - 1 / (1 + np.exp(b2 * (x - b3)))) + b4 * x + b5


def test_function_is_that_of_vqeg(values):
    np.testing.assert_allclose(logistic(values, PLANTED), vqeg(values, *PLANTED), rtol=1e-12)


@pytest.mark.parametrize("parameters", [PLANTED, (-3.0, 12.0, 0.2, 0.0, 5.0), (-80.0, 5.0, 1.4, 3.0, 0.0)])
def test_planted_mapping_is_found(values, parameters):
    scores = logistic(values, parameters)
    found = fit(values, scores)
    np.testing.assert_allclose(found(values), scores, atol=1e-4 * np.ptp(scores))
    assert not found.collapsed


def test_planted_parameters_are_found_in_their_units(values):
    np.testing.assert_allclose(
        fit(values, logistic(values, (4.0, 20.0, 0.4, 1.0, 2.0))).parameters, (4, 20, 0.4, 1, 2), rtol=1e-3
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_fit_of_another_program_is_better(seed):
    """Five-parameter fits from the true parameters and from others, on noisy scores, some of them in the tail of a logistic."""
    random = np.random.default_rng(seed)
    x = 1 - random.gamma(2, 0.02, 200) if seed % 2 else random.normal(30, 5, 200)
    spread = x.std()
    true = (random.uniform(2, 6), random.uniform(0.5, 4) / spread, random.choice(x) + spread, random.normal() / spread, 3.0)
    y = vqeg(x, *true) + random.normal(0, 0.3, len(x))
    ours = squared_error(fit(x, y), x, y)
    others = [((vqeg(x, *true) - y) ** 2).sum()]
    for start in (true, (np.ptp(y), 1 / spread, x.mean(), 0, y.mean()), (-np.ptp(y), 3 / spread, np.median(x), 0, y.mean())):
        try:
            found, _ = curve_fit(vqeg, x, y, start, maxfev=5000)
        except RuntimeError:  # it has not converged
            continue
        others.append(((vqeg(x, *found) - y) ** 2).sum())
    assert ours <= min(others) * (1 + 1e-4)


def test_fit_is_the_least_of_a_slow_search():
    """All slopes and centres of a dense grid, each with its own least-squares problem."""
    random = np.random.default_rng(1)
    x = random.normal(size=60)
    y = np.tanh(2 * (x - 0.5)) + 0.3 * x + random.normal(0, 0.2, 60)
    scaled = (x - x.mean()) / x.std()
    errors = []
    for slope in np.geomspace(0.05, 50, 60):
        for centre in np.linspace(scaled.min(), scaled.max(), 60):
            columns = np.stack([np.tanh(slope * (scaled - centre) / 2), scaled, np.ones_like(x)], 1)
            errors.append(((y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]) ** 2).sum())
    assert min(errors) * 0.98 < squared_error(fit(x, y), x, y) <= min(errors)


def test_fit_is_the_same_in_other_units(values):
    scores = logistic(values, PLANTED) + np.random.default_rng(1).normal(0, 0.1, len(values))
    plain, scaled = fit(values, scores), fit(1e4 * values - 7, 100 * scores + 3)
    np.testing.assert_allclose(scaled(1e4 * values - 7), 100 * plain(values) + 3, rtol=1e-4)
    assert fit(values, scores) == plain


def test_line_is_least_squares(values):
    scores = np.random.default_rng(1).normal(size=len(values))
    found = fit(values, scores, "line")
    np.testing.assert_allclose(found.parameters, (0, 0, 0, *np.polyfit(values, scores, 1)), atol=1e-12)
    assert not found.collapsed


def test_collapsed_fit_is_told_from_a_converged_one(values):
    scores = logistic(values, (3.0, 15.0, 0.5, 1.0, 2.0)) + np.random.default_rng(1).normal(0, 0.05, len(values))
    # A common start, which leaves the values (0 to 1) in the flat part of the curve, where its gradient is zero.
    with pytest.warns(OptimizeWarning):
        bad, _ = curve_fit(vqeg, values, scores, (1, 10, 100, 0, 0), maxfev=5000)
    assert is_straight(values, tuple(bad))
    np.testing.assert_allclose(logistic(values, tuple(bad)), fit(values, scores, "line")(values), atol=1e-6)
    good = fit(values, scores)
    assert not good.collapsed
    assert squared_error(good, values, scores) < 0.2 * ((vqeg(values, *bad) - scores) ** 2).sum()


def test_scores_on_a_line_give_a_line(values):
    found = fit(values, 3 - 2 * values)
    assert found.collapsed
    np.testing.assert_allclose(found(values), 3 - 2 * values, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_two_distinct_values_have_the_means_of_their_scores(seed):
    random = np.random.default_rng(seed)
    first = random.permutation(400) < random.integers(1, 400)
    values, scores = np.where(first, *random.normal(0, [1, 100])), random.integers(1, 6, 400).astype(float)
    found = fit(values, scores)
    expected = np.where(first, scores[first].mean(), scores[~first].mean())
    np.testing.assert_allclose(found(values), expected, atol=1e-9)
    assert found.collapsed


@pytest.mark.parametrize(
    ("values", "scores", "kind", "message"),
    [
        (np.full(9, 0.1), np.arange(9), "logistic", "all 9 values of the metric are 0.1, so nothing can be mapped or ranked"),
        (np.arange(9), np.full(9, 3), "line", "all 9 scores are 3, so nothing can be mapped or ranked"),
        (np.arange(5), np.arange(5), "logistic", "too few images to map values to scores .logistic.: 5; give at least 6"),
        (np.arange(2), np.arange(2), "line", "too few images to map values to scores .line.: 2; give at least 3"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_one_line(values, scores, kind, message):
    with pytest.raises(BadData, match=message) as caught:
        fit(values, scores, kind)
    assert "\n" not in str(caught.value)
