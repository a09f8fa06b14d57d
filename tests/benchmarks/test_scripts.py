"""The scripts that print what things cost still run; their figures are not judged here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chromium import require_chromium


def printed(script: str, *options: str) -> str:
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a bar is missed, which they are meant for at their real size
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_the_shared_pass_is_measured():
    text = printed("shared_pass.py", "--suite", "digits", "--repeats", "1", "--limit", "40")
    assert re.search(r"median: \d+\.\d\d of the bar", text), text


def test_scaling_is_measured():
    text = printed("scaling.py", "--suite", "digits", "--repeats", "1", "--limits", "10", "20", "40")
    assert re.search(r"^images: (\d+\.\d\d|nan) of the bar", text, re.MULTILINE), text
    assert re.search(r"^detectors: \d+\.\d\d of the bar, 12 more add ", text, re.MULTILINE), text


def test_pytorch_ood_is_measured():
    pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")
    text = printed("against_pytorch_ood.py", "--suite", "digits", "--repeats", "1", "--limit", "40")
    assert re.search(r"13 detectors: oodbench .* s; pytorch-ood .* one at a time .*, .* in one call", text), text
    assert len(re.findall(r"^[\w ]+: \d+\.\d\d of the bar$", text, re.MULTILINE)) == 3, text


def test_gradient_norms_are_measured():
    sizes = ["--repeats", "1", "--batch-size", "2", "--large-batch", "8"]
    text = printed("gradient_norms.py", *sizes, "--networks", "resnet20", "vit")
    assert re.search(r"oodbench.gradients +\d+\.\d\d ", text), text
    assert len(re.findall(r"e-\d\d   \d+ parameter tensors", text)) == 2, text
    assert re.search(r"oodbench.gradients +\d+ MiB", text), text
    assert len(re.findall(r"^[\w -]+: \d+\.\d\d of the bar$", text, re.MULTILINE)) == 4, text


def test_training_is_measured(data_root):
    options = ["--data", str(data_root), "--images", "40", "--repeats", "2"]
    text = printed("training.py", *options)
    assert len(re.findall(r"seed \d: .*plain \d+\.\d s, accuracy .*; \d+\.\d\d of the time", text)) == 2, text
    assert re.search(r"median: \d+\.\d\d of the time of the plain loop", text), text


def test_robust_training_is_measured(data_root):
    text = printed("robust_training.py", "--data", str(data_root), "--quick")
    assert len(re.findall(r"^seed \d, (?:standard|noise|augmix): .* s, clean .*%, corrupted .*%$", text, re.MULTILINE)) == 6, (
        text
    )
    assert len(re.findall(r"^(?:noise|augmix) - standard, .*: [+-]\d+\.\d ± \d+\.\d points$", text, re.MULTILINE)) == 6, text
    assert re.search(r"^(?:holds|missed)$", text, re.MULTILINE), text


def test_an_accelerator_is_measured(tmp_path):
    """On the CPU, whose own figures it has."""
    text = printed("gpu_report.py", "--device", "cpu", "--quick", "--out", str(tmp_path))
    assert "9 of 9 detectors, attacks, corruptions have the figures of the CPU" in text
    assert re.search(r"AUROC in bf16: \d\.\d\d of the bar", text), text
    report = json.loads((tmp_path / "report.json").read_text())
    outcomes = {check["name"]: check["status"] for check in report["checks"]}
    assert outcomes == {
        "figures": "passed",
        "rate": "passed",
        "gradient norms": "passed",
        "waiting": "skipped",
        "memory": "skipped",
        "precision": "passed",
    }
    assert "## figures: passed" in (tmp_path / "report.md").read_text()


def test_a_check_of_an_accelerator_that_fails_is_an_exit_code(tmp_path):
    code = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import gpu_report
gpu_report.SCORES, gpu_report.MOVED = -1, -1
gpu_report.CHECKS = {{"figures": gpu_report.figures, "rate": lambda check, options: 1 / 0}}
sys.argv[1:] = ["--device", "cpu", "--quick", "--out", {str(tmp_path)!r}]
sys.exit(gpu_report.main())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    figures, rate = report["checks"]
    assert figures["failures"][0] == "msp: differs from the CPU by 0, and -1 is allowed"
    assert len(figures["failures"]) == 4
    assert rate["failures"] == ["ZeroDivisionError: division by zero"]


def test_a_large_run_folder_is_measured():
    text = printed("run_folder.py", "--sets", "6", "--rows", "4")
    assert "opening all 24: " in text, text
    assert re.search(r"leaderboard --format table: \d+\.\d\d of the bar, \d+\.\d s, \d\.\d\d GB", text), text


def test_a_large_site_is_measured():
    text = printed("site.py", "--detectors", "12", "--sets", "4", "--repeats", "2", "--browser", require_chromium())
    assert len(re.findall(r"^(?:means|all): .*, sort \d+ ms, search \d+ ms,", text, re.MULTILINE)) == 2, text
    assert re.search(r"sort: \d+\.\d\d of the bar", text), text


def test_streaming_is_measured():
    options = ["--model", "torchvision:squeezenet1_1", "--images", "16", "32", "--size", "64", "--workers", "1"]
    text = printed("streaming.py", *options)
    assert len(re.findall(r"images: \d\.\d\d GB in .* s; bare loop \d\.\d\d GB in .* s$", text, re.MULTILINE)) == 2, text
    assert re.search(r"memory of more images: \d\.\d\d of the bar", text), text


def test_memory_is_measured():
    text = printed("memory.py", "--quick", "--images", "100", "--detector", "knn", "--scores", "100000")
    assert len(re.findall(r"^knn, [\d,]+ images: [\d.]+ [kM]B, estimate [\d.]+ [kM]B$", text, re.MULTILINE)) == 2, text
    names = re.findall(r"^([\w -]+): \d+\.\d\d of the bar", text, re.MULTILINE)
    assert names == ["growth of knn", "estimate of knn", "metrics of 100 000 scores"], text
