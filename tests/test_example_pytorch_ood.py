"""The adapter package of pytorch-ood is like any third party's: it imports public names alone, and keeps the contract."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import new_process
import pytest

import oodbench

PACKAGE = Path(__file__).resolve().parent.parent / "examples" / "oodbench-pytorch-ood"
MODULES = sorted((PACKAGE / "oodbench_pytorch_ood").glob("*.py"))
DOCUMENTED = {"oodbench", "oodbench.errors"}
PIP = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
TESTED = """\
import sys, pytest
sys.path.insert(0, sys.argv[1])
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", sys.argv[2]]))
"""

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
    copy, site = tmp_path / "package", tmp_path / "site"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "install", *PIP, "--target", site, copy], check=True)
    tested = new_process.python(TESTED, site, "named_in_the_readme or contract and (knn or gram or odin)", cwd=copy)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert re.search(r"\d+ passed", tested.stdout)
