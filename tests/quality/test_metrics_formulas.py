"""Each metric of ours against its formula, written as slow loops over pixels in float64."""

import math

import numpy as np
import piq
import pytest
import scipy.io
import torch
from scipy.fft import dctn
from scipy.optimize import linprog

from oodbench.errors import BadData
from oodbench.quality.metric import load_metric
from oodbench.quality_metrics import _colour_names, _images
from oodbench.quality_metrics._ciede2000 import ciede2000
from oodbench.quality_metrics._images import grey
from oodbench.quality_metrics.psnr_ha import SENSITIVITY


def smooth(height, width, seed=0):
    """A random photograph-like image, uint8 (3, H, W)."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(2, height // 6), max(2, width // 6), generator=random)
    found = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return ((found + 0.04 * torch.randn(3, height, width, generator=random)).clamp(0, 1) * 255).to(torch.uint8)


def pairs(height, width):
    """References and distorted images (3, 3, H, W): noise, blocks, and a change of brightness and contrast."""
    references = torch.stack([smooth(height, width, seed) for seed in range(3)])
    noise = torch.randn(references[0].shape, generator=torch.Generator().manual_seed(9))
    noisy = (references[0] + 12 * noise).clamp(0, 255)
    blocks = references[1, :, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width]
    return references, torch.stack([noisy, blocks.float(), references[2] * 0.8 + 30]).to(torch.uint8)


def as_pixels(image):
    return image.permute(1, 2, 0).double().numpy()


# Resizing, filters and colours, pixel by pixel.


def cubic(x):
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def triangle(x):
    return max(1 - abs(x), 0.0)


def box(x):
    return float(-0.5 <= x < 0.5)


def resized_line(line, size, factor, kernel, width):
    """One axis, as the documentation of MATLAB's imresize has it: the kernel is stretched where the axis shrinks."""
    found, stretch = np.zeros(size), min(factor, 1)
    for place in range(size):
        centre = (place + 0.5) / factor - 0.5
        reach = range(math.floor(centre - width / stretch) - 1, math.ceil(centre + width / stretch) + 2)
        weights = {at: kernel(stretch * (centre - at)) for at in reach}
        for at, weight in weights.items():
            inside = at
            while not 0 <= inside < len(line):  # mirrored, the edge twice
                inside = -1 - inside if inside < 0 else 2 * len(line) - 1 - inside
            found[place] += weight / sum(weights.values()) * line[inside]
    return found


def resized_plane(plane, height, width, factors, kernel, reach, whole=False):
    step = (lambda x: np.clip(np.floor(x + 0.5), 0, 255)) if whole else (lambda x: x)
    plane = step(np.stack([resized_line(column, height, factors[0], kernel, reach) for column in plane.T], 1))
    return step(np.stack([resized_line(row, width, factors[1], kernel, reach) for row in plane]))


def filtered_plane(plane, taps, edge):
    """Correlation, the centre of an even filter being the last pixel of its first half."""
    size, centre = len(taps), (len(taps) - 1) // 2
    padded = np.pad(plane, (centre, size - 1 - centre), mode={"replicate": "edge"}.get(edge, edge))
    return np.array(
        [[(padded[i : i + size, j : j + size] * taps).sum() for j in range(plane.shape[1])] for i in range(plane.shape[0])]
    )


def laplacian(size, sigma):
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            r = (i - (size - 1) / 2) ** 2 + (j - (size - 1) / 2) ** 2
            found[i, j] = math.exp(-r / (2 * sigma**2))
    found /= found.sum()
    for i in range(size):
        for j in range(size):
            r = (i - (size - 1) / 2) ** 2 + (j - (size - 1) / 2) ** 2
            found[i, j] *= (r - 2 * sigma**2) / sigma**4
    return found - found.mean()


def lab_of(red, green, blue):
    """CIELAB of one sRGB colour from 0 to 255, with the D50 white of ICC and its primaries."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red / 255, green / 255, blue / 255)]
    matrix = [[0.4360657, 0.3851471, 0.1430664], [0.2224884, 0.7168732, 0.0606079], [0.0139160, 0.0970764, 0.7140961]]
    x, y, z = (
        sum(m * v for m, v in zip(row, linear, strict=True)) / white
        for row, white in zip(matrix, (0.9642, 1.0, 0.8249), strict=True)
    )
    x, y, z = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize(("kernel", "slow", "width"), [("cubic", cubic, 2), ("triangle", triangle, 1), ("box", box, 0.5)])
@pytest.mark.parametrize("factor", [0.25, 0.4, 0.6])
def test_resizing_is_that_of_imresize(kernel, slow, width, factor):
    plane = torch.rand(1, 1, 23, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sizes = [math.ceil(side * factor) for side in (23, 17)]
    wanted = resized_plane(plane[0, 0].numpy(), *sizes, (factor, factor), slow, width)
    np.testing.assert_allclose(_images.resized(plane, factor, kernel)[0, 0].numpy(), wanted, atol=1e-12)


def test_resizing_to_a_size_and_of_whole_numbers():
    plane = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = resized_plane(plane[0, 0].numpy(), 20, 18, (4, 18 / 7), cubic, 2)
    np.testing.assert_allclose(_images.resized(plane, (20, 18))[0, 0].numpy(), wanted, atol=1e-12)
    image = smooth(20, 30)[None]
    found = _images.resized(image, 0.5)
    assert found.dtype == torch.uint8
    wanted = resized_plane(image[0, 1].double().numpy(), 10, 15, (0.5, 0.5), cubic, 2, whole=True)
    np.testing.assert_array_equal(found[0, 1].numpy(), wanted)


@pytest.mark.parametrize("edge", ["symmetric", "replicate"])
@pytest.mark.parametrize(("size", "sigma"), [(13, 10.0), (4, 8.0), (20, 50.0), (2, 7.0)])
def test_filters_are_those_of_imfilter(edge, size, sigma):
    plane = 255 * torch.rand(1, 1, 31, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    taps = _images.laplacian_of_gaussian(size, sigma)
    np.testing.assert_allclose(taps.numpy(), laplacian(size, sigma), atol=1e-15)
    wanted = filtered_plane(plane[0, 0].numpy(), taps.numpy(), edge)
    np.testing.assert_allclose(_images.filtered(plane, taps, edge)[0, 0].numpy(), wanted, atol=1e-12)


def test_lab_is_that_of_the_profile():
    colours = torch.randint(0, 256, (1, 3, 10, 10), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    colours[0, :, 0, 0], colours[0, :, 0, 1] = 0, 255
    found = as_pixels(_images.lab(colours)[0])
    wanted = np.array([[lab_of(*colour) for colour in row] for row in as_pixels(colours[0])])
    np.testing.assert_allclose(found, wanted, atol=0.02)  # a curve of 1,024 points in 16 bits is that coarse in the dark
    np.testing.assert_allclose(found[0, 1], (100, 0, 0), atol=0.02)


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [  # from the table of Sharma, Wu and Dalal
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
        ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
        ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ],
)
def test_the_colour_difference_has_its_published_values(first, second, difference):
    one, other = (torch.tensor(colour, dtype=torch.float64)[None, :, None, None] for colour in (first, second))
    assert ciede2000(one, other).item() == pytest.approx(difference, abs=5e-5)
    assert ciede2000(other, one).item() == pytest.approx(difference, abs=5e-5)


# The metrics.


def test_psnr_is_over_all_channels():
    references, distorted = pairs(20, 30)
    scores = load_metric("psnr").score(references, distorted)
    for row in range(3):
        squares = [(int(a) - int(b)) ** 2 for a, b in zip(references[row].flatten(), distorted[row].flatten(), strict=True)]
        assert scores[row].item() == pytest.approx(10 * math.log10(255**2 * len(squares) / sum(squares)))


def luma(image):
    """Whole numbers."""
    weights = (0.298936021293775, 0.587043074451121, 0.114020904255103)
    rounded = [[math.floor(sum(w * v for w, v in zip(weights, pixel, strict=True)) + 0.5) for pixel in line] for line in image]
    return np.array(rounded, float)


def psnr_ha(x, y):
    """Of lumas (H, W), with one DCT per block."""
    delta = x.mean() - y.mean()
    c = y + delta
    lam = ((x - x.mean()) * (c - c.mean())).mean() / ((c - c.mean()) ** 2).mean()
    d = c.mean() + lam * (c - c.mean())

    def error(u, v):
        squares = []
        for i in range(0, u.shape[0] - 7, 8):
            for j in range(0, u.shape[1] - 7, 8):
                for own, other, weight in zip(
                    dctn(u[i : i + 8, j : j + 8], norm="ortho").flat,
                    dctn(v[i : i + 8, j : j + 8], norm="ortho").flat,
                    np.array(SENSITIVITY).flat,
                    strict=True,
                ):
                    squares.append((weight * (own - other)) ** 2)
        return np.mean(squares)

    s, matched = error(x, c), error(x, d)
    if s > matched:
        s = matched + (0.002 if lam < 1 else 0.25) * (s - matched)
    return 10 * math.log10(255**2 / (s + 0.04 * delta**2))


def test_psnr_ha_is_its_formula():
    references, distorted = pairs(27, 42)  # no multiples of 8
    references, distorted = torch.cat([references, distorted]), torch.cat([distorted, references])  # λ below and above 1
    scores = load_metric("psnr-ha").score(references, distorted)
    for row in range(6):
        x, y = (luma(as_pixels(image)) for image in (references[row], distorted[row]))
        assert scores[row].item() == pytest.approx(psnr_ha(x, y), rel=1e-9)


def persim(x, y):
    """Of (H, W, 3), scale by scale."""
    maps = np.ones((3, *x.shape[:2]))
    for factor, size, sigma in ((1, 13, 10), (0.6, 4, 8), (0.4, 2, 7)):
        features = []
        for image in (x, y):
            if factor != 1:
                sizes = [math.ceil(side * factor) for side in x.shape[:2]]
                planes = [resized_plane(image[..., c], *sizes, (factor, factor), cubic, 2, whole=True) for c in range(3)]
                image = np.stack(planes, -1)
            found = np.moveaxis(_images.lab(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy(), 0, -1)
            bits = np.floor(found * (2.55, 1, 1) + (0, 128, 128) + 0.5)
            features.append([filtered_plane(bits[..., 0], laplacian(size, sigma), "symmetric"), bits[..., 1], bits[..., 2]])
        for c in range(3):
            u, v = features[0][c], features[1][c]
            similar = np.abs((2 * u * v + 0.001) / (u * u + v * v + 0.001))
            if factor != 1:
                back = [whole / own for whole, own in zip(x.shape[:2], similar.shape, strict=True)]
                similar = np.abs(resized_plane(similar, *x.shape[:2], back, cubic, 2))
            maps[c] *= similar
    lightness, a, b = np.cbrt(maps)
    return np.minimum(lightness**4, np.minimum(a**2, b**2)).mean() ** 25


def test_persim_is_its_formula():
    references, distorted = pairs(20, 25)
    scores = load_metric("persim").score(references, distorted)
    for row in range(3):
        assert scores[row].item() == pytest.approx(persim(as_pixels(references[row]), as_pixels(distorted[row])), rel=1e-6)


def summer(x, y):
    """Of (H, W, 3) from 0 to 1."""
    total = 0.0
    for c in range(3):
        for j in (1, 2, 3, 4):
            sizes = [math.ceil(side / 2**j) for side in x.shape[:2]]
            error = resized_plane(x[..., c] - y[..., c], *sizes, (2.0**-j,) * 2, box, 0.5)
            total += np.abs(np.log(1 + np.abs(np.fft.fft2(np.abs(error))))).mean()
    for c in range(3):
        for j in (3, 4):
            sizes = [math.ceil(side / 2**j) for side in x.shape[:2]]
            own, other = (np.abs(np.fft.fft2(resized_plane(z[..., c], *sizes, (2.0**-j,) * 2, triangle, 1))) for z in (x, y))
            total *= math.log(1 + (own / other).mean())
    return 5 * (total + 1) ** (-1 / 3)


def test_summer_is_its_formula():
    references, distorted = pairs(40, 56)
    scores = load_metric("summer").score(references, distorted)
    for row in range(3):
        wanted = summer(as_pixels(references[row]) / 255, as_pixels(distorted[row]) / 255)
        assert scores[row].item() == pytest.approx(wanted, rel=1e-9)


def test_summer_has_no_value_for_two_black_images():
    black = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    assert load_metric("summer").score(pairs(40, 40)[0][:1], black).item() == 0
    with pytest.raises(BadData, match="summer: its value for row 0 of the batch is nan"):
        load_metric("summer").score(black, black)


# Colour names.


def some_table():
    """Probabilities of eleven names, which change slowly with the colour."""
    random = np.random.default_rng(0)
    centres = random.random((11, 3))
    index = np.arange(32**3)
    colours = np.stack([index % 32, index // 32 % 32, index // 1024], 1) / 31
    closeness = np.exp(-20 * ((colours[:, None] - centres) ** 2).sum(2))
    return closeness / closeness.sum(1, keepdims=True)


@pytest.fixture
def names(tmp_path):
    """A data root with a table of colour names in MATLAB's format."""
    (tmp_path / "models").mkdir()
    scipy.io.savemat(tmp_path / "models" / "w2c.mat", {"w2c": some_table()}, do_compression=True)
    return tmp_path


GROUND = np.ones((11, 11)) - np.eye(11)
for i, j, cost in ((0, 2, 0.9497), (0, 3, 0.76544), (2, 3, 0.93538), (3, 9, 0.68809), (5, 8, 0.92114)):
    GROUND[i, j] = GROUND[j, i] = cost


def earth_movers(p, q):
    """As a linear program over all flows."""
    rows, columns = np.kron(np.eye(11), np.ones(11)), np.kron(np.ones(11), np.eye(11))
    solved = linprog(GROUND.flatten(), A_eq=np.concatenate([rows, columns])[:-1], b_eq=np.concatenate([p, q])[:-1])
    assert solved.status == 0
    return solved.fun  # within 1e-7


def test_the_distance_of_names_is_the_earth_movers_distance():
    random = np.random.default_rng(3)
    for concentration in (0.05, 0.3, 1.0, 5.0):
        for _ in range(60):
            p, q = random.dirichlet(np.full(11, concentration), 2)
            found = _colour_names.distance(torch.from_numpy(p), torch.from_numpy(q)).item()
            assert found == pytest.approx(earth_movers(p, q), abs=1e-7)
    chain = [0, 2, 3, 9]  # black, brown, grey and white alone, where the order of moves matters
    for _ in range(200):
        p, q = np.zeros((2, 11))
        p[chain], q[chain] = random.dirichlet(np.full(4, 0.4), 2)
        found = _colour_names.distance(torch.from_numpy(p), torch.from_numpy(q)).item()
        assert found == pytest.approx(earth_movers(p, q), abs=1e-7)


def csv(x, y, table):
    """Of (H, W, 3), block by block."""
    height, width = x.shape[:2]
    retina, structure = np.ones((height, width)), np.ones((height, width))
    taps = laplacian(20, 50)
    for c in range(3):
        retina *= np.abs(filtered_plane(x[..., c], taps, "replicate") - filtered_plane(y[..., c], taps, "replicate"))
    normalised = [np.zeros_like(x), np.zeros_like(y)]
    named, different = (np.zeros((math.ceil(height / 20), math.ceil(width / 20))) for _ in range(2))
    for i in range(named.shape[0]):
        for j in range(named.shape[1]):
            means, block = [], (slice(20 * i, 20 * i + 20), slice(20 * j, 20 * j + 20))
            for image, own in zip((x, y), normalised, strict=True):
                for c in range(3):
                    part = image[(*block, c)]
                    own[(*block, c)] = (part - part.mean()) / (part.std(ddof=1) + 0.001)
                means.append(image[block].mean((0, 1)))
            at = [[int(v // 8) for v in mean] for mean in means]
            p, q = (table[r + 32 * g + 1024 * b] for r, g, b in at)
            named[i, j] = earth_movers(p, q)
            one, other = (_images.lab(torch.from_numpy(mean)[None, :, None, None]) for mean in means)
            different[i, j] = min(ciede2000(one, other).item(), 20) / 20
    for c in range(3):
        structure *= np.abs(normalised[0][..., c] - normalised[1][..., c])
    back = (height / named.shape[0], width / named.shape[1])
    named, different = (resized_plane(plane, height, width, back, cubic, 2) for plane in (named, different))
    colour = 0.9 * (named - named.min()) + 0.1 * (different - different.min())
    return 1 - (np.cbrt(structure) * np.cbrt(retina) * colour).mean() ** 0.25


def test_csv_is_its_formula(names):
    references, distorted = pairs(50, 65)
    metric = load_metric("csv", data=names)
    scores = metric.score(references, distorted)
    for row in range(3):
        wanted = csv(as_pixels(references[row]), as_pixels(distorted[row]), some_table())
        assert scores[row].item() == pytest.approx(wanted, abs=1e-7)
    assert list(metric.files()) == [str(names / "models" / "w2c.mat")]
    assert metric.score(references, references).tolist() == [1.0] * 3


@pytest.mark.parametrize("table", [{"w2c": np.ones((32**3, 10))}, {"w2c": -some_table()}, {"other": np.ones(3)}])
def test_another_table_is_refused(names, table):
    scipy.io.savemat(names / "models" / "w2c.mat", table)
    with pytest.raises(BadData, match=r"w2c.mat.*take w2c.mat from http"):
        load_metric("csv", data=names).score(*pairs(40, 40))


# The order and precision that piq is given.


@pytest.mark.parametrize(
    ("name", "slow", "within"),
    [("ssim", piq.ssim, 1e-5), ("ms-ssim", piq.multi_scale_ssim, 1e-5), ("vif", piq.vif_p, 1e-4)],
)
def test_float32_is_precise_enough(name, slow, within):
    references, distorted = pairs(170, 180)
    wanted = slow(grey(distorted), grey(references), data_range=255, reduction="none")
    found = load_metric(name).score(references, distorted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=within)
    assert not torch.equal(found, wanted)  # else float32 was not what was tested
