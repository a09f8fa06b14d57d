"""``oodbench data``: which sets and weights there are, fetching them, and whether what is there is what should be."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from oodbench.commands.common import Data, Debug, debugging
from oodbench.datasets.fetching import catalogue
from oodbench.datasets.fetching.expected_files import faults as faults_of
from oodbench.errors import OodbenchError, one_line, reason
from oodbench.paths import data_root
from oodbench.progress import Progress

FAULTS_SHOWN = 5
SECONDS_BETWEEN_LINES = 10.0

commands = typer.Typer(help="Sets and model weights: what there is, fetching, checking.", no_args_is_help=True)
Names = Annotated[list[str], typer.Argument(metavar="NAME…", help="Names of `oodbench data list`.")]


@commands.command("list")
def list_data(
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    data: Data = None,
    debug: Debug = False,
) -> None:
    """Every set and weights file: whether it is there, how large it is, and how to get it."""
    root = data_root(data)
    items = catalogue.items()
    rows = [_row(item, root) for item in items]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tabulate import tabulate

    table = [
        [
            row["name"],
            row["state"],
            " ".join(f"{split} {'~' if item.about else ''}{count:,}" for split, count in item.images.items()),
            _megabytes(row["download_bytes"]),
            _megabytes(row["disk_bytes"]),
            row["get"],
        ]
        for item, row in zip(items, rows, strict=True)
    ]
    headers = ["name", "state", "official images", "download", "on disk", "how to get it"]
    print(tabulate(table, headers, "simple", colalign=("left", "left", "left", "right", "right", "left")))
    print(f"\nData root: {root.absolute()}")


@commands.command()
def fetch(
    names: Names,
    split: Annotated[list[str], typer.Option(help="Only the files of this split; repeat for several.")] = [],  # noqa: B006
    mirror: Annotated[
        list[str], typer.Option(metavar="URL", help="Ask there first for the same file names; repeat for several.")
    ] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Fetch again, and replace what is there.")] = False,
    data: Data = None,
    debug: Debug = False,
) -> None:
    """Download sets and weights, check them and unpack them. Repeated, it goes on where it stopped.

    Exits with 1 where one of them could not be fetched; the others are, all the same.
    """
    root = data_root(data)
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
            try:
                got = fetch_one(item, root, splits=split, mirrors=mirrors, force=force, progress=progress)
            except OodbenchError as error:
                if debugging():
                    raise
                failed = True
                progress.say(f"oodbench: {error}")
            else:
                done = f"fetched {', '.join(got)} to" if got else "present in"
                progress.print(f"{item.name}: {done} {root.absolute()}")
    if failed:
        raise typer.Exit(1)


@commands.command()
def verify(names: Names, data: Data = None, debug: Debug = False) -> None:
    """Whether sets and weights are whole and can be read: layout, counts, checksums, every image, labels.

    Exits with 1 where one is not.
    """
    root = data_root(data)
    chosen = [catalogue.find(name) for name in names]
    whole = True
    with transfers() as progress:
        for item in chosen:
            progress.stage(f"verifying {item.name}")
            faults = list(_faults(item, root))
            for line in faults[:FAULTS_SHOWN]:
                progress.print(f"{item.name}: {line}")
            if more := len(faults[FAULTS_SHOWN:]):
                progress.print(f"{item.name}: … and {more:,} more")
            if faults:
                whole = False
                if item.form or item.downloads:
                    progress.print(f"{item.name}: {_remedy(item, root)}")
            else:
                images = " ".join(f"{split} {count:,}" for split, count in item.images.items() if not item.about)
                progress.print(f"{item.name}: whole{f', {images}' if images else ''}")
    if not whole:
        raise typer.Exit(1)


def _row(item: catalogue.Item, root: Path) -> dict[str, Any]:
    if item.embedded:
        get = "embedded, nothing to fetch"
    elif item.owner:
        get = f"of {item.owner}: its package says how"
    elif item.form:
        get = f"on request: `oodbench data fetch {item.name}` says where"
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
        "addresses": [item.form] if item.form else [download.url for download in item.downloads],
    }


def _sum(sizes: list[int | None]) -> int | None:
    """None where one is not known, or there is none."""
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"


def _remedy(item: catalogue.Item, root: Path) -> str:
    if item.form:
        return f"`oodbench data fetch {item.name}` says how to ask for it"
    if item.survey(root)[0] == "absent":
        return f"get it with `oodbench data fetch {item.name}`"
    return f"get it again with `oodbench data fetch {item.name} --force`"


def _faults(item: catalogue.Item, root: Path) -> Iterator[str]:
    """What is wrong with a set or weights, a line each: in its files, then in what its reader makes of them."""
    if item.survey(root)[0] == "absent":
        yield f"not there: nothing of it below {root.absolute()}"
        return
    clean = True
    for fault in faults_of(item.pieces, root):
        clean = False
        yield fault
    if clean:
        yield from _unreadable_weights(item, root) if item.family == "weights" else _unreadable_sets(item, root)


def _unreadable_sets(item: catalogue.Item, root: Path) -> Iterator[str]:
    """Read each split, in each of its parts, as a run would; of image files the names, for they were decoded before."""
    from oodbench.datasets.load import as_loaded
    from oodbench.datasets.name import parse

    optional = {split for download in item.downloads if download.optional for split in download.splits}
    splits = {piece.split for piece in item.pieces} - {""} or item.images.keys() - optional or {"test"}
    for name in item.parts or (item.name,):
        for split in sorted(splits):
            try:
                count = len(as_loaded(parse(name), root, split))
            except OodbenchError as error:
                yield reason(error)
                continue
            wanted = item.images.get(split, count)
            if count != wanted and not item.about:
                yield f"{name} ({split}) has {count:,} images as read, and the official set {wanted:,}"


def _unreadable_weights(item: catalogue.Item, root: Path) -> Iterator[str]:
    from oodbench.models import weights

    try:
        weights.read(next(path for path in weights.places(item.name, root) if path.is_file()))
    except OodbenchError as error:
        yield reason(error)


class Transfers(Progress):
    """Bytes of one file at a time; ``stage`` begins the next. Lines now and then, for logs and pipes."""

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
        """A line of the result, on standard output."""
        print(one_line(line), flush=True)


@contextmanager
def transfers() -> Iterator[Transfers]:
    """A live bar where standard error is a terminal, lines where it is not."""
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
        TextColumn("· still"),
        TimeRemainingColumn(),
    )
    # Redirected, standard output would come out on standard error: right on one terminal, wrong where it is a pipe.
    redirect, console = sys.stdout.isatty(), Console(stderr=True)
    with RichProgress(*columns, console=console, transient=True, expand=True, redirect_stdout=redirect) as live:
        task = live.add_task("", total=None)

        class Live(Transfers):
            def stage(self, title: str) -> None:
                super().stage(title)
                live.reset(task, total=None, description=escape(title))

            def expect(self, units: float) -> None:
                super().expect(units)
                live.update(task, total=self._size)

            def advance(self, units: float) -> None:
                self._done += units
                live.update(task, completed=self._done)

            def say(self, line: str) -> None:
                live.console.print(escape(one_line(line)), highlight=False, soft_wrap=True)

        yield Live()
