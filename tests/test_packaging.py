"""The wheel holds what the folders hold, stands beside packages called ``datasets`` and ``detectors``, and imports lightly."""

import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import oodbench
from oodbench.api import Results

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "bench": "oodbench",
    "detectors": "oodbench/detectors",
    "datasets": "oodbench/datasets",
    "leaderboard": "oodbench/leaderboard",
}
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout")


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """A copy of this checkout called ``oodbench``, so that nothing left in build/ gets into what is built from it."""
    copy = tmp_path_factory.mktemp("checkout") / "oodbench"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="session")
def wheel(clone, tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    made = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", made, clone)
    (built,) = made.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel installed beside packages of others called ``datasets`` and ``detectors``."""
    site = tmp_path_factory.mktemp("site")
    for stub in ("datasets", "detectors"):
        (site / stub).mkdir()
        (site / stub / "__init__.py").write_text("STUB = True\n")
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    return site


@pytest.fixture(scope="session")
def editable(clone, tmp_path_factory) -> Path:
    """The Python of a virtual environment with an editable install of the clone, and all packages of this one."""
    place = tmp_path_factory.mktemp("editable")
    venv.create(place, symlinks=True)
    Path(sysconfig.get_path("purelib", vars={"base": str(place)}), "others.pth").write_text(sysconfig.get_path("purelib"))
    python = place / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", clone)
    return python


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(sys.prefix))
    assert done.returncode == 0, done.stdout + done.stderr


def python(code: str, *path: Path) -> str:
    """What a fresh interpreter prints, with these folders first on its import path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


MEASURED = ROOT / "leaderboard" / "results"  # figures of the pages, which nothing reads


def test_wheel_holds_what_the_folders_hold(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        f"{target}/{file.relative_to(ROOT / folder)}"
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc" and MEASURED not in file.parents
    }
    assert "oodbench/py.typed" in held
    assert any(name.startswith("oodbench/suites/") for name in held)
    assert held == wanted


def test_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert f"\nVersion: {oodbench.__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "oodbench = oodbench.cli:main" in scripts
    assert f"\nversion: {oodbench.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("first", ["datasets, detectors", "oodbench.datasets, oodbench.detectors"])
def test_neither_breaks_a_package_of_the_same_name(site, first):
    code = f"""
import {first}
import datasets, detectors, oodbench, oodbench.datasets, oodbench.detectors
print(oodbench.__file__)
assert datasets.STUB and detectors.STUB
assert not hasattr(oodbench.datasets, "STUB") and not hasattr(oodbench.detectors, "STUB")
assert oodbench.load_detector("msp").name == "msp"
"""
    assert Path(python(code, site).strip()) == site / "oodbench" / "__init__.py"


@pytest.mark.parametrize("module", ["", "__init__.py"])
def test_an_editable_install_works_beside_folders_of_its_names(editable, clone, tmp_path, module):
    for name in ("oodbench", *FOLDERS):
        (tmp_path / name).mkdir()
        if module and name != "oodbench":  # a package called oodbench would be the one that the user asks for
            (tmp_path / name / module).write_text("raise ImportError('hides ours')")
    code = "import oodbench, oodbench.detectors.msp, oodbench.datasets; print(oodbench.__file__, oodbench.datasets.__file__)"
    wanted = [str(clone / "bench" / "__init__.py"), str(clone / "datasets" / "__init__.py")]
    for folder in (tmp_path, clone.parent):
        for command in (["-c", code], ["-m", "oodbench.cli", "list", "suites"]):
            done = subprocess.run([editable, *command], cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == wanted or "digits" in done.stdout


def test_an_editable_install_holds_the_package_once(editable, clone, tmp_path):
    code = "import sys, oodbench; from oodbench import errors; print(sys.modules['oodbench'] is oodbench, errors.__file__)"
    done = subprocess.run([editable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", str(clone / "bench" / "errors.py")], done.stderr


def test_listing_imports_nothing_heavy():
    code = """
import sys
import oodbench, oodbench.registry
for family in oodbench.registry.FAMILIES:
    assert oodbench.registry.records(family)
print(*sorted({"torch", "torchvision", "pandas", "sklearn", "scipy", "PIL", "numpy", "matplotlib"} & set(sys.modules)))
"""
    assert python(code).strip() == ""


@pytest.mark.parametrize("name", oodbench.__all__)
def test_public_name_is_there_and_documented(name):
    thing = getattr(oodbench, name)
    if name != "__version__":
        assert inspect.getdoc(thing), f"oodbench.{name} has no docstring"


def test_public_surface_has_nothing_else():
    assert len(set(oodbench.__all__)) == len(oodbench.__all__)
    assert dir(oodbench) == sorted(oodbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        oodbench.Nothing  # noqa: B018
    for name in (*oodbench._PUBLIC, *oodbench._SUBPACKAGES):
        assert name in oodbench.__all__


def test_public_methods_are_documented():
    for kind in (oodbench.Classifier, oodbench.Detector, oodbench.ImageSet, oodbench.Probe, Results):
        for name, member in vars(kind).items():
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name} has no docstring"


def test_every_module_says_what_it_is_for():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            first = file.read_text().split("\n", 1)[0]
            assert first.startswith('"""'), f"{file.relative_to(ROOT)} opens without a docstring"
            assert len(first.strip('". ')) > 10, f"{file.relative_to(ROOT)} does not say what it is for"
