"""How many bytes a run writes, and whether the disk has room for them."""

import shutil
from pathlib import Path

from oodbench import protocols
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.errors import OodbenchError, counted
from oodbench.paths import size

NUMBER = 8  # bytes of a score, and of a row of a split
RECORD = 1024  # bytes of a record without its arrays, compressed


def expected_bytes(loaded: LoadedSuite) -> int:
    """About what the finished folder of a run takes."""
    share, inside = loaded.suite.learnt_share, len(loaded.in_distribution)
    giving = 1 + sum(detector.gives_probabilities for detector in loaded.detectors.values())
    sources = 2 * giving  # each without and with temperature scaling
    of_image = sources * 4  # numbers of recognition, at most
    total = of_image * inside * NUMBER
    seen = 0  # scores of the in-distribution images that all sets share
    for test_set in loaded.test_sets:
        rows, outside = loaded.rows(test_set), len(test_set.images or ())
        alone = sum(row.protocol == "unsupervised" for row in rows)
        tested = sum(count - protocols.validation_size(count, share) for count in (inside, outside))
        learning = len(rows) - alone
        numbers = alone * outside + learning * tested + (inside + outside if learning else 0)
        total += (numbers + of_image * outside) * NUMBER + len(rows) * RECORD
        seen = max(seen, alone)
    return total + seen * inside * NUMBER


def require_space(folder: Path, loaded: LoadedSuite, runs: int) -> int:
    """The bytes that this run and ``runs - 1`` like it take. Raises OodbenchError where the disk does not have them free."""
    needed = runs * expected_bytes(loaded)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    if (free := shutil.disk_usage(there).free) < needed - written:
        raise OodbenchError(
            f"{folder}: {counted(runs, 'run')} will take about {size(needed)}, and {size(free)} are free there; choose another"
            " folder with --out, name fewer sets with --dataset, or limit them with --limit"
        )
    return needed
