"""The results of a run come before its costs are measured, and stay when that is interrupted."""

import os
import pty
import signal
import subprocess
import sys

import pytest
from new_process import oodbench

OODBENCH = [sys.executable, "-P", "-m", "oodbench.cli"]

SLOW = """
import time
import oodbench


class Slow(oodbench.Detector):
    name = "slow"

    def statistics(self, probe):
        time.sleep(0.5)
        return probe.logits.sum(1)
"""
OPTIONS = ["--detector", "msp", "--dataset", "photos", "--protocol", "unsupervised", "--limit", "20", "--out", "run"]


def test_the_table_comes_first_and_the_costs_after_it(tmp_path):
    lines = oodbench("run", *OPTIONS, cwd=tmp_path).stdout.splitlines()
    table = next(line for line in lines if line.startswith("msp "))
    assert "×" not in table
    (costs,) = (place for place, line in enumerate(lines) if line.startswith("Cost of each detector alone, in mult"))
    assert lines.index("All rows, sets and notes: oodbench leaderboard run") < costs < len(lines) - 1
    assert lines[-1] == "run"
    again = oodbench("run", *OPTIONS, cwd=tmp_path).stdout.splitlines()
    assert [line.startswith("msp ") for line in again].count(True) == 1
    assert next(line for line in again if line.startswith("msp ")).endswith("×")  # known, so it is in the table
    assert not [line for line in again if line.startswith("Cost")]
    (tmp_path / "run" / "costs.json").unlink()
    without = oodbench("run", *OPTIONS, "--no-costs", cwd=tmp_path).stdout
    assert "×" not in without.replace("AUROC ×100", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_an_interrupted_measurement_leaves_the_table(tmp_path):
    (tmp_path / "mine.py").write_text(SLOW)
    command = [*OODBENCH, "run", *OPTIONS, "--plugin", "mine:Slow"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines = []
    while not lines or not lines[-1].startswith("All rows"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line.split()[0] for line in lines if line.startswith(("slow ", "msp "))] in (["slow", "msp"], ["msp", "slow"])
    assert rest == ""
    assert errors.splitlines()[-1] == "oodbench: interrupted; repeat the command to resume"
    assert not (tmp_path / "run" / "costs.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_bar_and_results_do_not_mix_on_one_terminal(tmp_path):
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([*OODBENCH, "run", *OPTIONS], stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            drawn += os.read(ours, 10_000)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait() == 0
    text = drawn.decode()
    start = text.index("resnet8-digits, in-distribution digits: AUROC")
    end = text.index("All rows, sets and notes: oodbench leaderboard run\r\n")
    assert "\x1b" not in text[start:end]  # the table is whole
    assert text[:start].endswith("\x1b[2K")  # the line of the bar is cleared
    assert "measuring" in text[end:]
    assert "Cost of each detector alone" in text[end:]
