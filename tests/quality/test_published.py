"""The published table of introspective image quality (arXiv 2209.08425), recomputed from its authors' values per image.

Some published rows are a logistic fit that collapsed to a line; a converged fit gives other figures.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from oodbench.quality.mapping import fit
from oodbench.quality.statistics import figures, flag

SHARED = Path(__file__).parents[3] / "shared"
# By database and metric: published RMSE, PLCC, SRCC, KRCC; the mapping that reproduces them; RMSE and PLCC of a converged fit.
TABLE = {
    ("multi", "psnr-ha"): ((11.320, 0.801, 0.715, 0.532), "logistic", (11.320, 0.801)),
    ("multi", "iw-ssim"): ((10.049, 0.847, 0.884, 0.702), "line", (7.801, 0.911)),
    ("multi", "sr-sim"): ((8.686, 0.888, 0.867, 0.678), "logistic", (8.685, 0.888)),
    ("multi", "fsimc"): ((10.794, 0.821, 0.867, 0.677), "line", (8.379, 0.897)),
    ("multi", "persim"): ((9.898, 0.852, 0.818, 0.624), "line", (9.485, 0.865)),
    ("multi", "unique-mapped"): ((9.258, 0.872, 0.867, 0.679), "line", (8.359, 0.897)),
    ("tid2013", "psnr-ha"): ((0.652, 0.851, 0.847, 0.666), "logistic", (0.651, 0.851)),
    ("tid2013", "iw-ssim"): ((0.688, 0.832, 0.778, 0.598), "logistic", (0.688, 0.832)),
    ("tid2013", "sr-sim"): ((0.619, 0.866, 0.807, 0.641), "logistic", (0.619, 0.866)),
    ("tid2013", "fsimc"): ((0.687, 0.832, 0.851, 0.667), "line", (0.596, 0.877)),
    ("tid2013", "persim"): ((0.643, 0.855, 0.854, 0.678), "line", (0.618, 0.867)),
    ("tid2013", "unique-mapped"): ((0.615, 0.869, 0.860, 0.667), "line", (0.609, 0.871)),
}
WITHIN = 0.0015  # .001, and the rounding of what is published
RANKED_AFTER_MAPPING = ("tid2013", "psnr-ha")
BEST = {"multi": (7.943, 0.908), "tid2013": (0.596, 0.877)}  # RMSE and PLCC of introspective UNIQUE


@pytest.fixture(scope="module")
def columns() -> dict[str, dict[str, np.ndarray]]:
    """By database, the numbers of each column."""
    folder = SHARED / "data" / "quality" / "per-image-scores"
    if not folder.is_dir():
        pytest.skip("no values per image: they are not part of the project")
    found = {}
    for name in ("multi", "tid2013"):
        with (folder / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        found[name] = {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}
    return found


def agreement(values: np.ndarray, scores: np.ndarray, mapping: str) -> tuple[float, float]:
    mapped = fit(values, scores, mapping)(values)
    return float(np.sqrt(((mapped - scores) ** 2).mean())), float(np.corrcoef(mapped, scores)[0, 1])


@pytest.mark.parametrize(("database", "metric"), TABLE)
def test_published_figures_are_reproduced_or_recomputed(columns, database, metric):
    values, scores = columns[database][metric], columns[database]["mos"]
    assert len(scores) == {"multi": 450, "tid2013": 3000}[database]
    published, mapping, converged = TABLE[database, metric]
    rmse, plcc = agreement(values, scores, mapping)
    # UNIQUE on TID2013 was published with an RMSE of .615; a line gives .6132, and the mapped values as they are .6136.
    assert rmse == pytest.approx(published[0], abs=0.002 if (database, metric) == ("tid2013", "unique-mapped") else WITHIN)
    assert plcc == pytest.approx(published[1], abs=WITHIN)
    assert agreement(values, scores, "logistic") == pytest.approx(converged, abs=0.0006)
    assert not fit(values, scores).collapsed
    ranked = fit(values, scores)(values) if (database, metric) == RANKED_AFTER_MAPPING else values
    assert abs(stats.spearmanr(ranked, scores).statistic) == pytest.approx(published[2], abs=WITHIN)
    assert abs(stats.kendalltau(ranked, scores).statistic) == pytest.approx(published[3], abs=WITHIN)


def test_psnr_ha_was_ranked_after_a_mapping_that_is_not_monotone(columns):
    values, scores = columns["tid2013"]["psnr-ha"], columns["tid2013"]["mos"]
    found = figures(values, scores)
    assert (found.srcc, found.krcc) == pytest.approx((0.779, 0.611), abs=0.0006)
    ordered = fit(values, scores)(np.sort(values))
    assert (np.diff(ordered) > 0).any()
    assert (np.diff(ordered) < 0).any()


def test_iw_ssim_and_fsimc_reach_the_published_best_once_their_fits_converge(columns):
    multi, tid = columns["multi"], columns["tid2013"]
    rmse, plcc = agreement(multi["iw-ssim"], multi["mos"], "logistic")
    assert rmse < BEST["multi"][0] - 0.1
    assert plcc > BEST["multi"][1] + 0.002
    assert agreement(tid["fsimc"], tid["mos"], "logistic") == pytest.approx(BEST["tid2013"], abs=0.0006)
    assert flag(plcc, BEST["multi"][1], 450) == 0  # the published row was flagged as worse
    assert flag(0.847, BEST["multi"][1], 450) == -1


def test_figures_give_the_same_with_intervals_around(columns):
    data = columns["multi"]
    found = figures(data["iw-ssim"], data["mos"], groups=np.arange(450) // 30, scores_higher_is_better=False)
    assert found.plcc == pytest.approx(0.911, abs=0.0006)
    assert found.plcc_low < found.plcc < found.plcc_high
    line = figures(data["iw-ssim"], data["mos"], mapping="line", scores_higher_is_better=False)
    assert line.plcc == pytest.approx(0.847, abs=0.0006)
    assert found.srcc == line.srcc == pytest.approx(0.884, abs=0.0006)
