"""The example package with a data set installs, and passes its own tests with the code of this checkout."""

import example_packages


def test_it_installs_and_passes_its_tests(tmp_path):
    assert example_packages.passed_of("oodbench-dead-leaves", tmp_path) > 0
