"""Verifies a run folder: computes every figure again from the stored scores, and names what disagrees.

Needs neither the data nor the network. What is checked: that each file is what oodbench wrote, to the byte; that records say
what their folder and their file name say; that splits do not overlap; that counts add up; and that figures follow from scores.
"""

import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from oodbench.datasets.name import MISCLASSIFIED, parse
from oodbench.errors import BadData, counted, one_line, reason
from oodbench.metrics import auroc
from oodbench.paths import STUDY, is_study, require_own_file, require_run_folder
from oodbench.progress import Progress
from oodbench.results import json_files, pass_file, site, verify_recognition, verify_tasks
from oodbench.results.folder import SEVERITY, RunFolder
from oodbench.results.recompute import NOT_STORED, figures_of, unequal
from oodbench.results.records import (
    CHOICE_ROLES,
    ELSEWHERE,
    SPLIT_ROLES,
    DetectionRecord,
    RecognitionRecord,
    Record,
    SetRecord,
    corruption_record,
)
from oodbench.results.schema_1 import has_cells
from oodbench.results.study import RANKS, run_folders
from oodbench.suite import PROTOCOLS

MANY = 500  # records from which more processes pay, each of which starts in a second
PNG = b"\x89PNG\r\n\x1a\n"
LEARNT, TESTED = ("in_fit", "in_choose", "out_fit", "out_choose"), ("in_test", "out_test")
KINDS = {"in_scores": "f", "out_scores": "f", "in_base": "i", "out_base": "i", "in_noisy": "b"}  # of numbers, by role
KINDS |= dict.fromkeys(SPLIT_ROLES, "i") | dict.fromkeys(CHOICE_ROLES, "f")
SIDES = {"in": "in-distribution", "out": "anomalous"}
PROBABILITIES = ("probabilities", "network_probabilities")
NO_FIGURES = ("n_in", "n_out", "metrics", "auroc_clean", "calibration", "aurc", "excess_aurc", "choice_auroc")
NO_RECOGNITION = ("n", "figures", "temperature")
# What a record takes over from the settings of its run, which are in run.json.
SETTINGS = {"model": "model", "in_distribution": "in_distribution", "seed": "seed", "weights_hash": "weights",
            "train_fingerprint": "training images"}  # fmt: skip


class Verification(NamedTuple):
    """What a verification found.

    Attributes:
        path: the folder of the run or study, or the bundle.
        records: number of records.
        figures: number of records whose figures were computed again.
        problems: what disagrees, one line each.
        unread: number of files whose records cannot be read; problems name them.
    """

    path: Path
    records: int
    figures: int
    problems: list[str]
    unread: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees."""
        return not self.problems


def verify_folder(path: str | Path, progress: Progress | None = None) -> Verification:
    """Compute every figure of a run again from its stored scores, and compare all that the folder says with itself.

    Figures must agree within 1e-9. ``aside`` is not part of the run and is not read.

    A study is verified run by run.

    Raises UsageError for a folder that no run wrote, BadData for a study whose study.json is damaged.
    """
    folder, progress = RunFolder(path), progress or Progress()
    if is_study(folder.path):
        runs = [verify_folder(run.path, progress) for run in run_folders(folder.path)]
        wrong = [*_beside_runs(folder.path), *(problem for of in runs for problem in of.problems)]
        records, figures, unread = (sum(of) for of in zip(*((of.records, of.figures, of.unread) for of in runs), strict=True))
        return Verification(folder.path, records, figures, wrong, unread)
    require_run_folder(folder.path)
    problems: list[str] = []
    settings: Mapping[str, Any] = {}
    with _caught(problems):
        settings = folder.manifest().settings
        _require_layout(folder.path / "run.json")
    with _caught(problems):
        if folder.costs():
            _require_layout(folder.path / "costs.json")
    with _caught(problems):
        _require_picture(folder.path / SEVERITY)
    with _caught(problems):
        problems += site.differing(folder.path / site.REPORT)
    shared = frozenset[str]()  # names of arrays
    with _caught(problems):
        if os.path.lexists(folder.shared_path):
            pass_file.require_layout(folder.shared_path)
            shared = frozenset(pass_file.read_arrays(folder.shared_path))
    if has_cells(folder.path):
        problems.append(f"{folder.path} was written by an older oodbench, which did not store what figures need; run it again")
    files: dict[Path, list[Record]] = {}
    for file in folder.pass_files():
        with _caught(problems):
            files[file] = folder.records_of(file)
    records = [record for of_file in files.values() for record in of_file]
    problems += _across(records)
    detection = [record for record in records if isinstance(record, DetectionRecord)]
    learnt_from = {record.transfer_from for record in detection}
    learning = [one for one in detection if one.protocol == "per-shift" and one.status == "ok"]
    sources = {one.set_name: one for one in learning if one.set_name in learnt_from}
    progress.stage("computing figures again from their scores")
    progress.expect(len(records))
    each = ((file, of_file, folder.shared_path, shared, settings, sources) for file, of_file in files.items())
    for of_file, found in zip(files.values(), _mapped(_of_file, each, len(records)), strict=True):
        problems += found
        progress.advance(len(of_file))
    figures = sum(record.status == "ok" for record in records)
    unread = len(folder.pass_files()) - len(files)
    return Verification(folder.path, len(records), figures, list(map(one_line, problems)), unread)


def _beside_runs(study: Path) -> list[str]:
    """What is wrong with the files of a study that are of no single run."""
    problems: list[str] = []
    with _caught(problems):
        _require_layout(study / STUDY)
    for name in (SEVERITY, RANKS):
        with _caught(problems):
            _require_picture(study / name)
    with _caught(problems):
        problems += site.differing(study / site.REPORT)
    return list(map(one_line, problems))


@contextmanager
def _caught(problems: list[str]) -> Iterator[None]:
    """Note a damaged file as a problem, and go on."""
    try:
        yield
    except (BadData, OSError) as error:
        problems.append(reason(error))


def _require_layout(path: Path) -> None:
    if not json_files.is_canonical(path):
        raise BadData(f"{path} is not laid out as oodbench writes it, so it was edited")


def _require_picture(path: Path) -> None:
    """Raise BadData for a picture whose checksums do not match, which PNG has one of for each of its parts."""
    if not os.path.lexists(path):
        return
    require_own_file(path)
    content, at, kind = path.read_bytes(), len(PNG), b""
    while kind != b"IEND":
        size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        part, checksum = content[at + 4 : at + 8 + size], content[at + 8 + size : at + 12 + size]
        if not content.startswith(PNG) or len(checksum) < 4 or zlib.crc32(part) != int.from_bytes(checksum):
            raise BadData(f"{path} is damaged; the next run draws it again")
        at += 12 + size
    if at != len(content):
        raise BadData(f"{path} holds more than a picture; the next run draws it again")


def _mapped(check: Callable[..., list[str]], each: Iterable[tuple[Any, ...]], records: int) -> Iterable[list[str]]:
    """What ``check`` finds for each of these arguments, in their order; for many records in several processes."""
    if records < MANY:
        return starmap(check, each)
    from joblib import Parallel, delayed  # its processes do not import the caller's script again

    return cast(Iterable[list[str]], Parallel(n_jobs=-1, return_as="generator")(delayed(check)(*one) for one in each))


def _of_file(
    path: Path,
    records: list[Record],
    shared_path: Path,
    shared: Collection[str],
    settings: Mapping[str, Any],
    sources: Mapping[str, DetectionRecord],
) -> list[str]:
    """What is wrong with the file of one set, and with its records. ``shared``: the arrays in ``shared_path``."""
    try:
        pass_file.require_layout(path)
        arrays, told = pass_file.read_arrays(path), pass_file.read_settings(path)
        used = {name for record in records for name in record.arrays.values()}
        strays = arrays.keys() - used
        if elsewhere := used & shared - arrays.keys():
            arrays |= pass_file.read_arrays(shared_path, elsewhere)
    except BadData as error:
        return [reason(error)]
    return list(_of_records(path, records, arrays, strays, told, settings, sources))


def _of_records(
    path: Path,
    records: list[Record],
    arrays: Mapping[str, np.ndarray],
    strays: Collection[str],
    told: Mapping[str, Any],
    settings: Mapping[str, Any],
    sources: Mapping[str, DetectionRecord],
) -> Iterator[str]:
    if settings and (other := [name for name, value in told.items() if name not in settings or settings[name] != value]):
        yield f"{path} belongs to a run with other settings than run.json ({', '.join(sorted(other)[:3])})"
    if strays:
        yield f"{path} holds arrays that no record uses ({', '.join(sorted(strays)[:3])})"
    if len({record.place for record in records}) < len(records):
        yield f"{path} holds two records of one detector under one protocol"
    if len({record.fingerprint for record in records} - {""}) > 1:
        yield f"{path} holds records of images that differ"
    for record in records:
        about = (
            _disagreements(record, settings) if isinstance(record, SetRecord) else verify_tasks.contradictions(record, settings)
        )
        found = [*about, *_wrong(record, arrays, sources)]
        yield from (f"{record.row} on {record.set_name} ({record.place[1]}): {what}" for what in found)
    yield from verify_recognition.of_one_set(_recognition(records), arrays)
    yield from verify_tasks.of_one_file(records, arrays)


def _recognition(records: list[Record]) -> list[RecognitionRecord]:
    return [record for record in records if isinstance(record, RecognitionRecord)]


def _wrong(record: Record, arrays: Mapping[str, np.ndarray], sources: Mapping[str, DetectionRecord]) -> list[str]:
    """What is wrong with the arrays and the figures of a record."""
    if record.status != "ok":
        kinds = {DetectionRecord: NO_FIGURES, RecognitionRecord: NO_RECOGNITION} | verify_tasks.FIGURES
        names = kinds[type(record)]
        given = [name for name in names if getattr(record, name) is not None]
        return [f"is {record.status}, but has {', '.join(given) or 'arrays'}"] if given or record.arrays else []
    if record.scoring_version == NOT_STORED:
        return ["an older oodbench did not store what its figures need; run it again"]
    if lost := sorted(role for role, name in record.arrays.items() if name not in arrays):
        return [f"lacks the arrays of {', '.join(lost)}"]
    own = {role: arrays[name] for role, name in record.arrays.items()}
    try:
        if isinstance(record, RecognitionRecord):
            return verify_recognition.wrong(record, own)
        if not isinstance(record, DetectionRecord):
            return list(verify_tasks.wrong(record, own))
        return list(_structure(record, own)) or list(_split(record, own, sources)) or list(_figures(record, own))
    except Exception as error:  # whatever else somebody may have stored
        return [f"its figures cannot be computed ({reason(error)})"]


def _disagreements(record: SetRecord, settings: Mapping[str, Any]) -> Iterator[str]:
    """Where a record contradicts the settings of its run, or itself."""
    for field, name in SETTINGS.items():
        if name in settings and getattr(record, field) != settings[name]:
            yield f"its {field} is {getattr(record, field)}, but that of the run is {settings[name]}"
    wanted = settings.get(f"parameters of {record.detector}")
    if wanted is None and record.status == "ok" and settings and record.detector:
        yield "the settings of the run do not list its detector"
    if wanted is not None and json.loads(json.dumps(record.parameters)) != wanted:
        yield f"its parameters are {record.parameters}, but those of the run are {wanted}"
    if record.corruption != corruption_record(record.dataset, record.level, record.kind, record.seed):
        yield "its corruption is not the one that its name says"
    if (record.kind == MISCLASSIFIED) != record.dataset.endswith(f"+{MISCLASSIFIED}"):
        yield f"its kind is {record.kind}, but its name says otherwise"
    if isinstance(record, RecognitionRecord):
        yield from verify_recognition.contradictions(record, settings)
    if not isinstance(record, DetectionRecord):
        return
    if record.protocol not in PROTOCOLS:
        yield f"{record.protocol} is not a protocol"
    told = settings.get({"transfer": "transfer_from", "validation": "validation_set"}.get(record.protocol, ""))
    told = told[0] if isinstance(told, list) and told else told
    if told not in (None, record.transfer_from):
        yield f"it learns from {record.transfer_from}, but {record.protocol} of the run from {told}"
    if wrong := [n for n, (value, _) in record.non_default.items() if n in record.parameters and record.parameters[n] != value]:
        yield f"it says two things of {', '.join(wrong)}"


def _structure(record: DetectionRecord, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What the arrays of a record must be, whatever their values."""
    learns, of_answers = record.protocol != "unsupervised", record.kind == MISCLASSIFIED
    needed = {"in_scores", "out_scores", *(SPLIT_ROLES if learns else TESTED if of_answers else ())}
    needed |= set(CHOICE_ROLES if record.protocol == "validation" else ())
    allowed = needed | {"in_base", "out_base", "in_noisy", *PROBABILITIES}
    if lost := sorted(needed - arrays.keys()):
        yield f"stores no {', '.join(lost)}"
        return
    if strange := sorted(arrays.keys() - allowed):
        yield f"stores {', '.join(strange)}, which its protocol does not have"
    for role, array in arrays.items():
        dims, kind = (2, "f") if role in PROBABILITIES else (1, KINDS.get(role, array.dtype.kind))
        if array.ndim != dims or array.dtype.kind != kind or (kind == "f" and not np.isfinite(array).all()):
            yield f"{role} is not what oodbench stores ({array.dtype} {array.shape})"
            return
    if ("in_base" in arrays) != ("out_base" in arrays):
        yield "stores base rows of one side only"
        return
    for side in ("in", "out"):
        scores, rows = arrays[f"{side}_scores"], f"{side}_test" if learns or of_answers else f"{side}_base"
        tested = len(arrays.get(rows, scores))
        if len(arrays[f"{side}_scores"]) != tested:
            yield f"has {len(arrays[f'{side}_scores'])} {side}_scores, but {tested} images are tested"


def _split(record: DetectionRecord, arrays: Mapping[str, np.ndarray], sources: Mapping[str, DetectionRecord]) -> Iterator[str]:
    """Where counts do not add up, or an image is learnt from and tested."""
    if record.kind == MISCLASSIFIED:
        yield from _answers(record, arrays)
        return
    elsewhere, sizes = record.protocol in ELSEWHERE, {}
    for side, name in (("in", record.in_distribution), ("out", record.set_name)):
        rows = [arrays[f"{side}_{part}"] for part in ("fit", "choose", "test") if f"{side}_{part}" in arrays]
        tested = np.sort(rows[-1] if elsewhere else np.concatenate(rows)) if rows else np.arange(len(arrays[f"{side}_scores"]))
        size = len(arrays.get(f"{side}_base", tested))
        if elsewhere and f"{side}_base" not in arrays:  # images that are copies of learnt ones are not tested
            size = int(tested.max(initial=-1)) + 1
        whole = size if not elsewhere else len(tested)
        if not len(tested) == whole > 0 or (np.diff(tested) <= 0).any() or tested[0] < 0 or tested[-1] >= size:
            yield f"its split does not hold each {SIDES[side]} image once"
            return
        said = {count for key, (count, _) in record.sizes.items() if key.startswith(f"{name} (")}
        if said and "in_noisy" not in arrays and size not in said and not (elsewhere and size < max(said)):
            yield f"has {size} images of {name}, but its sizes say {', '.join(map(str, sorted(said)))}"
        sizes[side] = size
    if len(noisy := arrays.get("in_noisy", ())) not in (0, sizes["in"]):
        yield f"says of {counted(len(noisy), 'in-distribution image')} whether it is noisy, but has {sizes['in']}"
        return
    if record.protocol == "unsupervised":
        return
    transfer, source = record.protocol == "transfer", sources.get(record.transfer_from)
    if transfer and source and any(record.arrays[role] != source.arrays[role] for role in LEARNT):
        yield f"learns from other images of {record.transfer_from} than the records of that set"
        return
    ids, first = {}, 0  # images that are one have one number
    for side, size in sizes.items():
        highest = max(int(arrays[role].max(initial=-1)) for role in (*LEARNT, *TESTED) if role.startswith(side))
        ids[side] = first + np.arange(max(size, highest + 1))
        first += len(ids[side])
    ids |= {side: arrays[f"{side}_base"] for side in ids if f"{side}_base" in arrays}
    # Of transfer, the learnt rows of the other side are another set's.
    same_side = not transfer or (source is not None and source.in_fingerprint == record.in_fingerprint)
    known = [role for role in LEARNT if (same_side if role.startswith("in_") else not transfer)]
    learnt = [ids[role.partition("_")[0]][arrays[role]] for role in known]
    new = [ids[role.partition("_")[0]][arrays[role]] for role in TESTED]
    if learnt and len(leak := np.intersect1d(np.concatenate(learnt), np.concatenate(new))):
        yield f"tests {counted(len(leak), 'image')} that its head learnt from"


def _answers(record: DetectionRecord, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Where right and wrong answers are not each image of the set once."""
    rows, name = np.concatenate([arrays[role] for role in TESTED]), parse(record.set_name).plain.full
    if record.protocol != "unsupervised":
        yield f"{record.protocol} does not apply to sets of kind {MISCLASSIFIED}"
    if not np.array_equal(np.sort(rows), np.arange(len(rows))) or len(arrays.get("in_base", rows)) != len(rows):
        yield f"its correct and wrong predictions do not hold each image of {name} once"
    said = {count for key, (count, _) in record.sizes.items() if key.startswith(f"{name} (")}
    if said and len(rows) not in said:
        yield f"has {len(rows)} images of {name}, but its sizes say {', '.join(map(str, sorted(said)))}"


def _figures(record: DetectionRecord, arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Which figures do not follow from the scores."""
    found: dict[str, Any] = {"n_in": len(arrays["in_scores"]), "n_out": len(arrays["out_scores"])}
    if record.protocol == "validation":
        found["choice_auroc"] = auroc(*(arrays[role] for role in CHOICE_ROLES))
    told = {name: getattr(record, name) for name in NO_FIGURES}
    yield from unequal(told, found | figures_of(arrays, record.seed, record.kind)._asdict())


def _across(records: list[Record]) -> Iterator[str]:
    """Where records of several sets contradict each other."""
    codes: dict[str, set[str]] = defaultdict(set)
    choices: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.status == "ok" and record.plugin:
            codes[record.plugin].add(record.code)
        if isinstance(record, DetectionRecord) and record.protocol == "validation" and record.status == "ok":
            choice = [record.setting, record.transfer_from, record.transfer_fingerprint]
            choices[record.row].add(json.dumps(choice, sort_keys=True))
    for row, made in choices.items():
        if len(made) > 1:
            yield f"{row} has {len(made)} choices of hyper-parameters under validation, where all sets share one"
    for detector, several in codes.items():
        if len(several) > 1:
            yield f"{detector} has figures of {len(several)} versions of its code; run it again on all sets"
    yield from verify_recognition.of_one_run(_recognition(records))
