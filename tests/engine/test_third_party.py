"""Third-party code that tries to end the process, and class attributes that make no sense: each fails alone."""

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import oodbench
from oodbench import conformance, registry
from oodbench.datasets.load import load_dataset
from oodbench.errors import OodbenchError, contained, no_exit, reason
from oodbench.models.build import build

HEADER = """
    import os
    import sys

    import torch

    import oodbench


    class Stop(BaseException):
        pass


    class Speechless(Exception):
        def __str__(self):
            return 3


    class SpeechlessStop(BaseException):
        def __repr__(self):
            raise self


    class Dark(oodbench.Detector):
        "Minus the mean of the pixels."

        signals = ("images",)

        def statistics(self, probe):
            return -probe.images.mean((1, 2, 3))


    def build():
        raise Stop("no network")


    class Leaving(torch.nn.Sequential):
        passes = []

        def forward(self, images):
            self.passes.append(None)
            if len(self.passes) > 4:
                os._exit(0)
            return super().forward(images)


    def build_leaving():
        return Leaving(torch.nn.Flatten(), torch.nn.Linear(192, 8))


    def load(root, split):
        sys.exit("no images")
    """
TROUBLE = {  # name: (body of the class, why it has no figures)
    "statistics": ("def statistics(self, probe): sys.exit()", "raised SystemExit(), which would end the process"),
    "observe": ("def observe(self, probe): raise Stop('enough')", "raised Stop('enough'), which would end the process"),
    "finish": ("def finish(self): sys.exit(3)\n        def observe(self, probe): pass", "raised SystemExit(3)"),
    "check": ("def check(self, classifier): sys.exit(0)", "raised SystemExit(0)"),
    "constructor": ("def __init__(self): raise SystemExit", "raised SystemExit()"),
    "os-exit": ("def statistics(self, probe): os._exit(0)", "raised SystemExit(0), which would end the process"),
    "os-exit-check": ("def check(self, classifier): os._exit(0)", "raised SystemExit(0), which would end the process"),
    "posix-exit": ("def statistics(self, probe): sys.modules[os.name]._exit(0)", "raised SystemExit(0)"),
    "exec": ("def statistics(self, probe): os.execlp('true', 'true')", "which would end the process"),
    "generator": ("def statistics(self, probe): raise GeneratorExit", "raised GeneratorExit(), which would end the process"),
    "long": ("def statistics(self, probe): raise ValueError('A' * 30_000_000)", "ValueError: AAA"),
    "no-text": ("def statistics(self, probe): raise Speechless", "Speechless: Speechless (its str() raises TypeError)"),
    "no-repr": (
        "def finish(self): raise SpeechlessStop\n        def observe(self, probe): pass",
        "raised SpeechlessStop (its repr",
    ),
    "absent": ("grid = ({'p': 1}, {'p': 2})", "unknown argument 'p' of its grid (it has: none)"),
    "mapping": ("grid = {'p': [1, 2]}", "grid = {'p': [1, 2]}; give a tuple of dicts"),
    "uneven": ("grid = ({'p': 1}, {'q': 2})", "{'q': 2} in its grid has other arguments than {'p': 1}"),
    "not-json": ("grid = ({'p': float('nan')},)", "its grid must hold JSON values"),
    "not-json-default": (
        "def __init__(self, p=Stop): self.p = 1",
        "must be plain attributes of the same name, and JSON values",
    ),
    "no-grid": ("shift_head = 'choose'", "its shift_head 'choose' chooses from a grid, and it has none"),
    "misspelt": ("signals = ('logit',)", "unknown signal 'logit'; did you mean 'logits'"),
    "text": ("signals = 'images'", "signals = 'images'; give a tuple of names"),
    "number": ("signals = 3", "signals = 3; give a tuple of names"),
}
ARGUMENTS = "def __init__(self, p=1, q=1): self.p, self.q = p, q\n        "


@pytest.fixture
def trouble(tmp_path, monkeypatch):
    """The names of the detectors above, registered as if by --plugin."""
    source = textwrap.dedent(HEADER)
    for place, (name, (body, _)) in enumerate(TROUBLE.items()):
        arguments = ARGUMENTS if name in ("uneven", "not-json") else ""
        source += textwrap.dedent(f"\n    class D{place}(Dark):\n        name = {name!r}\n        {arguments}{body}\n")
    (tmp_path / "trouble_for_a_test.py").write_text(source)
    (tmp_path / "exits_for_a_test.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})
    yield [registry.add_plugin(f"trouble_for_a_test:D{place}") for place in range(len(TROUBLE))]
    del sys.modules["trouble_for_a_test"]


def test_each_detector_fails_alone(tmp_path, trouble):
    options = {"detectors": ["msp", *trouble], "datasets": ["photos"], "protocols": ["unsupervised"], "limit": 40}
    frame = oodbench.run("digits", out=tmp_path / "run", **options).frame().set_index("detector")
    assert frame.status.to_dict() == {"msp": "ok"} | dict.fromkeys(TROUBLE, "failed")
    assert {name: message in frame.reason[name] for name, (_, message) in TROUBLE.items()} == dict.fromkeys(TROUBLE, True)


@pytest.mark.parametrize("name", ["statistics", "constructor", "check"])
def test_its_conformance_fails(trouble, name):
    outcomes = list(conformance.check(name))
    assert any(outcome.outcome == "fail" and "raised SystemExit" in outcome.reason for outcome in outcomes)


def test_a_model_that_exits_is_an_error(trouble):
    with pytest.raises(OodbenchError, match=r"failed when it was built: RuntimeError: raised Stop\('no network'\)"):
        build("trouble_for_a_test:build")
    with pytest.raises(OodbenchError, match=r"cannot be imported: RuntimeError: raised SystemExit\(\)"):
        build("exits_for_a_test:build")


def test_a_network_that_exits_later_fails_only_what_reads_it(tmp_path, trouble):
    options = {"model": "trouble_for_a_test:build_leaving", "datasets": ["photos", "uniform"], "limit": 40}
    frame = oodbench.run("digits", detectors=["msp", "pixels"], out=tmp_path / "run", **options).frame()
    assert set(frame.status[frame.detector == "pixels"]) == {"ok"}
    assert "raised SystemExit(0)" in frame.reason[(frame.detector == "msp") & (frame.status == "failed")].iloc[0]


def test_a_set_that_exits_fails_alone(tmp_path, trouble, monkeypatch):
    record = registry.Record("datasets", "theirs", "trouble_for_a_test:load", distribution="theirs")
    monkeypatch.setitem(registry._added, ("datasets", "theirs"), record)
    with pytest.raises(OodbenchError, match=re.escape("cannot be loaded: RuntimeError: raised SystemExit('no images')")):
        load_dataset("theirs")
    frame = oodbench.run("digits", detectors=["msp"], datasets=["theirs", "photos"], limit=40, out=tmp_path / "run").frame()
    assert frame.set_index("dataset").status.to_dict() == {"theirs": "failed", "photos": "ok"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_that_a_detector_forks_ends_with_its_call(tmp_path):
    (tmp_path / "ended").touch()
    with contained():
        child = os.fork()
    if not child:  # it got out
        (tmp_path / "ended").unlink()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert (tmp_path / "ended").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_os_exit_works_in_forked_processes_and_afterwards():
    leave = os._exit
    with no_exit():
        if not (child := os.fork()):
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        with pytest.raises(SystemExit):
            os._exit(0)
    assert os._exit is leave


EQUAL = """
    from dataclasses import dataclass, field

    import torch

    import oodbench


    class Dark(oodbench.Detector):
        "Minus the mean of the pixels; one of two detectors with the same values fails."

        signals = ("images",)

        def observe(self, probe):
            if self.name == "equal-b":
                raise RuntimeError("broken observe")

        def finish(self):
            self.seen_ = torch.ones(1)

        def statistics(self, probe):
            return -probe.images.mean((1, 2, 3)) * self.seen_


    @dataclass
    class Data(Dark):
        "Has no hash of its own."

        k: int = 1
        ks: list = field(default_factory=lambda: [1, 2])


    class Same(Dark):
        "All are equal."

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 1
    """


@pytest.mark.parametrize("kind", ["Data", "Same"])
def test_detectors_of_equal_values_are_not_merged(tmp_path, monkeypatch, kind):
    (tmp_path / "equal_for_a_test.py").write_text(textwrap.dedent(EQUAL))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})
    names = ["equal-a", "equal-b", "equal-c"]
    for name in names:
        registry._added["detectors", name] = registry.Record("detectors", name, f"equal_for_a_test:{kind}")
    detector = oodbench.load_detector("equal-a")
    assert detector.non_default() == {}
    detector.fit(None, torch.rand(20, 3, 8, 8), torch.zeros(20))
    options = {
        "detectors": ["msp", *names],
        "datasets": ["photos"],
        "protocols": ["unsupervised"],
        "limit": 40,
        "device": "cpu",
    }
    frame = oodbench.run("digits", out=tmp_path / "run", **options).frame().set_index("detector")
    assert frame.status.to_dict() == dict.fromkeys(["msp", "equal-a", "equal-c"], "ok") | {"equal-b": "failed"}
    assert "broken observe" in frame.reason["equal-b"]
    assert frame.overhead.drop("equal-b").notna().all()


MOVING = """
    import os

    import torch

    import oodbench


    class Moves(oodbench.Detector):
        "Minus the mean of the pixels, computed elsewhere."

        signals = ("images",)

        def prepare(self, train_set, classifier, progress):
            os.chdir("elsewhere")
            self.trained_ = torch.ones(1)

        def statistics(self, probe):
            os.chdir(os.sep)
            return -probe.images.mean((1, 2, 3))


    os.chdir("elsewhere")
    """


def test_a_plugin_that_changes_the_working_folder_moves_no_file(tmp_path, monkeypatch):
    (tmp_path / "moving_for_a_test.py").write_text(textwrap.dedent(MOVING))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setenv("OODBENCH_CACHE", "cache")
    monkeypatch.chdir(tmp_path)
    detectors = [registry.add_plugin("moving_for_a_test:Moves"), "pixels"]
    frame = oodbench.run("digits", detectors=detectors, datasets=["photos"], limit=40, out="run").frame()
    assert set(frame.status) == {"ok"}
    assert list(elsewhere.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} >= {"run", "cache"}
    assert list((tmp_path / "cache" / "prepared").glob("moves-*"))
    assert Path.cwd() == tmp_path


def test_an_error_of_oodbench_without_text():
    class Speechless(OodbenchError):
        def __str__(self):
            raise ValueError

    assert reason(Speechless()) == "Speechless (its str() raises ValueError)"


def test_ctrl_c_is_not_contained():
    with pytest.raises(KeyboardInterrupt), contained():
        raise KeyboardInterrupt
