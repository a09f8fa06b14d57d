"""``oodbench new``: write a package with a plug-in of any family but models, or the repository of a leaderboard."""

import re
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from oodbench import registry
from oodbench.commands.common import Debug, print_text
from oodbench.errors import UsageError
from oodbench.paths import write_atomically

commands = typer.Typer(help="Write a new package or repository to start from.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Name: lower-case letters, digits and hyphens.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write (default: oodbench-NAME, or NAME for a leaderboard).")]
License = Annotated[Literal["apache-2.0", "mit", "none"], typer.Option(help="Licence of the package; with none, add your own.")]
Author = Annotated[str, typer.Option(help="Who holds the copyright, for the licence.")]

SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
DETECTION = 'in_distribution = "digits"\nmodel = "resnet8-digits"\nprotocols = ["unsupervised"]\n'
ACTIVE_LEARNING = """\
task = "active-learning"
model = "resnet8-digits"
in_distribution = "digits"
start = 32
query = 32
rounds = 1
batch_size = 16
until = 0.5
"""
MIT = """\
MIT License

Copyright (c) $author

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software
is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@commands.command()
def detector(
    name: Name, out: Out = None, license: License = "apache-2.0", author: Author = "the authors", debug: Debug = False
) -> None:
    """Write a package with a detector that works, its tests, a README, a licence and a job for CI.

    The last line of the output is the folder.
    """
    plugin = {
        "what": "detector",
        "object": _class(name),
        "options": f"--detector {name} --detector msp",
        "suite": f'{DETECTION}detectors = ["{name}", "msp"]\nsets = [{{name = "photos"}}]',
    }
    _write_package("detectors", name, out, license, author, plugin)


@commands.command()
def dataset(
    name: Name, out: Out = None, license: License = "apache-2.0", author: Author = "the authors", debug: Debug = False
) -> None:
    """Write a package with a data set that works, its tests, a README, a licence and a job for CI.

    The last line of the output is the folder.
    """
    plugin = {
        "what": "data set",
        "object": _loader(name),
        "options": f"--dataset {name} --detector msp --detector pixels",
        "suite": f'{DETECTION}detectors = ["msp", "pixels"]\nsets = [{{name = "{name}"}}]',
    }
    _write_package("datasets", name, out, license, author, plugin)


@commands.command()
def strategy(
    name: Name, out: Out = None, license: License = "apache-2.0", author: Author = "the authors", debug: Debug = False
) -> None:
    """Write a package with a strategy of active learning that works, its tests, a README, a licence and a job for CI.

    The last line of the output is the folder.
    """
    plugin = {
        "what": "strategy",
        "object": _class(name),
        "options": f"digits-active --strategy {name} --strategy random",
        "suite": f'{ACTIVE_LEARNING}strategies = ["{name}", "random"]',
    }
    _write_package("strategies", name, out, license, author, plugin)


@commands.command()
def quality_metric(
    name: Name, out: Out = None, license: License = "apache-2.0", author: Author = "the authors", debug: Debug = False
) -> None:
    """Write a package with a metric of image quality that works, its tests, a README, a licence and a job for CI.

    The last line of the output is the folder.
    """
    plugin = {
        "what": "quality metric",
        "object": _class(name),
        "options": f"photos-quality --metric {name} --metric psnr",
        "suite": f'task = "quality"\nmetrics = ["{name}", "psnr"]\ndatabases = ["photos"]',
    }
    _write_package("quality_metrics", name, out, license, author, plugin)


@commands.command()
def quality_database(
    name: Name, out: Out = None, license: License = "apache-2.0", author: Author = "the authors", debug: Debug = False
) -> None:
    """Write a package with a database of image quality that works, its tests, a README, a licence and a job for CI.

    The last line of the output is the folder.
    """
    plugin = {
        "what": "quality database",
        "object": _loader(name),
        "options": f"photos-quality --dataset {name} --metric psnr",
        "suite": f'task = "quality"\nmetrics = ["psnr"]\ndatabases = ["{name}"]',
    }
    _write_package("quality_databases", name, out, license, author, plugin)


@commands.command()
def leaderboard(name: Name, out: Out = None, debug: Debug = False) -> None:
    """Write the repository of a leaderboard: results come as bundles by pull request, and jobs of CI verify and show them.

    The last line of the output is the folder.
    """
    _check_name(name)
    workflows = ".github/workflows"
    files = {
        "README.md": _filled("leaderboard-README.md", {"name": name}),
        f"{workflows}/check.yml": _filled("leaderboard-check.yml", {}),
        f"{workflows}/render.yml": _filled("leaderboard-render.yml", {}),
        ".github/pull_request_template.md": _filled("leaderboard-pull_request_template.md", {}),
        "bundles/.gitkeep": "",
        "replay.txt": "",
    }
    _write(out or Path(name), files)


def _write_package(family: str, name: str, out: Path | None, license: str, author: str, plugin: dict[str, str]) -> None:
    _check_name(name)
    listed = family.replace("_", "-")
    if name in registry.records(family):
        raise UsageError(f"there is already a {plugin['what']} called {name} (oodbench list {listed}); choose another name")
    module = f"oodbench_{name.replace('-', '_')}"
    words = plugin | {
        "name": name,
        "family": family,
        "listed": listed,
        "module": module,
        "distribution": f"oodbench-{name}",
        "license_line": f'license = "{SPDX[license]}"\n' if license in SPDX else "",
    }
    files = {
        "pyproject.toml": _filled("pyproject.toml", words),
        f"{module}.py": _filled(f"{registry.singular(family).replace(' ', '-')}.py", words),
        f"tests/test_{name.replace('-', '_')}.py": _filled("tests.py", words),
        "README.md": _filled("readme.md", words),
        ".gitignore": _filled("gitignore", {}),
        ".github/workflows/test.yml": _filled("test.yml", {}),
    }
    if license == "mit":
        files["LICENSE"] = Template(MIT).substitute(author=author)
    elif license == "apache-2.0":
        files["LICENSE"] = _apache()
    _write(out or Path(f"oodbench-{name}"), files)


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def _loader(name: str) -> str:
    return f"load_{name.replace('-', '_')}"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"'{name}' is not a name of lower-case letters, digits and hyphens, such as class-mean; choose another"
        )


def _filled(template: str, words: dict[str, str]) -> str:
    text = (resources.files("oodbench.templates") / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words)


def _apache() -> str:
    """The licence of oodbench itself, which is installed with it."""
    for file in metadata.files("oodbench") or ():
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise UsageError("the text of the Apache licence is not installed with oodbench; use --license none, and add your own")


def _write(folder: Path, files: dict[str, str]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists; name another folder with --out")
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    print_text("".join(f"{folder / name}\n" for name in sorted(files)) + f"{folder}\n")
