"""Weights files: where they are searched, how they are read, and whether they fit. Never a bare pickle."""

import hashlib
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oodbench import paths
from oodbench.errors import BadData, MissingData, UsageError
from oodbench.models import pickled
from oodbench.models.published import PUBLISHED
from oodbench.paths import DataRoots, require_regular
from oodbench.registry import unknown
from oodbench.state import digest_of, write_atomically

SHIPPED = {"resnet8-digits": Path(__file__).with_name("resnet8-digits.safetensors")}  # docs/model.md has its recipe
COMPILED = "_orig_mod."  # what torch.compile adds to names
DIGEST = "oodbench_sha256"  # entry of a file's metadata
DEPTH = 4  # levels of nesting that are read


def places(name: str, data: DataRoots) -> list[Path]:
    """Where weights are searched, in order: in each data root ``models/NAME.safetensors``, with and without the library's name,
    and the authors' file, and beside this module."""
    files = [name.replace(":", "-").replace("/", "-") + ".safetensors"]
    source, _, inner = name.partition(":")
    if source in ("timm", "torchvision"):
        files.append(f"{inner}.safetensors")
    if name in PUBLISHED:
        files.append(PUBLISHED[name].file)
    found = [root / "models" / file for root in paths.data_roots(data) for file in files]
    return [*found, *([SHIPPED[name]] if name in SHIPPED else ())]


def missing(name: str, data: DataRoots) -> MissingData:
    """The error for missing weights: where they were searched, and how to get them."""
    looked = places(name, data)
    where = f"no weights for {name}: looked for {' and '.join(map(str, looked))}"
    if published := PUBLISHED.get(name):
        return MissingData(
            f"{where}; get them with `oodbench data fetch {name}`, or download {published.url} (SHA-256 {published.sha256})"
            f" to {looked[1]}, or give --weights FILE"
        )
    if name.startswith(("timm:", "torchvision:")):
        where += "; give --weights DEFAULT for those in the library's cache"
    return MissingData(f"{where}; give --weights FILE, or train them: oodbench train {name} --dataset SET --out {looked[0]}")


def require_there(path: Path) -> None:
    """Raise MissingData if there is no weights file at the path, and BadData for anything but a regular file."""
    if not path.exists():
        raise MissingData(
            f"weights file {path} does not exist, neither here nor in the folder models of a data root; check its name"
        )
    require_regular(path)


def read(path: Path, written_here: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint that ``torch.load`` reads with ``weights_only=True``.

    Tensors in nested dicts are named by all keys, joined by dots: ``state_dict.module.conv1.weight``.

    Raises MissingData if there is no file, and BadData for a malicious, truncated or other file, for a file with a
    published name and another SHA-256, and for one that has changed since ``write`` wrote it. ``written_here``: the file must
    have a digest.
    """
    require_there(path)
    _verify(path)
    found: Any
    digest: str | None = None
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it has no iterator
                about = file.metadata() or {}
                digest = about.get(DIGEST)
                if "oodbench" in about:
                    raise BadData(f"{path} holds a fitted detector, not the weights of a network; name another file")
        else:
            found = pickled.load(path)
        tensors = dict(_tensors(found, "", set())) if isinstance(found, Mapping) else {}
        pickled.require_stored(tensors.items(), path.stat().st_size)
    except BadData:
        raise
    except pickled.Unbounded as error:
        raise BadData(f"{path} {error}") from error
    except Exception as error:  # a malicious or truncated file may raise any error
        if isinstance(error, pickle.UnpicklingError) and (strange := re.search(r"GLOBAL ([\w.]{1,100})", str(error))):
            raise BadData(
                f"{path} holds a Python object ({strange[1]}), such as a whole network; save only its weights, with"
                " torch.save(network.state_dict(), FILE)"
            ) from error
        raise BadData(
            f"{path} holds no plain tensors, or is truncated ({type(error).__name__}); download it again, or give a"
            " .safetensors file or a state dict that torch.load(weights_only=True) reads"
        ) from error
    if not tensors:
        keys = (_first(map(str, found)) or "nothing") if isinstance(found, Mapping) else ""
        there = f"it has {keys}" if keys else f"it is a {type(found).__name__}"
        raise BadData(f"{path} holds no weights ({there}); save the module's state_dict(), alone or in a dict")
    if (digest is None and written_here) or (digest is not None and digest != digest_of(found)):
        raise BadData(f"{path} is damaged: its content does not match its digest; restore it from a copy, or train it again")
    return tensors


def write(path: Path, module: nn.Module) -> None:
    """Write the weights of a module as safetensors, whole or not at all, with a digest that ``read`` checks."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    write_atomically(path, save(tensors, {DIGEST: digest_of(tensors)}))


def _tensors(found: Mapping[Any, Any], prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Dense tensors by their dotted key. A malicious file may hold a dict many times, or in itself: each is read once."""
    seen.add(id(found))
    for key, value in found.items():
        if isinstance(value, Tensor) and value.layout is torch.strided:
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and id(value) not in seen and prefix.count(".") < DEPTH:
            yield from _tensors(value, f"{prefix}{key}.", seen)


def part_for(tensors: Mapping[str, Tensor], module: nn.Module, name: str, path: Path, key: str | None) -> dict[str, Tensor]:
    """The part of the tensors of a file that is the state of this module, by the module's own names.

    What comes before these names is removed: where a checkpoint keeps the state (``state_dict.``), and what wrappers add
    (``module.``, ``_orig_mod.``, the attribute of a Lightning module). ``key`` restricts the search to what is below it.

    Raises UsageError if nothing is below ``key``, or if several parts are such a state: weights and their moving average.
    """
    wanted = {own for own in module.state_dict() if not own.endswith("num_batches_tracked")}
    if not any(COMPILED in own for own in wanted):  # a compiled layer has it in the middle
        tensors = {found.replace(COMPILED, ""): value for found, value in tensors.items()}
    if key is not None:
        below = {found.removeprefix(f"{key}."): value for found, value in tensors.items() if found.startswith(f"{key}.")}
        if not below:
            known = dict.fromkeys(found.rpartition(".")[0] for found in tensors if "." in found)
            first = dict.fromkeys(found.partition(".")[0] for found in known)
            raise UsageError(f"{path}: {unknown('weights key', key, [*first, *known], f'it has {_first(first)}')}")
        tensors = below
    count = Counter[str]()  # how many of the module's names follow each prefix
    for found in tensors:
        parts = found.split(".", 2 * DEPTH)
        count.update(".".join((*parts[:at], "")) for at in range(len(parts)) if ".".join(parts[at:]) in wanted)
    most = max(count.values(), default=0)
    prefixes = sorted((found for found in count if count[found] == most), key=len)
    # Parts with half of the names or fewer are other networks that share some: ``put`` says what they lack.
    ambiguous = len(prefixes) > 1 and prefixes[0] and 2 * most > len(wanted)
    if ambiguous:
        keys = ", ".join(f"{key}.{found}"[:-1] if key else found[:-1] for found in prefixes)
        raise UsageError(
            f"{path} holds several sets of weights for {name}: {keys}; choose one with --weights-key KEY (in Python"
            " weights_key), or save one of them to its own file"
        )
    prefix = prefixes[0] if prefixes else ""
    return {found.removeprefix(prefix): value for found, value in tensors.items() if found.startswith(prefix)}


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


def other_classes(state: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """The number of classes in ``state`` if it differs: the length of the last weight that differs only in its first axis.

    The last layer may be a convolution, and other layers may be linear.
    """
    for key, own in reversed(module.state_dict().items()):
        found = state.get(key)
        if found is None or not found.numel():  # without values, a file of any size may claim any number of classes
            continue
        if own.dim() > 1 and found.shape != own.shape and found.shape[1:] == own.shape[1:]:
            return len(found)
    return None


def put(state: Mapping[str, Tensor], module: nn.Module, name: str, path: Path) -> None:
    """Copy ``state``, read from ``path``, into the module of model ``name``. Raises as ``require_fit``."""
    require_fit(state, module, name, path)
    module.load_state_dict(dict(state), strict=False)


def require_fit(state: Mapping[str, Tensor], module: nn.Module, name: str, path: Path) -> None:
    """Raise BadData that lists what of ``state``, read from ``path``, does not fit the module of model ``name``.

    Heads that the file may lack are removed from the module. Its values are not read.
    """
    if name.startswith("torchvision:"):
        _drop_auxiliary_heads(state, module)
    wanted = module.state_dict()
    # Older files lack batch counts; evaluation does not use them.
    absent = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    faults = []
    if absent:
        faults.append(f"it lacks {_first(absent)}")
    if unknown := [key for key in state if key not in wanted]:
        faults.append(f"it has unknown {_first(unknown)}")
    if not faults:
        faults = [
            f"{key} is {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted
            if key in state and state[key].shape != wanted[key].shape
        ][:3]
    if not faults:  # whole numbers, as of a quantised network, would be cast without their scales
        faults = [
            f"{key} is {str(state[key].dtype).removeprefix('torch.')} instead of floats"
            for key in wanted
            if key in state and wanted[key].is_floating_point() and not state[key].is_floating_point()
        ][:3]
    if faults:
        raise BadData(f"{path} does not fit {name}: {'; '.join(faults)}; give the weights of {name}, or another --model")


def _drop_auxiliary_heads(state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Remove heads that are used in training alone, if ``state`` has none: torchvision saves some networks without them."""
    parts = [part for part in ("aux1", "aux2", "AuxLogits") if isinstance(getattr(module, part, None), nn.Module)]
    if parts and not any(key.startswith(tuple(f"{part}." for part in parts)) for key in state):
        for attribute, value in {**dict.fromkeys(parts), "aux_logits": False}.items():
            setattr(module, attribute, value)


def _first(keys: Iterable[str]) -> str:
    """The first three keys, and the number of further ones."""
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
