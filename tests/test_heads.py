"""Heads against their obvious computation, and that a chosen setting keeps its own state."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_limits

from oodbench.errors import Unsuitable
from oodbench.heads import (
    HEADS,
    Choose,
    ChooseLogistic,
    Head,
    Identity,
    Logistic,
    MahalanobisDistance,
    StandardisedSum,
    goodness,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def sides(random, shifts, columns=1, n=80, m=60):
    """Statistics (n, S, D) and (m, S, D), the anomalous ones moved by ``shifts[s]`` under setting s, as two halves each."""
    moved = np.asarray(shifts)[None, :, None]
    inside, outside = random.normal(size=(n, len(shifts), columns)), random.normal(size=(m, len(shifts), columns)) + moved
    return (inside[::2], outside[::2]), (inside[1::2], outside[1::2])


def test_identity():
    assert Identity().score(np.array([[[3.0]], [[1.0]]])).tolist() == [3, 1]
    with pytest.raises(Unsuitable, match="gives 2 statistics an image and no head"):
        Identity().score(np.zeros((4, 1, 2)))


def test_standardised_sum(random):
    calibration, statistics = random.normal(3, 5, (200, 1, 3)), random.normal(size=(7, 1, 3))
    head = StandardisedSum()
    head.calibrate(calibration)
    expected = sum(
        (statistics[:, 0, d] - calibration[:, 0, d].mean())
        / np.sqrt(((calibration[:, 0, d] - calibration[:, 0, d].mean()) ** 2).mean())
        for d in range(3)
    )
    np.testing.assert_allclose(head.score(statistics), expected, rtol=1e-12)


def test_standardised_sum_ignores_constant_columns(random):
    calibration, statistics = random.normal(size=(50, 1, 2)), random.normal(size=(5, 1, 2))
    calibration[:, 0, 1] = 4.0
    both, alone = StandardisedSum(), StandardisedSum()
    both.calibrate(calibration)
    alone.calibrate(calibration[:, :, :1])
    np.testing.assert_array_equal(both.score(statistics), alone.score(statistics[:, :, :1]))


def test_mahalanobis_distance_where_nothing_needs_shrinking(random):
    calibration, statistics = random.normal(size=(100_000, 1, 3)) @ np.diag([1.0, 1.1, 0.9]), random.normal(size=(6, 1, 3))
    head = MahalanobisDistance()
    head.calibrate(calibration)
    centred = statistics[:, 0] - calibration[:, 0].mean(0)
    inverse = np.linalg.inv(np.cov(calibration[:, 0].T))
    np.testing.assert_allclose(head.score(statistics), [row @ inverse @ row for row in centred], rtol=0.02)


def test_mahalanobis_distance_lets_constant_columns_tell(random):
    calibration = random.normal(size=(50, 1, 2))
    calibration[:, 0, 1] = 4.0
    head = MahalanobisDistance()
    head.calibrate(calibration)
    same, moved = head.score(np.array([[[0.0, 4.0]], [[0.0, 9.0]]]))
    assert np.isfinite(moved)
    assert moved > same + 1


def test_goodness_is_auroc_or_tnr_at_95_tpr(random):
    inside, outside = random.normal(size=500), random.normal(1, 1, 400)
    pairs = (outside[:, None] > inside).mean()
    assert goodness(inside, outside, "auroc") == pytest.approx(pairs)
    accepts_95 = np.sort(inside)[int(np.ceil(0.95 * 500)) - 1]
    assert goodness(inside, outside, "tnr95") == pytest.approx((outside > accepts_95).mean())


@pytest.mark.parametrize("by", ["auroc", "tnr95"])
def test_choose_keeps_the_best_setting(random, by):
    fit, choose = sides(random, [0.0, 1.0, 3.0, -2.0])
    head = Choose()
    head.fit(fit, choose, by)
    assert head.setting_ == 2
    assert head.score(np.array([[[5.0]]])).tolist() == [5.0]


def test_choose_by_either_criterion_may_differ():
    """Setting 0 has the better AUROC, setting 1 rejects more at 95 % TPR: a fifth of its anomalies is far out."""
    quantiles = (np.arange(200) + 0.5) / 200
    inside = np.stack([quantiles, quantiles], 1)[:, :, None]
    outside = np.stack([0.3 + 0.6 * quantiles, np.where(quantiles > 0.8, 9.0, 0.4 * quantiles)], 1)[:, :, None]
    chosen = {}
    for by in ("auroc", "tnr95"):
        head = Choose()
        head.fit((inside[::2], outside[::2]), (inside[1::2], outside[1::2]), by)
        chosen[by] = head.setting_
    assert chosen == {"auroc": 0, "tnr95": 1}


def test_choose_uses_both_halves(random):
    """Setting 0 is good on the first half only, setting 1 on both."""
    (in_fit, out_fit), (in_choose, out_choose) = sides(random, [4.0, 2.5], n=400, m=400)
    out_choose[:, 0] -= 4.0
    head = Choose()
    head.fit((in_fit, out_fit), (in_choose, out_choose), "auroc")
    assert head.setting_ == 1


def test_logistic_is_the_cross_validated_regressions_log_odds(random):
    fit, choose = sides(random, [1.0], columns=3)
    head = Logistic()
    head.fit(fit, choose, "auroc")
    columns = np.concatenate([side[:, 0] for side in fit])
    target = np.repeat([0, 1], [len(side) for side in fit])
    standard = (columns - columns.mean(0)) / columns.std(0)
    candidates = [LogisticRegression(C=c, max_iter=1000, tol=1e-9) for c in np.logspace(-4, 4, 10)]
    with threadpool_limits(1):
        losses = [cross_val_score(model, standard, target, cv=5, scoring="neg_log_loss").mean() for model in candidates]
    best = candidates[int(np.argmax(losses))].fit(standard, target)
    statistics = random.normal(size=(9, 1, 3))
    expected = best.decision_function((statistics[:, 0] - columns.mean(0)) / columns.std(0))
    np.testing.assert_allclose(head.score(statistics), expected, atol=1e-4)


def test_logistic_learns_the_direction(random):
    fit, choose = sides(random, [-3.0], columns=2)  # anomalous images have the smaller statistics
    head = Logistic()
    head.fit(fit, choose, "auroc")
    assert goodness(*(head.score(side) for side in choose), "auroc") > 0.99


def test_logistic_survives_constant_columns(random):
    fit, choose = sides(random, [2.0], columns=2)
    for side in (*fit, *choose):
        side[:, :, 1] = 7.0
    head = Logistic()
    head.fit(fit, choose, "auroc")
    assert np.isfinite(head.score(choose[0])).all()
    assert goodness(*(head.score(side) for side in choose), "auroc") > 0.85


def test_logistic_needs_two_a_side(random):
    fit, choose = sides(random, [1.0], n=2, m=60)
    with pytest.raises(Unsuitable, match="needs at least 2 validation images a side, has 1 and 30; raise --limit"):
        Logistic().fit(fit, choose, "auroc")


def test_choose_logistic_keeps_the_state_of_the_chosen_setting(random):
    fit, choose = sides(random, [0.0, 3.0, 0.5], columns=2)
    head = ChooseLogistic()
    head.fit(fit, choose, "auroc")
    assert head.setting_ == 1
    alone = Logistic()
    alone.fit(*(tuple(side[:, 1:2] for side in half) for half in (fit, choose)), "auroc")
    assert {**vars(alone), "setting_": 1} == vars(head)


def test_choose_logistic_chooses_on_the_other_half(random):
    """Setting 0 parts the half that it was fitted on only."""
    (in_fit, out_fit), (in_choose, out_choose) = sides(random, [5.0, 1.5], columns=2)
    out_choose[:, 0] -= 5.0
    head = ChooseLogistic()
    head.fit((in_fit, out_fit), (in_choose, out_choose), "auroc")
    assert head.setting_ == 1


def test_every_head_says_what_it_needs():
    for name, kind in HEADS.items():
        assert issubclass(kind, Head), name
        assert kind.__doc__, name
        assert not (kind.calibrates and kind.learns_from_shift), name
        assert kind.learns_from_shift or not kind.chooses, name
