"""Accuracy, calibration error, likelihood and Brier score against scikit-learn and figures worked by hand."""

import numpy as np
import pytest
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
        ([[0.5, 0.6]], [0], r"do not sum to 1 \(smallest 0.5, sums 1.1 to 1.1\); normalise them"),
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
