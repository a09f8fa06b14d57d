"""One file of a run folder: the records of one pass over a set, and the arrays that they are computed from.

A safetensors file. The tensor ``records`` holds the records as compressed JSON, in which the most frequent value of each
field is written once, and the settings of their run; the metadata hold a checksum of that text. Each array is named by the
hash of its content, so equal arrays are stored once, and a damaged one does not match its name.
Floats that single precision holds exactly are stored in it.
"""

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError

from oodbench.errors import BadData
from oodbench.paths import MOST_TEXT, require_regular, without_private, write_atomically
from oodbench.results.facts import finite_json
from oodbench.results.records import (
    SCHEMA_VERSION,
    ActiveLearningRecord,
    DetectionRecord,
    QualityRecord,
    RecognitionRecord,
    Record,
)

Arrays = dict[str, np.ndarray]  # by the hash of their content
DETECTION = "detection"
RECORDS: dict[str, type[Record]] = {  # by task
    DETECTION: DetectionRecord,
    "recognition": RecognitionRecord,
    "quality": QualityRecord,
    "active-learning": ActiveLearningRecord,
}
TEXT = "records"
STORED = "stored"  # the compressed text's checksum, in the metadata: some bits of it decompress to the same text
# What its readers raise for another file.
FILE_ERRORS = (
    SafetensorError, ValidationError, zlib.error, LookupError, ValueError, TypeError, AttributeError, RecursionError, OSError,
)  # fmt: skip
KINDS: dict[str, Any] = {"f": np.float64, "i": np.int64, "b": np.bool_}


def file_stem(name: str) -> str:
    """A file name for any name: safe characters, and a hash where some had to go."""
    safe = re.sub(r"^\.|[^A-Za-z0-9.@+_-]", "_", name)[:80]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def free_path(path: Path) -> Path:
    """``stem.0.suffix`` beside ``path``, or the next number that is free; the folder is made."""
    path.parent.mkdir(exist_ok=True)
    numbered = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in range(10**6))
    return next(one for one in numbered if not os.path.lexists(one))  # a link that leads nowhere takes its name too


def hash_of(array: np.ndarray) -> str:
    """The name of an array: a hash of its type, shape and values. Floats count as float64, whole numbers as int64."""
    array = _canonical(array)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def write(
    path: Path, records: Sequence[Record], arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None = None
) -> None:
    """Write the file whole or not at all. ``settings``: those of run.json, so that the records outlive it.

    Reasons are written ``without_private`` folders.
    """
    from safetensors.numpy import save

    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for task in RECORDS:
        shown = (one.model_copy(update={"reason": without_private(one.reason)}) for one in records if one.task == task)
        of_task = _compact([record.model_dump(mode="json") for record in shown])
        # Other tasks stand apart, so that an earlier oodbench, which knows detection alone, still reads the file.
        content |= of_task if task == DETECTION else {task: of_task} if of_task["records"] else {}
    if settings:
        content["settings"] = json.dumps(settings, sort_keys=True)  # as text: most readers need not parse it
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    stored = {name: _packed(array) for name, array in arrays.items()} | {TEXT: np.frombuffer(zlib.compress(text), np.uint8)}
    write_atomically(path, save(stored, {"oodbench": hashlib.sha256(text).hexdigest(), STORED: _digest(stored[TEXT])}))


def read_records(path: Path) -> list[Record]:
    """The records, without reading an array. Raises BadData for a damaged file, or one of another schema version."""
    with _opened(path) as file:
        return _records(file, path)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that the records belong to; empty where an earlier oodbench wrote it. Raises BadData."""
    with _opened(path) as file:
        return dict(finite_json(_content(file, path).get("settings", "{}")))


def read_arrays(path: Path, names: Iterable[str] | None = None) -> Arrays:
    """Arrays by name, by default all. Raises BadData where one is missing or does not match its name."""
    with _opened(path) as file:
        there = set(file.keys()) - {TEXT}
        found = {}
        for name in there if names is None else names:
            if name not in there:
                raise BadData(f"{path} lacks the array {name}; run again, and its records are computed again")
            found[name] = _canonical(file.get_tensor(name))
            if hash_of(found[name]) != name:
                raise BadData(f"{path} is damaged (the array {name}); run again, and its records are computed again")
        return found


def array_names(path: Path) -> set[str]:
    """The names of the arrays that the file holds."""
    with _opened(path) as file:
        return set(file.keys()) - {TEXT}


def require_layout(path: Path) -> None:
    """Raise BadData unless the file is laid out as ``write`` lays it out, to the byte.

    Together with the checksums of arrays, which ``read_arrays`` checks, this notices any byte that changed.
    """
    with _opened(path) as file:
        _content(file, path)
        text = file.get_tensor(TEXT)
        with path.open("rb") as whole:
            header = whole.read(int.from_bytes(whole.read(8), "little")).decode()
        packed = json.dumps(json.loads(header), ensure_ascii=False, separators=(",", ":"))
        if text.dtype != np.uint8 or header.rstrip(" ") != packed or (file.metadata() or {}).get(STORED) != _digest(text):
            raise BadData(f"{path} is not laid out as this oodbench writes it: it was edited, or an older one wrote it")


def _digest(stored: np.ndarray) -> str:
    return hashlib.sha256(stored.tobytes()).hexdigest()


def _compact(dumped: list[dict[str, Any]]) -> dict[str, Any]:
    """Records of one task, the most frequent value of each field once."""
    common = {name: _most_common([one[name] for one in dumped]) for name in (dumped[0] if dumped else ())}
    own = [{name: value for name, value in one.items() if value != common[name]} for one in dumped]
    return {"common": common, "records": own}


def _records(file: Any, path: Path) -> list[Record]:
    content, found = _content(file, path), list[Record]()
    for task, kind in RECORDS.items():
        of_task = content if task == DETECTION else content.get(task, {"common": {}, "records": []})
        found += [kind.model_validate(of_task["common"] | one) for one in of_task["records"]]
    return found


def _content(file: Any, path: Path) -> dict[str, Any]:
    text = _inflated(file.get_tensor(TEXT).tobytes(), path)
    if (file.metadata() or {}).get("oodbench") != hashlib.sha256(text).hexdigest():
        raise BadData(f"{path} is damaged (its records); run again, and they are computed again")
    content = finite_json(text)
    if content["schema_version"] != SCHEMA_VERSION:
        raise BadData(
            f"{path} has schema version {content['schema_version']}, and this oodbench reads {SCHEMA_VERSION};"
            " use a newer oodbench, or choose another folder with --out"
        )
    return dict(content)


def _inflated(data: bytes, path: Path) -> bytes:
    """Decompressed text. Raises BadData where it would be larger than any that is written."""
    inflating = zlib.decompressobj()
    text = inflating.decompress(data, MOST_TEXT)
    if not inflating.eof:
        why = f"is damaged, or its records take more than {MOST_TEXT:,} bytes"
        raise BadData(f"{path} {why}; run again, and they are computed again")
    return text


def _most_common(values: list[Any]) -> Any:
    """The value that most records share; of values that cannot be dictionary keys, by their JSON text."""
    counts = Counter(json.dumps(value, sort_keys=True) for value in values)
    return json.loads(counts.most_common(1)[0][0])


def _canonical(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=KINDS[array.dtype.kind])


def _packed(array: np.ndarray) -> np.ndarray:
    """The array in half the bytes, where nothing is lost."""
    array = _canonical(array)
    small: np.ndarray = array
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            small = array.astype(np.float32)
    elif array.dtype == np.int64:
        small = array.astype(np.int32)
    return small if np.array_equal(small, array) else array


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    try:
        require_regular(path)
        with safe_open(path, "np") as file:
            yield file
    except FileNotFoundError as error:
        raise BadData(f"no such file: {path}") from error
    except FILE_ERRORS as error:
        raise BadData(
            f"{path} is damaged, or not a file of oodbench ({_first_line(error)}); run again, and it is made again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
