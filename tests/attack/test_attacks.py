"""A small part of most attacks; ``make attack`` runs all. tests/engine/test_executors.py kills runs and workers, too."""

import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the attacks read /proc", allow_module_level=True)


@pytest.mark.parametrize(("attack", "share"), [("kills", "0.06"), ("flips", "0.02"), ("files", "0.02"), ("bombs", "0.2")])
def test_a_small_part_survives(attack, share):
    command = [sys.executable, "tests/attack/run.py", "--only", attack, "--share", share]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, row = done.stdout.splitlines()
    name, tried, survived, seconds, megabytes = row.split()
    assert name == attack
    assert int(tried) == int(survived) > 0
    assert float(seconds) > 0
    assert float(megabytes) > 0
