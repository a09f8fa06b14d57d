"""``oodbench bundle``: a run in one file, which anybody may have made."""

import hashlib
import io
import json
import shutil
import stat
import zipfile
from pathlib import Path

import new_process
import numpy as np
import pytest
from run_folders import files

import oodbench
from oodbench import cli
from oodbench.errors import BadData, UsageError
from oodbench.leaderboard.formats import render
from oodbench.models import card
from oodbench.models.train import train
from oodbench.results import bundle, json_files, pass_file
from oodbench.results.folder import RunFolder
from oodbench.results.verify import Verification

OPTIONS = {"detectors": ["msp", "pixels"], "datasets": ["photos", "digits+noise@1"], "limit": 40, "measure_costs": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return oodbench.run("digits", out=tmp_path_factory.mktemp("bundle") / "run", **OPTIONS).path


@pytest.fixture(scope="module")
def packed(run):
    bundle.write_bundle(run, out := run.parent / "run.zip")
    return out


def rewritten(packed: Path, change, **options) -> Path:
    """Another bundle with the members that ``change`` makes of {name: content}, and a manifest of them."""
    with zipfile.ZipFile(packed) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    told = json.loads(members.pop(bundle.MANIFEST))
    members = change(members, told) or members
    out = packed.with_name("rewritten.zip")
    with zipfile.ZipFile(out, "w", **options) as archive:
        archive.writestr(bundle.MANIFEST, json.dumps(told))
        for name, content in members.items():
            archive.writestr(name, content)
    return out


def command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["oodbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


def test_the_same_run_gives_the_same_bytes(run, packed, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "aside").mkdir()
    (copy / "aside" / "old.txt").write_text("no part of the run")
    found = bundle.write_bundle(copy, tmp_path / "copy.zip")
    assert found.ok
    assert (tmp_path / "copy.zip").read_bytes() == packed.read_bytes()


def test_a_bundle_is_read_as_its_run(run, packed):
    unpacked = bundle.unpack(packed)
    assert {name: content for name, content in files(RunFolder(run)).items() if name != ".lock"} == files(RunFolder(unpacked))
    assert oodbench.verify(packed)._replace(path=run) == oodbench.verify(run)
    assert render(oodbench.open_run(packed).frame(), "csv") == render(oodbench.open_run(run).frame(), "csv")


def test_the_commands_take_bundles(run, packed, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "bundle", run, "--out", tmp_path / "again.zip") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again.zip'}\n"
    assert command(monkeypatch, "verify", packed) == 0
    assert capsys.readouterr().out.startswith(f"{packed}: ")
    assert command(monkeypatch, "leaderboard", run, "--format", "csv") == 0
    of_run = capsys.readouterr().out
    assert command(monkeypatch, "leaderboard", packed, "--format", "csv") == 0
    assert capsys.readouterr().out == of_run


@pytest.mark.parametrize(
    ("part", "fact"), [("provenance", {"model_card": [1]}), ("settings", {"seed": "x"}), ("settings", {"weights": 5})]
)
def test_forged_facts_of_a_run_are_refused_by_name(run, packed, tmp_path, part, fact):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/run.json"
    manifest = json_files.read_manifest(path, "")
    getattr(manifest, part).update(fact)
    json_files.write(path, manifest.model_dump())
    with pytest.raises(BadData, match=rf"run.json is not what oodbench writes \({next(iter(fact))}: "):
        bundle.pack(tmp_path / "run", tmp_path / "run.zip")
    content = path.read_bytes()

    def forge(members, told):
        told["files"]["run.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return members | {"run.json": content}

    with pytest.raises(BadData, match=r"is refused: run.json is not what oodbench writes"):
        bundle.unpack(rewritten(packed, forge))


def test_what_is_unpacked_does_not_outlive_the_process(packed, tmp_path):
    code = f"from oodbench.results.bundle import unpack; print(unpack({str(packed)!r}))"
    found = new_process.python(code)
    assert not Path(found.stdout.strip()).parent.exists()


def test_a_study_is_one_bundle(tmp_path):
    study = oodbench.run("digits", out=tmp_path / "study", seed=[0, 1], **OPTIONS | {"detectors": ["msp"]})
    bundle.write_bundle(study.path, tmp_path / "study.zip")
    again = oodbench.open_study(tmp_path / "study.zip")
    assert list(again.results) == ["seed-0", "seed-1"]
    assert render(again.frame(), "csv") == render(study.frame(), "csv")


def test_a_bundle_holds_the_card_of_its_network(run, packed, tmp_path):
    weights = tmp_path / "mine.safetensors"
    train("resnet8-digits", oodbench.load_dataset("digits", split="train"), out=weights, epochs=1, progress=False)
    made = oodbench.run("digits", model="resnet8-digits", weights=weights, out=tmp_path / "mine", **OPTIONS)
    bundle.write_bundle(made.path, tmp_path / "mine.zip")
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        (about,) = json.loads(archive.read(bundle.MANIFEST))["runs"].values()
    assert about["model_card"] == json.loads(card.path_of(weights).read_text())
    card.path_of(weights).write_text("[]")
    again = oodbench.run("digits", model="resnet8-digits", weights=weights, out=tmp_path / "again", **OPTIONS)
    assert "model_card" not in again.manifest().provenance
    with zipfile.ZipFile(packed) as archive:
        (about,) = json.loads(archive.read(bundle.MANIFEST))["runs"].values()
    assert about["model_card"] is None
    assert about["suite"] == "digits"
    assert about["code"].keys() == {"msp", "pixels"}
    assert about["environment"]["oodbench"] == oodbench.__version__


def test_every_flipped_bit_is_noticed(packed, tmp_path):
    content, random = packed.read_bytes(), np.random.default_rng(0)
    end = len(content)
    places = [*random.integers(end, size=150), *random.integers(end - 1500, end, size=30), *random.integers(3000, size=20)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with pytest.raises(BadData, match=r"damaged\.zip"):
            bundle.unpack(tmp_path / "damaged.zip")


@pytest.mark.parametrize("left", [0, 3, 21, 1000, -1])
def test_a_truncated_bundle_is_refused_in_one_line(packed, tmp_path, left):
    (tmp_path / "short.zip").write_bytes(packed.read_bytes()[:left])
    with pytest.raises(BadData, match=r"^.*short\.zip is refused: .*; get it again") as error:
        bundle.unpack(tmp_path / "short.zip")
    assert "\n" not in str(error.value)


def test_an_edited_figure_is_named(run, tmp_path):
    forged = shutil.copytree(run, tmp_path / "forged")
    folder = RunFolder(forged)
    path = folder.passes_path / "photos.safetensors"
    records = [
        record.model_copy(update={"n_in": 7}) if record.row == "msp" else record for record in pass_file.read_records(path)
    ]
    pass_file.write(path, records, pass_file.read_arrays(path), pass_file.read_settings(path))
    with pytest.raises(BadData, match=r"does not verify: msp on photos .*: n_in is 7, but its scores give 40"):
        bundle.write_bundle(forged, tmp_path / "forged.zip")
    with (tmp_path / "forged.zip").open("wb") as file:
        bundle._pack(forged, file)
    (problem, *_) = oodbench.verify(tmp_path / "forged.zip").problems
    assert problem == "msp on photos (unsupervised): n_in is 7, but its scores give 40"
    with pytest.raises(BadData, match=r"forged\.zip does not verify \(msp on photos"):
        oodbench.open_run(tmp_path / "forged.zip")


def add(name: str, content: bytes = b"x"):
    def change(members, told):
        members[name] = content
        told["files"][name] = {"bytes": len(content), "sha256": bundle.hashlib.sha256(content).hexdigest()}

    return change


def newer(members, told):
    told["schema_version"] = 2


def strange(members, told):
    told["pickle"] = "gASV"


def lost(members, told):
    del members["run.json"]


def other_run(members, told):
    told["runs"]["."]["suite"] = "cifar10"


HOSTILE = {
    "a path outside": (add("../evil"), r"it holds '\.\./evil', which no run has"),
    "an absolute path": (add("/tmp/evil"), "it holds '/tmp/evil', which no run has"),
    "another kind of file": (add("passes/evil.pkl"), "which no run has"),
    "a hidden file": (add(".ssh/run.json"), "which no run has"),
    "a file of another run": (add("passes/other.safetensors"), r"other\.safetensors is damaged, or not a file of oodbench"),
    "a newer version": (newer, "has schema version 2, and this oodbench reads 1; use a newer oodbench"),
    "another entry": (strange, "manifest.json: pickle: Extra inputs are not permitted"),
    "a lost file": (lost, r"its files are not those of its manifest\.json \(run\.json\)"),
    "other facts": (other_run, "not laid out as oodbench writes it, so it was edited"),
}


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_forged_bundle_is_refused(packed, change, says):
    with pytest.raises(BadData, match=says) as error:
        bundle.unpack(rewritten(packed, change))
    assert "\n" not in str(error.value)


def test_a_compressed_bundle_is_refused_before_it_is_unpacked(packed):
    bomb = rewritten(packed, add("costs.json", bytes(10**8)), compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**6
    with pytest.raises(BadData, match="it claims to hold more files or bytes than its size allows"):
        bundle.unpack(bomb)
    large = add("costs.json", np.random.default_rng(0).bytes(10**6))
    with pytest.raises(BadData, match=r"is compressed or encrypted, which no bundle is"):
        bundle.unpack(rewritten(packed, large, compression=zipfile.ZIP_LZMA))


def test_links_and_names_that_stand_twice_are_refused(packed, tmp_path):
    with zipfile.ZipFile(packed) as archive:
        members = [(archive.getinfo(name), archive.read(name)) for name in archive.namelist()]
    link = zipfile.ZipInfo("costs.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for more, says in ((link, "is not a regular file"), (zipfile.ZipInfo("run.json"), "a name that it holds twice")):
        with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive, pytest.warns() if more is not link else io.BytesIO():
            for info, content in members:
                archive.writestr(info, content)
            archive.writestr(more, "/etc/passwd")
        with pytest.raises(BadData, match=says):
            bundle.unpack(tmp_path / "more.zip")


def test_a_run_without_figures_is_not_packed(tmp_path, monkeypatch, capsys):
    options = OPTIONS | {"detectors": ["msp"], "datasets": ["cifar100"]}
    path = oodbench.run("digits", out=tmp_path / "run", data=tmp_path, **options).path
    with pytest.raises(BadData, match=r"run has a figure, so there is nothing to pack; see `oodbench leaderboard .*run`"):
        bundle.write_bundle(path, tmp_path / "run.zip")
    with pytest.raises(BadData, match="run has no figures yet, so there is nothing to publish; run it first"):
        bundle.require_verified("run", Verification(path, 0, 0, [], 0), "publish")
    assert not (tmp_path / "run.zip").exists()
    assert command(monkeypatch, "verify", path) == 0
    assert capsys.readouterr().out.endswith("nothing to verify yet\n")


def test_what_the_run_lacks_is_reported(run, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "bundle", run, "--out", tmp_path / "whole.zip") == 0
    assert "not complete" not in capsys.readouterr().err
    options = OPTIONS | {"datasets": ["photos", "cifar100", "uniform"]}
    part = oodbench.run("digits", out=tmp_path / "part", data=tmp_path, **options)
    next(part.path.glob("passes/uniform*")).unlink()  # as of a killed run
    assert command(monkeypatch, "bundle", part.path, "--out", tmp_path / "part.zip") == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'part.zip'}\n"
    assert f"the bundle is not complete: {part.path}: 4 cells skipped, no cell of uniform\n" in said.err


def test_wrong_names_say_what_to_do(run, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "bundle", run, "--out", tmp_path / "run.tar") == UsageError.exit_code
    assert "run.tar does not end in .zip; name a file that does with --out" in capsys.readouterr().err
    assert command(monkeypatch, "verify", Path(__file__)) == BadData.exit_code
    assert "test_bundle.py is refused: it is truncated, or not a bundle of oodbench" in capsys.readouterr().err
