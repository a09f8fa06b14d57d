"""The Python interface of whole runs: ``oodbench.run`` and what it returns."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.engine import run as engine
from oodbench.leaderboard import COLUMNS
from oodbench.leaderboard.frame import frame_of
from oodbench.paths import DataRoots, sweep_cache
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, chosen_suite

if TYPE_CHECKING:
    import pandas as pd


class Results(RunFolder):
    """The run folder of a finished run, with its results as a DataFrame.

    Where costs.json is damaged, costs are left out with a warning.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, lambda why: warnings.warn(why, stacklevel=5))  # the line that asks for the frame

    def frame(self) -> "pd.DataFrame":
        """One row per record, in the columns of ``oodbench.leaderboard.COLUMNS``.

        Raises BadData if run.json is damaged or missing: the settings of the records are not known then.
        """
        self.manifest()
        return frame_of(self)[list(COLUMNS)]


def run(
    suite: str | Path | Suite | None = None,
    *,
    in_distribution: str | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    detectors: str | Sequence[str] | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    datasets: str | Sequence[str] | None = None,
    protocols: str | Sequence[str] | None = None,
    data: DataRoots = None,
    out: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    size: int | None = None,
    workers: int = 0,
    seed: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    measure_costs: bool = True,
    progress: Progress | None = None,
    weights_key: str | None = None,
    trust_model: bool = False,
    cell_timeout: float | None = None,
) -> Results:
    """Run a suite and return its results: ``.frame()`` is a DataFrame with one row per record, ``.path`` the run folder.

    Args:
        suite: the name of a suite in the package, a TOML file, or a ``Suite``; by default ``digits``.
        in_distribution: in place of a suite, the set that ``model`` knows, to test against ``datasets`` with all detectors
            or those in ``detectors``. The run is named after it.
        model, detectors, datasets, protocols, seed, batch_size, size: replace what the suite says. One name or several; the
            detector ``all`` stands for every detector. ``size`` is in pixels per side.
        weights: the model's weights file; by default the one under the data root.
        weights_key: which part of a weights file to read that holds several, as in ``load_model``.
        parameters: hyper-parameters by detector, ``{"knn": {"k": 10}}``.
        data: the data root, or several that are searched in order; by default ``$OODBENCH_DATA`` or the user's cache folder.
        out: the run folder, by default ``runs/<name of the suite>``. An existing run is resumed; ``fresh`` starts over.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: number of processes that decode sets of 5,000 files or more, and sets too large for memory.
        limit: limit each test set to this many images, drawn by a seeded stratified shuffle. Training sets stay whole.
        trust_model: whether a suite file outside the working folder may name a model ``module:function``, which is imported.
        measure_costs: estimate the run time before the first set, and measure each detector's standalone cost at the end.
        cell_timeout: seconds that one call of a detector, data set or network may take, such as for one batch; one that
            takes longer fails. None: no limit.

    Raises UsageError for unknown names and for what ``in_distribution`` lacks, and MissingData if the in-distribution set or
    the weights are missing.
    """
    chosen = chosen_suite(
        suite,
        in_distribution,
        model=model,
        datasets=datasets,
        detectors=detectors,
        trust_model=trust_model or model is not None,
    ).override(
        model=model,
        detectors=detectors,
        parameters=parameters,
        datasets=datasets,
        protocols=protocols,
        seed=seed,
        batch_size=batch_size,
        size=size,
    )
    sweep_cache()
    folder = engine.run(
        chosen,
        weights=weights,
        weights_key=weights_key,
        data=data,
        out=out,
        device=device,
        workers=workers,
        limit=limit,
        fresh=fresh,
        measure_costs=measure_costs,
        progress=progress,
        cell_timeout=cell_timeout,
    )
    return Results(folder.path)
