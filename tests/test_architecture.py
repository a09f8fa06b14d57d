"""The shape of the code: which module may import which, and how large files and packages may grow."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "bench": "oodbench",
    "detectors": "oodbench.detectors",
    "datasets": "oodbench.datasets",
    "leaderboard": "oodbench.leaderboard",
}

# From the ground up. A module imports from its own floor and those below. A package stands for all in it that no other line
# names. The plug-in tables (``oodbench.detectors`` and the like) import the registry alone.
FLOORS = (
    # What everything may use.
    (
        "detectors._parameters",
        "errors",
        "hyperparameters",
        "models.device",
        "models.exact",
        "models.stopwatch",
        "paths",
        "progress",
        "random_numbers",
        "registry",
        "state",
    ),
    ("models.published", "results.facts", "results.provenance"),
    # The grammar of names, and the tables of names.
    (
        "datasets.name",
        "datasets.transform",
        "datasets.formats.digests",
        "datasets",
        "datasets.quality",
        "detectors",
        "models",
        "quality_metrics",
        "strategies",
        "suite",
        "suites",
    ),
    # Contracts: what a network and a set of images are, and what is computed from scores.
    ("classifier", "image_set", "metrics", "calibration", "protocols", "heads", "code_hash", "batching"),
    ("gradients",),
    ("forward",),
    ("probe", "training_set"),
    # From detectors to statistics. The contract of detectors comes last, for it can fit and score by itself.
    ("passes", "training_cache"),
    ("standalone",),
    ("detector", "quality"),
    # Data sets and networks.
    ("datasets.formats", "datasets.resize"),
    ("datasets.fetching",),
    ("datasets.corruptions", "datasets.adversarial"),
    ("datasets.*", "datasets.quality.*"),
    ("datasets.load",),
    ("models.*",),
    ("detectors.*",),
    ("active_learning",),
    ("strategies.*",),
    ("quality_metrics.*",),
    # Runs, and what is made of them.
    ("results",),
    ("engine",),
    ("inference", "leaderboard"),
    ("conformance",),
    ("api", "commands"),
    ("cli",),
)
MOST_LINES = 400
MOST_FILES = 23  # in a package, beside __init__; detectors are one file per method, as many as there are methods


def modules() -> dict[str, Path]:
    """Path by dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, in functions too, but not for type checkers alone."""

    def statements(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                yield child
                yield from statements(child)

    found: set[str] = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name, "oodbench"} for name, path in known.items()}


def floor_of(module: str) -> int:
    name = module.removeprefix("oodbench.")
    place = {entry: number for number, floor in enumerate(FLOORS) for entry in floor}
    parts = name.split(".")
    wanted = [name, *(".".join(parts[:n]) + end for n in range(len(parts) - 1, 0, -1) for end in (".*", ""))]
    return next(place[entry] for entry in wanted if entry in place)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of an import cycle, in order; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycle(graph):
    assert cycle(graph) == []
    assert cycle({"a": {"b"}, "b": {"a"}, "c": set()}) in (["a", "b", "a"], ["b", "a", "b"])


def test_nothing_imports_from_a_higher_floor(graph):
    upward = [f"{name} imports {other}" for name in graph for other in graph[name] if floor_of(other) > floor_of(name)]
    assert sorted(upward) == []


def test_every_floor_has_modules():
    entries = [entry for floor in FLOORS for entry in floor]
    assert len(set(entries)) == len(entries)
    known = modules()
    assert [
        entry for entry in entries if not any(f"{name}.".startswith(f"oodbench.{entry.removesuffix('*')}") for name in known)
    ] == []


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in modules().values()
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_no_package_is_crowded():
    folders = {path.parent for path in modules().values()} - {ROOT / "detectors"}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("[!_]*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_names_are_light():
    """The grammar of names and the plug-in tables are read before anything heavy is imported."""
    known = modules()
    for name in (
        "oodbench.datasets.name",
        "oodbench.datasets",
        "oodbench.detectors",
        "oodbench.models",
        "oodbench.quality_metrics",
        "oodbench.suite",
    ):
        assert not {"torch", "pandas", "numpy"} & {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(known[name].read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
