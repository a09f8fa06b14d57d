"""Installs an example package, and runs its tests with the code of this checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import new_process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PIP = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
TESTED = """\
import sys, pytest
sys.path.insert(0, sys.argv[1])
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", sys.argv[2]]))
"""


def passed_of(name: str, folder: Path, chosen: str = "") -> int:
    """Install a copy of the package below ``folder``, and run its tests; how many passed, if none failed.

    ``chosen`` as pytest's ``-k``.
    """
    copy, site = folder / "package", folder / "site"
    shutil.copytree(EXAMPLES / name, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "install", *PIP, "--target", site, copy], check=True)
    tested = new_process.python(TESTED, site, chosen, cwd=copy)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    return int(re.search(r"(\d+) passed", tested.stdout)[1])
