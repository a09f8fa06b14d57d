"""Requirements for every database of image quality, built-in or third-party: each check is a function of a ``Subject``.

It returns its finding, or raises: ``Skipped`` if there is nothing to check, and any other error if the database does not
fulfil the contract. Checks that need missing files are skipped.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from oodbench import registry
from oodbench.conformance.outcomes import Failed, Skipped, require
from oodbench.conformance.watch import other_randomness
from oodbench.datasets.name import is_absolute
from oodbench.datasets.quality.database import QualityDatabase, load_database
from oodbench.errors import MissingData, OodbenchError, reason
from oodbench.paths import DataRoots

MOST_PAIRS = 64  # of a large database: decoding all takes minutes
MOST_BYTES = 2**28  # of images that a database may hold decoded
STRANGE = "no such path"


class Subject:
    """A database under check, loaded once."""

    def __init__(self, name: str, data: DataRoots) -> None:
        self.name, self.data = name, data
        self.base, _, self.path = name.partition(":")
        registry.find("quality_databases", self.base)
        self._loaded: QualityDatabase | Exception | None = None

    def load(self) -> QualityDatabase:
        """Load it anew."""
        return load_database(self.name, data=self.data)

    @property
    def loaded(self) -> QualityDatabase | Exception:
        """The database, or the error that its loader raised."""
        if self._loaded is None:
            try:
                self._loaded = self.load()
            except Exception as error:
                self._loaded = error
        return self._loaded

    @property
    def found(self) -> QualityDatabase:
        """The database. Raises Skipped if there is none."""
        if isinstance(self.loaded, Exception):
            raise Skipped("its files are missing" if isinstance(self.loaded, MissingData) else "could not be loaded")
        return self.loaded

    @property
    def pictured(self) -> QualityDatabase:
        """The database. Raises Skipped if it has no images."""
        if not len(self.found.distorted) and self.found.values:
            raise Skipped("has values of metrics in place of images")
        return self.found

    def pairs(self, of: QualityDatabase) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Row, reference and distorted image, of ``MOST_PAIRS`` rows from the first to the last."""
        for row in np.unique(np.linspace(0, len(of) - 1, min(len(of), MOST_PAIRS)).round().astype(int)).tolist():
            yield row, of.references[int(of.reference_of[row])], of.distorted[row]


def loads(subject: Subject) -> str:
    """The loader gives a QualityDatabase, or reports missing files."""
    found = subject.loaded
    if isinstance(found, MissingData):
        raise Skipped(str(found))
    if isinstance(found, Exception):
        raise Failed(f"does not load: {reason(found)}")
    direction = "higher" if found.higher_is_better else "lower"
    return f"{len(found):,} images of {len(found.references):,} references, {found.score_name}, {direction} is better"


def arrays(subject: Subject) -> str:
    """Numbers and names of N images in the contract's types and lengths, and finite."""
    found = subject.found
    count = len(found.scores)
    numbers: dict[str, tuple[np.ndarray | None, str]] = {"reference_of": (found.reference_of, "int64")}
    numbers |= {name: (getattr(found, name), "float64") for name in ("scores", "deviations", "levels")}
    numbers |= {f"values of {name}": (values, "float64") for name, values in found.values.items()}
    for name, (array, dtype) in numbers.items():
        if array is None and name in ("deviations", "levels"):
            continue
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        require(shown == f"{dtype} ({count},)", f"{name} is {shown}, not {dtype} ({count},)")
        assert array is not None
        require(bool(np.isfinite(array).all()), f"{name} of image {int(np.argmin(np.isfinite(array)))} is not finite")
    require(found.deviations is None or found.deviations.min() >= 0, "deviations are negative; they are standard deviations")
    names = found.distortions
    sound = isinstance(names, list) and len(names) in (0, count) and all(isinstance(name, str) for name in names)
    require(sound, f"distortions are not the names of the distortions of {count} images, or []")
    if not found.values:
        require(len(found.distorted) == count, f"{len(found.distorted)} distorted images for {count} scores")
        low, high, there = int(found.reference_of.min()), int(found.reference_of.max()), len(found.references)
        require(0 <= low <= high < there, f"reference_of goes from {low} to {high}, but there are {there} references")
    return ", ".join(name for name, (array, _) in numbers.items() if array is not None)


def scores(subject: Subject) -> str:
    """They differ, and have a name and a direction; the database has its name, and at most its official size."""
    found = subject.found
    require(len(np.unique(found.scores)) > 1, f"all scores are {found.scores[0]:g}, so no metric can be compared with them")
    require(isinstance(found.higher_is_better, bool), f"higher_is_better is {found.higher_is_better!r}, not True or False")
    require(isinstance(found.score_name, str) and bool(found.score_name), "score_name is empty; name the scores, such as MOS")
    require(found.name.partition(":")[0] == subject.base, f"is called {found.name!r}, not {subject.name!r}")
    size = found.official_size
    require(size is None or (type(size) is int and size >= len(found)), f"official_size is {size!r} for {len(found)} images")
    return f"{found.score_name} from {found.scores.min():g} to {found.scores.max():g}"


def pairs(subject: Subject) -> str:
    """Images are uint8 RGB (3, H, W), a distorted image in the size of its reference."""
    found, count = subject.pictured, 0
    for row, *pair in subject.pairs(found):
        for what, image in zip(("reference", "distorted image"), pair, strict=True):
            sound = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and len(image) == 3
            shown = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            require(sound, f"the {what} of row {row} is {shown}, not uint8 (3, H, W)")
        shapes = [tuple(image.shape) for image in pair]
        require(shapes[0] == shapes[1], f"row {row} has shape {shapes[1]}, and its reference {shapes[0]}")
        count += 1
    return f"{count:,} of {len(found):,} pairs"


def on_demand(subject: Subject) -> str:
    """Images are decoded when they are asked for: a database holds few of them."""
    found = subject.pictured
    held = max(_bytes(pictures) for pictures in (found.references, found.distorted))
    require(held <= MOST_BYTES, f"holds {held / 2**20:,.0f} MiB of decoded images; decode each in __getitem__ of a Sequence")
    return f"holds {held / 2**20:,.1f} MiB of decoded images"


def _bytes(pictures: Sequence[Tensor]) -> int:
    """Of a tensor of images, or a list or tuple of them; 0 for any other sequence."""
    if isinstance(pictures, Tensor):
        return pictures.numel() * pictures.element_size()
    return sum(map(_bytes, pictures)) if isinstance(pictures, list | tuple) else 0


def deterministic(subject: Subject) -> str:
    """The same images and numbers again and when it is loaded anew, whatever the global random state."""
    found = subject.found
    with other_randomness():
        again = subject.load()
        for name in ("reference_of", "scores", "deviations", "levels"):
            first, second = (np.asarray(getattr(one, name), float) for one in (found, again))
            require(np.array_equal(first, second, equal_nan=True), f"loaded again, it has other {name}")
        if len(found.distorted):
            for (row, *pair), *others in zip(*map(subject.pairs, (found, found, again)), strict=True):
                for _, *other in others:
                    same = all(map(torch.equal, pair, other))
                    require(same, f"the images of row {row} differ when they are read again")
    return "the same again"


def fingerprint(subject: Subject) -> str:
    """The same on every load."""
    found, again = subject.found.fingerprint, subject.load().fingerprint
    require(isinstance(found, str) and bool(found), f"fingerprint is {found!r}; give a hash of files, references and scores")
    require(found == again, f"fingerprint {found}, then {again}: what it is made from changes")
    return found


def missing_files(subject: Subject) -> str:
    """If its files are missing, it raises MissingData; if it needs none, it loads."""
    if is_absolute(subject.path):
        raise Skipped("its path is absolute")
    with tempfile.TemporaryDirectory() as empty:
        try:
            load_database(subject.name, data=empty)
        except MissingData as error:
            require(bool(str(error)), "MissingData must say what is missing, and where")
            return "raises MissingData"
    return "needs no files"


def wrong_path(subject: Subject) -> str:
    """A path that it cannot use is refused in words: any path, if it takes none, and one that does not exist."""
    try:
        load_database(f"{subject.base}:{STRANGE}", data=subject.data)
    except OodbenchError as error:
        require(bool(str(error)), f"{type(error).__name__} must say what is wrong")
        return f"raises {type(error).__name__}"
    except Exception as error:
        raise Failed(f"'{subject.base}:{STRANGE}' raises {reason(error)}; raise UsageError, or MissingData") from error
    raise Failed(f"'{subject.base}:{STRANGE}' loads; refuse a path with UsageError, or MissingData if it does not exist")


CHECKS: dict[str, Callable[[Subject], str]] = {
    "loads": loads,
    "arrays": arrays,
    "scores": scores,
    "pairs": pairs,
    "on-demand": on_demand,
    "deterministic": deterministic,
    "fingerprint": fingerprint,
    "missing-files": missing_files,
    "wrong-path": wrong_path,
}
