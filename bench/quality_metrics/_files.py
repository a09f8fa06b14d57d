"""Files that a metric reads: where they are, and what they hold."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from oodbench import paths
from oodbench.errors import MissingData, UsageError
from oodbench.paths import DataRoots, require_regular


def require_path(metric: str, **values: object) -> None:
    """Raise UsageError for a hyper-parameter that is not the path of a file or folder."""
    for name, value in values.items():
        if not isinstance(value, str) or not value or "\0" in value:
            raise UsageError(f"{metric}: {name} = {value!r}; give a path, absolute or below a data root")


def find(metric: str, names: str | Sequence[str], data: DataRoots, remedy: str) -> Path:
    """The first of these files that exists, absolute or below a data root. Raises MissingData with the remedy if none does."""
    names = [names] if isinstance(names, str) else names
    places = [root / name for name in names for root in paths.data_roots(data)]  # an absolute name stays as it is
    for place in places:
        if place.exists():
            require_regular(place)
            return place
    raise MissingData(f"{metric}: looked for {' and '.join(dict.fromkeys(map(str, places)))}; {remedy}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
