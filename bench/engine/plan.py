"""What a run would do, without doing it: ``oodbench run --dry-run``."""

from collections.abc import Sequence
from pathlib import Path

from oodbench.datasets.name import parse
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.engine.network import NO_NETWORK, load_network
from oodbench.engine.precision import announced
from oodbench.engine.space import expected_bytes
from oodbench.errors import OodbenchError, UsageError, counted, one_line, reason
from oodbench.models import imports_code
from oodbench.paths import DataRoots, size
from oodbench.progress import Progress
from oodbench.protocols import validation_size
from oodbench.suite import Suite


def default_folder(suite: Suite) -> Path:
    """``runs/<suite>``."""
    return Path("runs") / (suite.name or "suite")


def plan(
    suite: Suite,
    *,
    data: DataRoots = None,
    out: str | Path | None = None,
    limit: int | None = None,
    fails: Sequence[str] = (),
) -> list[str]:
    """What ``run`` would do, line by line: the network and the sets are read, but nothing is computed or written.

    A network ``module:function`` is not imported, so the transform that it states is not known. ``fails``: why the run would
    fail, as far as the caller knows; why the network cannot be loaded is added. Raises UsageError as ``run``.
    """
    network = NO_NETWORK
    try:
        if not imports_code(suite.model or ""):
            network = load_network(suite, suite.weights, network.device, data)
    except UsageError:
        raise
    except OodbenchError as error:
        fails = [*fails, reason(error)]
    loaded = LoadedSuite(suite, Progress(), data=data, limit=limit, network=network)
    loaded.load_test_sets(Progress())
    training = "not there" if loaded.train is None else counted(len(loaded.train), "image")
    lines = [
        f"{suite.name}: {suite.title}" if suite.title else suite.name,
        f"model     {suite.model or 'none'}",
        *(f"fails     {why}" for why in fails),
        f"folder    {out or default_folder(suite)}",
        f"fit on    {suite.in_distribution} ({suite.train_split}), {training}",
        f"inside    {suite.in_distribution} ({suite.test_split}), {counted(len(loaded.in_distribution), 'image')}",
        f"size      {loaded.transform}",
        f"disk      about {size(expected_bytes(loaded))}",
    ]
    if loaded.validation is not None:
        count = counted(len(loaded.validation), "image")
        lines.insert(-3, f"calibrate {suite.in_distribution} ({suite.test_split}), {count} set apart")
    fitting = Fitting(loaded, Progress())
    unsuited = fitting.broken.keys() - loaded.broken.keys()
    lines += [f"memory    {memory}"] if (memory := fitting.expected_memory()) else []
    failing = {name: error for name, error in fitting.broken.items() if name not in unsuited}
    lines += [f"precision {announced(loaded)}"] if loaded.precision else []
    skipped = [reason(one.error) if one.error else "" for one in loaded.test_sets]
    for place, (test_set, why) in enumerate(zip(loaded.test_sets, skipped, strict=True)):
        if why and why in skipped[:place]:
            continue
        others = f" and {counted(skipped.count(why) - 1, 'other')}" if why and skipped.count(why) > 1 else ""
        found = f"skipped: {why}" if why else counted(len(test_set.images or ()), "image")
        if parse(test_set.name).attack and not why:
            found += f", to be attacked against {suite.model}" if suite.model else ", skipped: there is no network to attack"
        lines.append(f"outside   {test_set.name} ({test_set.kind}){others}, {found}")
    if loaded.source is not None:
        lines.append(f"transfer  learns from {loaded.source.name}")
    if loaded.choosing is not None:
        inside, outside = (f"{counted(len(images), 'image')} of {images.name} ({images.split})" for images in loaded.choosing)
        if loaded.choosing.in_distribution is loaded.in_distribution:  # whose other images are tested
            inside = f"{validation_size(len(loaded.in_distribution), suite.learnt_share):,} of the {inside}"
        lines.append(f"validate  chooses hyper-parameters on {outside} against {inside}")
    for name in suite.detectors:
        broken = f", fails: {reason(failing[name])}" if name in failing else ""
        if loaded.untrained and not broken and loaded.learns_from_training(loaded.detectors[name]):
            broken = ", skipped: it learns from training images"
        protocols_of: dict[str, list[str]] = {}
        for row in loaded.rows_of(name):
            protocols_of.setdefault(row.name, []).append(row.protocol)
        lines += [f"detector  {row}: {', '.join(some)}{broken}" for row, some in protocols_of.items()]
        lines += [] if protocols_of else [f"detector  {name}: {no_row(suite)}"]
    lines.append(counted(sum(len(loaded.rows(test_set)) for test_set in loaded.test_sets), "cell"))
    return [one_line(line) for line in lines]


def no_row(suite: Suite) -> str:
    """Why a detector has no row."""
    asked = " or ".join(suite.protocols)
    having = "with hyper-parameters to choose" if suite.protocols == ["validation"] else "that learn from a shift"
    return f"no row under {asked}, where only detectors {having} have one; add --protocol unsupervised"
