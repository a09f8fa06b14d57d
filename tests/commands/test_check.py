"""``oodbench check`` as a user meets it: which family a name is of, what it prints, its exit codes."""

import functools
import json
import textwrap

import new_process
import pytest
import torch

from oodbench import registry
from oodbench.conformance import family_of
from oodbench.conformance.detectors import CHECKS
from oodbench.errors import UsageError


def test_a_name_of_both_families_is_asked_about(monkeypatch):
    record = registry.Record("datasets", "msp", "nowhere:msp", distribution="other")
    monkeypatch.setitem(registry._added, ("datasets", "msp"), record)
    with pytest.raises(UsageError, match="'msp' is a detector and a data set; choose with --family"):
        family_of("msp")
    assert family_of("digits:3+noise@1") == "datasets"
    assert family_of("folder:anything") == family_of("imglist:anything") == "datasets"
    assert family_of("knn") == "detectors"


def test_families_of_other_tasks_come_last():
    assert (family_of("photos"), family_of("entropy")) == ("datasets", "detectors")
    assert (family_of("tid2013"), family_of("badge"), family_of("psnr")) == (
        "quality_databases",
        "strategies",
        "quality_metrics",
    )


oodbench_check = functools.partial(new_process.oodbench, "check")


def test_check_prints_each_outcome_and_the_count():
    done = oodbench_check("msp")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == list(CHECKS)
    assert {line.split()[0] for line in lines[:-1]} <= {"pass", "skip"}
    skipped = 2 if torch.cuda.is_available() else 3  # msp fits nothing, so nothing is held out or calibrated
    assert lines[-1] == f"msp: {len(CHECKS) - skipped} checks passed, 0 failed, {skipped} skipped"


def test_check_of_a_plugin_that_breaks_its_contract(tmp_path):
    (tmp_path / "loud.py").write_text(
        textwrap.dedent('''
        import oodbench


        class Loud(oodbench.Detector):
            """Scores an image by the others of its batch."""

            signals = ("logits",)

            def __init__(self, power=1.0):
                self.power = power

            def statistics(self, probe):
                return (probe.logits.mean() - probe.logits.max(1).values) ** self.power
        ''')
    )
    done = oodbench_check("--plugin", "loud:Loud", "--param", "loud.power=3", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = json.loads(done.stdout)
    assert {"batch-size"} <= {row["check"] for row in rows if row["outcome"] == "fail"}
    assert {row["name"] for row in rows} == {"loud"}
    assert {row["family"] for row in rows} == {"detectors"}


def test_check_of_a_plugin_of_another_family(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent('''
        from oodbench.quality.metric import QualityMetric


        class Error(QualityMetric):
            """Mean absolute difference."""

            def compare(self, references, distorted):
                return (references.double() - distorted.double()).abs().mean((1, 2, 3))
        ''')
    )
    done = oodbench_check("--plugin", "mine:Error", "--family", "quality-metrics", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert {(row["name"], row["family"]) for row in rows.values()} == {("error", "quality-metrics")}
    assert [name for name, row in rows.items() if row["outcome"] == "fail"] == ["best"]  # higher is not better


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["enregy"], "unknown name 'enregy'; did you mean 'energy'? (oodbench list detectors|datasets|strategies|"),
        ([], "nothing to check; name a plug-in"),
        (["knn", "--param", "knn.kk=3"], "did you mean 'k'?"),
        (["knn", "--param", "msp.k=3"], "this command uses knn"),
        (["digits", "--param", "digits.k=3"], "has no parameters"),
        (["tid2013", "--param", "tid2013.k=3"], "is a quality database, which has no parameters"),
        (["unique", "--param", "unique.folders=3"], "did you mean 'folder'?"),
        (["msp", "--family", "models"], "'models' is not one of 'detectors', 'datasets'"),
    ],
)
def test_wrong_usage(arguments, says):
    done = oodbench_check(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "family", "says"),
    [
        ("cifar100", "datasets", "cifar100 was not checked: cifar100 (train) is missing"),
        ("folder:nowhere", "datasets", "folder:nowhere was not checked: folder:nowhere is missing"),
        ("imglist:nowhere.txt", "datasets", "imglist:nowhere.txt was not checked: imglist:nowhere.txt is missing"),
        ("cifar10c", "datasets", "cifar10c was not checked: "),
        ("folder:nowhere", "quality-databases", "folder:nowhere was not checked: folder:nowhere is missing"),
        ("tid2013", "quality-databases", "tid2013 was not checked: tid2013 is missing"),
        ("unique", "quality-metrics", "unique was not checked: unique"),
    ],
)
def test_what_is_missing_is_not_sound(tmp_path, name, family, says):
    done = oodbench_check(name, "--family", family, "--data", tmp_path)
    assert done.returncode == 1
    assert says in done.stderr


BROKEN = '''
import oodbench


class Undeclared(oodbench.Detector):
    """Norm of the features."""

    signals = ("logits",)

    def statistics(self, probe):
        return probe.features.norm(dim=1)


class Looks(Undeclared):
    """Looks something up."""

    def statistics(self, probe):
        return look_up("missing")


def look_up(key):
    return {}[key]
'''


def test_checks_that_cannot_run_are_said_once(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = oodbench_check("--plugin", "broken:Undeclared", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=2)[:2] for line in lines[:3]] == [
        ["pass", "contract"],
        ["fail", "fits-and-scores"],
        ["skip", "deterministic"],
    ]
    rest = len(CHECKS) - 3
    assert lines[3:] == [
        f"skip  {f'{rest} more checks':22} could not be fitted",
        f"undeclared: 1 check passed, 1 failed, {rest + 1} skipped",
    ]


@pytest.mark.parametrize("arguments", [["check"], ["run", "--detector", "msp", "--dataset", "photos", "--no-costs"]])
def test_debug_shows_where_a_plugin_failed(tmp_path, arguments):
    (tmp_path / "broken.py").write_text(BROKEN)
    arguments = [*arguments, "--plugin", "broken:Looks"]
    plain, debugged = (new_process.oodbench(*arguments, *more, cwd=tmp_path) for more in ([], ["--debug"]))
    assert (plain.returncode, debugged.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert 'broken.py", line 22, in look_up\n    return {}[key]\n' in debugged.stderr
    assert "Traceback" not in plain.stdout + debugged.stdout
