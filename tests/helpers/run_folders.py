"""What tests ask of run folders."""

from oodbench.results.folder import RunFolder
from oodbench.results.records import DetectionRecord


def record_of(folder: RunFolder, row: str, protocol: str, set_name: str) -> DetectionRecord:
    """The record of a row on a set."""
    (found,) = (r for r in folder.records() if (r.row, r.protocol, r.set_name) == (row, protocol, set_name))
    return found


def arrays_of(folder: RunFolder, row: str, protocol: str, set_name: str) -> dict:
    """The arrays of a row on a set, by role."""
    return folder.arrays(record_of(folder, row, protocol, set_name))


def figures(folder: RunFolder) -> dict:
    """Everything but time and provenance, by row, protocol and set."""
    return {(r.set_name, *r.place): r.model_dump(mode="json", exclude={"wall_seconds", "provenance"}) for r in folder.records()}


def files(folder: RunFolder) -> dict[str, bytes]:
    """The content of every file, by path."""
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in sorted(folder.path.rglob("*")) if p.is_file()}


def detection_record(**changes) -> DetectionRecord:
    """A record of ``msp`` on ``photos``, with these changes."""
    of = {
        "model": "net", "weights_hash": "w", "in_distribution": "digits", "in_fingerprint": "i", "train_fingerprint": "t",
        "seed": 0, "detector": "msp", "parameters": {}, "code": "c", "protocol": "unsupervised", "dataset": "photos",
        "level": None, "kind": "far-ood", "fingerprint": "f", "status": "ok",
    }  # fmt: skip
    return DetectionRecord(**of | changes)
