"""How images of any size become the input of a network: resized, and cropped in the middle where only one side fits."""

from dataclasses import dataclass

from oodbench.errors import UsageError
from oodbench.registry import unknown

FILTERS = ("bilinear", "bicubic", "lanczos")
DEFAULT_FILTER = "bilinear"
LARGEST = 4096  # largest side in pixels to resize to


@dataclass(frozen=True)
class Transform:
    """One size for all images of a set. Raises UsageError for values that are not possible together.

    Attributes:
        size: pixels per side of the result, or None for the set's own size.
        resize: the filter, one of ``FILTERS``: PIL's, antialiased, rounded to 8 bits.
        shorter_side: pixels to which the shorter side is resized before a square of ``size`` is cropped in the middle, as
            ImageNet's networks expect. None resizes both sides to ``size``, whatever the image's proportions are.
    """

    size: int | None = None
    resize: str = DEFAULT_FILTER
    shorter_side: int | None = None

    def __post_init__(self) -> None:
        for name, pixels in (("size", self.size), ("shorter_side", self.shorter_side)):
            if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or not 1 <= pixels <= LARGEST):
                raise UsageError(f"{name} is {pixels!r}; give a number of pixels up to {LARGEST:,}, or None")
        if self.resize not in FILTERS:
            raise UsageError(unknown("resize filter", self.resize, FILTERS, f"known: {', '.join(FILTERS)}"))
        if self.shorter_side is not None and (self.size is None or self.shorter_side < self.size):
            size = "there is no size" if self.size is None else f"size is {self.size}"
            raise UsageError(
                f"shorter_side is {self.shorter_side}, and {size}; give a size of at most {self.shorter_side}, to which images"
                " are cropped (--size N)"
            )

    def replaced(self, size: int | None = None, resize: str | None = None, shorter_side: int | None = None) -> "Transform":
        """The transform with the given values in place of its own; a new size without a shorter side resizes both sides."""
        resize = self.resize if resize is None else resize
        if size is None and shorter_side is None:
            return Transform(self.size, resize, self.shorter_side)
        return Transform(self.size if size is None else size, resize, shorter_side)

    def __str__(self) -> str:
        if self.size is None:
            return "their own size"
        square = f"{self.size}x{self.size}"
        if self.shorter_side is None:
            return f"{square} pixels, {self.resize}"
        return f"shorter side {self.shorter_side} pixels, {self.resize}, then the middle {square}"
