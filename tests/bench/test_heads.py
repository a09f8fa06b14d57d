"""Heads against their obvious computation, and that a chosen setting keeps its own state."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_limits

from oodbench import heads
from oodbench.errors import Unsuitable
from oodbench.heads import (
    HEADS,
    MLP,
    Choose,
    ChooseLogistic,
    Head,
    Identity,
    Logistic,
    MahalanobisDistance,
    StandardisedSquare,
    StandardisedSum,
    inverse_spread,
    separation,
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
    with pytest.raises(Unsuitable, match="gives 2 statistics per image and has no head"):
        Identity().score(np.zeros((4, 1, 2)))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_inverse_spread_in_any_unit(unit):
    columns = unit * np.array([[1.0, 0.1, 0.0], [3.0, 0.1, 0.0]]).repeat(50, 0)  # the mean of many 0.1 is not 0.1
    np.testing.assert_allclose(inverse_spread(columns), [1 / unit, 0, 0], rtol=1e-12)


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


@pytest.mark.parametrize("width", [1, 3])
def test_standardised_square(random, width):
    calibration, statistics = random.normal(3, 5, (200, 1, width)), random.normal(size=(7, 1, width))
    head = StandardisedSquare()
    head.calibrate(calibration)
    columns = calibration[:, 0]
    expected = [
        np.mean([((row[d] - columns[:, d].mean()) / columns[:, d].std()) ** 2 for d in range(width)])
        for row in statistics[:, 0]
    ]
    np.testing.assert_allclose(head.score(statistics), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [StandardisedSum, StandardisedSquare])
@pytest.mark.parametrize("constant", [4.0, 0.0, 0.1])  # the mean of many 0.1 is not 0.1
def test_standardised_columns_without_spread_count_nothing(random, kind, constant):
    calibration, statistics = random.normal(size=(50, 1, 2)), random.normal(size=(5, 1, 2))
    calibration[:, 0, 1] = constant
    both, alone = kind(), kind()
    both.calibrate(calibration)
    alone.calibrate(calibration[:, :, :1])
    np.testing.assert_array_equal(both.score(statistics), alone.score(statistics[:, :, :1]))


@pytest.mark.parametrize("kind", [StandardisedSum, StandardisedSquare])
def test_standardised_columns_that_are_all_constant_score_zero(kind):
    head = kind()
    head.calibrate(np.full((5, 1, 2), 4.0))
    assert head.score(np.array([[[1.0, 9.0]]])).tolist() == [0]


def test_mahalanobis_distance_where_nothing_needs_shrinking(random):
    calibration, statistics = 3 + random.normal(size=(100_000, 1, 3)) @ np.diag([1.0, 1.1, 0.9]), random.normal(size=(6, 1, 3))
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
    assert separation(inside, outside, "auroc") == pytest.approx(pairs)
    accepts_95 = np.sort(inside)[int(np.ceil(0.95 * 500)) - 1]
    assert separation(inside, outside, "tnr95") == pytest.approx((outside > accepts_95).mean())


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


@pytest.mark.parametrize("kind", [Choose, ChooseLogistic])
def test_of_equal_settings_the_first_is_kept(random, kind):
    fit, choose = (tuple(side.repeat(3, 1) for side in half) for half in sides(random, [1.0]))
    head = kind()
    head.fit(fit, choose, "auroc")
    assert head.setting_ == 0


@pytest.mark.parametrize(
    ("seed", "shift", "columns", "n", "m"),
    [
        (0, 1.0, 3, 80, 60), (0, 0.2, 12, 36, 44), (0, 0.4, 6, 24, 90), (0, 0.3, 9, 50, 46),
        (62, 1.0, 2, 14, 12), (58, 1.0, 2, 14, 12), # folds of two and three rows count the same
    ],
)  # fmt: skip
def test_logistic_is_the_cross_validated_regressions_log_odds(seed, shift, columns, n, m):
    random = np.random.default_rng(seed)
    fit, choose = sides(random, [shift], columns, n, m)
    head = Logistic()
    head.fit(fit, choose, "auroc")
    columns = np.concatenate([side[:, 0] for side in fit])
    target = np.repeat([0, 1], [len(side) for side in fit])
    standard = (columns - columns.mean(0)) / columns.std(0)
    candidates = [LogisticRegression(C=c, max_iter=1000, tol=1e-9) for c in np.logspace(-4, 4, 10)]
    with threadpool_limits(1):
        losses = [cross_val_score(model, standard, target, cv=5, scoring="neg_log_loss").mean() for model in candidates]
    best = candidates[int(np.argmax(losses))].fit(standard, target)
    statistics = random.normal(size=(9, 1, standard.shape[1]))
    expected = best.decision_function((statistics[:, 0] - columns.mean(0)) / columns.std(0))
    np.testing.assert_allclose(head.score(statistics), expected, atol=1e-4)


def test_logistic_learns_the_direction(random):
    fit, choose = sides(random, [-3.0], columns=2)  # anomalous images have the smaller statistics
    head = Logistic()
    head.fit(fit, choose, "auroc")
    assert separation(*(head.score(side) for side in choose), "auroc") > 0.99


def test_logistic_survives_constant_columns(random):
    fit, choose = sides(random, [2.0], columns=2)
    for side in (*fit, *choose):
        side[:, :, 1] = 7.0
    head = Logistic()
    head.fit(fit, choose, "auroc")
    assert np.isfinite(head.score(choose[0])).all()
    assert separation(*(head.score(side) for side in choose), "auroc") > 0.85


@pytest.mark.parametrize("kind", [Logistic, MLP])
def test_heads_that_fit_need_two_images_per_side(random, kind):
    fit, choose = sides(random, [1.0], n=2, m=60)
    with pytest.raises(Unsuitable, match="needs at least 2 validation images per side, has 1 and 30; raise --limit"):
        kind().fit(fit, choose, "auroc")


@pytest.mark.parametrize("kind", [Logistic, MLP])
def test_heads_that_fit_accept_two_images_per_side(random, kind, monkeypatch):
    monkeypatch.setattr(MLP, "epochs", 3)
    fit, choose = sides(random, [1.0], n=4, m=4)
    head = kind()
    head.fit(fit, choose, "auroc")
    assert np.isfinite(head.score(choose[0])).all()


@pytest.mark.parametrize(("n", "m", "folds"), [(4, 60, 2), (60, 8, 4), (60, 60, 5)])
def test_logistic_takes_five_folds_or_one_per_image(random, monkeypatch, n, m, folds):
    from sklearn import model_selection

    asked = []

    class Recorded(model_selection.StratifiedKFold):
        def __init__(self, count):
            asked.append(count)
            super().__init__(count)

    monkeypatch.setattr(model_selection, "StratifiedKFold", Recorded)
    fit, choose = sides(random, [1.0], n=n, m=m)
    Logistic().fit(fit, choose, "auroc")
    assert asked == [folds]


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


def test_mlp_starts_like_torchs_linear_layers(random, monkeypatch):
    fit, choose = sides(random, [0.7], columns=5)
    assert (MLP.width, MLP.batch_size, MLP.patience, MLP.epochs, MLP.seed) == (40, 50, 20, 200, 0)
    monkeypatch.setattr(MLP, "epochs", 0)
    head = MLP()
    head.fit(fit, choose, "auroc")
    draws = torch.Generator().manual_seed(0)
    for name, shape, inputs in (
        ("hidden_", (40, 5), 5), ("hidden_bias_", (40,), 5), ("output_", (1, 40), 40), ("output_bias_", (1,), 40),
    ):  # fmt: skip
        uniform = torch.rand(shape, generator=draws, dtype=torch.float64)
        torch.testing.assert_close(getattr(head, name), (2 * uniform - 1) / inputs**0.5)


def test_mlp_is_what_torchs_own_modules_give(random, monkeypatch):
    """Against a plain loop; the generator's float64 draws are its own, so the first weights are copied."""
    fit, choose = sides(random, [0.7], columns=5, n=120, m=100)
    monkeypatch.setattr(MLP, "epochs", 0)
    first = MLP()
    first.fit(fit, choose, "auroc")
    monkeypatch.undo()
    head = MLP()
    head.fit(fit, choose, "auroc")

    model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.ReLU(), torch.nn.Linear(40, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(
            model.parameters(), (first.hidden_, first.hidden_bias_, first.output_, first.output_bias_), strict=True
        ):
            parameter.copy_(value)
    draws = torch.Generator().manual_seed(MLP.seed)
    for parameter in model.parameters():  # what initialising drew
        torch.rand(parameter.shape, generator=draws, dtype=torch.float64)
    columns = torch.from_numpy(np.concatenate([side[:, 0] for side in fit]))
    standard = [
        (torch.from_numpy(np.concatenate([side[:, 0] for side in half])) - columns.mean(0)) / columns.std(0, correction=0)
        for half in (fit, choose)
    ]
    target = [torch.cat([torch.zeros(len(i)), torch.ones(len(o))]).double()[:, None] for i, o in (fit, choose)]
    optimiser, loss = torch.optim.Adam(model.parameters(), lr=1e-3), torch.nn.BCEWithLogitsLoss()
    losses, states = [], []
    while len(losses) < 200 and (not losses or len(losses) - 1 - int(np.argmin(losses)) < 20):
        order = torch.randperm(len(target[0]), generator=draws)
        for start in range(0, len(order), 50):
            rows = order[start : start + 50]
            optimiser.zero_grad()
            loss(model(standard[0][rows]), target[0][rows]).backward()
            optimiser.step()
        with torch.no_grad():
            losses.append(float(loss(model(standard[1]), target[1])))
            states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert 1 < len(losses) < 200  # it stopped early, and not at once
    model.load_state_dict(states[int(np.argmin(losses))])
    np.testing.assert_allclose(head.hidden_, model[0].weight.detach(), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        expected = model((torch.from_numpy(choose[0][:, 0]) - columns.mean(0)) / columns.std(0, correction=0))[:, 0]
    np.testing.assert_allclose(head.score(choose[0]), expected, rtol=1e-9, atol=1e-12)


def test_mlp_stops_where_the_loss_has_not_fallen(random, monkeypatch):
    losses, kept = [], []
    keep = MLP._keep

    def scripted(*arguments):
        losses.append([5, 4, 4, 6, 3, 7, 7, 7, 7, 7, 7, 7][len(losses)])
        return losses[-1]

    monkeypatch.setattr(heads, "_cross_entropy", scripted)
    monkeypatch.setattr(MLP, "_keep", lambda self, weights: kept.append(len(losses)) or keep(self, weights))
    monkeypatch.setattr(MLP, "patience", 3)
    MLP().fit(*sides(random, [1.0]), "auroc")
    assert losses == [5, 4, 4, 6, 3, 7, 7, 7]
    assert kept == [0, 1, 2, 5]


def test_mlp_learns_what_no_line_parts(random):
    """The anomalous samples lie on both sides of the others in every column."""
    fit, choose = sides(random, [0.0], columns=4, n=400, m=400)
    for _, outside in (fit, choose):
        outside *= 3
    head, line = MLP(), Logistic()
    head.fit(fit, choose, "auroc")
    line.fit(fit, choose, "auroc")
    assert separation(*(head.score(side) for side in choose), "auroc") > 0.9
    assert separation(*(line.score(side) for side in choose), "auroc") < 0.65


def test_mlp_gives_the_same_again_and_leaves_the_global_generator_alone(random):
    fit, choose = sides(random, [1.0], columns=6)
    fit[0][:, :, 5] = fit[1][:, :, 5] = 0.1  # without spread on the half that fits: it counts nothing
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    heads = [MLP(), MLP()]
    with torch.inference_mode():
        heads[0].fit(fit, choose, "auroc")
    torch.rand(3)
    heads[1].fit(fit, choose, "auroc")
    statistics = random.normal(size=(9, 1, 6))
    scores = heads[0].score(statistics)
    np.testing.assert_array_equal(scores, heads[1].score(statistics))
    statistics[:, :, 5] += 1e6
    np.testing.assert_array_equal(scores, heads[0].score(statistics))
    torch.set_rng_state(before)
    MLP().fit(fit, choose, "auroc")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert all(isinstance(value, torch.Tensor) for value in vars(heads[0]).values())
    assert all(name.endswith("_") for name in vars(heads[0]))


@pytest.mark.parametrize("kind", [Logistic, MLP])
def test_heads_that_learn_survive_extreme_statistics(random, kind):
    fit, choose = sides(random, [1.0], columns=2)
    choose[1][3] = 1e200
    head = kind()
    head.fit(fit, choose, "auroc")
    assert np.isfinite(head.score(np.array([[[1e200, -1e200]], [[0.0, 0.0]]]))).all()


def test_what_each_head_needs():
    assert {name: (kind.calibrates, kind.learns_from_shift, kind.chooses, kind.setting_) for name, kind in HEADS.items()} == {
        "identity": (False, False, False, 0),
        "standardised-sum": (True, False, False, 0),
        "standardised-square": (True, False, False, 0),
        "mahalanobis": (True, False, False, 0),
        "choose": (False, True, True, 0),
        "logistic": (False, True, False, 0),
        "choose-logistic": (False, True, True, 0),
        "mlp": (False, True, False, 0),
    }
    assert all(kind.__doc__ and issubclass(kind, Head) for kind in HEADS.values())
    with pytest.raises(NotImplementedError):
        Head().score(np.zeros((1, 1, 1)))
