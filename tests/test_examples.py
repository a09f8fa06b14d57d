"""The package in examples/ is like any third party's: it imports public names alone, and keeps the contract."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import oodbench

PACKAGE = Path(__file__).resolve().parent.parent / "examples" / "oodbench-pytorch-ood"
MODULES = sorted((PACKAGE / "oodbench_pytorch_ood").glob("*.py"))
DOCUMENTED = {"oodbench", "oodbench.errors"}
PIP = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]

pytestmark = pytest.mark.skipif(not PACKAGE.exists(), reason="not in a checkout")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_it_uses_public_names_alone(module):
    nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {name for name in imported if re.match(r"oodbench(\.|$)", name)} <= DOCUMENTED
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "oodbench"}
    assert used <= set(oodbench.__all__)


def test_it_installs_and_a_part_of_its_tests_pass(tmp_path):
    pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed: pip install '.[test]'")
    copy = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))

    def run(*command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run([sys.executable, "-m", *command], cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pip", "install", *PIP, "--target", str(tmp_path / "site"), ".")
    tested = run("pytest", "-q", "-p", "no:cacheprovider", "-k", "named_in_the_readme or contract and (knn or gram or odin)")
    assert re.search(r"\d+ passed", tested)
