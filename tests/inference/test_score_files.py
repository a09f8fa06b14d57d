"""Which files below a folder are scored: all images, and a row with the reason for what cannot be read."""

import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from oodbench.datasets.formats import layout
from oodbench.errors import BadData
from oodbench.inference import score_files
from oodbench.inference.fitted import Input
from oodbench.inference.score_files import image_paths


@pytest.fixture
def images(tmp_path):
    """``new``, a folder to score, beside ``elsewhere``, which it links to."""
    for name in ("new/a/0.png", "new/closed/0.png", "elsewhere/deep/1.png", "elsewhere/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "new" / "a" / "browser.jfif", format="JPEG")
    (tmp_path / "new" / "linked").symlink_to("../elsewhere")
    return tmp_path / "new"


def rows(folder, monkeypatch=None, closed=()):
    """(path below the folder, the reason without a score) of each row."""
    if monkeypatch:  # permissions do not keep an administrator out
        scan = os.scandir

        def guarded(path):
            if os.path.basename(path) in closed:
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(layout.os, "scandir", guarded)

    def fitted(images):
        return torch.zeros(len(images)), torch.zeros(len(images)) > 0

    fitted.about = SimpleNamespace(input=Input(size=(4, 4), resize="bilinear"))
    found = list(score_files.score_files(fitted, [folder], 2))
    return [(os.path.relpath(row.path, folder), row.reason) for row in found]


def test_linked_folders_and_all_suffixes_are_scored_and_unreadable_folders_have_a_row(images, monkeypatch):
    *found, (last, reason) = sorted(rows(images, monkeypatch, {"closed"}), key=lambda row: row[0] == "closed")
    assert found == [(name, "") for name in ("a/0.png", "a/browser.jfif", "linked/0.png", "linked/deep/1.png")]
    assert (last, "closed cannot be listed (Permission denied)" in reason) == ("closed", True)


def test_a_folder_that_is_itself_unreadable(images, monkeypatch):
    (name, reason), *others = rows(images, monkeypatch, {"new"})
    assert (name, "cannot be listed" in reason, others) == (".", True, [])


def test_links_that_lead_back_or_nowhere_have_a_row(images):
    (images / "a" / "up").symlink_to("../..")  # above the folder: its images are scored, once
    (images / "linked" / "deep" / "back").symlink_to("../../new/linked")
    (images / "itself").symlink_to("itself")
    (images / "gone").symlink_to("nowhere")
    (images / "notes.txt").symlink_to("nowhere")
    found = dict(rows(images))
    assert {name for name, reason in found.items() if reason == "is a link to a folder that contains it; remove the link"} == {
        *("a/up/new", "linked/deep/back"),
        *("a/up/elsewhere/deep/back",),
    }
    assert found["gone"] == "no such file"
    assert found["itself"].startswith("cannot be read (")
    assert "notes.txt" not in found
    assert found["a/0.png"] == found["a/up/elsewhere/0.png"] == ""


@pytest.mark.parametrize("suffix", ["gif", "HEIC"])
def test_formats_that_are_not_read_have_a_row(images, suffix):
    Image.new("RGB", (4, 4)).save(images / f"b.{suffix}", format="GIF")
    assert (f"b.{suffix}", f".{suffix} images are not read; save it as PNG") in rows(images)


def test_hidden_folders_and_those_that_systems_add_are_left_out(images):
    for place in ("__MACOSX/a", "a/@eaDir/0.png", ".thumbnails"):
        (images / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(images / place / "0.png")
    assert [name for name, _ in rows(images)] == [
        *("a/0.png", "a/browser.jfif", "closed/0.png", "linked/0.png", "linked/deep/1.png"),
    ]


def test_a_folder_without_images(tmp_path):
    ((path, error),) = image_paths([tmp_path])
    assert (path, type(error)) == (tmp_path, BadData)
    assert str(error).startswith("holds no images (.apng .bmp .jfif")
