"""Average ranks, Friedman's test and critical differences: against Demšar's paper, scipy and slow references."""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2, friedmanchisquare

from oodbench.errors import BadData
from oodbench.results.ranks import average_ranks, critical_difference, friedman, groups

# Demšar, JMLR 7 (2006), table 6: AUROC of C4.5 and of three variants on 14 data sets.
DEMSAR = np.array([
    [.763, .768, .771, .798], [.599, .591, .590, .569], [.954, .971, .968, .967], [.628, .661, .654, .657],
    [.882, .888, .886, .898], [.936, .931, .916, .931], [.661, .668, .609, .685], [.583, .583, .563, .625],
    [.775, .838, .866, .875], [1.000, 1.000, 1.000, 1.000], [.940, .962, .965, .962], [.619, .666, .614, .669],
    [.972, .981, .9751, .975], [.957, .978, .946, .970],
])  # fmt: skip


def test_the_example_of_the_paper():
    """Its ranks, the p value of its Friedman statistic (9.28), and the critical difference for four classifiers."""
    assert average_ranks(DEMSAR) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    ranks = average_ranks(DEMSAR)
    statistic = 12 * 14 / (4 * 5) * ((ranks**2).sum() - 4 * 25 / 4)
    assert statistic == pytest.approx(9.28, abs=0.01)
    # scipy corrects for ties, as Friedman's statistic is usually corrected.
    tied = sum(count**3 - count for row in DEMSAR for count in np.unique(row, return_counts=True)[1])
    corrected = statistic / (1 - tied / (14 * 4 * (4**2 - 1)))
    assert friedman(DEMSAR) == friedmanchisquare(*DEMSAR.T).pvalue == pytest.approx(chi2.sf(corrected, 3), rel=1e-9)


def test_critical_values_are_those_of_the_papers_table():
    q = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]  # table 5(a), 5 %, of 2 to 10 classifiers
    for k, value in enumerate(q, 2):
        assert critical_difference(k, 14) == pytest.approx(value * np.sqrt(k * (k + 1) / (6 * 14)), abs=1e-3)


def test_ranks_of_ties_and_of_lower_is_better():
    assert average_ranks([[0.9, 0.8, 0.9]]).tolist() == [1.5, 3, 1.5]
    assert average_ranks([[0.9, 0.8, 0.7]], higher_is_better=False).tolist() == [3, 2, 1]


def test_friedman_finds_nothing_in_five_percent_of_draws():
    rng = np.random.default_rng(0)
    assert 0.03 <= np.mean([friedman(rng.normal(size=(20, 6))) < 0.05 for _ in range(1000)]) <= 0.07
    assert friedman(np.ones((5, 4))) == 1


def test_groups_are_the_largest_sets_that_do_not_differ():
    rng = np.random.default_rng(1)
    for _ in range(200):
        ranks = np.sort(rng.uniform(1, 8, rng.integers(1, 9)))
        alike = [(i, j) for i, j in itertools.combinations(range(len(ranks)), 2) if ranks[j] - ranks[i] < 2]
        largest = [(i, j) for i, j in alike if not any(a <= i and j <= b and (a, b) != (i, j) for a, b in alike)]
        assert groups(ranks, 2) == largest


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: average_ranks([0.1, 0.2]), "one figure per set and detector"),
        (lambda: average_ranks([[0.1, float("nan")]]), "one figure per set and detector"),
        (lambda: average_ranks(np.empty((0, 3))), "one figure per set and detector"),
        (lambda: friedman([[0.1, 0.2]] * 3), "two sets and three detectors"),
        (lambda: friedman([[0.1, 0.2, 0.3]]), "two sets and three detectors"),
        (lambda: critical_difference(1, 5), "two detectors and a set"),
    ],
)
def test_what_they_do_not_take(call, says):
    with pytest.raises(BadData, match=says):
        call()
