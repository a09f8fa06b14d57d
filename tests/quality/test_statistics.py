"""Figures of quality metrics and their intervals, against scipy and slow references."""

from dataclasses import astuple, fields

import numpy as np
import pytest
from scipy import stats

from oodbench.errors import BadData
from oodbench.metrics import draws
from oodbench.quality.bootstrap import Replicates
from oodbench.quality.mapping import fit
from oodbench.quality.statistics import QualityFigures, figures, flag


def planted(seed: int, groups: int = 12, each: int = 20, of_group: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scores and groups: a curve with noise, part of which all images of a group share."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    quality = random.uniform(0, 1, len(group))
    shared = random.normal(0, of_group, groups)[group]
    scores = 5 * quality + random.normal(0, 0.4, len(group)) + shared
    return 1 / (1 + np.exp(-4 * (quality - 0.4))), scores, group


def test_figures_are_those_of_scipy():
    values, scores, group = planted(0)
    values = values.round(2)  # with ties
    deviations = np.random.default_rng(1).uniform(0.1, 0.5, len(scores))
    found = figures(values, scores, deviations=deviations, groups=group)
    mapped = fit(values, scores)(values)
    assert found.srcc == pytest.approx(stats.spearmanr(values, scores).statistic, abs=1e-12)
    assert found.krcc == pytest.approx(stats.kendalltau(values, scores).statistic, abs=1e-12)
    assert found.plcc == pytest.approx(stats.pearsonr(mapped, scores).statistic, abs=1e-8)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((mapped - scores) ** 2)), abs=1e-12)
    assert found.outlier_ratio == sum(abs(q - s) > 2 * d for q, s, d in zip(mapped, scores, deviations, strict=True)) / len(
        scores
    )
    assert (found.b1, found.b2, found.b3, found.b4, found.b5) == fit(values, scores).parameters
    assert all(isinstance(value, float | bool) for value in astuple(found))


@pytest.mark.parametrize("kind", ["logistic", "line"])
@pytest.mark.parametrize("grouped", [True, False])
def test_replicates_are_figures_of_the_images_drawn(kind, grouped):
    """A slow reference: the images of the groups drawn, one after another, through scipy and a whole fit."""
    values, scores, group = planted(2, groups=8, each=25)
    values = values.round(2)
    mixed = np.random.default_rng(0).permutation(len(group))  # images of a group need not be together
    values, scores = values[mixed], scores[mixed]
    group = group[mixed] if grouped else np.arange(len(group))
    deviations = np.random.default_rng(1).uniform(0.1, 0.5, len(scores))
    drawn = Replicates(values, scores, group, 3)
    rmse, plcc, outliers = drawn.mapped(kind, fit(values, scores, kind).parameters, deviations)
    srcc, krcc = drawn.srcc(), drawn.krcc()
    assert all(len(found) == 1000 for found in (rmse, plcc, outliers, srcc, krcc))
    counts = draws((group.max() + 1, 0, 0), 3, 1000)
    above = []
    for replicate in range(12):
        rows = np.repeat(np.arange(len(group)), counts[group, replicate])
        x, y = values[rows], scores[rows]
        error = fit(x, y, kind)(x) - y
        assert srcc[replicate] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-10)
        assert krcc[replicate] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-10)
        assert plcc[replicate] == pytest.approx(np.sqrt(1 - rmse[replicate] ** 2 / y.var()), abs=1e-9)
        assert outliers[replicate] == pytest.approx((np.abs(error) > 2 * deviations[rows]).mean(), abs=0.03)
        above.append((rmse[replicate] - np.sqrt((error**2).mean())) / rmse.std())
    # The curves of the grid are not refined, which costs little beside the spread of the replicates.
    slack = 1e-9 if kind == "line" else 0.15
    assert -slack / 5 <= min(above) <= max(above) <= slack
    assert np.mean(above) <= slack / 3


def test_ranks_do_not_change_under_a_monotone_transform():
    values, scores, group = planted(3)
    plain, moved = figures(values, scores, groups=group), figures(np.exp(5 * values), scores, groups=group)
    for name in ("srcc", "srcc_low", "srcc_high", "krcc", "krcc_low", "krcc_high"):
        assert getattr(moved, name) == getattr(plain, name)
    assert moved.rmse != plain.rmse


@pytest.mark.parametrize("metric", [1, -1])
@pytest.mark.parametrize("people", [1, -1])
@pytest.mark.parametrize("agrees", [1, -1])
def test_correlations_are_positive_if_the_metric_agrees_with_people(metric, people, agrees):
    values, scores, group = planted(4)
    plain = figures(values, scores, groups=group)
    found = figures(
        agrees * metric * values,
        people * scores,
        groups=group,
        values_higher_is_better=metric == 1,
        scores_higher_is_better=people == 1,
    )
    for name in ("srcc", "krcc", "plcc"):
        assert getattr(found, name) == pytest.approx(agrees * getattr(plain, name), abs=1e-6)
        ends = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        wanted = sorted(agrees * getattr(plain, f"{name}_{end}") for end in ("low", "high"))
        assert ends == pytest.approx(wanted, abs=2e-3)


def test_same_seed_gives_the_same_intervals():
    values, scores, group = planted(5)
    first, again, other = (figures(values, scores, groups=group, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.srcc_low != other.srcc_low
    assert first.srcc == other.srcc


def test_groups_of_any_type_in_any_order_count_alike():
    values, scores, group = planted(6)
    names = np.array([f"I{number:02d}.bmp" for number in group])
    assert figures(values, scores, groups=names) == figures(values, scores, groups=group)


def test_intervals_cover_what_they_should():
    """Databases are drawn from a population of references; a large database stands for the population.

    95 % of 40 are 38, with a standard deviation of 1.4. Twelve groups tell little about their spread, so RMSE and PLCC have
    92 %.
    """
    values, scores, _ = planted(1000, groups=4000)
    true = fit(values, scores)
    error = true(values) - scores
    truth = {
        "srcc": stats.spearmanr(values, scores).statistic,
        "krcc": stats.kendalltau(values, scores).statistic,
        "rmse": np.sqrt((error**2).mean()),
        "plcc": np.corrcoef(true(values), scores)[0, 1],
        "outlier_ratio": (np.abs(error) > 0.6).mean(),
    }
    covered = dict.fromkeys(truth, 0)
    for seed in range(40):
        values, scores, group = planted(seed, each=10)
        found = figures(values, scores, groups=group, deviations=np.full(len(scores), 0.3))
        for name, value in truth.items():
            covered[name] += bool(getattr(found, f"{name}_low") <= value <= getattr(found, f"{name}_high"))
    assert all(32 <= count <= 40 for count in covered.values()), covered
    assert 172 <= sum(covered.values()) <= 198, covered


def test_images_of_one_reference_are_not_taken_for_independent():
    values, scores, group = planted(10, groups=25, of_group=1.0)
    grouped, alone = figures(values, scores, groups=group), figures(values, scores)
    for name in ("srcc", "krcc", "rmse"):
        widths = [getattr(found, f"{name}_high") - getattr(found, f"{name}_low") for found in (grouped, alone)]
        assert widths[0] > 1.5 * widths[1]


def test_perfect_agreement_has_an_interval_of_its_own():
    scores = np.arange(40.0)
    found = figures(scores, scores, groups=np.repeat(np.arange(10), 4), deviations=np.ones(40))
    assert (found.srcc, found.srcc_high) == (1, 1)
    assert found.srcc_low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 5)))
    assert found.outlier_ratio == 0
    assert found.outlier_ratio_high == pytest.approx(1 - 0.025 ** (1 / 40))  # as of 40 independent images without an outlier
    assert found.collapsed
    assert found.rmse == pytest.approx(0, abs=1e-9)
    against = figures(-scores, scores, groups=np.repeat(np.arange(10), 4))
    assert (against.krcc, against.krcc_low, against.krcc_high) == pytest.approx((-1, -1, -found.krcc_low))


def test_images_of_one_reference_have_no_interval():
    values, scores, _ = planted(7)
    found = figures(values, scores, groups=np.zeros(len(scores)))
    assert {getattr(found, field.name) for field in fields(QualityFigures) if field.name.endswith(("low", "high"))} == {None}
    assert found.srcc == figures(values, scores).srcc


def test_replicates_without_any_spread_are_left_out():
    """With two groups, half of the replicates draw one of them alone, in which all values are equal; the rest are one."""
    values, scores = np.repeat([0.0, 1.0], 10), np.arange(20.0)
    with np.errstate(all="raise"):
        found = figures(values, scores, groups=values, mapping="line")
        drawn = Replicates(values, scores, values.astype(int), 0)
    assert (found.srcc_low, found.rmse_low, found.plcc_high) == (None, None, None)
    assert 400 < np.isnan(drawn.srcc()).sum() < 600
    for other in (drawn.krcc(), *drawn.mapped("line", (), None)[:2]):
        np.testing.assert_array_equal(np.isnan(other), np.isnan(drawn.srcc()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.full(240, 2.0)}, "all 240 values of the metric are 2, so nothing can be mapped or ranked"),
        ({"scores": np.full(240, 5.0)}, "all 240 scores are 5, so"),
        ({"values": np.r_[np.inf, np.arange(239)]}, "1 of 240 values are not finite .*first in position 0; correct them"),
        ({"values": np.arange(239)}, "239 values for 240 scores; give one per image"),
        ({"groups": np.arange(3)}, "3 groups for 240 scores; give one per image"),
        ({"deviations": np.r_[1.0, -1.0, np.ones(238)]}, "deviation 1 is -1; a standard deviation is at least 0"),
        ({"scores": np.ones((240, 2))}, r"scores have shape \(240, 2\); give one per image"),
        (
            {"values": np.arange(21_000), "scores": np.arange(21_000), "groups": None},
            "21,000 images of 21,000 references are too",
        ),
        ({"mapping": "cubic"}, "mapping is 'cubic'; give one of logistic, line"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    values, scores, group = planted(8)
    with pytest.raises(BadData, match=message) as caught:
        figures(**{"values": values, "scores": scores, "groups": group} | change)
    assert "\n" not in str(caught.value)


def test_flag_is_a_test_of_fishers_z():
    assert flag(0.9, 0.9, 450) == 0
    assert [flag(0.908, 0.801, 450), flag(0.801, 0.908, 450)] == [1, -1]
    # By hand: atanh .85 − atanh .8 = .1575; √(2 / (n − 3)) is .0802 with 314 images and .0804 with 312.
    difference = np.arctanh(0.85) - np.arctanh(0.8)
    for n in (300, 312, 314, 330):
        wanted = 2 * stats.norm.sf(difference / np.sqrt(2 / (n - 3))) < 0.05
        assert flag(0.85, 0.8, n) == int(wanted)
    assert flag(1.0, 0.999, 450) == 1
    assert flag(1.0, 1.0, 450) == 0


@pytest.mark.parametrize(
    ("arguments", "message"), [((1.1, 0.5, 9), "give numbers from -1 to 1"), ((0.5, 0.4, 3), "give at least 4 images")]
)
def test_flag_refuses_what_has_none(arguments, message):
    with pytest.raises(BadData, match=message):
        flag(*arguments)
