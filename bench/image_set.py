"""A set of images with what results report about it: source, fingerprint, and the image that each row was made from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from oodbench.datasets.formats.digests import digests
from oodbench.errors import BadData, around_call, contained
from oodbench.progress import Progress
from oodbench.results.facts import AttackRecord

CSID = "csid"  # covariate-shifted in-distribution: the network's classes, from another distribution (Yang et al. 2023)
KINDS = ("near-ood", "far-ood", CSID, "corruption", "adversarial", "anomaly", "benign")
THUMBNAIL = 16  # pixels per side


class Images(Protocol):
    """N images that decode on demand: ``images[rows]`` for a sequence of int gives uint8 (len(rows), C, H, W)."""

    @property
    def shape(self) -> Sequence[int]: ...  # (N, C, H, W)

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Sequence[int]) -> Tensor: ...


@dataclass(frozen=True)
class Source:
    """Where a set comes from, for tables and citations."""

    title: str = ""
    homepage: str = ""
    licence: str = ""
    citation: str = ""
    # Images in the official set, by split. A set that holds fewer is a subset, and every result reports that.
    official_size: dict[str, int] = field(default_factory=dict)


@dataclass
class ImageSet:
    """Images of one split.

    Attributes:
        images: uint8 (N, C, H, W): a tensor, or ``Images`` that decode on demand. An adversarial set that is not rounded to
            8 bits holds a float32 tensor in [0, 1].
        labels: int64 (N,), or None.
        name, split: as the user names them, ``cifar10+noise@3`` and ``test``.
        kind: the default kind of the set (one of ``KINDS``); a suite may name another.
        classes: label names, or empty.
        base_index: int64 (N,), the row of the image that each image was made from; in an original set its own row.
        base: the set that ``base_index`` points into, a fingerprint or a name. Two sets with the same base share images.
        level: severity 1-5 of a corruption, or None.
        flips: whether a mirrored image keeps its class (not for digits and traffic signs).
        clean: images row by row as they were before a corruption or attack, in memory or not, in any stored form;
            in-distribution images are their own; None where there are none.
        negatives: the in-distribution side that this set is tested against; None for the in-distribution test images.
        noisy: bool (N,), in a set of negatives: which rows are noisy twins of clean images.
        attack_record: what the attack did that made the set; None for other sets.
        files: the file of each image, or of the image that it was made from; empty if there is no file per image.
        read_as: how ``files`` become these images. If it is not empty, files and not pixels tell which images these are: for
            sets that are so large that they should be decoded only where their pixels are needed.
    """

    images: Tensor | Images
    labels: Tensor | None = None
    name: str = ""
    split: str = "test"
    kind: str = "far-ood"
    source: Source = field(default_factory=Source)
    classes: tuple[str, ...] = ()
    base_index: Tensor = None  # type: ignore[assignment]  # filled in below
    base: str = ""
    level: int | None = None
    flips: bool = True
    clean: Tensor | Images | None = None
    negatives: "ImageSet | None" = None
    noisy: Tensor | None = None
    attack_record: AttackRecord | None = None
    files: Sequence[Path] = ()
    read_as: str = ""
    _file_contents: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        name = self.name or "image set"
        if len(self.images) == 0:
            raise BadData(f"{name} ({self.split}) holds no images; put images there or leave the set out")
        stored = (torch.uint8, torch.float32) if self.kind == "adversarial" else (torch.uint8,)
        if isinstance(self.images, Tensor) and (self.images.dtype not in stored or self.images.dim() != 4):
            raise BadData(f"{name}: images are {self.images.dtype} {tuple(self.images.shape)}; a set holds uint8 (N, C, H, W)")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise BadData(f"{name} has {len(self.images)} images and {len(self.labels)} labels; its files disagree")
        if self.kind not in KINDS:
            raise BadData(f"{name}: unknown kind '{self.kind}' (one of {', '.join(KINDS)})")
        if self.base_index is None:
            self.base_index = torch.arange(len(self.images))
        self.files = self.files or getattr(self.images, "paths", ())
        if len(self.base_index) != len(self.images):
            raise BadData(f"{name} has {len(self.images)} images and {len(self.base_index)} base rows")
        if self.clean is not None and len(self.clean) != len(self.images):
            raise BadData(f"{name} has {len(self.images)} images and {len(self.clean)} clean twins")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The images of these rows, uint8 (len(rows), C, H, W), decoded if necessary."""
        if isinstance(self.images, Tensor):
            return self.images[torch.as_tensor(rows)]
        with contained(), around_call.get()(f"reading images of {self.name}"):
            return self.images[[int(r) for r in rows]]

    def select(self, rows: Tensor) -> "ImageSet":
        """The set of these rows (n,), in this order; ``base_index`` and ``base`` still point to the originals."""
        return replace(
            self,
            **self.mapped(lambda images: images[rows] if isinstance(images, Tensor) else _Rows(images, rows.tolist())),
            labels=None if self.labels is None else self.labels[rows],
            base_index=self.base_index[rows],
            base=self.identity,
            noisy=None if self.noisy is None else self.noisy[rows],
            files=[self.files[row] for row in rows.tolist()] if self.files else (),
        )

    def copy(self) -> "ImageSet":
        """A set whose images and labels may be written into; images that decode on demand are the same."""
        images = self.mapped(lambda stored: stored.clone() if isinstance(stored, Tensor) else stored)
        return replace(self, **images, labels=None if self.labels is None else self.labels.clone())

    def mapped(self, change: Callable[[Tensor | Images], Tensor | Images]) -> dict[str, Any]:
        """``images`` and ``clean`` after a change, for ``replace``. Images that are their own twins stay so."""
        images = change(self.images)
        if self.clean is self.images:
            return {"images": images, "clean": images}
        return {"images": images, "clean": None if self.clean is None else change(self.clean)}

    def place_of(self, row: int) -> str:
        """How a message names the image of this row."""
        return f"row {row} of {self.name} ({self.split})" + (f", {self.files[row]}" if self.files else "")

    @property
    def identity(self) -> str:
        """The set that ``base_index`` points into: equal rows of the same base are one image."""
        if self.read_as and not self.base:  # without reading files, of which a selection may need few
            return hashlib.sha256("\n".join([self.read_as, *map(str, self.files)]).encode(errors="surrogateescape")).hexdigest()
        return self.base or self.fingerprint

    @property
    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels in order (16 hex digits). Paths and file formats do not count.

        With ``read_as``, that of the files' contents, of how they are read, and of labels in order.
        """
        return self._hashes[0]

    @property
    def contents(self) -> np.ndarray:
        """int64 (N,): a hash of the pixels of each image, the same in every set; with ``read_as`` that of ``file_contents``."""
        return self._hashes[1]

    @property
    def file_contents(self) -> np.ndarray:
        """int64 (N,): a hash of the content of each image's file, for a set with ``files``."""
        return self.hash_files()

    def hash_files(self, progress: Progress | None = None) -> np.ndarray:
        """As ``file_contents``; the first time, ``progress`` is told of it. Raises BadData for a file that cannot be read."""
        if self._file_contents is None:
            self._file_contents = np.ascontiguousarray(digests(self.files, progress)[:, :8]).view(np.int64)[:, 0]
        return self._file_contents

    @cached_property
    def _hashes(self) -> tuple[str, np.ndarray]:
        """``fingerprint`` and ``contents``, from one reading of all images or files."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if self.read_as:
            digest.update(self.read_as.encode())
            digest.update(np.ascontiguousarray(self.file_contents).data)
            return self._with_labels(digest), self.file_contents
        contents = np.empty(len(self), np.int64)
        for start in range(0, len(self), 1024):
            rows = range(start, min(start + 1024, len(self)))
            pixels = np.ascontiguousarray(self.read(rows).numpy())
            digest.update(pixels.data)
            hashes = (hashlib.blake2b(image.data, digest_size=8).digest() for image in pixels)
            contents[rows.start : rows.stop] = [int.from_bytes(found, "little", signed=True) for found in hashes]
        return self._with_labels(digest), contents

    def _with_labels(self, digest: Any) -> str:
        if self.labels is not None:
            digest.update(self.labels.to(torch.int64).numpy().tobytes())
        found: str = digest.hexdigest()[:16]
        return found

    @property
    def thumbnails(self) -> Tensor:
        """uint8 (N, C·16·16): the mean colour of each of 16×16 fields, or the pixels of smaller images."""
        found, known = self._thumbnails
        missing = np.flatnonzero(~known)
        for start in range(0, len(missing), 1024):
            rows = missing[start : start + 1024]
            self.keep_thumbnails(rows, self.read(rows))
        return found

    def keep_thumbnails(self, rows: np.ndarray, images: Tensor) -> None:
        """Keep the thumbnails of these images (n, C, H, W), so that they need not be decoded again."""
        means = adaptive_avg_pool2d(images.float(), self._thumbnail_size)
        self.set_thumbnails(rows, means.round().to(torch.uint8).flatten(1))

    def set_thumbnails(self, rows: np.ndarray, thumbnails: Tensor) -> None:
        """Keep these thumbnails (n, C·16·16), which another copy of this set has computed."""
        found, known = self._thumbnails
        found[torch.from_numpy(rows)] = thumbnails
        known[rows] = True

    def kept_thumbnails(self, rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Those of these rows whose thumbnails are kept, and the thumbnails."""
        found, known = self._thumbnails
        kept = rows[known[rows]]
        return kept, found[torch.from_numpy(kept)]

    @property
    def _thumbnail_size(self) -> tuple[int, int]:
        height, width = (min(THUMBNAIL, pixels) for pixels in self.images.shape[2:])
        return height, width

    @cached_property
    def _thumbnails(self) -> tuple[Tensor, np.ndarray]:
        """The thumbnails, and whether each is known yet: bool (N,)."""
        height, width = self._thumbnail_size
        size = self.images.shape[1] * height * width
        return torch.zeros((len(self), size), dtype=torch.uint8), np.zeros(len(self), dtype=bool)

    @property
    def official_size(self) -> int | None:
        """Number of images in the official split; None where it is unknown."""
        return self.source.official_size.get(self.split)


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """All images of several sets in one, with the name and the source of the first; all must have labels or none.

    Images of the first and of sets that were made from its base set keep their base rows.
    """
    first, images = sets[0], [one.images for one in sets]
    rows, free = [], 1 + max(int(one.base_index.max()) for one in sets)
    for one in sets:
        kept = one.identity == first.identity
        rows.append(one.base_index if kept else torch.arange(free, free + len(one)))
        free += 0 if kept else len(one)
    tensors = [one for one in images if isinstance(one, Tensor)]
    stored = torch.cat(tensors) if len(tensors) == len(images) else _Joined(images)
    return ImageSet(
        stored,
        None if first.labels is None else torch.cat([one.labels for one in sets if one.labels is not None]),
        name=first.name,
        split=first.split,
        kind=first.kind,
        source=replace(first.source, title=", ".join(one.source.title for one in sets), official_size={}),
        classes=first.classes,
        base_index=torch.cat(rows),
        base=first.identity,
        flips=first.flips,
        files=[file for one in sets for file in one.files] if all(one.files for one in sets) else (),
        read_as=next((one.read_as for one in sets if one.read_as), "") if all(one.files for one in sets) else "",
    )


class _Joined:
    """The images of several sets, one after another."""

    def __init__(self, parts: Sequence[Tensor | Images]) -> None:
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        of = np.searchsorted(self._ends, rows, side="right")
        starts = self._ends - [len(part) for part in self._parts]
        return torch.cat([self._parts[part][[row - int(starts[part])]] for part, row in zip(of.tolist(), rows, strict=True)])


class Changed:
    """``Images`` changed on demand: ``change(images, index=index)`` of some rows and of their ``index`` (N,)."""

    def __init__(self, images: Images, change: Callable[..., Tensor], index: Tensor) -> None:
        self._images, self._change, self._index = images, change, index
        self.shape = tuple(images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return self._change(self._images[rows], index=self._index[list(rows)])


class _Rows:
    """Some rows of images that decode on demand."""

    def __init__(self, images: Images, rows: list[int]) -> None:
        self._images, self._rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return self._images[[self._rows[r] for r in rows]]
