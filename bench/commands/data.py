"""``oodbench data``: list, fetch and verify data sets and weights."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from oodbench.commands.common import Data, Debug, debugging, only_results, print_json
from oodbench.datasets.fetching import catalogue
from oodbench.datasets.fetching.expected_files import faults as faults_of
from oodbench.errors import OodbenchError, one_line, reason
from oodbench.paths import data_roots
from oodbench.progress import Progress

FAULTS_SHOWN = 5
SECONDS_BETWEEN_LINES = 10.0

commands = typer.Typer(help="List, fetch and verify data sets and model weights.", no_args_is_help=True)
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Names from `oodbench data list`.")]


@commands.command("list")
def list_data(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects.")] = False,
    data: Data = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """List all data sets and weights files: whether they are present, how large they are, and how to get them."""
    roots = data_roots(data)
    items = catalogue.items()
    rows = [_row(item, _root_of(item, roots)) for item in items]
    if as_json:
        print_json(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tabulate import tabulate

    table = [
        [
            row["name"],
            row["state"],
            " ".join(f"{split} {'~' if item.approximate else ''}{count:,}" for split, count in item.images.items()),
            _megabytes(row["download_bytes"]),
            _megabytes(row["disk_bytes"]),
            row["get"],
        ]
        for item, row in zip(items, rows, strict=True)
    ]
    headers = ["name", "state", "official images", "download", "on disk", "how to get it"]
    table = [[one_line(text) for text in row] for row in table]
    print(tabulate(table, headers, "simple", colalign=("left", "left", "left", "right", "right", "left")))
    print(f"\nData root{'s' * (len(roots) > 1)}: {', '.join(map(str, roots))}")


@commands.command()
def fetch(
    names: Names,
    split: Annotated[list[str], typer.Option(help="Fetch only the files of this split; repeat for several.")] = [],  # noqa: B006
    mirror: Annotated[
        list[str], typer.Option(metavar="URL", help="Try this address first, for the same file names; repeat for several.")
    ] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Fetch again, and replace existing files.")] = False,
    data: Data = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Download data sets and weights, check them and unpack them. Repeat an interrupted command to resume it.

    They are put into the first data root, or into the one that has a part of them. Exits with 1 if one of them could not be
    fetched; the others are still fetched.
    """
    roots = data_roots(data)
    chosen = [catalogue.find(name) for name in names]
    for item in chosen:
        item.wanted(split)
    from oodbench.datasets.fetching.download import addresses
    from oodbench.datasets.fetching.fetch import fetch as fetch_one
    from oodbench.datasets.fetching.fetch import mirrors_of_setting

    mirrors = [*mirror, *mirrors_of_setting()]
    addresses("", mirrors)
    failed = False
    with transfers() as progress:
        for item in chosen:
            if item.embedded:
                progress.print(f"{item.name}: embedded, nothing to fetch")
                continue
            root = _root_of(item, roots)
            try:
                got = fetch_one(item, root, splits=split, mirrors=mirrors, force=force, progress=progress)
            except OodbenchError as error:
                if debugging():
                    raise
                failed = True
                progress.say(f"oodbench: {error}")
            else:
                done = f"fetched {', '.join(got)} to" if got else "present in"
                progress.print(f"{item.name}: {done} {root}")
    if failed:
        raise typer.Exit(1)


@commands.command()
def verify(names: Names, data: Data = [], debug: Debug = False) -> None:  # noqa: B006
    """Check that data sets and weights are whole and readable: layout, counts, checksums, every image, labels.

    Exits with 1 if one is not.
    """
    roots = data_roots(data)
    chosen = [catalogue.find(name) for name in names]
    whole = True
    with transfers() as progress:
        for item in chosen:
            progress.stage(f"verifying {item.name}")
            root = _root_of(item, roots)
            faults = list(_faults(item, root, roots))
            for line in faults[:FAULTS_SHOWN]:
                progress.print(f"{item.name}: {line}")
            if more := len(faults[FAULTS_SHOWN:]):
                progress.print(f"{item.name}: … and {more:,} more")
            if faults:
                whole = False
                if item.request_form or item.downloads:
                    progress.print(f"{item.name}: {_remedy(item, root)}")
            else:
                images = " ".join(f"{split} {count:,}" for split, count in item.images.items() if not item.approximate)
                progress.print(f"{item.name}: whole{f', {images}' if images else ''}")
    if not whole:
        raise typer.Exit(1)


def _root_of(item: catalogue.Item, roots: list[Path]) -> Path:
    """The first data root that has files of a set or weights, else the first of all."""
    return next((root for root in roots if item.survey(root)[0] != "absent"), roots[0])


def _row(item: catalogue.Item, root: Path) -> dict[str, Any]:
    if item.embedded:
        get = "embedded, nothing to fetch"
    elif item.owner:
        get = f"see the documentation of {item.owner}"
    elif item.request_form:
        get = f"on request: see `oodbench data fetch {item.name}`"
    else:
        get = f"`oodbench data fetch {item.name}`"
    state, lacks = item.survey(root)
    usual = item.wanted()
    return {
        "name": item.name,
        "family": item.family,
        "state": state,
        "lacks": [one_line(line) for line in lacks],
        "images": item.images,
        "download_bytes": _sum([download.size for download in usual]),
        "disk_bytes": _sum([download.disk for download in usual]),
        "get": get,
        "addresses": [item.request_form] if item.request_form else [download.url for download in item.downloads],
    }


def _sum(sizes: list[int | None]) -> int | None:
    """Return the sum, or None if one is unknown or there is none."""
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"


def _remedy(item: catalogue.Item, root: Path) -> str:
    if item.request_form:
        return f"request it: see `oodbench data fetch {item.name}`"
    if item.survey(root)[0] == "absent":
        return f"get it with `oodbench data fetch {item.name}`"
    return f"get it again with `oodbench data fetch {item.name} --force`"


def _faults(item: catalogue.Item, root: Path, roots: list[Path]) -> Iterator[str]:
    """Yield one line per fault of a set or weights in a data root: first of its files, then of what its loader reads from
    them."""
    if item.survey(root)[0] == "absent":
        yield f"absent: none of its files is below {' or '.join(map(str, roots))}"
        return
    clean = True
    for fault in faults_of(item.expected, root):
        clean = False
        yield fault
    if clean:
        yield from _unreadable_weights(item, root) if item.family == "weights" else _unreadable_sets(item, root)


def _unreadable_sets(item: catalogue.Item, root: Path) -> Iterator[str]:
    """Read each split of each part as a run does. Image files are not decoded again."""
    from oodbench.datasets.load import as_loaded
    from oodbench.datasets.name import parse

    optional = {split for download in item.downloads if download.optional for split in download.splits}
    splits = {entry.split for entry in item.expected} - {""} or item.images.keys() - optional or {"test"}
    for name in item.parts or (item.name,):
        for split in sorted(splits):
            try:
                with only_results():
                    count = len(as_loaded(parse(name), root, split))
            except OodbenchError as error:
                yield reason(error)
                continue
            wanted = item.images.get(split, count)
            if count != wanted and not item.approximate:
                yield f"{name} ({split}) has {count:,} images as read; the official set has {wanted:,}"


def _unreadable_weights(item: catalogue.Item, root: Path) -> Iterator[str]:
    from oodbench.models import weights

    try:
        weights.read(next(path for path in weights.places(item.name, root) if path.is_file()))
    except OodbenchError as error:
        yield reason(error)


class Transfers(Progress):
    """Reports the bytes of one file at a time, in a line every ten seconds; ``stage`` begins the next. For logs and pipes."""

    def __init__(self) -> None:
        self._title, self._size, self._done, self._next = "", 0.0, 0.0, 0.0

    def stage(self, title: str) -> None:
        self._title, self._size, self._done = title, 0.0, 0.0
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def expect(self, units: float) -> None:
        self._size += units

    def advance(self, units: float) -> None:
        self._done += units
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            of = f" of {self._size / 1e6:,.0f}" if self._size else ""
            self.say(f"{self._title}: {self._done / 1e6:,.0f}{of} MB")

    def say(self, line: str) -> None:
        print(one_line(line), file=sys.stderr, flush=True)

    def print(self, line: str) -> None:
        """Print a line of the result to standard output."""
        print(one_line(line), flush=True)


@contextmanager
def transfers() -> Iterator[Transfers]:
    """Show a live bar if standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Transfers()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("remaining"),
    )
    # rich redirects standard output to standard error: right on one terminal, wrong if standard output is a pipe.
    redirect, console = sys.stdout.isatty(), Console(stderr=True)
    with RichProgress(*columns, console=console, transient=True, expand=True, redirect_stdout=redirect) as live:
        task = live.add_task("", total=None)

        class Live(Transfers):
            def stage(self, title: str) -> None:
                super().stage(title)
                live.reset(task, total=None, description=escape(one_line(title)))

            def expect(self, units: float) -> None:
                super().expect(units)
                live.update(task, total=self._size)

            def advance(self, units: float) -> None:
                self._done += units
                live.update(task, completed=self._done)

            def say(self, line: str) -> None:
                live.console.print(escape(one_line(line)), highlight=False, soft_wrap=True)

        yield Live()
