"""Finds detectors, data sets and models: the built-in tables, and what other packages register.

Built-ins are one literal table per family, in entry-point syntax and imported on demand. Third-party packages use
the entry-point groups ``oodbench.detectors``, ``oodbench.datasets`` and ``oodbench.models``. Listing imports no
plug-in, so a broken plug-in never breaks the tool: it fails only when it is used, and in ``list --check``.
"""

import configparser
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import entrypoints

from oodbench.errors import OodbenchError, UsageError, contained, fix_line, one_line, reason, reason_in

MOST_SHOWN = 100  # characters of a name in a message
PART = 3  # characters of a name from which names that contain it are suggested
MOST_HINTS = 4  # of these names
FAMILIES = ("detectors", "datasets", "models", "strategies", "quality_metrics", "quality_databases")
TABLES = {"quality_databases": "oodbench.datasets.quality"}  # the package of a family's table, where it has another name
SINGULAR = {"strategies": "strategy", "quality_metrics": "quality metric", "quality_databases": "quality database"}


class Entry(NamedTuple):
    """One line of a built-in table."""

    target: str  # "module:object"
    summary: str
    source: str = ""  # paper or home page
    learns_from: str = ""  # detectors: the data needed before scoring
    parameters: str = ""  # detectors: names of the hyper-parameters, separated by spaces


@dataclass(frozen=True)
class Record:
    """One name of one family, built-in or third-party; ``error`` says why it cannot be used, once that is known."""

    family: str
    name: str
    target: str
    summary: str = ""
    source: str = ""
    learns_from: str = ""
    parameters: str = ""
    distribution: str = "oodbench"
    version: str = ""
    error: str = ""
    traceback: str = ""

    @property
    def owner(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def discover(group: str) -> list[tuple[str, str, str, str]]:
    """(name, target, distribution, version) of every entry point of ``group``; nothing is imported.

    This is the only place that reads entry points. ``$OODBENCH_PLUGINS=0`` disables third-party packages.
    """
    if os.environ.get("OODBENCH_PLUGINS") == "0":
        return []
    # A package that is installed meanwhile changes a folder of the path.
    return list(_discovered(group, tuple((folder, _changed(folder)) for folder in sys.path)))


def _changed(folder: str) -> int:
    """When a folder or file of the import path changed, in nanoseconds; 0 if it does not exist."""
    try:
        return os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)  # reading all packages takes longer than any other use of the registry
def _discovered(group: str, path: tuple[tuple[str, int], ...]) -> tuple[tuple[str, str, str, str], ...]:
    try:
        points = entrypoints.get_group_all(group)
    except (configparser.Error, UnicodeDecodeError):
        points = _read_apart(group)
    found = []
    for point in points:
        target = f"{point.module_name}:{point.object_name}" if point.object_name else point.module_name
        # An egg-info folder may be named without its version.
        distribution, version = (point.distro.name, point.distro.version or "") if point.distro else ("unknown", "")
        found.append((point.name, target, distribution, version))
    return tuple(found)


def _read_apart(group: str) -> list[entrypoints.EntryPoint]:
    """``get_group_all`` one distribution at a time, because it fails for all if one entry_points.txt is malformed."""
    from importlib.metadata import distributions

    points: dict[str, list[entrypoints.EntryPoint]] = {}
    for distribution in distributions():
        name = distribution.name
        if name in points:  # the first on the import path hides later ones of the same name
            continue
        points[name] = []
        parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        try:
            parser.read_string(distribution.read_text("entry_points.txt") or "")
            lines = parser.items(group) if group in parser else []
        except (configparser.Error, UnicodeDecodeError) as error:
            why = f"{name}: its entry_points.txt cannot be read ({reason(error)}); reinstall {name}"
            warnings.warn(one_line(why), stacklevel=4)
            continue
        owner = entrypoints.Distribution(name, distribution.version)
        for point, target in lines:
            with entrypoints.BadEntryPoint.err_to_warnings():
                points[name].append(entrypoints.EntryPoint.from_string(target, point, owner))
    return [point for some in points.values() for point in some]


_added: dict[tuple[str, str], Record] = {}  # what --plugin added to this process


def records(family: str) -> dict[str, Record]:
    """Every name of a family: built-ins first, then third-party names in alphabetical order.

    If two packages register the same name, the ``error`` of the record names both owners; it is raised only when that
    name is used. Built-in names are reserved: the built-in stays usable, and another package's claim becomes a separate
    record with an error.
    """
    table = _package(family).TABLE
    found = {name: Record(family, name, *entry) for name, entry in table.items()}
    third_parties = [
        Record(family, name, target, distribution=distribution, version=version)
        for name, target, distribution, version in sorted(discover(f"oodbench.{family}"))
    ]
    third_parties += [record for (kind, _), record in _added.items() if kind == family]
    for record in third_parties:
        claim = f"{singular(family)} '{record.name}' of {record.owner}"
        if record.name in table:
            reserved = f"{claim} uses a name that is reserved for an oodbench built-in; rename or uninstall it"
            found[f"{record.name} ({record.distribution})"] = replace(record, error=reserved)
        elif other := found.get(record.name):
            conflict = (
                f"{claim} is also registered by {other.owner}; rename or uninstall one of them"
                " (OODBENCH_PLUGINS=0 disables third-party packages)"
            )
            found[record.name] = replace(other, error=conflict)
        else:
            found[record.name] = record
    return found


def singular(family: str) -> str:
    """What one of a family is called."""
    return SINGULAR.get(family, family[:-1])


def _package(family: str) -> Any:
    return importlib.import_module(TABLES.get(family, f"oodbench.{family}"))


def patterns(family: str) -> dict[str, Record]:
    """Placeholders for many names, such as ``timm:NAME``: listed, but not looked up."""
    table = getattr(_package(family), "PATTERNS", {})
    return {name: Record(family, name, *entry) for name, entry in table.items()}


def add_plugin(target: str, family: str = "detectors") -> str:
    """Register ``module:Class`` for this process and return its name: ``Class.name``, or the class name in lower case.

    Data sets and quality databases are functions, ``module:function``.

    Raises UsageError for a target that cannot be imported, and for a name that something else has.
    """
    if ":" not in target:
        raise UsageError(f"--plugin takes module:Class or module:function, not '{target}'")
    try:
        plugin = resolve(target)
    except Exception as error:
        why = fix_line(error, target) or f"{reason(error)}; check the name and the import path"
        raise UsageError(f"--plugin {target} cannot be imported: {why}") from error
    name = getattr(plugin, "name", "") or target.rsplit(":", 1)[1].lower()
    if not (isinstance(name, str) and name.isprintable() and ":" not in name):
        takes = "a name is a text on one line, without colons"
        raise UsageError(f"--plugin {target}: {name!r} cannot name a {singular(family)}; {takes}; rename it")
    if (other := records(family).get(name)) and other.target != target:
        rename = "rename the class, or set its attribute name" if isinstance(plugin, type) else "rename the function"
        raise UsageError(f"--plugin {target}: the name '{name}' belongs to {other.target} of {other.owner}; {rename}")
    if other is None:
        _added[family, name] = Record(family, name, target, distribution="--plugin")
    return name


def find(family: str, name: str) -> Record:
    """The record of a name. Raises UsageError for an unknown name, with the nearest known one.

    Warns where another package claims the name of a built-in, because that package's object is not what is found.
    """
    known = records(family)
    if name not in known:
        base, _, variant = name.partition(":")
        if family == "detectors" and variant and base in known:
            raise UsageError(f"'{name}' is a row of {base}, not a detector; use '{base}', which gives all its rows")
        whole, at, _ = name.partition("@")
        if family == "datasets" and at and whole in known:
            corrupted = f"or {whole}+noise@1 for a corruption of it"
            raise UsageError(f"'{name}': {whole} has no levels; write {whole} (in a suite, leave out levels), {corrupted}")
        raise UsageError(unknown(singular(family), name, known, f"oodbench list {family.replace('_', '-')}"))
    if known[name].error:
        raise UsageError(known[name].error)
    for claim in known.values():
        if claim.name == name and claim.error:
            warnings.warn(one_line(f"{claim.error}; the built-in is used"), stacklevel=2)
    return known[name]


def check_parameters(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for a parameter that detector ``name`` does not have, with the nearest known one."""
    known = list(known)
    for parameter in given:
        if parameter not in known:
            raise UsageError(unknown("parameter", parameter, known, f"it has: {', '.join(known) or 'none'}", of=name))


def unknown(what: str, name: str, known: Iterable[str], listing: str, of: str = "") -> str:
    """unknown detector 'enregy'; did you mean 'energy'? (oodbench list detectors)"""
    known = list(known)
    of_case = {one.lower(): one for one in known}
    near = [of_case[match] for match in difflib.get_close_matches(name.lower(), of_case, n=1, cutoff=0.6)]
    if not near and len(name) >= PART:
        holding = (own for own in known if name.lower() in own.lower())
        near = sorted(holding, key=lambda own: not own.lower().startswith(name.lower()))[:MOST_HINTS]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    if len(names := [part.strip() for part in name.split(",")]) > 1 and {*names} & {*known}:
        hint = f"; repeat the option ({' '.join(f'--{what} {one}' for one in names)}); in a suite, give {names}"
    shown = name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}…"
    return f"unknown {what} '{shown}'{f' of {of}' if of else ''}{hint} ({listing})"


def load(family: str, name: str) -> Any:
    """Import and return the object of a name. Raises OodbenchError that names the plug-in if its import fails."""
    record = find(family, name)
    try:
        return resolve(record.target)
    except Exception as error:
        whose = f"{singular(family)} '{name}' of {record.owner} ({record.target})"
        why = f"{reason_in(error, record.target)}; repair or uninstall {record.distribution}"
        raise OodbenchError(f"{whose} cannot be imported: {why}") from error


def check(record: Record) -> Record:
    """The record after trying the import: with error and traceback if it failed, else with the summary of its docstring."""
    try:
        found = resolve(record.target)
        own = vars(found).get("__doc__") if isinstance(found, type) else getattr(found, "__doc__", None)  # not a base class's
        lines = own.strip().splitlines() if isinstance(own, str) else []
    except Exception as error:
        return replace(record, error=reason_in(error, record.target), traceback=traceback.format_exc())
    return replace(record, summary=record.summary or (one_line(lines[0]).rstrip(".") if lines else ""))


def resolve(target: str) -> Any:
    """``module:attribute.path`` -> the object."""
    module, _, path = target.partition(":")
    with contained():
        found = importlib.import_module(module)
        for part in path.split(".") if path else ():
            found = getattr(found, part)
    return found
