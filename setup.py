"""Makes an editable install work beside a folder called ``oodbench``, such as in the parent folder of a clone.

pyproject.toml holds the rest. setuptools installs a finder that comes after the import path, where Python takes any folder
called ``oodbench`` for a namespace package. A package on the path comes before these, wherever it stands there, so an
editable install puts one into site-packages, which loads the package of the clone.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LOADS_THE_CLONE = """\
import sys
from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location(__name__, {init!r})
sys.modules[__name__] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
"""


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            package = Path(self.get_finalized_command("install").install_lib, "oodbench")
            package.mkdir()
            init = Path(self.get_package_dir("oodbench"), "__init__.py").absolute()
            (package / "__init__.py").write_text(LOADS_THE_CLONE.format(init=str(init)), encoding="utf-8")


setup(cmdclass={"build_py": BuildPy})
