"""Hashes of code: what counts as a detector's own."""

import importlib
import sys

import pytest

from oodbench import code_hash


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """write({path: text}) modules beside each other, and the hash of ``plain_plugin.Mine`` among them, imported anew."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] in ("plain_plugin", "beside_it")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return code_hash.of_class(importlib.import_module("plain_plugin").Mine)

    return write


def test_a_package_beside_a_module_counts_with_all_that_it_imports(plain):
    plugin = "import numpy\nimport oodbench\nfrom beside_it import first\n\n\nclass Mine(oodbench.Detector):\n    pass\n"
    files = {"plain_plugin.py": plugin, "beside_it/__init__.py": "", "beside_it/first.py": "from . import second\n"}
    one = plain(files | {"beside_it/second.py": "x = 1\n"})
    assert plain(files | {"beside_it/second.py": "x = 2\n"}) != one
    assert plain(files | {"beside_it/second.py": "x = 1  # a comment\n"}) == one


def test_installed_packages_are_not_a_plugins_own(plain):
    files = {"plain_plugin.py": "import numpy, json\nimport oodbench\n\n\nclass Mine(oodbench.Detector):\n    pass\n"}
    plain(files)
    seen = set()
    list(code_hash._module_code("plain_plugin", seen, "plain_plugin"))
    assert seen == {"plain_plugin"}


def test_bases_of_the_standard_library_do_not_count(plain):
    """A strategy is an ABC, whose code would be that of a hundred modules of one version of Python."""
    plain({"plain_plugin.py": "import abc\n\n\nclass Mine(abc.ABC):\n    pass\n"})
    seen = set()
    list(code_hash._class_code(sys.modules["plain_plugin"].Mine, seen, whole_package=True))
    assert seen == {"plain_plugin"}


def test_what_a_package_itself_defines_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "whole"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "__init__.py").touch()
    (package / "sub" / "mine.py").write_text(
        "import oodbench\nfrom .. import rate\n\n\nclass Mine(oodbench.Detector):\n    pass\n"
    )
    hashes = []
    for rate in (1, 2):
        (package / "__init__.py").write_text(f"rate = {rate}\n")
        for name in [name for name in sys.modules if name.split(".")[0] == "whole"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        hashes.append(code_hash.of_class(importlib.import_module("whole.sub.mine").Mine))
    assert hashes[0] != hashes[1]


def test_helpers_of_built_in_detectors_count():
    from oodbench.code_hash import _module_code

    read = [part.split()[0] for part in _module_code("oodbench.detectors.duq", set())]
    assert "oodbench.detectors._training" in read
    assert not [name for name in read if not name.startswith("oodbench.detectors.")]


def test_the_code_that_was_imported_counts_not_a_later_edit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import oodbench\n\n\nclass Edited(oodbench.Detector):\n    rate = {}\n"
    path = tmp_path / "edited.py"
    path.write_text(text.format(1))
    importlib.invalidate_caches()
    module = importlib.import_module("edited")
    path.write_text(text.format(25))  # in an editor, before the run asks for the hash
    before = code_hash.of_class(module.Edited)
    path.write_text(text.format(1))
    assert code_hash.of_class(module.Edited) == before
    path.write_text(text.format(333))
    assert code_hash.of_class(importlib.reload(module).Edited) != before
    path.write_text(text.format(1))
    assert code_hash.of_class(importlib.reload(module).Edited) == before
    del sys.modules["edited"]
