"""``oodbench score``: scores and verdicts for image files."""

import csv
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from oodbench.commands.common import (
    Data,
    Debug,
    Device,
    Plugins,
    WeightsKey,
    add_plugins,
    check_device,
    find_in_working_folder,
    only_results,
    print_json,
)
from oodbench.errors import MissingData, UsageError

if TYPE_CHECKING:
    from oodbench.inference.score_files import Row

Format = Literal["table", "csv", "json"]


def score(
    file: Annotated[Path, typer.Argument(help="File written by `oodbench fit`.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Image files, or folders of image files.")],
    format: Annotated[Format, typer.Option(help="Output format; `json` writes one object per line.")] = "table",
    threshold: Annotated[float | None, typer.Option(help="Flag scores above this threshold instead of the file's.")] = None,
    false_alarms: Annotated[
        float | None, typer.Option(help="Flag at most this share of new in-distribution images instead of the file's.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights file of the model, if it has moved.")] = None,
    weights_key: WeightsKey = None,
    trust_model: Annotated[
        bool,
        typer.Option("--trust-model", help="Import the model `module:function` that the file names; accept large images."),
    ] = False,
    data: Data = [],  # noqa: B006
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 128,
    plugin: Plugins = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Print path, score and verdict (`ok` or `anomalous`) of each image. Exits with 1 if an image cannot be read."""
    check_device(device)
    if threshold is not None and false_alarms is not None:
        raise UsageError("--threshold and --false-alarms both set the threshold; give one of them")
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold is {threshold:g}; give a finite number")
    if false_alarms is not None and not 0 < false_alarms < 1:
        raise UsageError(f"--false-alarms is {false_alarms:g}; give a share between 0 and 1, such as 0.05")
    if not file.exists():
        raise MissingData(f"no such file: {file}; make one with oodbench fit")
    find_in_working_folder(*plugin, ":" if trust_model else "")
    add_plugins(plugin)
    from oodbench.inference.fitted import load_fitted
    from oodbench.inference.score_files import ANOMALOUS, score_files

    unreadable = anomalous = count = 0

    def counted() -> Iterable["Row"]:
        nonlocal unreadable, anomalous, count
        for row in score_files(fitted, images, batch_size):
            count += 1
            unreadable += row.score is None
            anomalous += row.verdict == ANOMALOUS
            yield row

    with only_results() as output:
        fitted = load_fitted(
            file,
            weights=weights,
            weights_key=weights_key,
            data=data,
            device=device,
            batch_size=batch_size,
            trust_model=trust_model,
        )
        if threshold is not None:
            fitted = fitted.with_threshold(threshold)
        elif false_alarms is not None:
            fitted = fitted.with_false_alarms(false_alarms)
        _print_rows(counted(), format, output)
    scored = count - unreadable
    note = f"{anomalous:,} of {scored:,} scored images: anomalous (score above {fitted.threshold:.6g})"
    print(note + (f"; {unreadable:,} cannot be read" if unreadable else ""), file=sys.stderr)
    if unreadable:
        raise typer.Exit(1)


def _print_rows(rows: Iterable["Row"], format: Format, output: TextIO) -> None:
    """Print only rows; csv and json are written row by row."""
    if format == "json":
        for row in rows:
            print_json(json.dumps(row._asdict(), ensure_ascii=False, allow_nan=False), output)
    elif format == "csv":
        from oodbench.leaderboard import escape

        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(["path", "score", "verdict", "reason"])
        for row in rows:
            score = "" if row.score is None else row.score
            writer.writerow([escape.spreadsheet(row.path), score, row.verdict or "", escape.spreadsheet(row.reason)])
            output.flush()
    else:
        from tabulate import tabulate

        table = [[row.path, "–" if row.score is None else f"{row.score:.6g}", row.verdict or f"– {row.reason}"] for row in rows]
        print(tabulate(table, ["path", "score", "verdict"], "simple", disable_numparse=True), file=output)
