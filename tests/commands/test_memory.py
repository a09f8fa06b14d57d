"""The command line keeps freed memory for the next pass, where the C library is glibc."""

import os
import platform
import subprocess
import sys

import pytest

KEPT = """
import os
import numpy as np
from oodbench import cli
cli._keep_freed_memory()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
np.ones(2**23)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "1"}, False)])
def test_a_freed_array_stays_resident_unless_the_environment_tunes_malloc(environment, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", KEPT], env=clean | environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 2**25) == kept
