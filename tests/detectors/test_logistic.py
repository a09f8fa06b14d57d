"""Many logistic regressions at once are scikit-learn's, one by one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from oodbench import heads
from oodbench.heads import STRENGTHS, fit_logistic


@pytest.mark.parametrize(("n", "columns", "shift"), [(60, 1, 0.0), (200, 5, 0.7), (150, 20, 0.5), (80, 3, 8.0)])
@pytest.mark.parametrize("twin", [False, True])
def test_it_is_scikit_learns(n, columns, shift, twin):
    random = np.random.default_rng(columns)
    target = np.repeat([0.0, 1.0], n // 2)
    x = random.normal(size=(n, columns)) + shift * target[:, None]
    x = (x - x.mean(0)) / x.std(0)
    if twin:  # two equal columns and a constant one: only the penalty says how to share
        x = np.c_[x, x[:, :1], np.zeros(n)]
    strengths = np.repeat([1e-4, 1.0, 1e4], 2)
    used = (random.random((6, n)) < 0.8).astype(float)
    found = fit_logistic(x, target, used, strengths)
    with threadpool_limits(1):
        for weights, rows, strength in zip(found, used.astype(bool), strengths, strict=True):
            reference = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=10_000)
            reference.fit(x[rows], target[rows])
            expected = x @ reference.coef_[0] + reference.intercept_
            np.testing.assert_allclose(x @ weights[:-1] + weights[-1], expected, rtol=1e-4, atol=1e-6)


def test_one_regression_does_not_touch_another():
    random = np.random.default_rng(0)
    x, target = random.normal(size=(90, 4)), random.integers(0, 2, 90).astype(float)
    used, strengths = (random.random((3, 90)) < 0.7).astype(float), np.array([0.01, 1.0, 100.0])
    together = fit_logistic(x, target, used, strengths)
    alone = [fit_logistic(x, target, used[i : i + 1], strengths[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-9)


@pytest.mark.parametrize("strength", [1e-4, 1.0, 1e4])
def test_it_takes_a_few_newton_steps(monkeypatch, strength):
    random = np.random.default_rng(1)
    x, target = random.normal(size=(200, 5)), random.integers(0, 2, 200).astype(float)
    x += 0.7 * target[:, None]
    expected = fit_logistic(x, target, np.ones((1, 200)), np.array([strength]))
    monkeypatch.setattr(heads, "STEPS", 6)
    np.testing.assert_allclose(fit_logistic(x, target, np.ones((1, 200)), np.array([strength])), expected, rtol=1e-9)


@pytest.mark.parametrize(("seed", "n"), [(3540, 10), (3276, 30)])
def test_steps_are_halved_where_newtons_method_overshoots(seed, n):
    """Two in a few thousand problems with outliers; with whole steps alone the bias would reach 1e11."""
    random = np.random.default_rng(seed)
    random.integers(6, 40), random.integers(1, 4)
    x = random.standard_t(0.6, size=(n, 3))
    target = (random.random(n) < random.uniform(0.05, 0.95)).astype(float)
    x = (x - x.mean(0)) / x.std(0)
    found, _ = fit_logistic(x, target, np.ones((2, n)), np.array([1e4, 100.0]))  # the other takes whole steps
    with threadpool_limits(1):
        reference = LogisticRegression(C=1e4, solver="lbfgs", tol=1e-12, max_iter=100_000).fit(x, target)
    np.testing.assert_allclose(found, [*reference.coef_[0], *reference.intercept_], rtol=1e-3)


def test_ten_strengths():
    np.testing.assert_allclose(np.log10(STRENGTHS), -4 + 8 / 9 * np.arange(10))
