"""Suite files as a user writes them: shown, started with ``oodbench init``, and wrong."""

import pytest
from new_process import oodbench

from oodbench.suite import load_suite, suite_names


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_that_is_shown_is_a_suite_file(tmp_path, name):
    shown = oodbench("list", "suites", "--show", name)
    assert shown.returncode == 0, shown.stderr
    file = tmp_path / f"{name}.toml"
    file.write_text(shown.stdout, encoding="utf-8")
    assert load_suite(file) == load_suite(name)
    assert "# " in shown.stdout
    assert oodbench("list", "suites", "--show", file).stdout == shown.stdout


def test_only_sound_suites_are_shown(tmp_path):
    (tmp_path / "code.toml").write_text('in_distribution = "digits"\nmodel = "no:such"\ndetectors = "msp"\nsets = []\n')
    wrong = oodbench("list", "suites", "--show", tmp_path / "code.toml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "detectors" in wrong.stderr
    unknown = oodbench("list", "suites", "--show", "digit")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "unknown suite 'digit'; did you mean 'digits'?" in unknown.stderr
    other = oodbench("list", "models", "--show", "digits")
    assert other.returncode == 2
    assert "write oodbench list suites --show digits" in other.stderr
