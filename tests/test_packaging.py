"""The wheel holds what the folders hold, stands beside packages called ``datasets`` and ``detectors``, and imports lightly."""

import inspect
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import oodbench

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "bench": "oodbench",
    "detectors": "oodbench/detectors",
    "datasets": "oodbench/datasets",
    "leaderboard": "oodbench/leaderboard",
}
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built from a copy, so that nothing left in build/ gets in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", copy / "dist", copy)
    (built,) = (copy / "dist").glob("*.whl")
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


def test_wheel_holds_what_the_folders_hold(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        f"{target}/{file.relative_to(ROOT / folder)}"
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
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
    for kind in (oodbench.Classifier, oodbench.Detector, oodbench.ImageSet, oodbench.Probe):
        for name, member in vars(kind).items():
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name} has no docstring"


def test_every_module_says_what_it_is_for():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            first = file.read_text().split("\n", 1)[0]
            assert first.startswith('"""'), f"{file.relative_to(ROOT)} opens without a docstring"
            assert len(first.strip('". ')) > 10, f"{file.relative_to(ROOT)} does not say what it is for"
