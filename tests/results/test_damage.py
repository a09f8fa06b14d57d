"""Run folders that were killed, renamed or edited: nothing is lost that is whole, and nothing stays that is not."""

import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from heard import Heard
from run_folders import figures, files
from safetensors.numpy import save_file

import oodbench
from oodbench import cli
from oodbench.api import Results
from oodbench.errors import BadData, CannotWrite, UsageError
from oodbench.progress import Progress
from oodbench.results import pass_file, schema_1
from oodbench.results.folder import SHARED, RunFolder
from oodbench.results.recompute import recompute
from oodbench.results.records import cost_key

SCHEMA_1 = Path(__file__).parent / "schema-1"


def run(out, told=None, **options):
    options = {
        "detectors": ["msp", "pixels"],
        "datasets": ["digits-heldout", "photos"],
        "limit": 40,
        "measure_costs": False,
    } | options
    return oodbench.run("digits", out=out, progress=told or Progress(), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return run(tmp_path_factory.mktemp("damage") / "run")


def test_a_migration_that_is_killed_while_it_deletes_cells_loses_none(tmp_path, monkeypatch):
    shutil.copytree(SCHEMA_1, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    before = figures(folder)
    deleted = []

    def unlink(path, missing_ok=False):
        if len(deleted) == 5:
            raise KeyboardInterrupt
        deleted.append(path)
        path.rename(tmp_path / path.name)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.PosixPath.unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            schema_1.migrate(folder.path, folder._pass_file, {}, print)
    assert figures(folder) == before
    with folder.locked():
        pass
    assert figures(folder) == before


def test_a_stranger_among_the_cells_does_not_stop_a_migration(tmp_path):
    shutil.copytree(SCHEMA_1, tmp_path / "run")
    (tmp_path / "run" / "cells" / ".DS_Store").touch()
    folder = RunFolder(tmp_path / "run")
    before = figures(folder)
    with folder.locked():
        pass
    assert figures(folder) == before
    assert not schema_1.has_cells(folder.path)


def test_records_without_arrays_go_even_if_their_detector_is_not_run(folder):
    told = Heard()
    before = figures(folder)
    folder.shared_path.unlink()
    run(folder.path, told, detectors=["msp"], datasets=["photos"])
    left = list(folder.records())
    assert all(recompute(folder, record).metrics == record.metrics for record in left)
    assert "digits-heldout.safetensors: dropped 4 cells without arrays" in " ".join(told.lines)
    assert (folder.path / "aside" / "digits-heldout.0.safetensors").exists()
    told = Heard()
    run(folder.path, told)
    assert not [line for line in told.lines if "without arrays" in line]
    assert figures(folder) == before


@pytest.mark.parametrize("move", [shutil.copy, shutil.move])
def test_a_file_under_another_name_is_set_aside(folder, move):
    before, told = figures(folder), Heard()
    move(folder.passes_path / "photos.safetensors", folder.passes_path / "photos (copy).safetensors")
    with pytest.raises(BadData, match=r"photos \(copy\).safetensors holds records of photos; rename it to photos.safetensors"):
        list(folder.records())
    run(folder.path, told)
    assert [line for line in told.lines if "holds records of photos" in line and "moved to" in line]
    assert figures(folder) == before
    assert len(list(folder.records())) == len(before)
    assert all(recompute(folder, record).metrics == record.metrics for record in folder.records())


def test_costs_that_are_no_costs_are_refused_and_set_aside(folder):
    keys = [cost_key(record.detector, record.parameters, record.setting) for record in folder.records()]
    whole = {"ms_per_image": 1, "overhead": 2.5, "peak_memory_mb": None}
    (folder.path / "costs.json").write_text(json.dumps(dict.fromkeys(keys, whole)))
    assert folder.costs() == dict.fromkeys(keys, whole)
    for cost, why in [
        (whole | {"ms_per_image": "x"}, "ms_per_image: Input should be a valid number"),
        (whole | {"status": "failed"}, "status: Extra inputs"),
        (whole | {"overhead": [1]}, "overhead: Input should be a valid number"),
        (whole | {"overhead": True}, "overhead: Input should be a valid number"),
        (whole | {"overhead": 10**400}, "overhead: "),
        ({"ms_per_image": 1.0}, "overhead: Field required"),
        (3, "Input should be a valid dict"),
    ]:
        (folder.path / "costs.json").write_text(json.dumps(dict.fromkeys(keys, cost)))
        with pytest.raises(
            BadData, match=rf"costs.json is not what oodbench writes \(.*{why}.*\); `oodbench run` measures costs"
        ) as error:
            folder.costs()
        assert "\n" not in str(error.value)
    (folder.path / "costs.json").write_text(json.dumps(dict.fromkeys(keys, whole | {"overhead": float("nan")})))
    with pytest.raises(BadData, match=r"costs.json cannot be read \(.*; `oodbench run` measures costs again"):
        folder.costs()
    told = Heard()
    run(folder.path, told)
    assert folder.costs() == {}
    assert [line for line in told.lines if "costs.json" in line and "moved to" in line]


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"x": 3}', None])
def test_damaged_costs_leave_the_figures(folder, content, monkeypatch, capsys):
    """They once stopped the leaderboard. None: a folder stands in place of the file."""
    costs = folder.path / "costs.json"
    costs.mkdir() if content is None else costs.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["oodbench", "leaderboard", str(folder.path), "--format", "json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code == 0
    rows = json.loads(printed.out)
    assert len(rows) == len(list(folder.records()))
    assert {row["ms_per_image"] for row in rows} == {None}
    assert printed.err.startswith(f"oodbench: {costs} ")
    remedy = "`oodbench run` measures costs again" if content else "replace it with one, or remove it"
    assert printed.err.endswith(f"; {remedy}; until then they are left out\n")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", '{"x": 3}'])
def test_damaged_costs_warn_in_python(folder, content):
    """They once raised BadData there."""
    (folder.path / "costs.json").write_text(content)
    with pytest.warns(
        UserWarning, match=r"costs\.json .*; `oodbench run` measures costs again; until then they are left"
    ) as told:
        frame = Results(folder.path).frame()
    assert told[0].filename == __file__
    assert frame.ms_per_image.isna().all()
    assert set(frame.status) == {"ok"}


def test_a_run_measures_damaged_costs_again(folder):
    (folder.path / "costs.json").write_text("{")
    told = Heard()
    run(folder.path, told, detectors=["pixels"], measure_costs=True)
    assert [line for line in told.lines if "costs.json cannot be read" in line and "moved to" in line]
    assert len(folder.costs()) == 1


@pytest.mark.parametrize("name", ["run.json", "costs.json"])
def test_deeply_nested_json_is_one_line(folder, name):
    (folder.path / name).write_text("[" * 100_000)
    with pytest.raises(BadData, match="cannot be read"):
        folder.manifest() if name == "run.json" else folder.costs()


NOT_WRITTEN = [
    ({"settings": None}, r"\(settings: Input should be a valid dictionary\); `oodbench run` with the same options and --out"),
    ({"suite": [1]}, r"\(suite: Input should be a valid dictionary\); `oodbench run`"),
    ({"provenance": "x"}, r"\(provenance: Input should be a valid dictionary\); `oodbench run`"),
    ({"more": 1}, r"\(more: Extra inputs are not permitted\); `oodbench run`"),
    ({"schema_version": 0}, "has schema version 0, and this oodbench reads up to 2; `oodbench run`"),
    ({"schema_version": True}, "has schema version True, and"),
    ({"schema_version": [2]}, r"has schema version \[2\], and"),
    ({"settings": {"seed": float("nan")}}, r"cannot be read \(NaN is not a finite number\); `oodbench run`"),
    ({"settings": {"seed": float("inf")}}, "cannot be read"),
    ("{", "cannot be read"),
    (None, "is not a regular file"),
]


def damage_manifest(folder, changes) -> None:
    """Change entries of run.json, or put this text or, for None, a folder in its place."""
    path = folder.path / "run.json"
    about = json.loads(path.read_text())
    del about["sha256"]  # as somebody may who wants it to be read
    path.unlink()
    if changes is None:
        path.mkdir()
    else:
        path.write_text(changes if isinstance(changes, str) else json.dumps(about | changes))


@pytest.mark.parametrize(("changes", "why"), NOT_WRITTEN)
def test_a_run_json_that_no_run_wrote_is_written_again_from_the_records(folder, changes, why):
    settings, before, told = folder.manifest().settings, figures(folder), Heard()
    passes = {name: content for name, content in files(folder).items() if name.startswith("passes/")}
    damage_manifest(folder, changes)
    run(folder.path, told, detectors=["msp"], datasets=["photos"])
    moved = folder.path / "aside" / "run.0.json"
    (line,) = [line for line in told.lines if "moved to" in line]
    cause = why.partition("; ")[0]  # the run itself follows the remedy
    start, end = re.escape(f"{folder.path}/run.json "), re.escape(f" (moved to {moved})")
    assert re.fullmatch(rf"{start}(is not what oodbench writes )?{cause}[^;]*{end}", line)
    assert moved.exists()
    assert folder.manifest().settings == settings
    assert figures(folder) == before
    assert passes.items() <= files(folder).items()


@pytest.mark.parametrize(
    ("changes", "why"), [*NOT_WRITTEN, ({"schema_version": 3}, "has schema version 3, and .*; use a newer")]
)
def test_a_run_json_that_no_run_wrote_is_refused_where_it_is_read(folder, changes, why, monkeypatch, capsys):
    damage_manifest(folder, changes)
    before = files(folder)
    with pytest.raises(BadData, match=rf"run\.json (is not what oodbench writes )?{why}"):
        Results(folder.path).frame()
    monkeypatch.setattr("sys.argv", ["oodbench", "leaderboard", str(folder.path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"oodbench: {folder.path / 'run.json'} ")
    assert printed.count("\n") == 1
    assert files(folder) == before


@pytest.mark.parametrize("damage", ["damaged", "missing"])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"limit": 50}, "limit = 40, not 50"),
        ({"detectors": ["knn"]}, r"parameters of knn = {'k': 7}, not .*"),
    ],
)
def test_records_of_other_settings_do_not_mix_without_run_json_either(folder, options, why, damage):
    """No record is of ``knn``, but the run that wrote ``photos`` knew its hyper-parameters."""
    if "detectors" in options:
        told = folder.manifest().settings | {"parameters of knn": {"k": 7}}
        path = folder.passes_path / "photos.safetensors"
        pass_file.write(path, pass_file.read_records(path), pass_file.read_arrays(path), told)
    (folder.path / "run.json").unlink()
    if damage == "damaged":
        (folder.path / "run.json").write_text("{")
    before = files(folder)
    with pytest.raises(UsageError, match=f"holds a run with {why}; choose another folder"):
        run(folder.path, **options)
    assert files(folder) == before


def test_records_that_do_not_say_their_settings_need_run_json(folder):
    """Files of an earlier oodbench do not; and those of two runs cannot be told to belong together."""
    path = folder.passes_path / "photos.safetensors"
    records, arrays, settings = pass_file.read_records(path), pass_file.read_arrays(path), folder.manifest().settings
    for own, why in (
        ({}, "does not contain its settings"),
        (settings | {"seed": 1}, "belongs to a run with seed = 1, but other files to one with 0"),
    ):
        pass_file.write(path, records, arrays, own)
        run(folder.path)  # run.json decides
        kept = (folder.path / "run.json").read_bytes()
        for damage in (lambda file: file.write_text("{"), Path.unlink):
            damage(folder.path / "run.json")
            before = files(folder)
            with pytest.raises(BadData, match=rf"photos\.safetensors {why}.*; restore run.json from a copy, or choose another"):
                run(folder.path)
            assert files(folder) == before
        (folder.path / "run.json").write_bytes(kept)


def interrupted(path, value):
    raise KeyboardInterrupt


def test_a_run_that_is_killed_while_it_writes_run_json_again_is_resumed(folder, monkeypatch):
    settings, before = folder.manifest().settings, figures(folder)
    (folder.path / "run.json").write_text("{")
    (folder.path / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr("oodbench.results.json_files.write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder.path)
    assert not (folder.path / "run.json").exists()
    run(folder.path)
    assert folder.manifest().settings == settings
    assert figures(folder) == before


def test_a_damaged_run_json_among_other_files_is_nobodys(tmp_path):
    """Another program may have written it."""
    for name in ("run.json", "thesis.tex"):
        (tmp_path / name).write_text("three years")
    with pytest.raises(UsageError, match=r"is not a run folder and holds thesis\.tex; name a new folder with --out"):
        run(tmp_path)
    assert (tmp_path / "run.json").read_text() == "three years"


def test_a_run_of_which_nothing_can_be_read_is_not_taken_for_something_else(folder):
    for path in (folder.path / "run.json", *folder.passes_path.glob("*")):
        path.write_text("{")
    (folder.path / "notes.txt").touch()
    before = files(folder)
    with pytest.raises(UsageError, match=r"holds no file of a run that can be read, but notes\.txt; name a new folder"):
        run(folder.path)
    assert files(folder) == before


@pytest.mark.parametrize("name", ["._NAME", ".DS_Store", "Thumbs.db", "desktop.ini"])
def test_files_that_file_managers_add_change_nothing(folder, name, tmp_path):
    shutil.copytree(SCHEMA_1, tmp_path / "old")
    for made in (folder, RunFolder(tmp_path / "old")):
        before = figures(made)
        added = {path.with_name(name.replace("NAME", path.name)) for path in made.path.rglob("*") if "._" not in path.name} | {
            made.passes_path / name.replace("NAME", "photos.safetensors")
        }
        for path in added:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\0\5\x16\7")
        assert figures(made) == before
        told = Heard()
        with made.locked(told.say):
            made.clear() if made is folder else None
        assert not [line for line in told.lines if "damaged" in line]
        left = {path for path in added if path.exists()}
        assert left == (added if made is folder else {path for path in added if path.parent.name != "cells"})


@pytest.mark.parametrize("name", ["._run.json", ".DS_Store", "Thumbs.db"])
def test_a_new_folder_may_hold_what_file_managers_add(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    assert set(run(tmp_path / "run").frame().status) == {"ok"}


def test_fresh_deletes_what_was_set_aside(folder):
    """The records of ``photos`` that lost their arrays are whole; the costs may be anybody's file, so they stay."""
    (folder.path / "costs.json").write_text("{")
    folder.shared_path.unlink()
    run(folder.path, detectors=["msp"])
    aside = {name for name in files(folder) if name.startswith("aside/")}
    assert aside == {"aside/costs.0.json", "aside/digits-heldout.0.safetensors", "aside/photos.0.safetensors"}
    run(folder.path, detectors=["msp"], fresh=True)
    assert [name for name in files(folder) if name.startswith("aside/")] == ["aside/costs.0.json"]


def theirs(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something there that oodbench did not write."""
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "thesis").write_text("three years")
    elif kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "tensors":
        save_file({"weight": np.zeros(3)}, path)
    else:
        path.write_text("three years")


READ = ["passes/photos.safetensors", "passes/mine.safetensors", f"shared/{SHARED}", "cells/x.safetensors", "costs.json"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product([*READ, "run.json"], ["file", "tensors", "folder", "link"]),
        *itertools.product(["severity.png"], ["folder", "link"]),  # a file is nobody else's: each run writes it anew
    ],
)
def test_fresh_moves_aside_what_no_run_wrote(folder, name, kind, tmp_path):
    path, told = folder.path / name, Heard()
    theirs(path, kind, tmp_path / "nowhere")
    before = path.read_bytes() if path.is_file() else None
    with folder.locked(fresh=True):
        folder.clear(told.say)
    moved = folder.path / "aside" / f"{path.stem}.0{path.suffix}"
    assert not os.path.lexists(path)
    assert moved.is_dir() == (kind == "folder")
    assert moved.is_symlink() == (kind == "link")
    assert before is None or moved.read_bytes() == before
    (line,) = told.lines
    assert line.startswith(f"{path} ")
    assert line.endswith(f"(moved to {moved})")
    assert not list(folder.records())


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize("name", ["costs.0.json", "photos.0.safetensors", "cells.0/x.safetensors"])
def test_fresh_leaves_in_aside_what_no_run_wrote(folder, name, kind, tmp_path):
    path = folder.path / "aside" / name
    path.parent.mkdir(parents=True)
    theirs(path, kind, tmp_path / "nowhere")
    with folder.locked(fresh=True):
        folder.clear()
    assert os.path.lexists(path)
    assert not list(folder.records())


@pytest.mark.parametrize("name", ["photos.0.safetensors", "photos.1.safetensors"])
def test_a_link_that_leads_nowhere_takes_its_name_in_aside(folder, name, tmp_path):
    """Damaged files were once written through it, or took its place."""
    (folder.path / "aside").mkdir()
    (folder.path / "aside" / "photos.0.safetensors").touch()
    link = folder.path / "aside" / name
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "nowhere")
    folder.shared_path.unlink()  # copies the records to aside
    run(folder.path)
    assert os.readlink(link) == str(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["costs.json", "severity.png", f"shared/{SHARED}", "passes/photos.safetensors"])
def test_a_link_that_leads_nowhere_is_set_aside_and_not_replaced(folder, name, tmp_path):
    before, path, told = figures(folder), folder.path / name, Heard()
    theirs(path, "link", tmp_path / "nowhere")
    run(folder.path, told, measure_costs=True)
    moved = folder.path / "aside" / f"{path.stem}.0{path.suffix}"
    assert moved.is_symlink()
    assert [line for line in told.lines if line.startswith(f"{path} ") or line.startswith(f"no such file: {path}")]
    assert not path.is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert figures(folder) == before


@pytest.mark.parametrize("name", ["passes", "shared", "aside", "cells"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_file_in_place_of_a_folder_is_named(folder, name, fresh):
    if (folder.path / name).exists():
        shutil.rmtree(folder.path / name)
    (folder.path / name).write_text("three years")
    with pytest.raises(BadData, match=f"{name} is not a folder; move it elsewhere"):
        folder.locked(fresh=fresh).__enter__()


def test_a_folder_with_the_name_of_a_half_written_file_stays(folder):
    (folder.passes_path / ".photos.safetensors.y2abcdef.oodbench-part").mkdir()
    run(folder.path)
    assert (folder.passes_path / ".photos.safetensors.y2abcdef.oodbench-part").is_dir()


def test_records_without_run_json_bring_it_back(folder, monkeypatch, capsys):
    settings, before, told = folder.manifest().settings, figures(folder), Heard()
    (folder.path / "run.json").unlink()
    monkeypatch.setattr("sys.argv", ["oodbench", "leaderboard", str(folder.path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    says = f"{folder.path} has no run.json; `oodbench run` with the same options and --out writes it again"
    assert capsys.readouterr().err == f"oodbench: {says}\n"
    with pytest.raises(BadData, match=r"has no run\.json"):
        Results(folder.path).frame()
    run(folder.path, told)
    assert f"{folder.path} has no run.json; it is written again" in told.lines
    assert folder.manifest().settings == settings
    assert figures(folder) == before
    (folder.path / "run.json").unlink()
    run(folder.path, detectors=["msp"], seed=1, fresh=True)
    assert {(record.row, record.seed) for record in folder.records()} == {("msp", 1)}


def test_unreadable_records_without_run_json_are_refused(folder):
    """They may be of another program."""
    (folder.path / "run.json").unlink()
    for path in folder.passes_path.iterdir():
        path.write_text("three years")
    before = files(folder)
    with pytest.raises(BadData, match=r"holds no file of a run that can be read; restore run\.json from a copy, or choose"):
        run(folder.path)
    assert files(folder) == before


def test_a_fresh_start_that_is_killed_leaves_run_json_until_the_records_are_gone(folder, monkeypatch):
    unlink = Path.unlink

    def killed(path, missing_ok=False):
        if path.name.startswith("photos"):
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch, folder.locked():
        patch.setattr("pathlib.PosixPath.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.clear()
    assert folder.manifest().settings["seed"] == 0


@pytest.mark.parametrize("name", ["run.json", "costs.json"])
def test_every_flipped_byte_of_the_text_files_is_noticed(name, folder):
    """Or it changes nothing, as in the white space between two values."""
    folder.write_costs({"msp": {"ms_per_image": 0.25, "overhead": 1.5, "peak_memory_mb": None}})
    read = RunFolder.manifest if name == "run.json" else RunFolder.costs
    before, whole = read(folder), (folder.path / name).read_bytes()
    noticed = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (folder.path / name).write_bytes(flipped)
        try:
            assert read(folder) == before
        except BadData:
            noticed += 1
    assert noticed > 0.7 * len(whole)


@pytest.mark.parametrize("executor", ["local", "processes:1"])
def test_a_full_disk_ends_the_run_and_a_resumed_one_has_it_all(executor, tmp_path, finished, monkeypatch):
    """It is not the set's fault, and nothing is computed that could not be written either."""
    fsync, told = os.fsync, Heard()
    written = []

    def full(file):
        if "photos" in (name := os.readlink(f"/proc/self/fd/{file}")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(name)
        fsync(file)

    sets = {"datasets": ["digits-heldout", "photos", "uniform"]}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CannotWrite, match=r"photos\.safetensors \([\d,]+ bytes, [\d,]+ free\): No space left on device"):
            run(tmp_path / "run", told, executor=executor, **sets)
    assert any("digits-heldout" in name for name in written)
    assert not any("uniform" in name for name in written)
    assert not any("photos: " in line and "cannot write" in line for line in told.lines)
    folder = run(tmp_path / "run", **sets)
    assert figures(folder).items() >= figures(finished).items()
    assert not list(folder.path.rglob(".*photos*"))
