"""Run folders: what is stored, what survives damage, and when a record is void."""

import errno
import hashlib
import importlib
import json
import shutil
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from named_pipe import pipe_at
from run_folders import arrays_of, figures, files, record_of

import oodbench
from oodbench import registry
from oodbench.errors import BadData, OodbenchError, UsageError
from oodbench.leaderboard.brief import brief
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.results import pass_file
from oodbench.results.folder import SHARED, RunFolder
from oodbench.results.recompute import recompute
from oodbench.results.schema_1 import cells, has_cells

SCHEMA_1 = Path(__file__).parent / "schema-1"
SETS = ["digits-heldout", "digits+noise@5"]


def run(out, told=None, **options):
    options = {"detectors": ["msp", "pixels"], "datasets": SETS, "limit": 60, "measure_costs": False} | options
    return oodbench.run("digits", out=out, progress=told, **options)


def shown(path) -> list[str]:
    """What people read of a run folder, without line breaks."""
    frame, notes = gather([RunFolder(path)])
    texts = [brief(frame, notes), *(render(frame, form, notes=notes) for form in ("table", "md"))]
    return [" ".join(text.split()) for text in texts]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return run(tmp_path_factory.mktemp("results") / "run")


# What is stored


def test_one_file_per_set_and_one_for_what_sets_share(finished):
    assert sorted(files(finished)) == [
        ".lock",
        "passes/digits+noise@5.safetensors",
        "passes/digits-heldout.safetensors",
        "passes/digits.safetensors",
        "run.json",
        "shared/in-distribution.safetensors",
    ]


def test_in_distribution_scores_are_stored_once(finished):
    first, second = (record_of(finished, "msp", "unsupervised", name) for name in SETS)
    assert first.arrays["in_scores"] == second.arrays["in_scores"]
    assert first.arrays["in_scores"] in pass_file.array_names(finished.shared_path)
    for path in finished.passes_path.iterdir():
        assert first.arrays["in_scores"] not in pass_file.array_names(path)


def test_every_figure_follows_from_the_files_alone(finished):
    for record in finished.records():
        found = recompute(finished, record)
        told = (record.metrics, record.auroc_clean, record.calibration, record.aurc, record.excess_aurc)
        assert found == told, record.place
    # Base images decide the interval where a set is made of the in-distribution images.
    noisy = record_of(finished, "msp", "unsupervised", "digits+noise@5")
    arrays = finished.arrays(noisy)
    alone = oodbench.evaluate(arrays["in_scores"], arrays["out_scores"])
    assert alone.auroc == noisy.metrics.auroc
    assert (alone.auroc_low, alone.auroc_high) != (noisy.metrics.auroc_low, noisy.metrics.auroc_high)


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = [np.array([0.1, 2.0]), np.array([0.5, -0.0]), np.arange(3), np.array([2**40]), np.array([True, False])]
    arrays += [np.empty(0), np.float32([0.1]), np.array([1e300])]
    named = {pass_file.hash_of(array): array for array in arrays}
    pass_file.write(tmp_path / "f.safetensors", [], named)
    found = pass_file.read_arrays(tmp_path / "f.safetensors")
    assert found.keys() == named.keys()
    for name, array in named.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype in (np.float64, np.int64, np.bool_)
    assert np.signbit(found[pass_file.hash_of(np.array([0.5, -0.0]))][1])
    assert pass_file.hash_of(np.float32([0.5])) == pass_file.hash_of(np.array([0.5]))
    assert pass_file.hash_of(np.array([0.0])) != pass_file.hash_of(np.array([-0.0]))
    assert pass_file.hash_of(np.zeros((2, 3))) != pass_file.hash_of(np.zeros((3, 2)))


def test_file_stems_are_safe_and_differ():
    names = ["digits+noise@5", "folder:a/b", "folder:a_b", "../x", "x" * 200, "x" * 201, "a\nb"]
    stems = [pass_file.file_stem(name) for name in names]
    assert stems[0] == names[0]
    assert len(set(stems)) == len(names)
    assert not [stem for stem in stems if "/" in stem or "\n" in stem or len(stem) > 90 or stem.startswith(".")]


# What a run goes on from


def test_a_second_run_computes_and_writes_nothing(folder):
    before, told = files(folder), Heard()
    run(folder.path, told)
    assert {n: c for n, c in files(folder).items() if n != "run.json"} == {n: c for n, c in before.items() if n != "run.json"}
    assert f"Resuming {folder.path}: {len(list(folder.records()))} cells already done" in told.lines


def test_more_detectors_join_and_the_others_stay(folder):
    before = figures(folder)
    run(folder.path, detectors=["energy"])
    after = figures(folder)
    assert {name: after[name] for name in before} == before
    assert {name[1] for name in after.keys() - before.keys()} == {"energy"}
    assert all(recompute(folder, record).metrics == record.metrics for record in folder.records())


def edited(path, change):
    """The file with other content in its records: ``change`` takes it, and returns the new one as JSON text."""
    from safetensors.numpy import load_file, save

    tensors = load_file(path)
    text = change(json.loads(zlib.decompress(tensors["records"].tobytes()))).encode()
    tensors["records"] = np.frombuffer(zlib.compress(text), np.uint8)
    return save(tensors, {"oodbench": hashlib.sha256(text).hexdigest()})


def of_another_version(path):
    """The file as a later oodbench may write it."""
    return edited(path, lambda content: json.dumps(content | {"schema_version": 9}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n_in", 2**63), ("n_out", -(10**30)), ("seed", 10**400), ("look_alikes", 2**64), ("wall_seconds", "1e400")),
        *(("provenance", {"a": "1e400"}), ("parameters", {"a": "NaN"})),
    ],
)
def test_a_number_that_no_table_holds_is_damage(folder, field, value):
    """A whole number beyond 64 bits once ended the leaderboard with an OverflowError."""
    path, told = folder.path / "passes" / "digits-heldout.safetensors", Heard()

    def change(content):
        records = [content["common"] | record | {field: value} for record in content["records"]]
        text = json.dumps(content | {"common": {}, "records": records})
        return text.replace('"1e400"', "1e400").replace('"NaN"', "NaN")

    path.write_bytes(edited(path, change))
    with pytest.raises(BadData, match=r"digits-heldout.safetensors is damaged, or not a file of oodbench"):
        gather([folder])
    with folder.locked(told.say):
        pass
    assert [line for line in told.lines if "moved to" in line and path.name in line]
    assert not path.exists()


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 400, "9" * 5000])
@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("run.json", '{"schema_version": 2, "settings": {}, "provenance": {"threads": %s}}', RunFolder.manifest),
        ("costs.json", '{"x": {"ms_per_image": %s}}', RunFolder.costs),
    ],
)
def test_json_files_hold_finite_numbers(folder, name, content, read, number):
    (folder.path / name).write_text(content % number)
    if (name, number) == ("run.json", "9" * 400):  # a whole number that nothing computes with, and that JSON holds
        assert read(folder).provenance == {"threads": int(number)}
        return
    with pytest.raises(BadData, match=f"{name} (cannot be read|is not what oodbench writes)"):
        read(folder)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a byte of an array", "a byte of the records", "another version"])
@pytest.mark.parametrize("victim", ["passes/digits-heldout.safetensors", "shared/in-distribution.safetensors"])
def test_a_damaged_file_is_set_aside_and_made_again(folder, damage, victim):
    before, path, told = figures(folder), folder.path / victim, Heard()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "a byte of an array":
        content[8 + int.from_bytes(content[:8], "little")] ^= 1  # after the header comes the largest type, of scores
    elif damage == "a byte of the records":
        content[-20] ^= 1  # bytes come last
    else:
        content = bytearray(of_another_version(path))
    path.write_bytes(content)
    run(folder.path, told)
    assert figures(folder) == before
    assert [line for line in told.lines if "moved to" in line and str(path) in line]
    assert (folder.path / "aside" / f"{path.stem}.0.safetensors").read_bytes() == content
    assert all(recompute(folder, record).metrics == record.metrics for record in folder.records())


def test_records_that_inflate_without_end_are_refused(folder, monkeypatch):
    monkeypatch.setattr(pass_file, "MOST_TEXT", 100)
    with pytest.raises(BadData, match="is damaged"):
        list(folder.records())


def test_who_reads_a_damaged_file_is_told(folder):
    path = folder.passes_path / "digits-heldout.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadData, match=r"digits-heldout.safetensors is damaged.*run again"):
        list(folder.records())


def test_arrays_of_a_damaged_file_are_refused(folder):
    path = folder.passes_path / "digits-heldout.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match="is damaged"):
        pass_file.read_arrays(path)


def test_half_written_files_go(folder):
    leftovers = [
        folder.path / ".run.json.x_abcdef.oodbench-part",
        folder.passes_path / ".photos.safetensors.y2abcdef.oodbench-part",
        folder.path / "shared" / ".in-distribution.safetensors.zabcdef3.oodbench-part",
    ]
    others = [
        folder.path / ".run.json.swp",
        folder.path / ".run.json.original",
        folder.passes_path / ".notes.markdown",
        folder.passes_path / ".photos.safetensors.swp",
        folder.passes_path / ".git.d",
    ]
    for path in leftovers + others:
        path.touch()
    run(folder.path)
    assert not [path for path in leftovers if path.exists()]
    assert all(path.exists() for path in others)


def test_a_set_that_changed_voids_its_records(tmp_path):
    from PIL import Image

    data = tmp_path / "data" / "extra"
    data.mkdir(parents=True)

    def fill(seed):
        for place in range(9):
            pixels = np.random.default_rng([seed, place]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(data / f"{place}.png")

    fill(0)
    options = {"datasets": ["folder:extra"], "data": tmp_path / "data", "protocols": ["unsupervised"]}
    folder, told = run(tmp_path / "run", **options), Heard()
    before = figures(folder)
    fill(1)
    run(tmp_path / "run", told, detectors=["msp"], **options)
    after = figures(folder)
    assert after.keys() == {("folder:extra", "msp", "unsupervised")}
    assert after != before
    assert [line for line in told.lines if "folder:extra has changed since" in line]
    assert "msp: fingerprint changed: computing 1 cell again" in told.lines


# The code of detectors

PLUGIN = '''
import oodbench
import helper

class Signed(oodbench.Detector):
    """Plus or minus the largest logit."""

    signals = ("logits",)

    def statistics(self, probe):
        return helper.SIGN * {sign} * probe.logits.max(1).values
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """write(sign, helper's sign, comment) the module of a plug-in and load it anew."""
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(registry, "_added", {})
    (tmp_path / "code").mkdir()

    def write(sign="-1", helper="1", comment=""):
        (tmp_path / "code" / "signed_plugin.py").write_text(PLUGIN.format(sign=sign) + comment)
        (tmp_path / "code" / "helper.py").write_text(f"SIGN = {helper}\n")
        for name in ("signed_plugin", "helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "code" / "__pycache__", ignore_errors=True)
        registry._added.clear()
        return registry.add_plugin("signed_plugin:Signed")

    yield write
    for name in ("signed_plugin", "helper"):
        sys.modules.pop(name, None)


def test_a_detector_whose_code_changed_is_run_again_and_the_others_are_kept(tmp_path, plugin):
    def auroc(told=None):
        folder = run(tmp_path / "run", told, detectors=["msp", name], datasets=["digits-heldout"], protocols=["unsupervised"])
        return {record.row: record.metrics.auroc for record in folder.records()}, figures(folder)

    name = plugin()
    first, before = auroc()
    told = Heard()
    name = plugin(sign="1")
    flipped, after = auroc(told)
    assert flipped[name] == pytest.approx(1 - first[name])
    unchanged = ("digits-heldout", "msp", "unsupervised")
    assert after[unchanged] == before[unchanged]
    assert f"{name}: the code of its detector changed: computing 1 cell again" in told.lines
    name = plugin(sign="1", helper="-1")  # a helper beside it counts too
    assert auroc()[0] == first
    told = Heard()
    plugin(sign="1", helper="-1", comment="\n# a comment\n")
    auroc(told)
    assert not [line for line in told.lines if "again" in line]


def test_figures_of_earlier_code_are_reported(tmp_path, plugin):
    options = {"protocols": ["unsupervised"], "out": tmp_path / "run"}
    run(detectors=[plugin()], **options)
    told = Heard()
    name = plugin(sign="1")
    run(told=told, detectors=[name], datasets=SETS[:1], **options)
    assert [line for line in told.lines if line.startswith(f"{name}: 1 cell of its earlier code left")]
    mixed = f"{name}: the figures come from different versions of the code"
    assert all(mixed in text for text in shown(tmp_path / "run"))
    told = Heard()
    run(told=told, detectors=[name], **options)
    assert not [line for line in told.lines if "earlier code" in line]
    assert not any(mixed in text for text in shown(tmp_path / "run"))


def test_shared_arrays_that_nobody_uses_go(folder):
    before = pass_file.array_names(folder.shared_path)
    with folder.locked():
        folder._add_shared({pass_file.hash_of(np.arange(2)): np.arange(2)})
        assert len(pass_file.array_names(folder.shared_path)) == len(before) + 1
        folder.tidy()
    assert pass_file.array_names(folder.shared_path) == before


# Schema version 1


def test_cells_of_schema_1_are_read(tmp_path):
    shutil.copytree(SCHEMA_1, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    records = {(r.set_name, *r.place): r for r in folder.records()}
    assert len(records) == 23
    headers = [json.loads(header(path)) for path in sorted((SCHEMA_1 / "cells").glob("*"))]
    assert [r.metrics and r.metrics.auroc for r in folder.records()] == [
        h["metrics"] and h["metrics"]["auroc"] for h in headers
    ]
    assert records["digits+decolor@1", "msp", "unsupervised"].status == "skipped"
    assert records["digits+pgd", "msp", "unsupervised"].attack.attack == "pgd"
    assert records["digits+noise@5", "pixels", "per-shift"].corruption.corruption == "noise"
    assert records["photos", "introspective", "unsupervised"].calibration.network.accuracy > 0.9
    assert records["photos", "introspective", "unsupervised"].non_default == {"epochs": (4, 40)}
    assert folder.manifest().settings["limit"] == 40


def header(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return json.dumps(json.loads(file.metadata()["oodbench"])["header"])


def test_arrays_of_schema_1_are_read():
    folder = RunFolder(SCHEMA_1)
    before = files(folder)
    for record in folder.records():
        found = folder.arrays(record)
        assert found.keys() == record.arrays.keys()
        assert {role: pass_file.hash_of(array) for role, array in found.items()} == record.arrays
    opened = oodbench.open_run(SCHEMA_1)
    scores = opened.scores("msp", "photos")
    assert oodbench.evaluate(scores.loc["in", "score"], scores.loc["out", "score"]).auroc > 0.5
    assert len(opened.plot("roc").axes) > 0
    assert files(folder) == before


def test_schema_1_is_migrated_by_a_run_that_computes_what_it_needs_again(tmp_path):
    shutil.copytree(SCHEMA_1, tmp_path / "run")
    folder, told = RunFolder(tmp_path / "run"), Heard()
    before = {(r.set_name, *r.place): (r, a) for r, a in cells(folder.path)}
    run(folder.path, told, detectors=["msp"], datasets=["digits+noise@5"], limit=40)
    assert not has_cells(folder.path)
    assert not (folder.path / "cells").exists()
    after = {(r.set_name, *r.place): r for r in folder.records()}
    assert after.keys() == before.keys()
    for place, (record, arrays) in before.items():
        found = after[place]
        if place[:2] == ("digits+noise@5", "msp"):  # computed again, on another processor
            assert vars(found.metrics) == pytest.approx(vars(record.metrics), rel=1e-12)
            assert (found.scoring_version, found.code) != (record.scoring_version, "")
        else:
            assert found == record
        if record.status == "ok":
            for role in found.arrays.keys() - {"in_base", "out_base"}:  # version 1 did not store these
                np.testing.assert_array_equal(folder.arrays(found)[role], arrays[role])
    assert [line for line in told.lines if "migrated 23 cells of an older oodbench" in line]
    with pytest.raises(BadData, match="does not store what its figures need"):
        recompute(folder, after["photos", "msp", "unsupervised"])


def test_a_newer_schema_is_refused(folder):
    manifest = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(manifest | {"schema_version": 3}))
    before = files(folder)
    with pytest.raises(BadData, match="schema version 3, and this oodbench reads up to 2"):
        run(folder.path)
    assert files(folder) == before
    run(folder.path, fresh=True)
    assert folder.manifest().schema_version == 2


def test_hostile_json_is_one_line(folder):
    for content in (
        '{"schema_version": 2}',
        '{"schema_version": 2, "settings": []}',
        "[]",
        "{",
        '{"schema_version": 2, "settings": {}, "x": 1}',
    ):
        (folder.path / "run.json").write_text(content)
        with pytest.raises(BadData, match=r"run.json .*--out|schema version None"):
            folder.manifest()
    (folder.path / "costs.json").write_text('{"x": 3}')
    with pytest.raises(
        BadData, match=r"costs.json is not what oodbench writes \(x: Input should be a valid dict.*; `oodbench run` meas"
    ):
        folder.costs()


def test_another_run_is_kept_out(folder):
    with folder.locked(), pytest.raises(OodbenchError, match="another run is writing"):
        RunFolder(folder.path).locked().__enter__()
    with pytest.raises(UsageError, match="seed = 0, not 1"):
        run(folder.path, seed=1)


def test_a_run_that_is_kept_out_leaves_what_another_has_just_made(tmp_path, monkeypatch):
    first, second, held = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run"), ExitStack()

    def begin_between(path):  # after the second has looked at what is there
        monkeypatch.undo()
        held.enter_context(first.locked())

    monkeypatch.setattr("oodbench.results.folder.require_own_folder", begin_between)
    with held:
        with pytest.raises(OodbenchError, match="another run is writing"), second.locked():
            raise AssertionError
        assert sorted(entry.name for entry in first.path.iterdir()) == [".lock", "passes"]


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_drive_without_locks_is_reported_and_used(folder, monkeypatch, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    heard = Heard()
    with folder.locked(heard.say):
        assert heard.lines == [f"{folder.path} cannot be locked (no locks here): do not start a second run in this folder"]


@pytest.mark.parametrize("code", ["EWOULDBLOCK", "EAGAIN", "EACCES"])
def test_a_lock_that_another_holds_keeps_a_run_out(folder, monkeypatch, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), "held")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OodbenchError, match=r"another run is writing to .*; wait for it or choose another --out"):
        folder.locked().__enter__()


def test_a_system_without_locks_is_reported(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it raises ModuleNotFoundError
    heard = Heard()
    with folder.locked(heard.say):
        assert heard.lines[0].startswith(f"{folder.path} cannot be locked (no locks on this system)")


@pytest.mark.parametrize("name", ["passes", "shared", "aside", "cells", "passes/mine"])
def test_nothing_is_deleted_through_a_link(folder, tmp_path, name):
    theirs = tmp_path / "theirs" / "cells.0" / "theirs.safetensors"
    theirs.parent.mkdir(parents=True)
    for path in (
        theirs,
        tmp_path / "theirs" / "theirs.safetensors",
        tmp_path / "theirs" / ".theirs.safetensors.abcd1234.oodbench-part",
    ):
        path.write_text("theirs")
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*") if path.is_file()}
    if (folder.path / name).exists():
        (folder.path / name).rename(folder.path / "aside")
    (folder.path / name).symlink_to(tmp_path / "theirs")
    if name == "passes/mine":  # not a place where a run writes
        with folder.locked(fresh=True):
            folder.clear()
    else:
        for fresh in (True, False):
            with pytest.raises(BadData, match=f"{name} is a link to .*theirs, and oodbench writes nothing through it"):
                folder.locked(fresh=fresh).__enter__()
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*.*") if path.is_file()} == before


def test_a_fresh_start_deletes_from_aside_only_what_a_run_moved_there(folder, tmp_path):
    aside, elsewhere = folder.path / "aside", tmp_path / "elsewhere"
    cell = next((SCHEMA_1 / "cells").iterdir())
    costs = tmp_path / "costs.json"
    costs.write_text('{"x": {"ms_per_image": 1.0, "overhead": null, "peak_memory_mb": null}}')
    records = shutil.copy(folder.passes_path / "digits-heldout.safetensors", tmp_path)
    moved = {aside / "photos.0.safetensors": records, aside / "costs.12.json": costs, aside / "cells.0" / "x.safetensors": cell}
    moved[folder.path / "cells" / "x.safetensors"] = cell
    mine = {aside / "thesis.safetensors": records, aside / "kept" / "photos.0.safetensors": records}
    mine[elsewhere / "x.safetensors"] = cell
    for path, content in (moved | mine).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(content, path)
    (aside / "cells.1").symlink_to(elsewhere)
    with folder.locked(fresh=True):
        folder.clear()
    assert not [path for path in moved if path.exists()]
    assert all(path.exists() for path in mine)
    assert not list(folder.records())


def test_the_target_of_a_link_in_place_of_the_lock_stays(folder, tmp_path):
    (tmp_path / "thesis").write_text("three years")
    (folder.path / ".lock").unlink(missing_ok=True)
    (folder.path / ".lock").symlink_to(tmp_path / "thesis")
    with pytest.raises(BadData, match=r"\.lock is a link to .*thesis"):
        folder.locked().__enter__()
    assert (tmp_path / "thesis").read_text() == "three years"


@pytest.mark.parametrize("name", ["run.json", "costs.json", "passes/photos.safetensors", f"shared/{SHARED}"])
def test_a_pipe_in_place_of_a_file_is_named(folder, name):
    path = folder.path / name
    path.unlink(missing_ok=True)
    readers = {"run.json": folder.manifest, "costs.json": folder.costs}
    says, heard = f"{path} is not a regular file", Heard()
    with pipe_at(path):
        with pytest.raises(BadData, match=f"{says}; replace it with one, or remove it"):
            readers.get(name, lambda: pass_file.read_records(path))()
        if name != "run.json":
            with folder.locked(heard.say):
                assert any(line.startswith(f"{says} (moved to {folder.path / 'aside'}") for line in heard.lines)


def test_a_pipe_in_place_of_a_cell_of_schema_1_is_named(tmp_path):
    (tmp_path / "cells").mkdir()
    with pipe_at(tmp_path / "cells" / "x.safetensors"), pytest.raises(BadData, match=r"x.safetensors is not a regular file"):
        list(cells(tmp_path))


def test_arrays_are_found_by_role(finished):
    arrays = arrays_of(finished, "pixels", "per-shift", "digits+noise@5")
    assert arrays.keys() == {
        "in_scores", "out_scores", "in_fit", "in_choose", "in_test", "out_fit", "out_choose", "out_test", "in_base", "out_base",
    }  # fmt: skip
