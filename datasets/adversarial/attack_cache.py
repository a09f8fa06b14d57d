"""Attacked images in the cache folder, so that an attack runs only once, and a killed one resumes where it stopped.

Files are ``<cache>/adversarial/SET+ATTACK-<hash>/00000.safetensors`` and so on, with ``PART`` images each, written as soon as
they are complete. The hash covers everything that determines the images: base images, labels and rows; attack, its code and
settings; seed; rounding; the network's weights, structure, code and device; version. Two processes write the same files.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodbench import __version__, code_hash, state
from oodbench.classifier import Classifier
from oodbench.datasets.adversarial import attacks, library_attacks
from oodbench.errors import BadData, OodbenchError, UsageError, reason
from oodbench.image_set import ImageSet
from oodbench.paths import cache_root
from oodbench.progress import Progress

SCHEMA_VERSION = 2  # 2: rounded within eps
PART = 256  # images per file
HEADER = 2**16  # most bytes of a file besides its pixels


class AttackCache:
    """The parts of one attacked set.

    Args:
        shape, dtype: of all images, uint8 or float32 (N, C, H, W).
        key: as returned by ``key_of``.
    """

    def __init__(self, name: str, key: str, shape: tuple[int, ...], dtype: torch.dtype, progress: Progress) -> None:
        self.folder = cache_root() / "adversarial" / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)[:80]}-{key[:16]}"
        self._name, self._key, self._shape, self._dtype, self._progress = name, key, shape, dtype, progress
        self._writes = True

    def parts(self) -> Iterator[tuple[int, range]]:
        """Yield the number and rows of each part."""
        for part, start in enumerate(range(0, self._shape[0], PART)):
            yield part, range(start, min(start + PART, self._shape[0]))

    def read(self, part: int, rows: range) -> Tensor | None:
        """Return the images of a part, or None if it is missing. A damaged or foreign file is reported, not read."""
        path = self._path(part)
        if not path.is_file():  # also false for a broken link, a pipe or a folder
            return None
        try:
            return self._checked(path, rows)
        except (BadData, OSError) as error:
            self._progress.say(f"{self._name}: {reason(error)}; attacking these images again")
            return None

    def write(self, part: int, rows: range, images: Tensor) -> None:
        """Store a part. If that fails, report it once and continue without a cache."""
        if not self._writes:
            return
        try:
            state.save(self._path(part), self._header(rows), {"images": images})
        except OodbenchError as error:
            self._writes = False
            self._progress.say(f"{self._name}: attacked images are not cached, so the next run attacks again: {reason(error)}")

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:05d}.safetensors"

    def _header(self, rows: range) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "key": self._key, "rows": [rows.start, rows.stop]}

    def _checked(self, path: Path, rows: range) -> Tensor:
        shape = (len(rows), *self._shape[1:])
        pixels = torch.Size(shape).numel() * self._dtype.itemsize
        if not pixels <= path.stat().st_size <= pixels + HEADER:
            raise BadData(f"{path} is truncated, or not a part of this set")
        header, found = state.load(path)
        images = found.get("images")
        if not isinstance(images, Tensor) or images.dtype != self._dtype or images.shape != shape:
            raise BadData(f"{path} holds something else")
        if header != self._header(rows):
            raise BadData(f"{path} holds other images")
        return images


def key_of(
    base: ImageSet,
    name: str,
    settings: Mapping[str, Any],
    rounded: bool,
    seed: int,
    classifier: Classifier,
    batch_size: int,
) -> str:
    """Return the SHA-256 of all that determines the images. Raises UsageError for settings that are not plain values."""
    ours = name in attacks.ATTACKS
    decides = {
        "base": base.fingerprint,
        "rows": hashlib.sha256(base.base_index.to(torch.int64).numpy().tobytes()).hexdigest(),
        "attack": name,
        "code": code_hash.of_module((attacks if ours else library_attacks).__name__),
        # Other packages draw random numbers per batch, so the batch size matters too.
        "package": None if ours else [library_attacks.version(name), batch_size],
        "settings": dict(settings),
        "rounded": rounded,
        "seed": seed,
        "weights": classifier.weights_hash,
        "network": code_hash.of_network(classifier),
        "device": classifier.device.type,
        "schema": SCHEMA_VERSION,
        "oodbench": __version__,
    }
    try:
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    except TypeError as error:
        raise UsageError(f"settings of {name} must be plain values, numbers or strings: {error}") from error
