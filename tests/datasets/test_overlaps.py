"""Classes that two sets share: the lists hold real classes, and a selection leaves just these out."""

from importlib import resources

import pandas as pd
import pytest
import torch

from oodbench import load_dataset
from oodbench.datasets.overlaps import OVERLAPS, overlap_of, shared_classes
from oodbench.image_set import ImageSet, Source
from oodbench.leaderboard.aggregate import COLUMNS
from oodbench.leaderboard.formats import render


@pytest.mark.parametrize("pair", OVERLAPS, ids="-".join)
def test_the_words_are_those_of_wordnet(pair):
    text = (resources.files("timm.data") / "_info" / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    lemmas = dict(line.split("\t", 1) for line in text.splitlines())
    assert {wnid: lemmas[wnid].split(",")[0] for wnid in OVERLAPS[pair].classes} == OVERLAPS[pair].classes


def test_how_many_classes_are_shared():
    assert {pair: len(overlap.classes) for pair, overlap in OVERLAPS.items()} == {
        ("tinyimagenet", "cifar10"): 23,
        ("tinyimagenet", "cifar100"): 45,
    }
    selections = [(of, overlap.selection) for (of, _), overlap in OVERLAPS.items()]
    assert len(set(selections)) == len(selections)
    assert shared_classes("tinyimagenet", "disjoint") == OVERLAPS["tinyimagenet", "cifar10"].classes
    assert shared_classes("cifar10", "disjoint") is None
    assert overlap_of("tinyimagenet-crop", "cifar10") is OVERLAPS["tinyimagenet", "cifar10"]
    assert overlap_of("tinyimagenet:disjoint", "cifar10") is overlap_of("cifar100", "cifar10") is None


@pytest.fixture
def tiny(monkeypatch):
    """Six images of two shared classes and one other, as ``tinyimagenet``."""
    classes = ("n02123045", "n01443537", "n03796401")  # tabby, goldfish, moving van
    images = ImageSet(
        torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 8),
        torch.tensor([0, 1, 1, 2, 0, 1]),
        name="tinyimagenet",
        kind="near-ood",
        classes=classes,
        source=Source(official_size={"test": 6}),
    )
    monkeypatch.setattr("oodbench.datasets.load.as_loaded", lambda name, root, split: images)
    return images


def test_a_selection_leaves_the_shared_classes_out(tiny):
    found = load_dataset("tinyimagenet:disjoint")
    assert found.images[:, 0, 0, 0].tolist() == found.base_index.tolist() == [1, 2, 5]
    assert (found.name, found.labels.tolist(), found.official_size) == ("tinyimagenet:disjoint", [1, 1, 1], 3)
    assert found.identity == tiny.identity
    assert load_dataset("tinyimagenet:disjoint-cifar100").base_index.tolist() == [0, 3, 4]
    assert load_dataset("tinyimagenet:disjoint+noise@1").base_index.tolist() == [1, 2, 5]
    assert load_dataset("tinyimagenet:n02123045").base_index.tolist() == [0, 4]


def test_the_set_itself_has_the_classes(data_root):
    whole = load_dataset("tinyimagenet", data=data_root)
    shared = OVERLAPS["tinyimagenet", "cifar10"].classes
    assert set(shared) <= set(whole.classes)
    counts = [sum(whole.classes[label] in shared for label in whole.labels.tolist()), len(whole)]
    assert len(load_dataset("tinyimagenet:disjoint", data=data_root)) == counts[1] - counts[0]


def test_tables_name_sets_with_shared_classes():
    def table(*sets, inside="cifar10"):
        row = {"model": "net", "in_distribution": inside, "detector": "msp", "protocol": "unsupervised", "seed": 0}
        row |= {"kind": "near-ood", "status": "ok", "reason": "", "auroc": 0.8, "fpr95": 0.5}
        return render(pd.DataFrame([row | {"dataset": name} for name in sets]).reindex(columns=list(COLUMNS)), width=None)

    shares = "shares 23 classes with cifar10 (bullfrog, tailed frog, goose, black stork and 19 more)"
    text = table("tinyimagenet", "tinyimagenet:disjoint", "cifar100", "tinyimagenet-resize")
    assert f"tinyimagenet {shares}: images of these are not anomalies. tinyimagenet:disjoint leaves them out." in text
    assert f"tinyimagenet-resize {shares}: images of these are not anomalies.\n" in text
    assert text.count("shares") == 2
    assert "tinyimagenet:disjoint-cifar100 leaves them out" in table("tinyimagenet", inside="cifar100")
    assert "shares" not in table("tinyimagenet", "tinyimagenet:disjoint", inside="digits")
