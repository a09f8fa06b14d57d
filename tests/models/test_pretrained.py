"""What timm and torchvision state with their weights, and where their caches keep them."""

from pathlib import Path

import pytest
import torch
import torchvision

from oodbench import load_model
from oodbench.datasets.transform import Transform
from oodbench.errors import MissingData, UsageError
from oodbench.models.pretrained import cached, transform_of


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("torchvision:resnet50", None, Transform(224, "bilinear", 232)),
        ("torchvision:resnet50", "resnet50-0676ba61.pth", Transform(224, "bilinear", 256)),
        ("torchvision:resnet50", "mine.pth", Transform(224, "bilinear", 232)),
        ("torchvision:swin_t", None, Transform(224, "bicubic", 232)),
        ("timm:tf_efficientnet_lite0", None, Transform(224, "bicubic", 256)),
        ("timm:vit_base_patch16_224", None, Transform(224, "bicubic", 248)),
        ("timm:convnext_tiny.fb_in22k", None, None),  # 21,841 classes
        ("resnet18", None, None),
    ],
)
def test_the_transform_is_that_of_the_weights(name, weights, expected):
    assert transform_of(name, 1000, weights and Path(weights)) == expected
    assert transform_of(name, 10, None) is None, "trained on other images"


def test_timms_own_pipeline_is_the_reference():
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config({}, model=timm.create_model("tf_efficientnet_lite0", pretrained=False))
    resize, crop, *_ = timm.data.create_transform(**config).transforms
    stated = transform_of("timm:tf_efficientnet_lite0", 1000, None)
    assert (stated.shorter_side, stated.resize, (stated.size,) * 2) == (resize.size, resize.interpolation.value, crop.size)


def test_weights_in_the_cache_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MissingData, match=r"DEFAULT of torchvision:squeezenet1_1 are not in the cache .*get_model\('squeeze"):
        load_model("torchvision:squeezenet1_1", "DEFAULT", require_weights=True)
    file = tmp_path / "checkpoints" / Path(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url).name
    file.parent.mkdir()
    network = torchvision.models.squeezenet1_1(weights=None)
    torch.save(network.state_dict(), file)
    assert cached("torchvision:squeezenet1_1", "DEFAULT") == cached("torchvision:squeezenet1_1", "IMAGENET1K_V1") == file
    loaded = load_model("torchvision:squeezenet1_1", "IMAGENET1K_V1")
    assert torch.equal(loaded.module.features[0].weight, network.features[0].weight)
    assert loaded.transform == Transform(224, "bilinear", 256)
    with pytest.raises(UsageError, match="unknown weights 'IMAGENET1K_V7' of torchvision:squeezenet1_1; did you mean"):
        cached("torchvision:squeezenet1_1", "IMAGENET1K_V7")
    with pytest.raises(UsageError, match=r"weights default of torchvision:squeezenet1_1: .* did you mean DEFAULT"):
        cached("torchvision:squeezenet1_1", "default")
    with pytest.raises(UsageError, match=r"did you mean IMAGENET1K_V1\?"):
        load_model("torchvision:squeezenet1_1", "Imagenet1k_v1")
    assert cached("torchvision:squeezenet1_1", "mine") is None
    assert cached("torchvision:squeezenet1_1", "mine.pth") is cached("resnet18", "DEFAULT") is None


def test_weights_in_the_cache_of_timm(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: asked.append((repo, file)))
    with pytest.raises(MissingData, match=r"not in the cache of timm; .*timm.create_model\('resnet18', pretrained=True\)"):
        cached("timm:resnet18", "DEFAULT")
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, name: str(file))
    assert cached("timm:resnet18", "DEFAULT") == file
    with pytest.raises(UsageError, match=r"unknown weights 'BEST' of timm:resnet18 \(DEFAULT\)"):
        cached("timm:resnet18", "BEST")
    with pytest.raises(UsageError, match="unknown timm model 'resnet1'"):
        cached("timm:resnet1", "DEFAULT")
