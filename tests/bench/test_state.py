"""Fitted state on disk: comes back as it was, other files are refused in one line, and a write is whole or not at all."""

import json
import os

import pytest
import torch
from flips import flipped
from named_pipe import pipe_at
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from oodbench import state
from oodbench.detector import Detector
from oodbench.errors import BadData, OodbenchError


class Thing:
    """Something fitted."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def test_fitted_state_is_what_ends_in_an_underscore():
    thing = Thing(mean_=1.0, plain=2, _gathered_=3, __odd__=4, rows_=[1, 2])
    assert state.fitted_state(thing) == {"mean_": 1.0, "rows_": [1, 2]}


VALUES = {
    "float64_": torch.tensor([1 / 3, -0.0, 1e-300], dtype=torch.float64),
    "half_": torch.tensor([0.1], dtype=torch.float16),
    "ints_": torch.arange(4),
    "mask_": torch.tensor([True, False]),
    "scalar_": torch.tensor(3.5),
    "empty_": torch.zeros(0, 3),
    "transposed_": torch.arange(6.0).reshape(2, 3).T,
    "layers_": [torch.full((2,), float(i)) for i in range(12)],  # twelve: "10" must not sort before "2"
    "number_": 0.1,
    "count_": 7,
    "flag_": True,
    "text_": "ε of 0.0014",
    "numbers_": [0.1, 2.0],
    "nothing_": [],
    "none_": None,
}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "folder" / "fitted.safetensors"
    state.save(path, {"name": "x", "ε": 1}, VALUES)
    header, found = state.load(path)
    assert header == {"name": "x", "ε": 1}
    assert set(found) == set(VALUES)
    for name, value in VALUES.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)
        elif name == "layers_":
            assert len(found[name]) == 12
            assert all(torch.equal(a, b) for a, b in zip(found[name], value, strict=True))
        else:
            assert found[name] == value
            assert type(found[name]) is type(value)


def test_tensors_that_share_memory_are_kept(tmp_path):
    whole = torch.arange(6.0)
    state.save(tmp_path / "file", {}, {"whole_": whole, "part_": whole[2:4], "again_": whole})
    found = state.load(tmp_path / "file")[1]
    assert found["part_"].tolist() == [2, 3]
    assert torch.equal(found["whole_"], found["again_"])


def test_the_same_state_gives_the_same_bytes(tmp_path):
    state.save(tmp_path / "a", {"x": 1, "y": 2}, VALUES)
    state.save(tmp_path / "b", {"y": 2, "x": 1}, dict(reversed(VALUES.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(OodbenchError, match=r"cannot store fitted state in file: .*set.*; keep tensors, numbers"):
        state.save(tmp_path / "file", {}, {"seen_": {1, 2}})
    assert list(tmp_path.iterdir()) == []


def written(tmp_path) -> bytes:
    state.save(tmp_path / "whole", {"name": "x"}, {"a_": torch.arange(100.0)})
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_truncated_files_are_refused(tmp_path, size):
    path = tmp_path / "cut"
    path.write_bytes(written(tmp_path)[:size])
    with pytest.raises(BadData, match="cut is not an oodbench file, or is damaged") as raised:
        state.load(path)
    assert "\n" not in str(raised.value)


def test_a_flipped_byte_is_noticed(tmp_path):
    path, values = tmp_path / "file", VALUES | {"nothing_": [1]}
    state.save(path, {"name": "x"}, values)
    header, whole = state.load(path)
    noticed = 0
    for content in flipped(path.read_bytes()):
        path.write_bytes(content)
        try:
            found, values = state.load(path)
        except BadData:
            noticed += 1
        else:
            assert found == header
            assert repr(values) == repr(whole)
    assert noticed > 50


@pytest.mark.parametrize("change", [lambda found: found.update(a_=found["a_"] + 1), lambda found: found.update(number_=2)])
def test_a_changed_value_is_noticed(tmp_path, change):
    """As a tool that writes safetensors would change it: the digest stays."""
    path = tmp_path / "file"
    state.save(path, {}, {"a_": torch.arange(3.0), "number_": 1})
    with safe_open(path, "pt") as file:
        about, tensors = json.loads(file.metadata()["oodbench"]), {"a_": file.get_tensor("a_").clone()}
    state_of_file = about["state"] | tensors
    change(state_of_file)
    tensors["a_"] = state_of_file.pop("a_")
    path.write_bytes(to_bytes(tensors, {"oodbench": json.dumps(about | {"state": state_of_file})}))
    with pytest.raises(BadData, match=r"damaged \(its content does not match its digest\); name another, or make it again"):
        state.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x95 not a pickle to open",
        b"\xff" * 64,  # a header of 2^64 bytes
        to_bytes({"a": torch.zeros(1)}),
        to_bytes({}, {"oodbench": "no json"}),
        to_bytes({}, {"oodbench": "[1]"}),
        to_bytes({}, {"oodbench": '{"header": 1, "state": 2}'}),
        to_bytes({}, {"oodbench": '{"header": {}}'}),
        to_bytes({}, {"oodbench": '{"header": {}, "state": {}}'}),
        to_bytes({}, {"oodbench": "[" * 100_000}),
    ],
    ids=["pickle", "huge-header", "no-header", "no-json", "list", "numbers", "no-state", "no-digest", "nested"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(BadData, match="other is not an oodbench file"):
        state.load(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadData, match=r"no such file: .*nowhere"):
        state.load(tmp_path / "nowhere")
    with pytest.raises(BadData, match=f"{tmp_path} is not a regular file; replace it with one"):
        state.load(tmp_path)


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ({"schema_version": 99}, {}, "has schema version 99; this oodbench reads version 1; fit the detector again"),
        ({"schema_version": 1}, {}, "does not hold a fitted Detector .KeyError: 'detector'"),
        ({"schema_version": 1, "detector": "msp", "parameters": 3, "head": None}, {}, "does not hold a fitted Detector"),
        ({"schema_version": 1, "detector": "msp", "parameters": {}, "head": "odd"}, {}, "does not hold a fitted Detector"),
        (
            {"schema_version": 1, "detector": "msp", "parameters": {}, "head": None},
            {"statistics": 1},
            "sets 'statistics', which",
        ),
        ({"schema_version": 1, "detector": "msp", "parameters": {}, "head": None}, {"__class__": 1}, "sets '__class__', which"),
    ],
)
def test_files_that_are_no_fitted_detector(tmp_path, header, values, message):
    state.save(tmp_path / "file", header, values)
    with pytest.raises(BadData, match=message):
        Detector.load(tmp_path / "file")


def test_a_pipe_in_place_of_a_fitted_detector_is_named(tmp_path):
    with pipe_at(tmp_path / "file"), pytest.raises(BadData, match=r"file is not a regular file; replace it with one"):
        Detector.load(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    state.write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OodbenchError, match=r"^cannot write .*cell\.json \(3 bytes, .* free\): No space left on device; free"):
        state.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["cell.json"]


def test_a_kill_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    state.write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        state.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["cell.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "a_file").write_text("")  # in the way of a folder: also for root, whom no permission stops
    with pytest.raises(
        OodbenchError, match=r"^cannot write .*: (Not a directory|File exists)[^\n]*; free space there"
    ) as raised:
        state.write_atomically(tmp_path / "a_file" / "cell.json", json.dumps({}).encode())
    assert "\n" not in str(raised.value)
