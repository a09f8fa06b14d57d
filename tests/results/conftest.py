"""Fixtures of the tests of run folders."""

import shutil

import pytest

from oodbench.results.folder import RunFolder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the module's finished run."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")
