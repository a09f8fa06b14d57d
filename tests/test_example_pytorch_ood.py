"""The adapter package of pytorch-ood is like any third party's: it imports public names alone, and keeps the contract."""

import ast
import re

import example_packages
import pytest

import oodbench

NAME = "oodbench-pytorch-ood"
MODULES = sorted((example_packages.EXAMPLES / NAME / "oodbench_pytorch_ood").glob("*.py"))
DOCUMENTED = {"oodbench", "oodbench.errors"}


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
    chosen = "named_in_the_readme or contract and (knn or gram or odin)"
    assert example_packages.passed_of(NAME, tmp_path, chosen) >= 4
