"""The documentation is true: its commands and programs run, its links resolve, and it names all that exists and no more.

Blocks of a page run in order, in a folder of the page: ``sh`` line by line, ``python`` in one namespace. What has
``file=NAME`` after its language is written to NAME instead; ``needs=data`` waits for real images; ``text`` is to be read.
"""

import ast
import csv
import inspect
import json
import os
import pkgutil
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import new_process
import pytest
import typer

import oodbench
from oodbench import cli
from oodbench.datasets import TABLE as DATASETS
from oodbench.datasets import corruptions
from oodbench.datasets.name import BENIGN
from oodbench.detectors import TABLE as DETECTORS
from oodbench.heads import HEADS
from oodbench.image_set import KINDS
from oodbench.leaderboard import COLUMNS
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.recognition import COLUMNS as RECOGNITION
from oodbench.models import TABLE as MODELS
from oodbench.models.filters import FILTERS
from oodbench.models.recipes import RECIPES
from oodbench.models.weights import PUBLISHED
from oodbench.probe import SIGNALS
from oodbench.quality_metrics import TABLE as METRICS
from oodbench.results.records import NETWORK_SOURCES
from oodbench.suite import PROTOCOLS, Suite, TestSet, ValidationSet
from oodbench.suites.load import load_suite, suite_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "examples").glob("*/README.md"))]
PAGE_OF = {
    "run": "run.md",
    "init": "suites.md",
    "list": "run.md",
    "leaderboard": "results.md",
    "bundle": "verify.md",
    "compare": "compare.md",
    "publish": "publish.md",
    "verify": "verify.md",
    "new detector": "ten-minutes.md",
    "new dataset": "ten-minutes.md",
    "new strategy": "ten-minutes.md",
    "new quality-metric": "ten-minutes.md",
    "new quality-database": "ten-minutes.md",
    "new leaderboard": "community.md",
    "train": "model.md",
    "check": "detector.md",
    "fit": "inference.md",
    "score": "inference.md",
    "data list": "fetch.md",
    "data fetch": "fetch.md",
    "data verify": "fetch.md",
}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

DRIVER = r"""
import atexit, importlib, json, os, re, shlex, subprocess, sys, traceback
import oodbench
from oodbench import cli

def run(command):
    found = re.match(r"((?:\w+=\S+ )*)oodbench (.*)", command)
    if not found:
        return subprocess.run(command, shell=True).returncode
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 0
    try:
        os.environ.update(assignment.split("=", 1) for assignment in found[1].split())
        sys.argv = ["oodbench", *shlex.split(found[2])]
        cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    atexit._run_exitfuncs()
    os._exit(code or 0)

sys.path.insert(0, sys.argv[1])
namespace = {"__name__": "__main__"}
for step in json.load(open("steps.json")):
    where = f"{step['page']}, line {step['line']}"
    print("#", where, flush=True)
    importlib.invalidate_caches()
    if step["language"] == "python":
        exec(compile("\n" * step["line"] + step["code"], where, "exec"), namespace)
    else:
        for command in step["code"].splitlines():
            print("$", command, flush=True)
            code = run(command)
            assert code == 0, f"exit code {code}"
"""


class Block(NamedTuple):
    page: Path
    line: int  # of the opening fence
    language: str
    options: dict[str, str]
    code: str


def blocks(page: Path) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        options = dict(option.split("=", 1) for option in match[2].split())
        found.append(Block(page, match.string.count("\n", 0, match.start()) + 1, match[1], options, match[3]))
    return found


def prose(page: Path) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans_of(page: Path) -> list[str]:
    """Code within the text, each on one line."""
    return re.findall(r"`([^`]+)`", " ".join(prose(page).split()))


def commands(page: Path) -> list[str]:
    """Each ``oodbench …`` that the page shows, in a block or in the text."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.code.splitlines()]
    lines += [run for block in blocks(page) if block.language == "yaml" for run in re.findall("run: (.*)", block.code)]
    return [m[1] for text in [*lines, *spans_of(page)] if (m := re.match(r"(?:\w+=\S* )?oodbench (.*)", text))]


def runnable(line: str, site: Path, checkout: Path) -> str:
    """The line as a test can afford it: few images and detectors, one epoch, no change to the environment."""
    if target := re.match(r"make (\w+)", line):
        return f"make -n -C {ROOT} {target[1]}"
    if package := re.match(r"pip install (\S+)$", line):
        source = checkout if package[1] == "." else package[1]
        options = "--quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --upgrade"
        return f"{sys.executable} -m pip install {options} --target {site} {source}"
    if tests := re.match(r"\.venv/bin/pytest (\S+)$", line):
        return f"{sys.executable} -m pytest --collect-only --quiet -p no:cacheprovider {ROOT / tests[1]}"
    if script := re.match(r"python (tests/benchmarks/\S+)$", line):
        return f"{sys.executable} -P {ROOT / script[1]} --help"  # tests/benchmarks/test_scripts.py runs it
    if "oodbench train" in line:
        return f"{line} --epochs 1"
    if "oodbench run" in line and re.search(r"-active|-quality", line):  # suites of other tasks take other options
        return line
    if "oodbench run" in line and "--dry-run" not in line:
        line += " --limit 40"
        if "--detector" not in line and ".toml" not in line:  # a suite's parameters want its detectors
            line += " --detector msp --detector pixels"
        if "--dataset" not in line and ".toml" in line:
            line += " --dataset digits+fgsm"  # which all detectors take
        elif "--dataset" not in line:
            line += " --dataset cifar100" if "cifar10" in line else " --dataset photos --dataset digits+noise"
    return line


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy to install from, so that no build is left in this one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("bench", "detectors", "datasets", "leaderboard"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run_page(page: Path, here: Path, checkout: Path, data: bool) -> None:
    site = here / "site-packages"
    steps = []
    for block in blocks(page):
        if name := block.options.get("file"):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(block.code, encoding="utf-8")
        elif block.language in ("sh", "python") and (block.options.get("needs") == "data") == data:
            lines = block.code.splitlines()
            code = "\n".join(runnable(line, site, checkout) for line in lines) if block.language == "sh" else block.code
            steps.append({"page": page.name, "line": block.line, "language": block.language, "code": code})
    (here / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = new_process.python(DRIVER, site, cwd=here, PATH=path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout + done.stderr


@forks
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_run_runs(page, tmp_path, checkout):
    run_page(page, tmp_path, checkout, data=False)


@forks
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any("needs" in b.options for b in blocks(page))], ids=lambda page: page.name
)
def test_what_needs_real_images_runs(page, tmp_path, checkout, data_root):
    (tmp_path / "data").symlink_to(data_root, target_is_directory=True)
    run_page(page, tmp_path, checkout, data=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_of_kinds_that_are_checked(page):
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        assert block.language in ("sh", "python", "toml", "yaml", "text"), where
        assert set(block.options) <= {"file", "needs"}, where
        assert block.language != "toml" or "file" in block.options, f"{where}: nothing reads it"
    assert len(re.findall("^```", page.read_text(encoding="utf-8"), re.MULTILINE)) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(linked), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"]({page.relative_to(ROOT)})" not in readme] == []


def test_paths_on_the_page_for_contributors_exist():
    paths = {word for word in spans("CONTRIBUTING.md") if re.search(r"/|\.(py|md|toml)$", word)} - {"build/docs"}
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not any(ROOT.glob(path.rstrip("/").replace("NAME", "*")))] == []


def test_the_page_for_contributors_names_each_package():
    folders = [ROOT / folder for folder in ("bench", "detectors", "datasets", "leaderboard")]
    packages = [f"{init.parent.relative_to(ROOT)}/" for folder in folders for init in folder.rglob("__init__.py")]
    assert [package for package in packages if package not in spans("CONTRIBUTING.md")] == []


def described() -> list[str]:
    """The names whose docstrings the page of the Python interface shows."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^::: (\S+)(?:\n    options:\n      members: \[([^]]*)\])?$", page, re.MULTILINE)
    return [name for owner, members in entries for name in [owner, *(f"{owner}.{m}" for m in re.findall(r"\w+", members))]]


def test_the_page_of_the_python_interface_shows_what_exists_and_all_that_is_public():
    for name in described():
        assert inspect.getdoc(pkgutil.resolve_name(name)), name
    assert {f"oodbench.{name}" for name in oodbench.__all__} - {"oodbench.__version__"} <= set(described())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_of_the_python_interface_shows_what_other_pages_import(page):
    code = "\n".join(block.code for block in blocks(page) if block.language == "python")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("oodbench"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert alias.name.isupper() or any(f"{known}.".startswith(f"{name}.") for known in described()), name


def all_commands() -> dict[str, typer.core.TyperCommand]:
    """Each command by its words: ``run``, ``data list``; the application itself has none."""
    app = typer.main.get_command(cli.app)
    found = {"": app}
    for name, command in app.commands.items():
        found |= {f"{name} {sub}": each for sub, each in getattr(command, "commands", {}).items()} or {name: command}
    return found


COMMANDS = all_commands()


def options_of(command: str) -> set[str]:
    """Long options of a command, ``--help`` apart."""
    return {name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("--")} - {"--help"}


def options_of_a_script(script: Path) -> set[str]:
    """Long options that a script adds to its parser of arguments."""
    return set(re.findall(r"\.add_argument\(\s*\"(--[a-z-]+)\"", script.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_commands_and_options_on_a_page_exist(page):
    anywhere = set().union(*map(options_of, COMMANDS)) | {"--help"}
    for line in commands(page):
        words = line.split()
        command = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
        if words[0].startswith("-"):
            assert words[0] in options_of("") | {"--help"}, f"{page.name}: {line}"
            continue
        assert command, f"{page.name}: {line}"
        assert set(re.findall(r"(?<!\w)--[a-z-]+", line)) <= options_of(command) | {"--help"}, f"{page.name}: {line}"
    for span in spans_of(page):
        options = set(re.findall(r"(?<!\w)--[a-z-]+", span))
        if script := re.match(r"tests/\S+\.py", span):
            assert options <= options_of_a_script(ROOT / script.group()), f"{page.name}: {span}"
        elif not span.startswith("pip "):
            assert options <= anywhere, f"{page.name}: {span}"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {""}))
def test_every_option_of_a_command_is_documented(command):
    text = (ROOT / "docs" / PAGE_OF[command]).read_text(encoding="utf-8")
    assert [option for option in sorted(options_of(command)) if f"`{option}" not in text] == []


def spans(page: str) -> set[str]:
    """What stands in backticks on a page, words of its commands too."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s,]+", span)}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/detector.md", list(DETECTORS)),
        ("docs/detector.md", sorted(SIGNALS)),
        ("docs/detector.md", sorted(HEADS)),
        ("docs/dataset.md", list(DATASETS)),
        ("docs/dataset.md", sorted(corruptions.CORRUPTIONS)),
        ("docs/dataset.md", BENIGN),
        ("docs/model.md", [*MODELS, *RECIPES, *(name for recipe in RECIPES.values() for name in recipe.parameters)]),
        ("docs/model.md", [*FILTERS, *(name for made in FILTERS.values() for name in inspect.signature(made).parameters)]),
        ("docs/model.md", [part for published in PUBLISHED.values() for part in (published.file, published.sha256)]),
        ("docs/quality-metrics.md", list(METRICS)),
        ("docs/run.md", suite_names()),
        ("docs/results.md", list(COLUMNS)),
        (
            "docs/recognition.md",
            [*RECOGNITION, *NETWORK_SOURCES, *("introspective", "ensemble", "mc-dropout", "duq", "NAME-scaled")],
        ),
        ("docs/results.md", [*PROTOCOLS, *KINDS, "ok", "skipped", "failed"]),
        ("docs/suites.md", [name for name in Suite.model_fields if name != "sets"]),
        ("docs/suites.md", list(TestSet.model_fields)),
        ("docs/suites.md", list(ValidationSet.model_fields)),
    ],
)
def test_a_page_names_all_of_what_it_is_about(page, names):
    assert names
    assert [name for name in names if name not in spans(page)] == []


def test_each_set_is_documented_with_its_address():
    text = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")
    assert [name for name, record in DATASETS.items() if record.source not in text] == []


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row of Markdown tables, without bold."""
    return [[cell.strip(" *") for cell in line.strip()[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_page_of_models_has_the_values_of_each_recipe():
    rows = table_rows((ROOT / "docs" / "model.md").read_text(encoding="utf-8"))
    for name, recipe in RECIPES.items():
        *first, last = [f"{100 * share:g}%" for share in recipe.drops] or [""]
        drops, drop = " and ".join(filter(None, [", ".join(first), last])), {0.1: "÷10", 0.2: "×0.2"}[recipe.drop]
        schedule = f"{recipe.lr:g}, {drop} after {drops}" if drops else f"{recipe.lr:g}, cosine"
        schedule += f", {recipe.warmup} epoch{'s' * (recipe.warmup > 1)} of warm-up" * bool(recipe.warmup)
        values = recipe.epochs, recipe.batch_size, schedule, f"{recipe.weight_decay:g}"
        yes = ("yes" if value else "no" for value in (recipe.nesterov, recipe.augment))
        assert [f"`{name}`", *map(str, values), *yes, str(recipe.size or "")] in [row[:8] for row in rows]


@pytest.mark.parametrize("suite", ["digits", "cifar10"])
def test_the_page_of_results_has_a_row_for_each_detector(suite):
    text = (ROOT / "docs" / "leaderboards.md").read_text(encoding="utf-8")
    of_suite = re.split(r"^## ", text.partition(f"\n## {suite}\n")[2], flags=re.MULTILINE)[0]
    rows = [row for row in table_rows(of_suite) if len(row) > 2 and row[1] in PROTOCOLS]
    assert {row[0].removesuffix(" (control)").split(":")[0] for row in rows} == set(load_suite(suite).detectors)


def test_the_page_of_published_figures_shows_what_the_data_hold():
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    shown = {}
    for row in table_rows(page):
        detector = row[0].split(" ")[0]
        shown.setdefault((detector, row[1]), []).extend(cell.strip("*") for cell in row[2:])
    for name, least in (("cifar10", 50), ("purview-adversarial", 60), ("gradcon-classes", 70)):
        with (ROOT / "leaderboard" / "results" / f"{name}.csv").open(encoding="utf-8") as file:
            ok = [row for row in csv.DictReader(file) if row["status"] == "ok"]
        rows = [row for row in ok if row["metric"] == "auroc" and not row["level"]]
        assert len(rows) > least
        for row in rows:
            figures = shown[row["detector"].split(" ")[0], row["protocol"]]
            assert f"{100 * float(row['measured']):.1f}" in figures
            assert any(figure.split(" ")[0] == f"{100 * float(row['published']):.1f}" for figure in figures)
    with (ROOT / "leaderboard" / "results" / "introspective-recognition.csv").open(encoding="utf-8") as file:
        inside = [row for row in csv.DictReader(file) if row["kind"] == "in-distribution"]
    assert len(inside) == 12
    for row in inside:
        calibrated = "validation" if row["source"].endswith("-scaled") else ""
        assert f"{100 * float(row['accuracy']):.1f}" in shown[row["source"], calibrated]
    with (ROOT / "leaderboard" / "results" / "introspective-plugin.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for row in rows:
        signs = {"measured": "", "published": "", "difference": "+", "ece": ""}
        figures = [f"{100 * float(row[name]):{sign}.1f}" if row[name] else "–" for name, sign in signs.items()]
        assert [row["model"], row["source"], *figures] in table_rows(page)
    with (ROOT / "leaderboard" / "results" / "cifar10-active.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    for row in rows:
        labels = [row[name] for name in ("model", "strategy", "features", "test_set")]
        signs = {"published": "", "measured": "", "difference": "+"}
        figures = [f"{100 * float(row[name]):{sign}.1f}" for name, sign in signs.items()]
        assert [*labels, *figures] in table_rows(page)
    with (ROOT / "leaderboard" / "results" / "introspective-iqa.csv").open(encoding="utf-8") as file:
        measured = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    assert len(measured) == 48
    for row in measured:
        figures = [f"{float(row[name]):.3f}" for name in ("published", "line", "logistic")]
        assert [row["database"], row["metric"], row["figure"], *figures, row["reproduced_by"]] in table_rows(page)


def test_the_readme_shows_the_best_rows_of_the_page_of_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = table_rows(readme.partition("<!-- digits: best -->")[2].partition("<!-- /digits -->")[0])
    page = (ROOT / "docs" / "leaderboards.md").read_text(encoding="utf-8").partition("\n## digits\n")[2]
    head, _, *rows = table_rows(page[page.index("| detector") :].partition("\n\n")[0])  # the first table
    wanted = [n for n, name in enumerate(head) if name == "detector" or re.match("mean|cost overhead", name)]
    unsupervised = [[row[n] for n in wanted] for row in rows if row[1] == "unsupervised"]
    assert shown[2:] == [*unsupervised[:10], *(row for row in unsupervised[10:] if row[0].endswith("(control)"))]
    assert [name for name in shown[0][1:-1] if f"mean {name} " not in " ".join(head)] == []
    assert f"best ten of {len(unsupervised)} rows" in " ".join(readme.split())


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_prose_lines_are_short(page):
    """Under 120 characters outside tables and code, so that a change shows as the lines that it changes."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")] == []


def test_a_run_gives_the_figures_of_the_readme(tmp_path):
    """On any machine, because the network's weights come with oodbench."""
    detectors = ["gram", "mahalanobis-fe", "vim", "mahalanobis-v", "pixels"]
    options = {"detectors": detectors, "protocols": ["unsupervised"], "measure_costs": False}
    results = oodbench.run("digits", out=tmp_path / "run", **options)
    text = render(results.frame(), "md")
    _, _, *found = table_rows(text[text.index("| detector") :].partition("\n\n")[0])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, *shown = table_rows(readme.partition("<!-- digits: best -->")[2].partition("<!-- /digits -->")[0])
    kinds = slice(1, head.index("benign"))
    of_run = {row[0]: [float(figure) for figure in row[2:][: kinds.stop - 1]] for row in found if row[1] == "unsupervised"}
    of_readme = {row[0]: [float(figure) for figure in row[kinds]] for row in shown if row[0] in of_run}
    assert len(of_readme) == len(detectors)
    for name, figures in of_readme.items():
        assert of_run[name] == pytest.approx(figures, abs=0.2), name
