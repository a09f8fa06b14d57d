"""Each check of a database of image quality can fail: for each there is one that breaks what it checks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import random_images, save_image
from quality_databases import MAKERS

from oodbench import registry
from oodbench.conformance import check, databases
from oodbench.conformance.databases import CHECKS
from oodbench.datasets.quality.database import QualityDatabase, fingerprint
from oodbench.errors import BadData, MissingData, UsageError

REFERENCES = torch.from_numpy(random_images(2, 8, 10))
COUNT = 8


class Noisy:
    """Images made when they are asked for."""

    def __len__(self):
        return COUNT

    def __getitem__(self, row):
        noise = torch.randn(REFERENCES.shape[1:], generator=torch.Generator().manual_seed(row))
        return (REFERENCES[row % 2] + 9 * noise).clamp(0, 255).to(torch.uint8)


class Wrong(Noisy):
    def __init__(self, change):
        self.change = change

    def __getitem__(self, row):
        return self.change(super().__getitem__(row))


def sound(path, *, data=None):
    if path:
        raise UsageError(f"mine:{path}: mine has no path; write mine")
    scores = np.arange(COUNT) / 2
    return QualityDatabase(
        "mine",
        REFERENCES,
        Noisy(),
        np.arange(COUNT) % 2,
        scores,
        True,
        "MOS",
        fingerprint([], scores),
        deviations=np.ones(COUNT),
        distortions=["noise"] * COUNT,
        official_size=COUNT,
    )


def but(**changes):
    """A loader of a database that differs in these; a function makes each value anew."""

    def load(path, *, data=None):
        return replace(sound(path), **{name: value() if callable(value) else value for name, value in changes.items()})

    return load


def after(change):
    """A loader of a database that is changed after it was made."""

    def load(path, *, data=None):
        found = sound(path)
        change(found)
        return found

    return load


def fails(error):
    def load(path, *, data=None):
        raise error

    return load


def ignores_the_path(path, *, data=None):
    return sound("")


def without_files(error):
    """A loader that finds its files below the usual data roots, and raises this where it is given an empty one."""

    def load(path, *, data=None):
        return fails(error)(path) if isinstance(data, str) else sound(path)

    return load


def breaks_on_a_path(path, *, data=None):
    return sound("") if not path else {}[path]


def nan_score(found):
    found.scores[3] = np.nan


def equal_scores(found):
    found.scores[:] = 2


def random_rows():
    return np.random.default_rng().permutation(COUNT) + 0.5


BROKEN = [
    ("loads", fails(BadData("torn; unpack it again")), "does not load: torn; unpack it again"),
    ("loads", lambda path, *, data=None: {}, "gave a dict"),
    ("loads", but(scores=np.arange(3.0)), "3 scores"),
    ("arrays", but(scores=np.arange(COUNT)), "scores is int64 (8,), not float64 (8,)"),
    ("arrays", but(reference_of=np.zeros(COUNT)), "reference_of is float64 (8,), not int64 (8,)"),
    ("arrays", but(levels=np.ones((COUNT, 1))), "levels is float64 (8, 1)"),
    ("arrays", but(values={"psnr": [1.0] * COUNT}), "values of psnr is list, not float64 (8,)"),
    ("arrays", but(deviations=-np.ones(COUNT)), "deviations are negative"),
    ("arrays", but(distortions=[1] * COUNT), "distortions are not the names"),
    ("arrays", after(nan_score), "scores of image 3 is not finite"),
    ("arrays", after(lambda found: setattr(found, "references", REFERENCES[:1])), "from 0 to 1, but there are 1 references"),
    ("scores", after(equal_scores), "all scores are 2"),
    ("scores", but(higher_is_better="yes"), "higher_is_better is 'yes'"),
    ("scores", but(score_name=""), "score_name is empty"),
    ("scores", but(name="other"), "is called 'other', not 'mine'"),
    ("scores", but(official_size=3), "official_size is 3 for 8 images"),
    ("pairs", but(distorted=Wrong(lambda image: image[:, :-1])), "row 0 has shape (3, 7, 10), and its reference (3, 8, 10)"),
    ("pairs", but(distorted=Wrong(lambda image: image / 255)), "the distorted image of row 0 is torch.float32"),
    ("pairs", but(references=REFERENCES[:, :1]), "the reference of row 0 is torch.uint8 (1, 8, 10)"),
    ("on-demand", but(references=torch.zeros(1, dtype=torch.uint8).expand(100, 3, 1000, 1000)), "holds 286 MiB"),
    ("on-demand", but(distorted=[torch.zeros(1).expand(3, 4000, 3000)] * COUNT), "holds 1,099 MiB"),
    ("deterministic", but(scores=random_rows), "it has other scores"),
    ("deterministic", but(distorted=Wrong(lambda image: torch.randint_like(image, 255))), "the images of row 0 differ"),
    ("fingerprint", but(fingerprint=""), "fingerprint is ''"),
    ("fingerprint", but(fingerprint=lambda: str(np.random.default_rng().random())), "what it is made from changes"),
    ("missing-files", without_files(MissingData("")), "MissingData must say what is missing"),
    ("missing-files", without_files(FileNotFoundError("scores.mat")), "FileNotFoundError"),
    ("wrong-path", ignores_the_path, "'mine:no such path' loads"),
    ("wrong-path", breaks_on_a_path, "KeyError"),
    ("wrong-path", lambda path, *, data=None: fails(UsageError(""))(path) if path else sound(""), "UsageError must say"),
]


@pytest.fixture
def outcomes(monkeypatch):
    def outcomes(load):
        monkeypatch.setattr(f"{__name__}.loaded", load, raising=False)
        monkeypatch.setitem(
            registry._added,
            ("quality_databases", "mine"),
            registry.Record("quality_databases", "mine", f"{__name__}:loaded", distribution="other"),
        )
        return {outcome.check: outcome for outcome in check("mine")}

    return outcomes


def test_a_sound_database_passes_all(outcomes):
    found = outcomes(sound)
    assert list(found) == list(CHECKS)
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found


IDS = [f"{name}-{number}" for number, (name, *_) in enumerate(BROKEN)]


@pytest.mark.parametrize(("check", "load", "says"), BROKEN, ids=IDS)
def test_a_broken_database_fails_its_check(outcomes, check, load, says):
    outcome = outcomes(load)[check]
    assert outcome.outcome == "fail", outcome.reason
    assert says in outcome.reason


def test_every_check_of_databases_has_one_that_fails_it():
    assert list(dict.fromkeys(name for name, *_ in BROKEN)) == list(CHECKS)


def test_a_database_that_does_not_load_fails_once(outcomes):
    found = outcomes(fails(ValueError("my own fault")))
    assert found["loads"].reason == "does not load: ValueError: my own fault"
    assert found["pairs"] == ("pairs", "skip", "could not be loaded")


@pytest.mark.parametrize("name", MAKERS)
def test_official_databases_pass(name, tmp_path):
    MAKERS[name](tmp_path)
    found = {outcome.check: outcome for outcome in check(name, data=tmp_path)}
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found
    assert found["missing-files"].reason == "raises MissingData"


def test_own_databases_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "MOST_PAIRS", 3)
    for number, image in enumerate(random_images(5, 6, 8)):
        save_image(tmp_path / "mine" / f"{number}.png", image)
    rows = "".join(f"{number}.png,0.png,{number}\n" for number in range(1, 5))
    (tmp_path / "mine" / "scores.csv").write_text(f"image,reference,mos\n{rows}")
    found = {outcome.check: outcome for outcome in check("folder:mine", "quality_databases", data=tmp_path)}
    assert {outcome.outcome for outcome in found.values()} == {"pass"}, found
    assert found["pairs"].reason == "3 of 4 pairs"
    whole = {outcome.check: outcome for outcome in check(f"folder:{tmp_path}/mine", "quality_databases")}
    assert [name for name, outcome in whole.items() if outcome.outcome == "skip"] == ["missing-files"]
    (tmp_path / "values.csv").write_text("mos,psnr\n1,20\n2,25\n3,26\n")
    found = {outcome.check: outcome for outcome in check("scores:values.csv", data=tmp_path)}
    assert [name for name, outcome in found.items() if outcome.outcome == "skip"] == ["pairs", "on-demand"]
    assert "fail" not in {outcome.outcome for outcome in found.values()}
