"""Maps the values of a quality metric to people's scores: the logistic function of VQEG, or a line.

    q(x) = b1 (1/2 − 1 / (1 + exp(b2 (x − b3)))) + b4 x + b5

For a given slope b2 and centre b3 the best b1, b4 and b5 are a linear problem, so only two parameters are searched: on a grid,
then from its best points. This matters because the optimum is often at an edge (a centre far outside of the values makes an
exponential, a small slope makes a cubic), where a search in all five parameters from one start ends early: on a straight line,
which was then published as a logistic fit.

Video Quality Experts Group, Final report on the validation of objective models of video quality assessment, phase II, 2003;
Sheikh, Sabir & Bovik, IEEE Transactions on Image Processing 15(11), 2006.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.optimize import minimize
from scipy.special import expit

from oodbench.errors import BadData

KINDS = ("logistic", "line")
FEWEST = {"logistic": 6, "line": 3}  # images; with fewer a mapping passes through all scores
FLATTEST, STEEPEST = 0.05, 20.0  # slopes, per standard deviation of the values
BEYOND = 10.0  # how far a centre may be outside of the values: in standard deviations, and in 1 / slope
SLOPES, CENTRES = 16, 31  # of the grid; as many centres are quantiles of the values
REFINED = 8  # local optima of the grid that are refined
STRAIGHT = 1e-3  # largest departure from a line, as a share of the range of the mapped values, that counts as a line
TINY = 1e-12  # share of a sum of squares that is left by rounding
ROUNDING = 1e-12  # share of a curve's size; curves depart from a line by more, unless the values are only two


@dataclass(frozen=True)
class Mapping:
    """A fitted mapping of values to scores.

    Attributes:
        parameters: b1 to b5, in units of the values and scores; b1, b2 and b3 of a line are 0.
        collapsed: whether a logistic mapping is a straight line over the values that it was fitted to.
    """

    parameters: tuple[float, float, float, float, float]
    collapsed: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The scores that values (N,) are mapped to: float64 (N,)."""
        return logistic(np.asarray(values, np.float64), self.parameters)


def logistic(values: np.ndarray, parameters: tuple[float, ...]) -> np.ndarray:
    """q(x) of values (N,) with b1 to b5."""
    b1, b2, b3, b4, b5 = parameters
    return np.asarray(b1 * (expit(b2 * (values - b3)) - 0.5) + b4 * values + b5)


def fit(values: np.ndarray, scores: np.ndarray, kind: str = "logistic") -> Mapping:
    """Fit the mapping of values (N,) to scores (N,) with the least sum of squared errors; deterministic.

    ``kind``: ``logistic``, or ``line`` for b4 and b5 alone. Slopes are from .05 to 20 per standard deviation of the values, and
    centres at most 10 standard deviations outside of the values.

    Raises BadData for fewer than 6 images (a line: 3), and for values or scores that are all equal.
    """
    x, y, (centre, scale) = standardised(values, scores, kind)
    slope, mean = float(x @ y) / len(x), float(y.mean())
    if kind == "line":
        return Mapping((0.0, 0.0, 0.0, slope / scale, mean - slope * centre / scale))
    b2, b3 = _best(x, y)
    curve = _curve(x, b2, b3)
    rest = _without_line(curve, x)
    b1 = float(rest @ y) / power if (power := float(rest @ rest)) > 0 else 0.0
    b4 = slope - b1 * float(curve @ x) / len(x)
    b5 = mean - b1 * float(curve.mean()) + b1 * (0.5 if b3 >= 0 else -0.5)
    raw = (b1, b2 / scale, centre + scale * b3, b4 / scale, b5 - b4 * centre / scale)
    return Mapping(raw, is_straight(values, raw))


def is_straight(values: np.ndarray, parameters: tuple[float, ...]) -> bool:
    """Whether the mapping is a line over these values (N,): it departs from one by at most .1 % of its own range."""
    mapped = logistic(np.asarray(values, np.float64), parameters)
    line = np.polynomial.Polynomial.fit(values, mapped, 1)(values)
    return bool(np.abs(mapped - line).max() <= STRAIGHT * np.ptp(mapped))


def standardised(
    values: np.ndarray, scores: np.ndarray, kind: str = "logistic"
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Values (N,) with mean 0 and standard deviation 1, scores (N,), and the mean and standard deviation before.

    Raises BadData as ``fit``.
    """
    x, y = np.asarray(values, np.float64), np.asarray(scores, np.float64)
    if len(x) < FEWEST[kind]:
        raise BadData(f"too few images to map values to scores ({kind}): {len(x)}; give at least {FEWEST[kind]}")
    for what, numbers in (("values of the metric", x), ("scores", y)):
        if np.ptp(numbers) <= TINY * np.abs(numbers).max():
            raise BadData(f"all {len(numbers)} {what} are {numbers[0]:g}, so nothing can be mapped or ranked; give others")
    centre, scale = float(x.mean()), float(x.std())
    return (x - centre) / scale, y, (centre, scale)


def starts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and centres (S, K) of the grid for standardised values (N,)."""
    slopes = np.geomspace(FLATTEST, STEEPEST, SLOPES)[:, None]
    outside = _reach(slopes) * np.array([0.1, 0.2, 0.4, 0.7, 1.0])  # (S, 5)
    inside = np.broadcast_to(np.quantile(x, np.linspace(0, 1, CENTRES)), (SLOPES, CENTRES))
    centres = np.concatenate([x.min() - outside[:, ::-1], inside, x.max() + outside], 1)
    return np.broadcast_to(slopes, centres.shape), centres


def near(slope: float, centre: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and centres (S, K) of a finer grid around a curve."""
    slopes = np.clip(slope * np.geomspace(0.5, 2, 7), FLATTEST, STEEPEST)[:, None]
    centres = centre + np.linspace(-1, 1, 9) / np.maximum(slopes, 1)
    return np.broadcast_to(slopes, centres.shape), centres


def curves(x: np.ndarray, slopes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Logistic curves (…, N) of standardised values (N,), minus the best line of each, for slopes and centres (…).

    Each has a sum of squares of 1, or is 0 if the curve is a line.
    """
    rest = _without_line(_curve(x, slopes[..., None], centres[..., None]), x)
    size = np.linalg.norm(rest, axis=-1, keepdims=True)
    return np.divide(rest, size, out=np.zeros_like(rest), where=size > 0)


def _best(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and centre of the best logistic curve: the one that explains most of the scores minus their best line."""
    left = _without_line(y, x)
    total = float(left @ left)
    slopes, centres = starts(x)
    explained = (curves(x, slopes, centres) @ left) ** 2
    if total <= TINY * float((y - y.mean()) @ (y - y.mean())):  # the scores are on a line: no curve explains any of it
        return float(slopes[0, 0]), 0.0
    peaks = np.argwhere(explained == maximum_filter(explained, 3))
    peaks = peaks[np.argsort(-explained[tuple(peaks.T)], kind="stable")][:REFINED]

    def unexplained(place: np.ndarray) -> float:
        rest = _without_line(_curve(x, *_placed(place, x)), x)
        power = float(rest @ rest)
        return 1 - float(rest @ left) ** 2 / power / total if power > 0 else 1.0

    bounds = [(np.log(FLATTEST), np.log(STEEPEST)), (0, 1)]
    found = []
    for row, column in peaks:
        slope, centre = slopes[row, column], centres[row, column]
        low, width = _span(slope, x)
        start = np.array([np.log(slope), (centre - low) / width])
        end = minimize(unexplained, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}).x
        found += [(unexplained(place), *_placed(place, x)) for place in (start, end)]
    _, slope, centre = min(found)
    return slope, centre


def _reach(slope: np.ndarray | float) -> np.ndarray:
    return BEYOND / np.maximum(slope, 1)


def _span(slope: float, x: np.ndarray) -> tuple[float, float]:
    """The least centre for a slope, and how much more it may be."""
    reach = float(_reach(slope))
    return float(x.min()) - reach, float(np.ptp(x)) + 2 * reach


def _placed(place: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Slope and centre from the logarithm of the slope and the place of the centre between its bounds, 0 to 1."""
    slope = float(np.exp(place[0]))
    low, width = _span(slope, x)
    return slope, low + width * float(place[1])


def _curve(x: np.ndarray, slope: np.ndarray | float, centre: np.ndarray | float) -> np.ndarray:
    """The logistic curve of values (N,), from 0, or from −1 if its centre is negative: its tail then has all digits."""
    sign = np.where(np.asarray(centre) >= 0, 1.0, -1.0)
    return np.asarray(sign * expit(sign * slope * (x - centre)))


def _without_line(numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Numbers (…, N) minus their best line in x (N,), which has mean 0 and variance 1; 0 where only rounding is left."""
    rest = centred = numbers - numbers.mean(-1, keepdims=True)
    rest = rest - (rest @ x / len(x))[..., None] * x
    # Twice, because rounding leaves a share of a nearly straight curve.
    rest = rest - rest.mean(-1, keepdims=True)
    rest = rest - (rest @ x / len(x))[..., None] * x
    size, whole = (np.linalg.norm(of, axis=-1, keepdims=True) for of in (rest, centred))
    return np.asarray(np.where(size <= ROUNDING * whole, 0.0, rest))
