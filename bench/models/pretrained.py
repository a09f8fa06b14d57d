"""What timm and torchvision state with the weights of a network: the transform of its images, and where a cache keeps them."""

import math
from pathlib import Path
from typing import Any

import torch

from oodbench.datasets.transform import FILTERS, Transform
from oodbench.errors import MissingData, UsageError
from oodbench.models.build import timm_with, torchvision_with
from oodbench.registry import unknown

DEFAULT = "DEFAULT"  # the name of the weights that a library recommends


def transform_of(name: str, classes: int, weights: Path | None) -> Transform | None:
    """The transform stated for the weights of this network; None for another source, or where it is not one of ours.

    None also for a network of other ``classes`` than the stated weights, which was trained on other images. Several weights of
    one network of torchvision are told apart by the name of the file; the recommended ones stand for a file of another name.
    """
    source, _, inner = name.partition(":")
    if source == "timm":
        return _of_timm(inner, classes)
    if source == "torchvision":
        return _of_torchvision(inner, classes, weights)
    return None


def cached(name: str, weights: str) -> Path | None:
    """The file of weights by name, such as DEFAULT or IMAGENET1K_V1, in the cache of timm or torchvision; nothing is loaded.

    None for what names no weights of this network. Raises UsageError for an unknown name in capitals, and for a known one in
    other letters, and MissingData if the cache does not have them.
    """
    source, _, inner = name.partition(":")
    if source not in ("timm", "torchvision") or not weights.replace("_", "").isalnum():
        return None
    if weights != weights.upper():
        if weights.upper() in _names(source, inner):
            raise UsageError(f"weights {weights} of {name}: there is no such file; did you mean {weights.upper()}?")
        return None
    places = _files_of_timm(inner, weights) if source == "timm" else _files_of_torchvision(inner, weights)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        load = f"torchvision.models.get_model('{inner}', weights='{weights}')"
        if source == "timm":
            load = f"timm.create_model('{inner}', pretrained=True)"
        raise MissingData(
            f"weights {weights} of {name} are not in the cache of {source}; load them there once in Python with {load}, or"
            " give --weights FILE"
        )
    return found


def _of_timm(name: str, classes: int) -> Transform | None:
    config = _config_of_timm(name)
    _, height, width = config["input_size"]
    share, mode = config["crop_pct"], config.get("crop_mode", "center")
    if config["num_classes"] != classes or height != width or config["interpolation"] not in FILTERS:
        return None
    if mode == "squash" and share == 1:
        return Transform(width, config["interpolation"])
    return Transform(width, config["interpolation"], math.floor(width / share)) if mode == "center" else None


def _config_of_timm(name: str) -> dict[str, Any]:
    found: dict[str, Any] = timm_with(name).get_pretrained_cfg(name).to_dict()
    return found


def _of_torchvision(name: str, classes: int, weights: Path | None) -> Transform | None:
    known = torchvision_with(name).get_model_weights(name)
    stated = next((one for one in known if weights is not None and one.url.endswith(f"/{weights.name}")), known.DEFAULT)
    preset = stated.transforms()
    (size,), (shorter_side,) = preset.crop_size, preset.resize_size
    if len(stated.meta["categories"]) != classes or preset.interpolation.value not in FILTERS:
        return None
    return Transform(size, preset.interpolation.value, shorter_side)


def _names(source: str, name: str) -> list[str]:
    """The names of weights that the library states for this network."""
    known = torchvision_with(name).get_model_weights(name).__members__ if source == "torchvision" else ()
    return list(dict.fromkeys([DEFAULT, *known]))


def _files_of_torchvision(name: str, weights: str) -> list[Path]:
    known, names = torchvision_with(name).get_model_weights(name), _names("torchvision", name)
    if weights not in names:
        raise UsageError(unknown("weights", weights, names, ", ".join(names), of=f"torchvision:{name}"))
    return [_in_hub(getattr(known, weights).url)]


def _files_of_timm(name: str, weights: str) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    if weights != DEFAULT:
        raise UsageError(unknown("weights", weights, [DEFAULT], DEFAULT, of=f"timm:{name}"))
    config = _config_of_timm(name)
    found = [try_to_load_from_cache(config["hf_hub_id"], "model.safetensors")] if config.get("hf_hub_id") else []
    return [*(Path(path) for path in found if isinstance(path, str)), *([_in_hub(config["url"])] if config.get("url") else [])]


def _in_hub(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
