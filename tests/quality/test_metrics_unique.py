"""UNIQUE and its kin against slow loops, and the dictionaries they read."""

import math

import numpy as np
import pytest
import scipy.io
import torch
from scipy.stats import kurtosis, spearmanr
from sklearn.datasets import load_sample_image

from oodbench import state
from oodbench.errors import BadData, UsageError
from oodbench.quality.metric import load_metric
from oodbench.quality_metrics import _sparse_autoencoder
from oodbench.quality_metrics._images import resized
from oodbench.quality_metrics._sparse_autoencoder import SparseAutoencoder, objective, read
from oodbench.quality_metrics.unique import train_unique

UNITS = {"unique": (400,), "ms-unique": (81, 121, 169, 400, 625), "introspective-unique": (400,)}


def dictionary(units, seed=0):
    """A dictionary with sharp and flat units, which answer little and much."""
    random = np.random.default_rng([seed, units])
    weight = random.normal(size=(units, 192)) * random.choice([0.3, 1.0], size=(units, 1))
    weight[::3] *= random.random((len(weight[::3]), 192)) < 0.05  # few pixels: a high kurtosis
    weight[1::7] = np.sign(weight[1::7])  # two values: a low one
    return weight, random.normal(-2, 1, units), random.normal(size=(192, units)) / 10, random.standard_t(4, size=192) / 4


def write_matlab(path, weight, bias, decoder, decoder_bias):
    theta = np.concatenate([weight.flatten("F"), decoder.flatten("F"), bias, decoder_bias])
    scipy.io.savemat(path, {"W": weight, "b": bias[:, None], "optTheta": theta[:, None]}, do_compression=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with dictionaries in the authors' format."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "models").mkdir()
    for units in UNITS["ms-unique"]:
        name = "ImageNet_Weights_YGCr" + ("" if units == 400 else f"_{units}x192")
        write_matlab(folder / "models" / f"{name}.mat", *dictionary(units))
    return folder


@pytest.fixture(scope="module")
def photographs():
    return [torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) for name in ("china.jpg", "flower.jpg")]


@pytest.fixture(scope="module")
def pair(photographs):
    """References and noisy images, (2, 3, 40, 58): sides that are no multiples of 16."""
    references = torch.stack([image[:, 100:140, 200:258] for image in photographs])
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0))
    return references, (references + 15 * noise).clamp(0, 255).to(torch.uint8)


def slow_patches(image):
    """uint8 (3, H, W) -> whitened patches, one column per patch, by loops."""
    image = resized(image[None], 0.5)[0].permute(1, 2, 0).double().numpy()
    own = np.empty_like(image)
    for i, j in np.ndindex(image.shape[:2]):
        r, g, b = image[i, j]
        own[i, j, 0] = math.floor(16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255 + 0.5)
        own[i, j, 1] = g
        own[i, j, 2] = math.floor(128 + (112 * r - 93.786 * g - 18.214 * b) / 255 + 0.5)
    own /= 255
    found = []
    for i in range(0, own.shape[0] - 7, 8):
        for j in range(0, own.shape[1] - 7, 8):
            found.append([own[i + row, j + column, c] for c in range(3) for column in range(8) for row in range(8)])
    found = np.array(found).T
    found -= found.mean(1, keepdims=True)
    u, s, _ = np.linalg.svd(found @ found.T / found.shape[1])
    return u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T @ found


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sharpness(weight):
    luma = weight[:, :64] - weight[:, :64].mean()
    return kurtosis(luma / np.abs(luma).max(0), axis=1, fisher=False, bias=False)


def slow_responses(name, reference, distorted):
    if name == "introspective-unique":
        weight, bias, decoder, decoder_bias = dictionary(400)
        code = sigmoid(weight @ reference + bias[:, None])
        error = decoder @ code + decoder_bias[:, None] - reference
        gradient = sum(np.outer(error[:, k], code[:, k]) for k in range(reference.shape[1])) / reference.shape[1]
        gain = np.where(sharpness(gradient.T) > 3, 2, 1)[:, None]
        assert 1 < gain.sum() / len(gain) < 2  # both occur
        for patches in (reference, distorted):
            projected = gradient.T @ patches
            logarithm = np.log((projected / (1 - projected)).astype(complex))
            yield np.concatenate([(gain * np.abs(logarithm)).flatten(), (gain * np.angle(logarithm)).flatten()])
        return
    for patches in (reference, distorted):
        parts = []
        for units in UNITS[name]:
            weight, bias, *_ = dictionary(units)
            kurtoses = sharpness(weight)
            gain = [1 if name == "unique" else 2 if k > 5 else 0.5 if k < 2 else 1 for k in kurtoses]
            parts += [(gain[k] * sigmoid(weight[k] @ patches + bias[k])).flatten() for k in range(units)]
        yield np.concatenate(parts)


@pytest.mark.parametrize("name", UNITS)
def test_the_metric_is_its_formula(name, root, pair):
    metric = load_metric(name, data=root)
    scores = metric.score(*pair)
    assert len(set(scores.tolist())) == 2
    for row, (reference, distorted) in enumerate(zip(*pair, strict=True)):
        responses = slow_responses(name, slow_patches(reference), slow_patches(distorted))
        kept = [np.where(own < 0.025, 0, own) for own in responses]
        assert scores[row].item() == pytest.approx(abs(spearmanr(*kept).statistic) ** 10, rel=1e-6)
    torch.testing.assert_close(metric.score(pair[0], pair[0]), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert len(metric.files()) == len(UNITS[name])
    assert all(len(digest) == 64 for digest in metric.files().values())


def test_sharpness_has_units_of_all_kinds():
    kinds = np.digitize(sharpness(dictionary(400)[0]), (2, 5))
    assert set(kinds.tolist()) == {0, 1, 2}


def test_the_authors_file_is_used_where_both_are_there(tmp_path, pair):
    (tmp_path / "models").mkdir()
    weight, bias, decoder, decoder_bias = map(torch.from_numpy, dictionary(400, seed=5))
    SparseAutoencoder(weight, bias, decoder, decoder_bias).save(tmp_path / "models" / "unique-400.safetensors")
    own = load_metric("unique", data=tmp_path).score(*pair)
    write_matlab(tmp_path / "models" / "ImageNet_Weights_YGCr.mat", *dictionary(400))
    authors = load_metric("unique", data=tmp_path)
    assert [path.name for path in authors.paths()] == ["ImageNet_Weights_YGCr.mat"]
    assert not torch.equal(authors.score(*pair), own)
    assert torch.equal(load_metric("unique", folder=str(tmp_path / "models")).score(*pair), authors.score(*pair))


def test_without_a_decoder_only_introspection_is_refused(tmp_path, pair):
    (tmp_path / "models").mkdir()
    weight, bias, *_ = dictionary(400)
    scipy.io.savemat(tmp_path / "models" / "ImageNet_Weights_YGCr.mat", {"W": weight, "b": bias[:, None]})
    assert load_metric("unique", data=tmp_path).score(*pair).isfinite().all()
    with pytest.raises(BadData, match=r"YGCr.mat has no decoder \(optTheta\); introspective-unique needs one"):
        load_metric("introspective-unique", data=tmp_path).score(*pair)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"W": np.ones((5, 192)), "b": np.ones(4)}, r"weight is \(5, 192\) torch.float64, not \(4, 192\)"),
        ({"W": np.full((4, 192), np.nan), "b": np.ones(4)}, "weight is"),
        ({"W": np.ones((4, 192)), "b": np.ones(4), "optTheta": np.ones(99)}, "optTheta has 99 values, which does not fit 4"),
        ({"W": np.ones((4, 192))}, "'b'"),
        ({"W": np.ones((0, 192)), "b": np.ones(0)}, "weight is"),
        ({"W": np.ones((5000, 192)), "b": np.ones(5000)}, "more than the possible"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, says):
    path = tmp_path / "dictionary.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(BadData, match=says) as error:
        read(path)
    assert "dictionary.mat" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    for name in ("other.mat", "other.safetensors"):
        (tmp_path / name).write_bytes(b"no dictionary" * 100)
        with pytest.raises(BadData, match=name):
            read(tmp_path / name)
    SparseAutoencoder(torch.ones(4, 192), torch.ones(4)).save(tmp_path / "half.safetensors")
    header = {"schema_version": 1, "kind": "unique"}
    state.save(tmp_path / "other.safetensors", header, {"weight": torch.ones(4, 191), "bias": torch.ones(4)})
    with pytest.raises(BadData, match="weight is"):
        read(tmp_path / "other.safetensors")
    assert read(tmp_path / "half.safetensors").decoder_weight is None


def test_an_image_without_any_response_is_refused(tmp_path, pair):
    (tmp_path / "models").mkdir()
    weight, _, decoder, decoder_bias = dictionary(400)
    write_matlab(tmp_path / "models" / "ImageNet_Weights_YGCr.mat", weight, np.full(400, -1000.0), decoder, decoder_bias)
    with pytest.raises(BadData, match=r"^unique: an image has the same response everywhere"):
        load_metric("unique", data=tmp_path).score(*pair)


# Training.


@pytest.fixture(scope="module")
def trained(photographs):
    return train_unique(photographs, 16, patches=1000, seed=1)


def test_training_reads_what_the_formula_says(photographs):
    weight, bias, decoder, decoder_bias = map(torch.from_numpy, dictionary(3))
    data = torch.randn(192, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = 0.0
    active = np.zeros(3)
    for k in range(5):
        code = sigmoid(weight.numpy() @ data[:, k].numpy() + bias.numpy())
        active += code / 5
        wanted += ((decoder.numpy() @ code + decoder_bias.numpy() - data[:, k].numpy()) ** 2).sum() / 10
    wanted += 5 * sum(0.035 * math.log(0.035 / a) + 0.965 * math.log(0.965 / (1 - a)) for a in active)
    wanted += 0.003 / 2 * ((weight**2).sum().item() + (decoder**2).sum().item())
    assert objective(SparseAutoencoder(weight, bias, decoder, decoder_bias), data).item() == pytest.approx(wanted)


def test_training_gives_sparse_units_that_reconstruct(trained, photographs):
    """Mean activation near ρ, and a smaller error than that of the mean patch, on patches that it was not trained on."""
    random = torch.Generator().manual_seed(2)
    data = _sparse_autoencoder.whitened(_sparse_autoencoder._random_patches(photographs, 500, random))
    code = trained.encode(data)
    assert 0.02 < code.mean() < 0.06
    error = (trained.decoder_weight @ code + trained.decoder_bias[:, None] - data) ** 2
    assert error.sum() < 0.8 * (data**2).sum()


def test_training_is_repeatable_and_kept_whole(trained, photographs, tmp_path):
    again = train_unique(photographs, 16, patches=1000, seed=1)
    trained.save(tmp_path / "unique-16.safetensors")
    found = read(tmp_path / "unique-16.safetensors")
    for name, value in vars(trained).items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)
        assert torch.equal(getattr(found, name), value)


def test_a_trained_dictionary_tells_noise_levels_apart(trained, photographs, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    trained.save(tmp_path / "models" / "unique-16.safetensors")
    reference = photographs[0][None, :, :256, :256]
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    for name in ("unique", "introspective-unique"):
        metric = load_metric(name, data=tmp_path)
        monkeypatch.setattr(type(metric), "units", (16,))
        noisy = torch.cat([(reference + sigma * noise).clamp(0, 255).to(torch.uint8) for sigma in (0, 5, 15, 40)])
        scores = metric.score(reference.expand(4, -1, -1, -1), noisy)
        assert scores[0].item() == pytest.approx(1)
        assert (scores.diff() < 0).all()


def test_training_refuses_what_it_cannot_learn_from(photographs):
    with pytest.raises(UsageError, match="no images to learn from"):
        train_unique([])
    with pytest.raises(UsageError, match="units = 0"):
        train_unique(photographs, 0)
    with pytest.raises(BadData, match="image 1 has 7x40 pixels"):
        train_unique([photographs[0], photographs[1][:, :7, :40]])
