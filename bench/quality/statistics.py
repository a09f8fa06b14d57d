"""How well the values of a quality metric agree with people's scores: five figures, each with a 95 % interval."""

import numpy as np
from scipy.stats import kendalltau, spearmanr, t

from oodbench.errors import BadData
from oodbench.metrics import NORMAL_975, TAIL, binomial_interval, logit_interval
from oodbench.quality import mapping as mappings
from oodbench.quality.bootstrap import Replicates
from oodbench.quality.figures import QualityFigures

MOST = 1e100  # of values and scores
MOST_IMAGES, MOST_PAIRS = 50_000, 400_000_000  # images, and images x groups, of a bootstrap: a minute, and a gigabyte
LARGEST = 1 - 1e-12  # a correlation beyond it counts as perfect
SAME = 1e-9  # spread up to which replicates differ by rounding alone
Interval = tuple[float, float]


def figures(
    values: np.ndarray,
    scores: np.ndarray,
    *,
    deviations: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    values_higher_is_better: bool = True,
    scores_higher_is_better: bool = True,
    mapping: str = "logistic",
    seed: int = 0,
) -> QualityFigures:
    """Compare values of a metric (N,) with scores (N,).

    Correlations are positive if the metric agrees with people, also where lower is better for the metric or the scores. Rank
    correlations use the values before the mapping, because a fitted mapping need not be monotone.

    Args:
        deviations: (N,), standard deviation of each score over subjects.
        groups: (N,), the reference image of each image, of any type that can be sorted. By default, each image is a group.
        values_higher_is_better: whether a larger value means better quality.
        scores_higher_is_better: whether a larger score does (DMOS: False).
        mapping: ``logistic`` or ``line``.
        seed: random seed of the draws.

    Intervals are from a bootstrap of 1000 replicates that draw as many groups as there are, with replacement, each with
    all of its images. The mapping is fitted again in each replicate: it is the best curve of the grid of starts and of a
    finer grid around the optimum of all images. Ends are 1.96 standard deviations of the replicates (more for few groups: the
    quantile of Student's t) from the figure less its bias, on the scale of Fisher's z for correlations and of the logarithm
    for RMSE. Those of the outlier ratio are on the scale of the logit, without bias, and never narrower than the exact interval
    (Clopper & Pearson 1934) of N independent images. Replicates in which all values or all scores are equal are left out.

    Raises BadData for arrays that disagree in length, numbers that are not finite or beyond ±1e100, deviations below 0, fewer
    than 6 images (with a line: 3), more than 50,000 (20,000 without groups), and values or scores that are all equal.
    """
    if mapping not in mappings.KINDS:
        raise BadData(f"mapping is {mapping!r}; give one of {', '.join(mappings.KINDS)}")
    x, y = _checked("values", values), _checked("scores", scores)
    sigma = None if deviations is None else _checked("deviations", deviations)
    group = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    for what, found in (("values", x), ("deviations", sigma), ("groups", group)):
        if found is not None and len(found) != len(y):
            raise BadData(f"{len(found)} {what} for {len(y)} scores; give one per image")
    if sigma is not None and sigma.min() < 0:
        raise BadData(f"deviation {int(sigma.argmin())} is {sigma.min():g}; a standard deviation is at least 0")
    count = int(group.max(initial=-1)) + 1
    if len(y) > MOST_IMAGES or len(y) * count > MOST_PAIRS:
        raise BadData(
            f"{len(y):,} images of {count:,} references are too many for intervals; name their references, or give fewer"
        )
    for what, found in (("values", x), ("scores", y), ("deviations", sigma)):
        if found is not None and np.abs(found).max(initial=0) > MOST:
            raise BadData(f"{what} reach {np.abs(found).max():g}, and their squares overflow; divide them by a constant")
    fitted = mappings.fit(x, y, mapping)
    error = fitted(x) - y
    sign = 1 if values_higher_is_better == scores_higher_is_better else -1
    srcc, krcc = sign * float(spearmanr(x, y).statistic), sign * float(kendalltau(x, y).statistic)
    rmse = float(np.sqrt((error**2).mean()))
    # The fit is a least-squares one with an intercept, so only rounding could make this number negative.
    plcc = float(np.sqrt(max(0.0, 1 - rmse**2 / y.var()))) * (1 if srcc >= 0 else -1)
    outliers = None if sigma is None else np.abs(error) > 2 * sigma
    ratio = None if outliers is None else float(outliers.mean())
    ends: dict[str, Interval | None] = {}
    if count > 1:
        drawn = Replicates(x, y, group, seed)
        rmses, plccs, ratios = drawn.mapped(mapping, fitted.parameters, sigma)
        wider = float(t.ppf(1 - TAIL, count - 1)) * np.sqrt(count / (count - 1))  # for the few groups whose spread is measured
        ends = {
            "rmse": _of_rmse(rmse, rmses, wider),
            "plcc": _of_correlation(plcc, plccs if srcc >= 0 else -plccs, wider, count),
            "srcc": _of_correlation(srcc, sign * drawn.srcc(), wider, count),
            "krcc": _of_correlation(krcc, sign * drawn.krcc(), wider, count),
        }
        if ratio is not None and ratios is not None:
            ends["outlier_ratio"] = _of_share(ratio, ratios, wider, len(y))

    def low_and_high(name: str) -> dict[str, float | None]:
        low, high = ends.get(name) or (None, None)
        return {f"{name}_low": low, f"{name}_high": high}

    b1, b2, b3, b4, b5 = fitted.parameters
    return QualityFigures(
        outlier_ratio=ratio,
        **low_and_high("outlier_ratio"),
        rmse=rmse,
        **low_and_high("rmse"),
        plcc=plcc,
        **low_and_high("plcc"),
        srcc=srcc,
        **low_and_high("srcc"),
        krcc=krcc,
        **low_and_high("krcc"),
        b1=b1,
        b2=b2,
        b3=b3,
        b4=b4,
        b5=b5,
        collapsed=fitted.collapsed,
    )


def flag(first: float, second: float, n: int) -> int:
    """Whether the first of two correlations over n images is larger (1), smaller (−1), or not significantly different (0).

    Fisher's z, two-sided, at 5 %: |atanh r₁ − atanh r₂| / √(2 / (n − 3)) > 1.96. It assumes that both are independent,
    which correlations over the same images are not. Raises BadData for correlations outside of −1 to 1 and fewer than 4 images.
    """
    if not (abs(first) <= 1 and abs(second) <= 1):
        raise BadData(f"correlations are {first:g} and {second:g}; give numbers from -1 to 1")
    if n < 4:
        raise BadData(f"two correlations over {n} images cannot be compared; give at least 4 images")
    difference = (_fisher(first) - _fisher(second)) / np.sqrt(2 / (n - 3))
    return int(np.sign(difference)) if abs(difference) > NORMAL_975 else 0


def _fisher(correlation: np.ndarray | float) -> np.ndarray:
    return np.arctanh(np.clip(correlation, -LARGEST, LARGEST))


def _of_correlation(found: float, replicates: np.ndarray, wider: float, groups: int) -> Interval | None:
    """The interval of a correlation on the scale of Fisher's z.

    The inner end of a perfect one is the correlation that ``groups // 2`` independent pairs still show as perfect with
    probability ``TAIL``.
    """
    if abs(found) >= LARGEST:
        inner = 1 - 2 * (1 - TAIL ** (1 / max(1, groups // 2)))
        return (inner, 1.0) if found > 0 else (-1.0, -inner)
    ends = _normal(float(_fisher(found)), _fisher(replicates), wider)
    return ends and (float(np.tanh(ends[0])), float(np.tanh(ends[1])))


def _of_rmse(found: float, replicates: np.ndarray, wider: float) -> Interval | None:
    """The interval of RMSE on the scale of the logarithm."""
    least = np.finfo(float).tiny
    ends = _normal(float(np.log(max(found, least))), np.log(np.maximum(replicates, least)), wider)
    return ends and (float(np.exp(ends[0])), float(np.exp(ends[1])))


def _of_share(found: float, replicates: np.ndarray, wider: float, images: int) -> Interval:
    """The interval of a share on the scale of the logit, and at least that of as many independent images."""
    low, high = binomial_interval(round(found * images), images)
    if 0 < found < 1:
        ends = logit_interval(found, float(np.nanstd(replicates, ddof=1)) * wider / NORMAL_975)
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def _normal(found: float, replicates: np.ndarray, wider: float) -> Interval | None:
    """The normal interval of a bootstrap, less the bias of the replicates (R,), and extended to include what was found.

    None if the replicates do not differ, so that they tell nothing about the spread.
    """
    known = replicates[~np.isnan(replicates)]
    if len(known) < 2 or (reach := wider * float(known.std(ddof=1))) <= SAME:
        return None
    centre = 2 * found - float(known.mean())
    return min(centre - reach, found), max(centre + reach, found)


def _checked(what: str, numbers: np.ndarray) -> np.ndarray:
    """float64 (N,). Raises BadData for numbers that are not finite or not one per image."""
    found = np.asarray(numbers, np.float64)
    if found.ndim != 1:
        raise BadData(f"{what} have shape {found.shape}; give one per image, shape (N,)")
    if not (finite := np.isfinite(found)).all():
        raise BadData(
            f"{len(found) - finite.sum()} of {len(found)} {what} are not finite (NaN or infinity), the first in position"
            f" {int(np.argmin(finite))}; correct them, or leave these images out"
        )
    return found
