"""Accuracy, calibration error, likelihood and Brier score against scikit-learn and figures worked by hand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from oodbench import calibration
from oodbench.errors import BadData


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def drawn(random):
    """Probabilities (300, 4), some of them near certain, and labels that follow them more or less."""
    logits = random.normal(size=(300, 4)) * random.choice([0.5, 3, 20], size=(300, 1))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return probabilities, np.array([random.choice(4, p=row**0.7 / (row**0.7).sum()) for row in probabilities])


def test_against_scikit_learn(drawn):
    probabilities, labels = drawn
    found = calibration.evaluate_probabilities(probabilities, labels)
    assert found.accuracy == accuracy_score(labels, probabilities.argmax(1))
    assert found.nll == pytest.approx(log_loss(labels, probabilities), rel=1e-9)
    one_against_all = sum(brier_score_loss(labels == c, probabilities[:, c]) for c in range(4))
    assert found.brier == pytest.approx(one_against_all, rel=1e-12)


def ece(probabilities, labels, **options):
    """Of probabilities (N, classes), through what is kept of each image."""
    confidence, right, *_ = calibration.per_image(probabilities, labels).T
    return calibration.expected_calibration_error(confidence, right, **options)


def slow_ece(probabilities, labels, bins=15):
    total = 0.0
    for b in range(bins):
        inside = [
            i for i, row in enumerate(probabilities) if b / bins < max(row) <= (b + 1) / bins or (b == 0 and max(row) == 0)
        ]
        if inside:
            right = np.mean([np.argmax(probabilities[i]) == labels[i] for i in inside])
            confidence = np.mean([max(probabilities[i]) for i in inside])
            total += len(inside) / len(labels) * abs(right - confidence)
    return total


def test_calibration_error_against_a_loop(drawn):
    assert ece(*drawn) == pytest.approx(slow_ece(*drawn), rel=1e-12)
    assert ece(*drawn) > 0.05
    for bins in (1, 2, 7):
        assert ece(*drawn, bins=bins) == pytest.approx(slow_ece(*drawn, bins), rel=1e-12)


def test_figures_worked_by_hand():
    """Two bins: .6 and .6 in (.533, .6], one right of two; .9 in (.867, .933], right."""
    probabilities, labels = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1]]), np.array([0, 0, 0])
    found = calibration.evaluate_probabilities(probabilities, labels)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.ece == pytest.approx(2 / 3 * abs(0.5 - 0.6) + 1 / 3 * abs(1 - 0.9))
    assert found.nll == pytest.approx(-np.mean(np.log([0.6, 0.4, 0.9])))
    assert found.brier == pytest.approx(np.mean([0.4**2 * 2, 0.6**2 * 2, 0.1**2 * 2]))


def test_a_confidence_on_an_edge_belongs_below():
    """.6 is 9/15: with .59 in one bin, not with .61."""
    together = np.array([[0.6, 0.4], [0.59, 0.41]]), np.array([0, 1])
    apart = np.array([[0.6, 0.4], [0.61, 0.39]]), np.array([0, 1])
    assert ece(*together) == pytest.approx(abs(0.5 - 0.595))
    assert ece(*apart) == pytest.approx((0.4 + 0.61) / 2)


def test_certainty_is_finite():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    right, wrong = (calibration.evaluate_probabilities(sure, labels) for labels in ([0, 1], [1, 0]))
    assert right.model_dump() == {"accuracy": 1, "ece": 0, "nll": 0, "brier": 0}
    assert (wrong.accuracy, wrong.ece, wrong.brier) == (0, 1, 2)
    assert 700 < wrong.nll < 710


def test_rounding_below_zero_counts_as_zero():
    exact, rounded = [[1.0, 0.0], [0.25, 0.75]], [[1.0, -3e-8], [0.25, 0.75]]
    found = [calibration.evaluate_probabilities(p, [1, 0]) for p in (exact, rounded)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([0.5, 0.5], [0], r"probabilities have shape \(2,\) for labels of shape \(1,\)"),
        ([[0.5, 0.5]], [0, 1], r"shape \(1, 2\) for labels of shape \(2,\)"),
        (np.zeros((0, 2)), [], r"shape \(0, 2\)"),
        ([[0.5, 0.6]], [0], r"do not sum to 1 \(smallest 0.5, sums 1.1 to 1.1\); normalise them, in float32 or float64"),
        ([[1 + 1e-5, -1e-5]], [0], r"are negative, not finite, or do not sum to 1 \(smallest -1e-05"),
        ([[1.5, -0.5]], [0], "are negative, not finite, or do not sum to 1"),
        ([[np.nan, 1.0]], [0], "not finite"),
        ([[0.5, 0.5]], [0.5], "labels are float64; give whole numbers, the index of each image's class"),
        ([[0.5, 0.5]], [1.0], "labels are float64; give whole numbers"),
        ([[0.5, 0.5]], ["cat"], "labels are <U3; give whole numbers"),
        ([[0.5, 0.5]], [None], "labels are object; give whole numbers"),
        ([[0.5, 0.5]], [True], "labels are bool; give whole numbers"),
        ([[0.5, 0.5]], [2], "labels lie in 2 to 2, and there are 2 classes"),
    ],
)
def test_what_are_no_probabilities_is_named(probabilities, labels, message):
    with pytest.raises(BadData, match=message):
        calibration.evaluate_probabilities(probabilities, labels)


# Risk and coverage


def slow_area(confidence, right):
    """The mean over random orders of equal confidences: all of them, in exact fractions."""
    groups = [
        [r for c, r in zip(confidence, right, strict=True) if c == value] for value in sorted({*confidence}, reverse=True)
    ]
    orders = [sum(parts, ()) for parts in itertools.product(*(list(itertools.permutations(group)) for group in groups))]
    areas = []
    for order in orders:
        risks = [Fraction(sum(not r for r in order[:k]), k) for k in range(1, len(order) + 1)]
        areas.append(sum(risks) / len(risks))
    return sum(areas) / len(areas)


@pytest.mark.parametrize("values", [2, 3, 100])
def test_risk_and_coverage_against_all_orders(random, values):
    for _ in range(20):
        size = random.integers(1, 8)
        confidence, right = random.integers(values, size=size) / 7, random.random(size) < 0.6
        expected = slow_area(confidence.tolist(), right.tolist())
        assert calibration.area_under_risk_coverage(confidence, right) == pytest.approx(float(expected), abs=1e-15)


def slow_area_of_many(confidence, right):
    """One k after another, in float64."""
    order = sorted(range(len(right)), key=lambda i: -confidence[i])
    risks, wrong, place = [], 0.0, 0
    while place < len(order):
        tied = [i for i in order[place:] if confidence[i] == confidence[order[place]]]
        errors = sum(not right[i] for i in tied)
        for more in range(1, len(tied) + 1):
            risks.append((wrong + errors * more / len(tied)) / (place + more))
        wrong, place = wrong + errors, place + len(tied)
    return sum(risks) / len(risks)


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_risk_and_coverage_of_many_against_a_loop(random, digits):
    confidence = random.random(500).round(digits)
    right = random.random(500) < confidence
    found = calibration.area_under_risk_coverage(confidence, right)
    assert found == pytest.approx(slow_area_of_many(confidence, right), abs=1e-13)


def test_risk_and_coverage_worked_by_hand():
    right = np.array([True, False, True, True])
    assert calibration.area_under_risk_coverage(np.array([4, 3, 2, 1]), right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert calibration.area_under_risk_coverage(np.array([4, 1, 3, 2]), right) == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    assert calibration.area_under_risk_coverage(np.ones(4), right) == pytest.approx(1 / 4)  # of no order: the share of errors
    assert calibration.least_area(right) == pytest.approx(1 / 16)
    assert calibration.least_area(~np.ones(3, bool)) == 1
    assert calibration.least_area(np.ones(3)) == 0


def test_no_order_is_better_than_the_best(drawn):
    columns = calibration.per_image(*drawn)
    found = calibration.recognition_figures(columns)
    assert 0 < found.excess_aurc < found.aurc
    assert found.aurc == pytest.approx(slow_area_of_many(columns[:, 0], columns[:, 1]), abs=1e-13)
    assert found.aurc - found.excess_aurc == pytest.approx(slow_area_of_many(columns[:, 1], columns[:, 1]), abs=1e-13)
    assert found.model_dump(exclude={"aurc", "excess_aurc"}) == calibration.figures(columns).model_dump()


# Temperature


def nll_at(temperature, logits, labels):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("scale", [0.3, 1, 4])
def test_the_temperature_against_a_search_of_the_likelihood(random, scale):
    logits = random.normal(size=(400, 5)) * 2
    labels = np.array([random.choice(5, p=row) for row in softmax(logits, axis=1)])
    found = calibration.fitted_temperature(scale * logits, labels)
    searched = minimize_scalar(nll_at, (0.1, 10), args=(scale * logits, labels), tol=1e-10)
    assert found == pytest.approx(searched.x, rel=1e-5)
    assert found == pytest.approx(scale, rel=0.15)  # labels were drawn from the unscaled ones
    grid = np.geomspace(*calibration.TEMPERATURES, 500)
    assert nll_at(found, scale * logits, labels) <= min(nll_at(t, scale * logits, labels) for t in grid) + 1e-12


def test_the_temperature_against_the_authors_optimiser(random):
    """L-BFGS from 1.5, as in their published code."""
    logits = torch.from_numpy(random.normal(size=(400, 5)) * 6)
    labels = torch.from_numpy(np.array([random.choice(5, p=row) for row in (logits / 3).softmax(1).numpy()]))
    temperature = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([temperature], lr=0.01, max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / temperature, labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert calibration.fitted_temperature(logits.numpy(), labels.numpy()) == pytest.approx(temperature.item(), rel=1e-4)


def test_the_temperature_stays_within_bounds():
    logits = np.array([[3.0, 0, 0], [0, 3.0, 0]])
    assert calibration.fitted_temperature(logits, np.array([0, 1])) == calibration.TEMPERATURES[0]  # all right
    assert calibration.fitted_temperature(logits, np.array([1, 2])) == calibration.TEMPERATURES[1]  # all wrong
    assert calibration.fitted_temperature(np.zeros((2, 3)), np.array([1, 2])) in calibration.TEMPERATURES
    with pytest.raises(BadData, match="labels lie in 1 to 3, and there are 3 classes"):
        calibration.fitted_temperature(logits, np.array([1, 3]))
    with pytest.raises(BadData, match="not finite"):
        calibration.fitted_temperature(np.array([[np.inf, 0.0]]), np.array([0]))
