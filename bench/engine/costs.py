"""Estimates the time of a run before its first set, and measures what each detector costs by itself at the end."""

from collections.abc import Sequence

import numpy as np

from oodbench import passes, protocols
from oodbench.batching import batches
from oodbench.engine import timing
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite, LoadedTestSet, Row
from oodbench.engine.statistics_cache import merged
from oodbench.errors import counted
from oodbench.progress import Progress
from oodbench.results.folder import RunFolder
from oodbench.results.records import cost_key

Work = Sequence[tuple[LoadedTestSet, list[Row]]]  # sets that are there, and the rows that are missing on each


def expect(loaded: LoadedSuite, work: Work, progress: Progress) -> None:
    """Tell the progress bar how much work these sets are, fitting and calibrating included."""
    sizes = [len(test_set.images or ()) for test_set, _ in work]
    if not sizes:
        return
    detectors = loaded.detectors.values()
    alone = {d: [d.setting] for d in detectors}
    grids = {d: d.shift_settings for d in detectors if d.shift_head} if loaded.learns else {}
    test, validation = (passes.pass_equivalents(jobs, loaded.classifier) for jobs in (alone, merged(alone, grids)))
    progress.expect(len(loaded.train or ()) + sum(map(len, loaded.choosing or ())) * validation)
    for size in [len(loaded.in_distribution), *sizes]:
        learnt = protocols.validation_size(size, loaded.suite.learnt_share)
        progress.expect(learnt * validation + (size - learnt) * test)


def say_estimate(fitting: Fitting, work: Work, progress: Progress) -> None:
    """One line with the expected time of these sets, the slowest detectors first."""
    loaded = fitting.loaded
    classifier = None if loaded.unsuitable else loaded.classifier
    first = np.arange(min(loaded.batch_size, len(loaded.in_distribution)))
    (_, images), *_ = batches(loaded.in_distribution, classifier, [first])
    detectors = fitting.sound({row.detector for _, rows in work for row in rows})
    learning = {row.detector for _, rows in work for row in rows if row.protocol != "unsupervised"}
    own, grids = {d: [d.setting] for d in detectors}, {d: d.shift_settings for d in detectors if d.name in learning}
    bare, alone = timing.seconds_per_image(own, classifier, images, loaded.guard)
    _, grid = timing.seconds_per_image(grids, classifier, images, loaded.guard)
    seconds = {"the network": 0.0} | dict.fromkeys((d.name for d in alone), 0.0)
    for test_set, rows in work:
        size = len(test_set.images or ())
        seconds["the network"] += size * bare
        for detector in alone:
            asked = {row.protocol for row in rows if row.detector == detector.name}
            # Each protocol may choose a setting of its own; without a grid they share one.
            settings = len(asked) if detector.chooses_setting else min(1, len(asked))
            seconds[detector.name] += settings * size * alone[detector]
            if "per-shift" in asked and detector in grid:
                learnt = protocols.validation_size(size, loaded.suite.learnt_share)
                seconds[detector.name] += learnt * (grid[detector] - alone[detector])
    choosing = {row.detector for _, rows in work for row in rows if row.protocol == "validation"}
    for detector in alone.keys() & grid.keys():
        if detector.name in choosing:
            seconds[detector.name] += sum(map(len, loaded.choosing or ())) * grid[detector]
    if alone:
        progress.say(f"{counted(len(work), 'set')} will take about {timing.format_breakdown(seconds)}")


def measure(folder: RunFolder, fitting: Fitting, progress: Progress) -> None:
    """Measure the standalone cost of every detector and setting among the records that costs.json lacks."""
    costs = folder.costs()
    loaded = fitting.loaded
    wanted: dict[str, timing.Job] = {}
    for record in folder.records():
        key = cost_key(record.detector, record.parameters, record.setting)
        if record.status == "ok" and key not in costs and record.detector in loaded.detectors:
            wanted[key] = timing.Job(loaded.detectors[record.detector], record.setting or {})
    fitting.fit({job.detector.name for job in wanted.values()})
    jobs = {key: job for key, job in wanted.items() if job.detector.name not in fitting.broken}
    if not jobs:
        return
    progress.stage("measuring the standalone cost of each detector")
    progress.expect(timing.REPEATS * timing.BATCH_SIZE)
    rows = np.resize(np.arange(len(loaded.in_distribution)), timing.BATCH_SIZE)
    (_, images), *_ = batches(loaded.in_distribution, loaded.classifier, [rows])
    measured = timing.standalone_costs(
        jobs,
        None if loaded.unsuitable else loaded.classifier,
        images,
        guard=loaded.guard,
        on_step=lambda: progress.advance(timing.BATCH_SIZE),
        on_error=lambda detector, error: progress.fail(f"{detector.name}: no cost is reported", error),
    )
    folder.write_costs(costs | measured)
