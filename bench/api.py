"""The Python interface of whole runs: ``oodbench.run``, ``oodbench.open_run`` and what they return."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from oodbench.engine.study import run_study
from oodbench.engine.tasks import TAKES, run_task
from oodbench.errors import UsageError
from oodbench.leaderboard import COLUMNS, plots, select
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.frame import frames_of
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.plots.stored import StoredScores
from oodbench.leaderboard.protocol_table import COLUMNS as PROTOCOL_COLUMNS
from oodbench.leaderboard.protocol_table import protocol_rows, render_protocols
from oodbench.leaderboard.recognition import COLUMNS as RECOGNITION
from oodbench.leaderboard.recognition import gather_recognition, recognition_frames, render_recognition
from oodbench.leaderboard.tasks import TABLES, render_task, task_of
from oodbench.paths import STUDY, DataRoots, is_study, require_run_folder, sweep_cache
from oodbench.progress import Progress, shown_in_notebooks
from oodbench.registry import unknown
from oodbench.results.bundle import opened
from oodbench.results.folder import RunFolder
from oodbench.results.scores import scores_of
from oodbench.results.statistics import Difference, difference
from oodbench.results.study import StudyFolder, run_folders
from oodbench.suite import Suite, as_names
from oodbench.suites.load import chosen_study
from oodbench.suites.tasks import DETECTION, load_task_suite
from oodbench.suites.tasks import task_of as suite_task

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TableName = Literal["detection", "recognition", "protocols", "quality", "active-learning"]
SHOWN = 10  # rows of each protocol that a notebook shows of results, beside the controls


class Table:
    """Tables as text, ``str(table)``, and as HTML, which a notebook shows."""

    def __init__(self, text: str, html: str) -> None:
        self._text, self._html = text, html

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._html


class Shown(ABC):
    """Results of one or more run folders as a DataFrame, as tables and as pictures. In a notebook it shows the best rows."""

    path: Path

    @abstractmethod
    def _folders(self) -> list[RunFolder]:
        """The run folders. Raises BadData where one has no run.json that can be read."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def frame(self, table: TableName | None = None) -> "pd.DataFrame":
        """One row per record, in the columns of ``oodbench.leaderboard.COLUMNS``, or those of another table.

        Args:
            table: ``detection``; ``recognition``, the accuracy and calibration of class probabilities; ``protocols``, AUROC
                under each protocol on the same test samples; ``quality`` or ``active-learning``. By default the run's task.

        Raises UsageError for an unknown table, BadData if run.json, which holds the settings of the records, is damaged or
        missing.
        """
        folders = self._folders()
        name = _table(table, folders)
        if name in TABLES:
            return TABLES[name].frame(folders)
        if name == "protocols":
            return protocol_rows(gather(folders)[0], StoredScores(folders))[[*PROTOCOL_COLUMNS]]
        return recognition_frames(folders)[[*RECOGNITION]] if name == "recognition" else frames_of(folders)[list(COLUMNS)]

    def table(self, metric: str | None = None, *, top: int | None = None, table: TableName | None = None) -> Table:
        """The tables of ``oodbench leaderboard``: ``print`` shows their text, a notebook HTML.

        Args:
            metric: which figure they show, a column of ``frame()`` such as ``auroc`` (the default) or ``fpr95``; for
                recognition, ``accuracy`` (the default), ``ece``, ``nll``, ``brier`` or ``aurc``.
            top: show only this many of the best rows of each protocol, and the controls; recognition shows all rows.
            table: as of ``frame``.

        Raises UsageError for an unknown metric or table, BadData if a file of the run is damaged or run.json is missing.
        """
        folders = self._folders()
        name = _table(table, folders)
        if name in TABLES:
            options = {"metric": metric} if metric and "metric" in TABLES[name].takes else {}
            return Table(*(render_task(name, folders, format, **options) for format in ("table", "html")))
        metric = metric or ("accuracy" if name == "recognition" else "auroc")
        shown: Callable[[str], str]
        if name == "recognition":
            frame, notes = gather_recognition(folders)
            shown = partial(render_recognition, frame, metric=metric, notes=notes)
        elif name == "protocols":
            frame, notes = gather(folders)
            shown = partial(render_protocols, frame, StoredScores(folders), notes=notes)
        else:
            frame, notes = gather(folders)
            shown = partial(render, frame, metric=metric, top=top, notes=notes, scores=StoredScores(folders))
        return Table(*(shown(format) for format in ("table", "html")))

    def plot(
        self,
        kind: str = "bars",
        *,
        top: int | None = None,
        detectors: str | Sequence[str] = (),
        datasets: str | Sequence[str] = (),
        protocols: str | Sequence[str] = (),
    ) -> "Figure":
        """A picture of the results, which a notebook shows; ``.savefig("bars.pdf")`` writes it to a file.

        Args:
            kind: ``bars`` (AUROC and its interval), ``cd`` (average ranks over sets, and which differ), ``cost`` (AUROC
                against milliseconds per image), ``hist`` (the scores of one detector on each set), ``roc`` (curves on one
                set), ``severity`` (AUROC by level of a corruption), or for recognition ``reliability`` (accuracy by
                confidence, of one source on one set) or ``generalization`` (accuracy against ECE under corruptions), for
                active learning ``curve``, or for image quality ``mapping``.
            top: the best rows of each protocol that are drawn, beside the controls; by default 10, for ``cd`` and
                ``severity`` all.
            detectors: draw only these rows; ``hist`` draws the best of them.
            datasets: draw only these sets, with or without a level; ``roc`` draws the first of them.
            protocols: draw only these protocols.

        Returns a matplotlib Figure. Raises UsageError for a name that the run does not hold, BadData where the run lacks what
        the picture shows, such as costs.
        """
        folders = self._folders()
        if kind in plots.TASKS:
            from oodbench.leaderboard.plots import tasks

            return tasks.figure(kind, folders)
        if kind in plots.RECOGNITION:
            from oodbench.leaderboard.plots import recognition

            return recognition.figure(kind, gather_recognition(folders, sources=detectors, datasets=datasets)[0], folders)
        keep = partial(select, detectors=detectors, datasets=datasets, protocols=protocols)
        frame, _ = gather(folders, keep=keep)
        return plots.figure(kind, frame, StoredScores(folders), top)

    def _repr_html_(self) -> str:
        return self.table(top=SHOWN)._repr_html_()


class Results(Shown, RunFolder):
    """The run folder of a run: its results as a DataFrame, as tables, as pictures, and the scores behind them.

    In a notebook it shows the best rows. Where costs.json is damaged, costs are left out with a warning.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _warn)

    def _folders(self) -> list[RunFolder]:
        self.manifest()
        return [self]

    def scores(self, detector: str, dataset: str, protocol: str = "unsupervised") -> "pd.DataFrame":
        """The scores of one detector on one set, one row per tested image.

        Args:
            detector: a row of the table, such as ``knn`` or, for a variant, ``gradcon:recon``.
            dataset: the set with its level, such as ``photos`` or ``digits+noise@3``.
            protocol: ``unsupervised``, ``per-shift``, ``transfer`` or ``validation``.

        Returns a frame whose index is ``side`` (``in`` or ``out``) and ``row`` (int64, the image's row in the set of that
        side). It is the same for all detectors of a run on that set under that protocol, so scores pair by it. The
        columns are ``score`` (float64, higher is more anomalous) and ``image`` (int64, equal for rows that are one image:
        made from the same one, or with equal pixels).

        Raises UsageError for a name that the run does not hold, BadData where there are no scores, and why.
        """
        return scores_of(self, detector, dataset, protocol)

    def difference(self, first: str, second: str, dataset: str, protocol: str = "unsupervised") -> Difference:
        """AUROC of one detector minus that of another on the images that both scored, with its 95 % interval and a p value.

        The test is DeLong's paired test (1988); images that were made from one image, or have equal pixels, count as one
        cluster (Obuchowski 1997). Arguments and errors as of ``scores``; also BadData for fewer than two images on a side.
        """
        one, other = (self.scores(name, dataset, protocol) for name in (first, second))
        both = one.join(other["score"].rename("other"), how="inner")
        inside, outside = both.loc["in"], both.loc["out"]
        images = None if both["image"].is_unique else (inside["image"], outside["image"])
        return difference((inside["score"], outside["score"]), (inside["other"], outside["other"]), images)


class StudyResults(Shown, StudyFolder):
    """The folder of a study: figures are means over its checkpoints and seeds, ± their standard deviation.

    ``results`` holds one ``Results`` per run that has started, by the name of its folder.
    """

    @property
    def results(self) -> dict[str, Results]:
        """The results of each run, by the name of its folder, for what one run has: ``scores`` and ``difference``."""
        return {folder.path.name: open_run(folder.path) for folder in run_folders(self.path)}

    def _folders(self) -> list[RunFolder]:
        return run_folders(self.path, _warn)


def open_run(path: str | Path) -> Results:
    """The results of an existing run, without running anything. A bundle is verified first.

    Raises UsageError where the folder is not a run folder, BadData where its run.json is damaged or missing, and for a bundle
    that is damaged or does not verify.
    """
    results = Results(opened(Path(path)))
    require_run_folder(results.path)
    results.manifest()
    return results


def open_study(path: str | Path) -> StudyResults:
    """The results of an existing study, without running anything. A bundle is verified first.

    Raises UsageError where the folder is not that of a study, BadData where its study.json is damaged, and for a bundle that
    is damaged or does not verify.
    """
    results = StudyResults(opened(Path(path)))
    if not is_study(results.path):
        raise UsageError(f"{path} is not a study (it has no {STUDY}); name one that `oodbench run` wrote, or use open_run")
    results.manifest()
    return results


def require_table(name: str) -> None:
    """Raise UsageError for an unknown table."""
    if name not in get_args(TableName):
        raise UsageError(unknown("table", name, get_args(TableName), f"known: {', '.join(get_args(TableName))}"))


def _table(name: str | None, folders: Sequence[RunFolder]) -> str:
    """The table of this name, or that of the runs' task. Raises UsageError for an unknown one."""
    if name is not None:
        require_table(name)
    return name or task_of(folders)


def _warn(why: str) -> None:
    """Warn at the line that asked for what is left out, however deep in oodbench that was found."""
    depth, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "oodbench":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(why, stacklevel=depth)


@shown_in_notebooks
def run(
    suite: str | Path | Suite | None = None,
    *,
    in_distribution: str | None = None,
    model: str | Sequence[str] | None = None,
    weights: str | Path | Sequence[str | Path] | None = None,
    detectors: str | Sequence[str] | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    datasets: str | Sequence[str] | None = None,
    protocols: str | Sequence[str] | None = None,
    data: DataRoots = None,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    precision: str | None = None,
    size: int | None = None,
    resize: str | None = None,
    shorter_side: int | None = None,
    workers: int = 0,
    cache_images: bool = False,
    seed: int | Sequence[int] | None = None,
    limit: int | None = None,
    fresh: bool = False,
    measure_costs: bool = True,
    progress: Progress | None = None,
    weights_key: str | None = None,
    trust_model: bool = False,
    cell_timeout: float | None = None,
    layers: str | Sequence[str] | None = None,
    executor: str = "local",
    fit_images: int | None = None,
    metrics: str | Sequence[str] | None = None,
    strategies: str | Sequence[str] | None = None,
) -> Results | StudyResults:
    """Run a suite and return its results: ``.frame()`` is a DataFrame with one row per record, ``.path`` the run folder.

    With several models, weights or seeds, or a suite that lists several, it runs a study: one run for each combination. It
    then returns ``StudyResults``, whose tables show means and standard deviations.

    Args:
        suite: the name of a suite in the package, a TOML file, or a ``Suite``; by default ``digits``.
        in_distribution: in place of a suite, the set that ``model`` knows, to test against ``datasets`` with all detectors
            or those in ``detectors``. The run is named after it.
        model: the network, or several, in place of the suite's.
        detectors: detectors in place of the suite's; ``all`` stands for every detector.
        datasets: test sets in place of the suite's.
        protocols: protocols in place of the suite's.
        seed: the seed, or several, in place of the suite's.
        batch_size: images per batch, in place of the suite's.
        precision: ``bf16`` or ``fp16`` for the forward passes of detectors that need no gradients, in place of the suite's; how
            far it moves AUROC is measured.
        size: pixels per side, in place of what the suite or the network says.
        resize: the filter, likewise; see ``oodbench.datasets.transform.Transform``.
        shorter_side: pixels of the shorter side before the middle is cropped, likewise.
        weights: the model's weights file, or several checkpoints; by default the one under the data root.
        weights_key: which part of a weights file to read that holds several, as in ``load_model``.
        parameters: hyper-parameters by detector, ``{"knn": {"k": 10}}``.
        data: the data root, or several that are searched in order; by default ``$OODBENCH_DATA`` or the user's cache folder.
        out: the run folder, by default ``runs/<name of the suite>``. An existing run is resumed; ``fresh`` starts over.
        device: ``auto``, ``cpu``, or an accelerator, as PyTorch names it: ``cuda``, ``cuda:1``, ``mps``, ``xpu``, ….
        workers: number of processes that decode sets of 5,000 files or more, and sets too large for memory.
        cache_images: whether to keep the decoded and resized images of sets of files in the cache folder, for later runs.
        limit: limit each test set to this many images, drawn by a seeded stratified shuffle. Training sets stay whole.
        trust_model: whether a suite file outside the working folder may name a model ``module:function``, which is imported.
        measure_costs: estimate the run time before the first set, and measure each detector's standalone cost at the end.
        progress: what is told how far the run is; by default a line that is kept up to date in a notebook, and nothing
            elsewhere. ``oodbench.progress.Lines()`` prints a line per stage.
        cell_timeout: seconds that one call of a detector, data set or network may take, such as for one batch; one that
            takes longer fails. None: no limit.
        layers: the modules of the network that layered detectors read, as in ``load_model``, in place of the suite's.
        executor: what computes the statistics: ``local``, this process; ``processes:4``, worker processes on this machine;
            ``ray``, a Ray cluster, or ``ray:gpus=0.5`` to share each of its GPUs between two tasks.
        fit_images: number of training images that detectors learn from, drawn by the seed, in place of the suite's.
        metrics: in a suite of image quality, metrics in place of its own.
        strategies: in a suite of active learning, strategies in place of its own.

    A suite of another task than detection takes what it has a key for, and ``data``, ``out``, ``limit``, ``fresh``,
    ``progress``, ``cell_timeout`` and, where it trains networks, ``device``.

    Raises UsageError for unknown names and for what ``in_distribution`` lacks, and MissingData if the in-distribution set or
    the weights are missing.
    """
    if isinstance(suite, str | Path) and in_distribution is None and suite_task(suite) != DETECTION:
        given: dict[str, Any] = {"--model": as_names(model or ()), "--metric": as_names(metrics or ()), "--seed": seed}
        given |= {"--strategy": as_names(strategies or ()), "--dataset": as_names(datasets or ()), "--param": parameters}
        given |= {"--detector": detectors, "--protocol": protocols, "--weights": weights, "--batch-size": batch_size}
        options: dict[str, Any] = {"data": data, "limit": limit, "fresh": fresh, "cell_timeout": cell_timeout}
        chosen = load_task_suite(suite, trust_model=trust_model or model is not None).override(given)
        options |= {"device": device} if "device" in TAKES[chosen.task] else {}
        path = run_task(chosen, out=out, progress=progress, **options)
        return StudyResults(path) if is_study(path) else Results(path)
    files = [weights] if isinstance(weights, str | Path) else weights or ()
    study = chosen_study(
        suite,
        in_distribution,
        models=as_names(model or ()),
        weights=list(map(str, files)),
        seeds=[seed] if isinstance(seed, int) else seed or (),
        datasets=datasets,
        detectors=detectors,
        trust_model=trust_model or model is not None,
    ).override(
        detectors=detectors,
        parameters=parameters,
        datasets=datasets,
        protocols=protocols,
        batch_size=batch_size,
        precision=precision,
        size=size,
        resize=resize,
        shorter_side=shorter_side,
        layers=layers,
        fit_images=fit_images,
    )
    sweep_cache()
    path = run_study(
        study,
        weights_key=weights_key,
        data=data,
        out=out,
        device=device,
        workers=workers,
        cache_images=cache_images,
        limit=limit,
        fresh=fresh,
        measure_costs=measure_costs,
        progress=progress,
        cell_timeout=cell_timeout,
        executor=executor,
    )
    return StudyResults(path) if is_study(path) else Results(path)
