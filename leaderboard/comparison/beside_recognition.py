"""The plug-in table: accuracy under corruption beside what papers published, and ECE.

One row per network and source of class probabilities. Temperature scaling, which changes no prediction, stands beside each as
the baseline of calibration: it has no published figures.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from oodbench.errors import UsageError
from oodbench.leaderboard import escape
from oodbench.leaderboard.formats import cells_as, writer
from oodbench.leaderboard.notes import Note
from oodbench.leaderboard.published import Recognition
from oodbench.leaderboard.recognition import means
from oodbench.leaderboard.text_table import Column, TextTable
from oodbench.results.records import scaled

COLUMNS = (
    "model", "in_distribution", "source", "metric", "measured", "published", "difference", "paper", "status", "reason",
    "stands_in", "ece",
)  # fmt: skip
NOT_RUN = "not run"
MEAN = ("mean", "corruption")
CORRUPTIONS = 15, 19  # of CIFAR-10-C: the main ones, and all


def beside_recognition(frame: pd.DataFrame, figures: Sequence[Recognition]) -> pd.DataFrame:
    """The mean accuracy over corruptions of each network of ``frame`` (records of recognition) beside published figures.

    One row per network and source, in ``COLUMNS``, one for each after temperature scaling without a published figure, and one
    with the status ``not run`` for each published figure that no network of the runs stands for. A network that was trained in
    another way than the paper's does not stand for it. Raises UsageError where none does.
    """
    judged = frame[(frame["status"] == "ok") & (frame["kind"] == "corruption")]
    rows: list[dict[str, Any]] = []
    for figure in figures:
        known = figure.paper.in_distributions.get("cifar-10", ())
        each: Any = judged.groupby(["model", "in_distribution"], sort=False)
        matching = [
            ((model, inside), of)
            for (model, inside), of in each
            if inside in known and any(_stands_for(model, name) for name in figure.models)
        ]
        about: dict[str, Any] = {"metric": "accuracy", "paper": figure.paper.source}
        for (model, inside), of in matching:
            found = {metric: means(of, metric)[MEAN].dropna() for metric in ("accuracy", "ece")}
            own = {"model": model, "in_distribution": inside, "stands_in": "; ".join(_stand_ins(model, figure, of))}
            for source in (figure.source, scaled(figure.source)):
                there, published = source in found["accuracy"].index, figure.accuracy if source == figure.source else math.nan
                measured, ece = (float(values.get(source, math.nan)) for values in found.values())
                if there or source == figure.source:
                    rows.append(
                        about
                        | own
                        | {"source": source, "measured": measured, "published": published, "ece": ece}
                        | {"difference": measured - published, "status": "ok" if there else NOT_RUN}
                        | {"reason": "" if there else f"{source} was not run"}
                    )
        if not matching:
            about |= {"source": figure.source, "published": figure.accuracy, "stands_in": ""}
            rows.append(about | {"model": figure.model, "status": NOT_RUN, "reason": "no run of this network"})
    if all(row["status"] == NOT_RUN for row in rows):
        raise UsageError(
            "no published accuracy belongs to these runs; the suites introspective-plugin and introspective-recognition have"
            " some, for ResNets on cifar10"
        )
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def render_beside_recognition(
    rows: pd.DataFrame, figures: Sequence[Recognition], format: str = "table", *, width: int | None = 160
) -> str:
    """The rows of ``beside_recognition`` as text, in the formats of leaderboards. Raises UsageError for an unknown one."""
    if format in ("csv", "json"):
        return cells_as(format, rows, list(COLUMNS))
    paper, shown = figures[0].paper, rows[rows["status"] == "ok"]
    place = {model: number for number, model in enumerate(shown["model"].unique())}
    shown = shown.sort_values("model", key=lambda of: of.map(place), kind="stable")  # sources of one network side by side
    texts = {
        name: ["–" if pd.isna(value) else f"{100 * value:{sign}.1f}" for value in shown[name.lower()]]
        for name, sign in (("measured", ""), ("published", ""), ("difference", "+z"), ("ECE", ""))
    }
    labels = {"model": shown["model"].tolist(), "source": shown["source"].tolist()}
    notes: list[Note | str] = [*_told_once(dict(shown[["model", "stands_in"]].values))]
    for reason, of in rows[rows["status"] == NOT_RUN].groupby("reason", sort=False):
        notes.append(f"not run ({', '.join(dict.fromkeys(of['model']))}): {reason}")
    table = TextTable(
        title=f"Accuracy under corruption beside {paper.source}",
        caption="Accuracy ×100 (higher is better), the mean over corruptions: measured, published, and measured minus"
        " published. ECE ×100 is measured (lower is better).",
        labels=[Column("", (name,), list(map(escape.plain, of)), is_label=True) for name, of in labels.items()],
        sets=[Column("", (name,), of) for name, of in texts.items()],
        summary=[],
        breaks=[],
        notes=[*map(escape.plain, map(str, notes)), *([paper.remark] if paper.remark else [])],
    )
    return writer(format, width)(table)


def _told_once(stand_ins: Mapping[str, str]) -> list[str]:
    """What stands in, by network, and once what is the same for all of them."""
    each = {model: words.split("; ") for model, words in stand_ins.items()}
    first = next(iter(each.values()), [])
    shared = [word for word in first if len(each) > 1 and all(word in words for words in each.values())]
    own = {model: [word for word in words if word not in shared] for model, words in each.items()}
    notes = [f"{model}: {'; '.join(words)}" for model, words in own.items() if words]
    return [*notes, f"all networks: {'; '.join(shared)}"] if shared else notes


def _stands_for(model: str, pattern: str) -> bool:
    """Whether a network has a name of this pattern. ``resnet*`` does not match ``resnet18 (augmix)``, trained otherwise."""
    return fnmatchcase(model, pattern) and ("(" in model) == ("(" in pattern)


def _stand_ins(model: str, figure: Recognition, cells: pd.DataFrame) -> list[str]:
    """In words, what stands in for the paper's network and corruptions."""
    names = [str(name) for name in cells["dataset"].unique()]
    generated = sum("+" in name for name in names)
    found = [f"{model} for {figure.model}"] if model != figure.models[0] else []
    if len(names) not in CORRUPTIONS:
        found.append(f"{len(names)} of {CORRUPTIONS[1]} corruptions")
    if generated:
        found.append(f"{generated} of them generated, not the files of CIFAR-10-C")
    return [*found, f"{int(cells['n'].max()):,} images each"]
