"""Accuracy under corruption beside published figures."""

import pandas as pd
import pytest
from new_process import oodbench as command

import oodbench
from oodbench.errors import UsageError
from oodbench.leaderboard.comparison.beside_recognition import COLUMNS, beside_recognition, render_beside_recognition
from oodbench.leaderboard.published import recognition_figures
from oodbench.leaderboard.recognition import each_once

FIGURES = recognition_figures()


def cell(source, dataset, level, accuracy, model="resnet20-cifar10", **more):
    of = {"model": model, "in_distribution": "cifar10", "source": source, "dataset": dataset, "kind": "corruption"}
    of |= {"level": level, "seed": 0, "checkpoint": "c", "n": 100, "accuracy": accuracy, "ece": 0.1}
    of |= {"status": "ok", "reason": ""}
    return of | more


def frame(*cells):
    return each_once(pd.DataFrame(cells))


def test_the_mean_over_corruptions_is_beside_the_paper():
    """First over levels, then over corruptions."""
    rows = beside_recognition(
        frame(
            *(cell("network", "cifar10+noise", level, accuracy) for level, accuracy in ((1, 0.8), (2, 0.6))),
            cell("network", "cifar10c/fog", 1, 0.5),
            cell("introspective", "cifar10c/fog", 1, 0.7, ece=0.05),
            cell("network-scaled", "cifar10c/fog", 1, 0.5, ece=0.02),
            cell("introspective-scaled", "cifar10c/fog", 1, 0.7, ece=0.01),
        ),
        FIGURES,
    )
    found = rows[rows["status"] == "ok"].set_index("source")
    measured = {"network": 0.6, "network-scaled": 0.5, "introspective": 0.7, "introspective-scaled": 0.7}
    assert found["measured"].to_dict() == pytest.approx(measured)
    assert found["published"].dropna().to_dict() == pytest.approx({"network": 0.6789, "introspective": 0.714})
    of_ece = {"network": 0.1, "network-scaled": 0.02, "introspective": 0.05, "introspective-scaled": 0.01}
    assert found["ece"].to_dict() == pytest.approx(of_ece)
    assert found["difference"]["network"] == pytest.approx(0.6 - 0.6789)
    assert found["stands_in"]["network"] == (
        "resnet20-cifar10 for resnet-18; 2 of 19 corruptions; 1 of them generated, not the files of CIFAR-10-C; 100 images each"
    )
    assert list(rows.columns) == list(COLUMNS)
    text = " ".join(render_beside_recognition(rows, FIGURES, "md").split())
    assert (
        "| resnet20-cifar10 | network | 60.0 | 67.9 | -7.9 | 10.0 |"
        " | resnet20-cifar10 | network-scaled | 50.0 | – | – | 2.0 |"
        " | resnet20-cifar10 | introspective | 70.0 | 71.4 | -1.4 | 5.0 |"
        " | resnet20-cifar10 | introspective-scaled | 70.0 | – | – | 1.0 |"
    ) in text
    assert "not run (denoising, adversarial train (27), simclr (19), augment noise (23), augmix (24)): no run of this" in text


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("resnet18", "resnet-18"),
        ("resnet20-cifar10 (augmix)", "augmix (24)"),
        ("resnet18 (simclr)", "simclr (19)"),
        ("denoised:resnet18", "denoising"),
    ],
)
def test_a_network_stands_for_those_trained_in_its_way_alone(model, row):
    rows = beside_recognition(frame(cell("network", "cifar10c/fog", 1, 0.5, model)), FIGURES)
    published = {figure.model: figure.accuracy for figure in FIGURES if figure.source == "network"}
    found = rows[(rows["status"] == "ok") & (rows["source"] == "network")]
    assert found["published"].tolist() == [published[row]]


def test_the_papers_own_network_stands_for_itself():
    names = [f"cifar10c/{number}" for number in range(15)]
    rows = beside_recognition(frame(*(cell("network", name, 1, 0.7, "resnet18") for name in names)), FIGURES)
    found = rows[rows["model"] == "resnet18"].set_index("source")
    assert found["stands_in"]["network"] == "100 images each"
    assert found["reason"]["introspective"] == "introspective was not run"


def test_what_stands_in_for_all_networks_is_said_once():
    models = {"resnet18 (augmix)": 100, "resnet20-cifar10 (augmix)": 100}
    rows = beside_recognition(
        frame(*(cell("network", "cifar10+noise", 1, 0.7, model, n=n) for model, n in models.items())), FIGURES
    )
    text = " ".join(render_beside_recognition(rows, FIGURES, "md").split())
    shared = "1 of 19 corruptions; 1 of them generated, not the files of CIFAR-10-C; 100 images each"
    assert text.count("generated") == text.count(f"all networks: {shared}") == 1
    assert "resnet20-cifar10 (augmix): resnet20-cifar10 (augmix) for augmix (24)" in text


def test_runs_without_a_counterpart_are_told_what_has_one():
    with pytest.raises(UsageError, match="no published accuracy belongs to these runs; the suites introspective-plugin and"):
        beside_recognition(frame(cell("network", "digits+noise", 1, 0.7, in_distribution="digits")), FIGURES)


def test_the_command_takes_published_figures_alone(tmp_path):
    options = {"detectors": ["msp"], "datasets": ["digits+noise@1"], "limit": 40, "measure_costs": False}
    path = oodbench.run("digits", out=tmp_path / "run", **options).path
    done = command("leaderboard", path, "--table", "recognition", "--beside", "published")
    assert "no published accuracy belongs to these runs" in done.stderr
    done = command("leaderboard", path, "--table", "recognition", "--beside", path)
    assert "--table recognition takes --beside published alone, not " in done.stderr
