"""Writes a site: a pure function from run folders to files. The same input gives the same bytes."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from markupsafe import Markup

from oodbench import __version__
from oodbench.errors import BadData, UsageError, counted
from oodbench.leaderboard import escape
from oodbench.leaderboard.aggregate import METRICS
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.plots import cd
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.protocol_table import protocol_tables
from oodbench.leaderboard.sentences import sentence
from oodbench.leaderboard.site import charts
from oodbench.leaderboard.site.board import PAID, Board, boards
from oodbench.leaderboard.site.downloads import downloads
from oodbench.leaderboard.site.pages import Names, Site
from oodbench.leaderboard.site.tasks import section
from oodbench.leaderboard.site.thumbnails import Thumbnails
from oodbench.leaderboard.tasks import DETECTION, TABLES, task_of
from oodbench.paths import DataRoots
from oodbench.progress import Progress
from oodbench.results.bundle import open_folders, pack, require_verified, verify
from oodbench.results.folder import RunFolder, Say
from oodbench.results.site import replace_site, require_place


def publish(
    runs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    title: str | None = None,
    intervals: bool = False,
    bundles: bool = True,
    data: DataRoots = None,
    progress: Progress | None = None,
    without_costs: Say | None = None,
) -> Path:
    """Verify runs, studies or bundles, and write a site of them into the folder ``out``.

    Args:
        runs: folders of runs and studies, and bundles.
        out: the site's folder. Files of an earlier site there are replaced; other files are refused.
        title: heading of the site; by default after what the runs are of.
        intervals: compute 95 % intervals of FPR95 and AUPR too, which takes longer than all else.
        bundles: offer each run as a bundle too.
        data: data roots, to show images of the sets whose licence allows it. None: no images.
        progress: receives the work done.
        without_costs: is called with a line if costs are left out because their file is damaged.

    Returns the path of the first page. Raises UsageError for what is not a run, or for a folder with other files in it,
    BadData where a run does not verify or has no figures, CannotWrite.
    """
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    if not paths:
        raise UsageError("no run is named; name at least one")
    require_place(Path(out))
    progress = progress or Progress()
    folders: list[RunFolder] = []
    bundle_of: dict[Path, str] = {}
    packed: dict[str, Callable[[Path], object]] = {}
    file_of = Names("bundles", ".zip")
    for path, name in _named({path.resolve(): path for path in paths}.values()).items():
        require_verified(path, verify(path, progress), "publish")
        found = open_folders(path, without_costs, progress, verified=True)
        for folder in found:
            folder.name = name if folder.study is None else f"{name}/{folder.path.name}"
        folders += found
        if bundles:
            packed[file_of(name)] = functools.partial(pack, path)
            bundle_of |= {folder.path: file_of(name) for folder in found}
    progress.stage("writing the site")
    made = site_files(folders, title, True, bundle_of, intervals=intervals, data=data, progress=progress)
    return replace_site(Path(out), [*made, *packed.items()])


def _named(paths: Iterable[Path]) -> dict[Path, str]:
    """What a site calls runs and bundles: the names of their folders or files, numbered where several have one."""
    found: dict[Path, str] = {}
    for path in paths:
        name = path.stem if path.is_file() else path.resolve().name  # a site does not show where a run lay
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        found[path] = next(one for one in itertools.chain([name], numbered) if one not in found.values())
    return found


def site_files(
    folders: Sequence[RunFolder],
    title: str | None = None,
    verified: bool = False,
    bundle_of: Mapping[Path, str] = MappingProxyType({}),
    *,
    intervals: bool = False,
    data: DataRoots = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file of a site, pages first. Bundles are by path of a run folder. Raises BadData for runs
    without figures.
    """
    progress = progress or Progress()
    by_task: dict[str, list[RunFolder]] = {}
    for folder in folders:
        by_task.setdefault(task_of([folder]), []).append(folder)
    detection = by_task.get(DETECTION, [])
    sections = [section(task, by_task[task]) for task in TABLES if task in by_task]
    found, notes, offered = list[Board](), list[Note](), list[tuple[str, str, bytes]]()
    scores = StoredScores(detection)
    if detection:
        frame, notes = gather(detection, intervals="all" if intervals else "auroc")
        if frame.empty:
            raise BadData(f"{detection[0].name} has no cells yet, so there is nothing to publish; run it first")
        found = boards(frame, scores)
    thumbnails = None if data is None or not detection else Thumbnails(detection, data, progress)
    said = [sentence(note) for note in notes]
    title = title or title_of(by_task)
    site = Site(title, found, list(folders), scores, verified, bundle_of, said, thumbnails, sections)
    if detection:
        offered = list(downloads(frame, [board.table for board in found], notes, site.used))
    offered += (file for one in sections for file in one.downloads)
    render = functools.partial(_rendered, _environment(), site)
    progress.expect(len(site.detector_file.all()) + len(site.set_file.all()) + len(site.run_file.all()))
    yield "index.html", render("index.html", "", **_index(site, [(path, what) for path, what, _ in offered]))
    for template, pages in (("detector.html", site.detectors()), ("set.html", site.sets()), ("run.html", site.runs())):
        for path, context in pages:
            yield path, render(template, "../", **context)
            progress.advance(1)
    yield from ((strip.src, strip.png) for strip in site.strips)
    for board in found:
        yield from _data(board, site)
    for path, _, content in offered:
        yield path, content
    for name in ("site.css", "site.js"):
        yield name, files(__package__).joinpath("templates", name).read_bytes()


def title_of(tasks: Iterable[str]) -> str:
    """The title of a site of these tasks: ``Out-of-distribution detection, image quality and active learning``."""
    titles = {DETECTION: "Out-of-distribution detection"} | {task: about.title for task, about in TABLES.items()}
    known = set(tasks)
    first, *more = (title for task, title in titles.items() if task in known)
    *middle, last = (title.lower() for title in more or [""])
    return " and ".join(filter(None, [", ".join([first, *middle]), last]))


def _index(site: Site, offered: list[tuple[str, str]]) -> dict[str, Any]:
    """What the first page shows."""
    tables = []
    for board in site.boards:
        protocols = board.frame[["protocol", "source"]].drop_duplicates()
        try:
            tables.append(protocol_tables(board.frame, site.scores)[0] if len(protocols) > 1 else None)
        except BadData:  # no samples in common: nothing can be compared
            tables.append(None)
    bundles = dict.fromkeys(site.bundle_of.values(), "runs in one file, for oodbench verify, leaderboard and compare")
    return {
        "detectors": site.detector_file.all(),
        "sets": site.set_file.all(),
        "runs": site.run_file.all(),
        "downloads": [*offered, *bundles.items()],
        "metrics": [(name, title) for name, (title, _) in METRICS.items()],
        "protocols": tables,
        "cost_charts": [charts.cost_charts(board) for board in site.boards],
        "rank_charts": [charts.rank_charts(board) for board in site.boards],
        "rank_remark": cd.REMARK,
    }


def _data(board: Board, site: Site) -> Iterator[tuple[str, bytes]]:
    """What the interactive table reads: scripts, because pages that are opened from disk cannot read other files."""
    heads = [
        {
            "kind": column.heading.group,
            "text": column.heading.lines[0],
            "cells": column.heading.lines[1] if column.is_mean else "",
            "mean": column.is_mean,
            "href": "" if column.is_mean else site.set_file(column.name),
        }
        for column in board.first.columns
    ]
    rows = [[row.detector, row.protocol, site.detector_file(row.of), row.control, row.cost] for row in board.rows]
    paid = [{"text": name, **vars(order)} for name, order in zip(PAID, board.cost_orders, strict=False)]
    about = {"columns": heads, "rows": rows, "protocols": list(board.protocols), "costs": paid}
    yield f"data/board-{board.number}.js", _script("board", board.number, about)
    for name, metric in board.metrics.items():
        columns = [
            {
                "texts": column.heading.texts,
                "best": sorted(column.heading.best),
                **vars(column.order),
                "intervals": column.intervals if any(column.intervals) else None,
            }
            for column in metric.columns
        ]
        content = {"columns": columns, "caption": metric.caption, "notes": metric.notes}
        yield f"data/board-{board.number}-{name}.js", _script("figures", board.number, name, content)


def _script(call: str, *arguments: Any) -> bytes:
    texts = (json.dumps(_plain(one), allow_nan=False, separators=(",", ":")) for one in arguments)
    return f"oodbench.{call}({','.join(texts)});\n".encode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return escape.plain(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _environment() -> jinja2.Environment:
    """Templates in which every value is escaped, and no name can smuggle in control characters."""

    def harmless(value: Any) -> Any:
        return escape.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("oodbench.leaderboard.site"),
        autoescape=True,
        finalize=harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"version": __version__, "counted": counted, "sentence": sentence, "shortened": escape.shortened}
    return environment


def _rendered(environment: jinja2.Environment, site: Site, template: str, root: str, /, **context: Any) -> bytes:
    return environment.get_template(template).render(site=site, root=root, **context).encode()
