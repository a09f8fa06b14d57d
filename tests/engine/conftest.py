"""Plug-ins that processes other than the tests' must find."""

import importlib
import shutil
import sys
from pathlib import Path

import far_plugins
import pytest

from oodbench import registry


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """``far_plugins`` as the module ``my_plugins`` of the working folder, which is on the import path."""
    shutil.copy(Path(far_plugins.__file__), tmp_path / "my_plugins.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})
    yield importlib.import_module("my_plugins")
    del sys.modules["my_plugins"]
