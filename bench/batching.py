"""Images in batches: checked, cut, decoded, and as floats on the network's device.

Sets that decode on demand may use worker processes, because decoding a small image is mostly Python work, which threads
cannot share: on two cores, two processes decoded 64x64 JPEGs 1.4 times as fast as two threads, and 256x256 ones as fast.
"""

import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from oodbench.classifier import Classifier
from oodbench.errors import BadData, OodbenchError, TooSlow, around_call, reason
from oodbench.image_set import Images, ImageSet
from oodbench.models.device import PINNING

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
MOST_IMAGES = 256  # per batch, by default
MOST_PIXELS = 2**22  # per batch, by default: on an accelerator, 64 images of 224x224
# On the CPU, larger batches are slower, as caches are small, and what is freed of a batch leaves large holes in memory.
MOST_PIXELS_CPU = 2**19
RESIDENT_BYTES = 2**30  # sets up to this size live on the device as uint8


def as_images(images: Tensor | ImageSet | np.ndarray) -> Tensor | ImageSet:
    """Check images: an ImageSet is returned unchanged, others as a tensor (N, C, H, W), uint8 or finite floats in [0, 1]."""
    if isinstance(images, ImageSet):
        return images
    try:
        images = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(f"images cannot be converted to a tensor ({reason(error)}); give uint8, or floats in [0, 1]") from error
    if images.dim() != 4 or len(images) == 0:
        raise BadData(f"images have shape {tuple(images.shape)}; a batch is (N, C, H, W) with N of at least 1")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise BadData(f"images are {images.dtype}; give uint8, or floats in [0, 1]")
    if not torch.isfinite(images).all():
        rows = torch.nonzero(~torch.isfinite(images).flatten(1).all(1)).flatten()
        raise BadData(
            f"{len(rows)} of {len(images)} images are not finite (NaN or infinity), the first in row {int(rows[0])};"
            " remove or repair them"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise BadData(
            f"images range from {low:.3g} to {high:.3g}; give floats in [0, 1] (divide by 255; normalisation belongs"
            " inside the Classifier)"
        )
    return images


def place_of(images: Tensor | ImageSet, row: int) -> str:
    """How a message names an image: its row, and its set and file where these are known."""
    return images.place_of(row) if isinstance(images, ImageSet) else f"row {row}"


def require_finite_logits(logits: Tensor, images: Tensor | ImageSet, rows: np.ndarray, network: str) -> None:
    """Raise BadData, which names the first image, if logits (n, classes) of these rows (n,) of images are not finite."""
    bad = ~torch.isfinite(logits).all(1)
    if bad.any():
        row = int(rows[int(bad.nonzero()[0])])
        raise BadData(
            f"{network} gives logits that are not finite (NaN or infinity) for {place_of(images, row)}; check its weights and"
            " normalisation, or remove the image"
        )


def default_batch_size(size: int, device: torch.device) -> int:
    """Images of ``size`` pixels per side in a batch: a power of two, at least one."""
    pixels = MOST_PIXELS_CPU if device.type == "cpu" else MOST_PIXELS
    return min(MOST_IMAGES, 2 ** max(0, (pixels // size**2).bit_length() - 1))


def pieces_of(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows cut into batches."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def batches(
    images: Tensor | ImageSet, classifier: Classifier | None, pieces: Sequence[np.ndarray], workers: int = 0
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(rows, images) for each piece: floats (n, C, H, W) in [0, 1] on the classifier's device and in its dtype."""
    device = classifier.device if classifier else torch.device("cpu")
    dtype = classifier.dtype if classifier else torch.float32
    stored = images if isinstance(images, Tensor) else images.images
    if isinstance(stored, Tensor):
        if stored.numel() * stored.element_size() <= RESIDENT_BYTES:
            stored = stored.to(device)
        order = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *pieces])).to(stored.device)  # one copy for all batches
        source: Iterator[Tensor] = (stored[places] for places in order.split([len(piece) for piece in pieces]))
    else:
        name = images.name if isinstance(images, ImageSet) else "images"
        source = decoded_batches(stored, pieces, workers, pin_memory=device.type in PINNING, name=name)
    for piece, batch in zip(pieces, source, strict=True):
        if isinstance(images, ImageSet) and not isinstance(stored, Tensor):
            images.keep_thumbnails(piece, batch)
        yield piece, as_floats(batch, device, dtype)


def as_floats(batch: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stored images -> floats in [0, 1]. Copies to a device overlap with its work where it takes pinned memory."""
    if device.type in PINNING and batch.device.type == "cpu" and not batch.is_pinned():
        batch = batch.pin_memory()
    batch = batch.to(device, non_blocking=True)
    return batch.to(dtype) / 255 if batch.dtype == torch.uint8 else batch.to(dtype)


def rows_like(images: Tensor | Images, rows: np.ndarray, batch: Tensor) -> Tensor:
    """These rows of stored images, on the device and in the dtype of ``batch``."""
    stored = images[torch.from_numpy(rows)] if isinstance(images, Tensor) else images[rows.tolist()]
    return as_floats(stored, batch.device, batch.dtype)


def decoded_batches(
    images: Images, pieces: Sequence[np.ndarray], workers: int = 0, pin_memory: bool = False, name: str = "images"
) -> Iterator[Tensor]:
    """uint8 (len(piece), C, H, W) for the rows of each piece, in order; with 0 workers in this process.

    Raises the errors of decoding; the OodbenchError of a broken file is raised unchanged. Raises OodbenchError if a worker
    process dies or finds no shared memory.
    """
    loader = DataLoader(
        _Pieces(images, pieces),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_end_with_parent,
    )
    try:
        source = iter(loader)
        while True:
            with around_call.get()(f"reading images of {name}"):
                batch = next(source, None)
            if batch is None:
                break
            if isinstance(batch, OodbenchError):
                raise batch
            yield batch
    except TooSlow:
        if workers:
            source._shutdown_workers()  # type: ignore[attr-defined]  # now, because the error's traceback keeps them
        raise
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise OodbenchError(f"a process that decodes images died ({reason(error)}); use --workers 0") from error


def _end_with_parent(worker: int) -> None:
    """Let Linux end this process with its parent, even a killed one; elsewhere PyTorch does so after some seconds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Pieces(Dataset[Tensor | OodbenchError]):
    """Passes an error on as a value, because a DataLoader would wrap it in the long traceback of its worker."""

    def __init__(self, images: Images, pieces: Sequence[np.ndarray]) -> None:
        self._images, self._pieces = images, pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, place: int) -> Tensor | OodbenchError:
        try:
            batch = self._images[self._pieces[place].tolist()]
        except OodbenchError as error:
            return error
        if get_worker_info() is None:
            return batch
        try:
            return batch.share_memory_()  # here, because an error in the worker's queue would lose the batch and block the run
        except RuntimeError as error:
            return OodbenchError(
                f"shared memory, which passes decoded images between processes, is full ({reason(error)}); make room in"
                " /dev/shm, or use --workers 0"
            )
