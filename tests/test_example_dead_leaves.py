"""The example package with a data set installs, and passes its own tests with the code of this checkout."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import new_process

PACKAGE = Path(__file__).resolve().parent.parent / "examples" / "oodbench-dead-leaves"
PIP = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
TESTED = "import sys, pytest; sys.path.insert(0, sys.argv[1]); sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider']))"


def test_it_installs_and_passes_its_tests(tmp_path):
    copy, site = tmp_path / "package", tmp_path / "site"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "install", *PIP, "--target", site, copy], check=True)
    tested = new_process.python(TESTED, site, cwd=copy)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert re.search(r"\d+ passed", tested.stdout)
