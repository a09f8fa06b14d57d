"""Filters at test time: what they compute, and that a run knows them."""

import math

import pytest
import torch
from torch import nn

from oodbench import Classifier, cli, code_hash
from oodbench.datasets.corruptions import corrupt
from oodbench.datasets.load import load_dataset
from oodbench.errors import UsageError
from oodbench.models import imports_code, undenoised
from oodbench.models.build import brings_weights, build
from oodbench.models.filters import Median, NonLocalMeans
from oodbench.models.load import load_model
from oodbench.models.train import train
from oodbench.results.folder import RunFolder

MODEL = "resnet8-digits"


def images_of(count=2, height=7, width=9, dtype=torch.float64):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def mirrored(place, size):
    """… 1 0 | 0 1 …, pixel by pixel."""
    while not 0 <= place < size:
        place = -1 - place if place < 0 else 2 * size - 1 - place
    return place


def by_loops(image, strength, search, patch):
    """Non-local means of one image (C, H, W), pixel by pixel."""
    _, height, width = image.shape
    reach, border = range(-(search // 2), search // 2 + 1), range(-(patch // 2), patch // 2 + 1)

    def pixel(y, x):
        return image[:, mirrored(y, height), mirrored(x, width)]

    found = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            total, weights = torch.zeros(len(image), dtype=image.dtype), 0.0
            for dy in reach:
                for dx in reach:
                    apart = [
                        (pixel(y + v, x + u) - pixel(y + dy + v, x + dx + u)).square().mean() for v in border for u in border
                    ]
                    weight = math.exp(-float(sum(apart)) / len(apart) / strength**2)
                    total += weight * pixel(y + dy, x + dx)
                    weights += weight
            found[:, y, x] = total / weights
    return found


@pytest.mark.parametrize(("strength", "search", "patch"), [(0.3, 5, 3), (0.5, 9, 1), (0.2, 3, 5)])
def test_non_local_means_equals_a_loop_over_pixels(strength, search, patch):
    images = images_of()
    found = NonLocalMeans(strength, search, patch)(images)
    for image, filtered in zip(images, found, strict=True):
        torch.testing.assert_close(filtered, by_loops(image, strength, search, patch))


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_median_equals_a_loop_over_pixels(side):
    images, reach = images_of(), range(-(side // 2), side // 2 + 1)
    found = Median(side)(images)
    for (n, c, y, x), value in zip(
        torch.cartesian_prod(*map(torch.arange, images.shape)).tolist(), found.flatten(), strict=True
    ):
        window = [float(images[n, c, mirrored(y + v, 7), mirrored(x + u, 9)]) for v in reach for u in reach]
        assert float(value) == sorted(window)[len(window) // 2]


@pytest.mark.parametrize("made", [NonLocalMeans(), Median()])
def test_a_filter_removes_noise_and_stays_within_the_image(made):
    clean = torch.full((4, 3, 32, 32), 0.2)
    clean[..., 16:] = 0.8
    noisy = clean + 0.06 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    filtered = made(noisy)
    assert float((filtered - clean).square().mean()) < 0.5 * float((noisy - clean).square().mean())
    assert float(noisy.min()) <= float(filtered.min()) <= float(filtered.max()) <= float(noisy.max())
    assert float((filtered[..., 20:].mean() - filtered[..., :12].mean()).abs()) == pytest.approx(
        0.6, abs=0.01
    )  # the edge stays
    grey = made(noisy[:, :1].expand_as(noisy))
    assert torch.equal(grey, grey[:, :1].expand_as(grey))
    assert torch.equal(made(clean.fill_(0.5)), clean)


@pytest.mark.parametrize("made", [NonLocalMeans(0.4, 3, 3), Median()])
def test_gradients_pass_through_a_filter(made):
    images = images_of(1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(made, (images,))


def test_a_denoised_network_is_the_network_on_filtered_images():
    images = corrupt(load_dataset("digits").images[:32], "noise", 5).float() / 255
    plain, denoised = load_model(MODEL), load_model(f"denoised:{MODEL}")
    assert torch.equal(denoised(images), plain(NonLocalMeans()(images)))
    assert not torch.equal(denoised(images), plain(images))
    assert (denoised.name, denoised.head_name, denoised.layer_names) == (
        f"denoised:{MODEL}",
        plain.head_name,
        plain.layer_names,
    )
    denoised.check(images)
    median = load_model(f"denoised:filter=median,side=5:{MODEL}", layers=["conv1"])
    assert torch.equal(median(images), plain(Median(5)(images)))
    assert median.layer_names == ("conv1",)
    built = build(f"denoised:{MODEL}", 3, seed=1)
    assert (built.head.out_features, built.name) == (3, f"denoised:{MODEL}")


def test_a_run_knows_the_filter(tmp_path, monkeypatch, capsys):
    hashes = {
        load_model(name).weights_hash
        for name in (MODEL, f"denoised:{MODEL}", f"denoised:strength=0.05:{MODEL}", f"denoised:filter=median:{MODEL}")
    }
    assert len(hashes) == 4
    out, model = tmp_path / "run", f"denoised:strength=0.1,search=5:{MODEL}"
    options = [
        "--detector",
        "msp",
        "--dataset",
        "digits+noise@5",
        "--limit",
        "20",
        "--no-costs",
        "--no-report",
        "--out",
        str(out),
    ]

    def run(name):
        monkeypatch.setattr("sys.argv", ["oodbench", "run", "--model", name, *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert run(model) == 0
    assert RunFolder(out).manifest().suite["model"] == model
    capsys.readouterr()
    assert run(f"denoised:{MODEL}") == 2
    assert f"{model}, not denoised:{MODEL}; choose another folder" in capsys.readouterr().err


def test_names_of_denoised_networks():
    assert undenoised("resnet18") == ("resnet18", None)
    assert undenoised("denoised:resnet18") == ("resnet18", "")
    assert undenoised("denoised:timm:vit_tiny") == ("timm:vit_tiny", "")
    assert undenoised("denoised:side=5,filter=median:mynet:build") == ("mynet:build", "side=5,filter=median")
    assert imports_code("denoised:mynet:build")
    assert not imports_code("denoised:timm:vit_tiny")
    assert brings_weights("denoised:mynet:build")
    assert not brings_weights("denoised:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("denoised:filter=mean:resnet18", "unknown filter 'mean'; did you mean 'median'"),
        ("denoised:strenth=1:resnet18", "unknown parameter 'strenth' of nl-means; did you mean 'strength'"),
        ("denoised:strength=0:resnet18", "nl-means: strength = 0; give a finite number above 0"),
        ("denoised:strength=much:resnet18", "nl-means: strength = 'much'; give a number"),
        ("denoised:search=4:resnet18", "nl-means: search = 4; give an odd number"),
        ("denoised:search=9999:resnet18", "nl-means: search = 9999; give a whole number from 1 to 63"),
        ("denoised:filter=median,side=2:resnet18", "median: side = 2; give an odd number"),
        ("denoised:side=3,side=5:resnet18", "'side=5' is not one KEY=VALUE"),
        ("denoised:filter=:resnet18", "'filter=' is not one KEY=VALUE"),
        ("denoised:denoised:resnet18", "has a filter of its own"),
        ("denoised:resnet1", "unknown model 'resnet1'"),
    ],
)
def test_wrong_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        build(name, 10)


def test_a_denoised_network_is_not_trained(tmp_path):
    with pytest.raises(
        UsageError, match=r"filters images at test time; train resnet8-digits, and name denoised:resnet8-digits"
    ):
        train(f"denoised:{MODEL}", load_dataset("digits", split="train"), out=tmp_path / "net.safetensors", epochs=1)
    assert not list(tmp_path.iterdir())


def test_a_network_may_bring_a_filter(make_classifier):
    plain = make_classifier()
    own = Classifier(plain.module, (0.5,) * 3, (0.25,) * 3, filter=nn.AvgPool2d(3, 1, 1))
    images = images_of(4, 8, 8, torch.float32)
    assert torch.equal(own(images), plain(nn.functional.avg_pool2d(images, 3, 1, 1)))
    assert code_hash.of_network(own) != code_hash.of_network(plain)
