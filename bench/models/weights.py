"""Weights on disk: where they are looked for, how they are read, and whether they fit. Never a bare pickle."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from oodbench import paths
from oodbench.errors import BadData, MissingData


class Published(NamedTuple):
    """A weights file that its authors publish."""

    file: str
    sha256: str
    url: str


_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"

# Idelbayev, Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch: top-1 errors 8.27, 7.37, 6.90, 6.61 %.
PUBLISHED = {
    name: Published(file, sha256, _AKAMASTER + file)
    for name, file, sha256 in (
        ("resnet20-cifar10", "resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        ("resnet32-cifar10", "resnet32-d509ac18.th", "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
        ("resnet44-cifar10", "resnet44-014dd654.th", "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
        ("resnet56-cifar10", "resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    )
}


def places(name: str, data: str | Path | None) -> list[Path]:
    """Where the weights of a model are looked for, first to last: ``<data>/models/NAME.safetensors``, the authors' file."""
    folder = paths.data_root(data) / "models"
    files = [name.replace(":", "-").replace("/", "-") + ".safetensors"]
    if name in PUBLISHED:
        files.append(PUBLISHED[name].file)
    return [folder / file for file in files]


def missing(name: str, data: str | Path | None) -> MissingData:
    """The error for absent weights: where they were looked for, and how to come by them."""
    looked = places(name, data)
    where = f"no weights for {name}: looked for {' and '.join(map(str, looked))}"
    if published := PUBLISHED.get(name):
        return MissingData(
            f"{where}; download {published.url} (SHA-256 {published.sha256}) to {looked[-1]}, or give --weights FILE"
        )
    return MissingData(f"{where}; give --weights FILE, or train them: oodbench train {name} --dataset SET --out {looked[0]}")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that ``torch.load`` reads with ``weights_only=True``.

    ``{"state_dict": …}`` is unwrapped and a ``module.`` before every key removed, as DataParallel leaves them.
    Raises MissingData where there is no file; BadData for one that is hostile, truncated or something else, and for a
    file under a published name with another SHA-256.
    """
    if not path.is_file():
        raise MissingData(f"no weights file {path}; check the path, or leave out --weights")
    _verify(path)
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            with warnings.catch_warnings():  # about odd pickles, which are refused or read in full all the same
                warnings.simplefilter("ignore")
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or truncated file may raise anything
        raise BadData(
            f"{path} holds no plain tensors, or is truncated ({type(error).__name__}); get it again, or give a"
            " .safetensors file or a state dict that torch.load(weights_only=True) reads"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(
        isinstance(value, Tensor) and value.layout is torch.strided for value in found.values()
    ):
        raise BadData(f"{path} is no state dict; save the module's state_dict() itself")
    wrapped = all(str(key).startswith("module.") for key in found)
    return {str(key).removeprefix("module.") if wrapped else str(key): value for key, value in found.items()}


def _verify(path: Path) -> None:
    for published in PUBLISHED.values():
        if path.name == published.file:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != published.sha256:
                raise BadData(
                    f"{path} is not the published file: SHA-256 {found} instead of {published.sha256};"
                    f" download {published.url} again, or rename it if it is your own"
                )


def put(state: Mapping[str, Tensor], module: nn.Module, name: str, path: Path) -> None:
    """Copy ``state``, read from ``path``, into the module of model ``name``. Raises BadData that names what does not fit."""
    wanted = module.state_dict()
    # Counts of batches are absent from older files, and an evaluated network does not use them.
    absent = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    faults = []
    if absent:
        faults.append(f"lacks {_first(absent)}")
    if unknown := [key for key in state if key not in wanted]:
        faults.append(f"has unknown {_first(unknown)}")
    if not faults:
        faults = [
            f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ][:3]
    if faults:
        raise BadData(f"{path} does not fit {name}: it {'; '.join(faults)}; give the weights of {name}, or another --model")
    module.load_state_dict(dict(state), strict=False)


def _first(keys: Iterable[str]) -> str:
    """The first three of many."""
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
