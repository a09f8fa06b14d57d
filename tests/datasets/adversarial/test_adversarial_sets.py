"""Attacked sets: what they record, the papers' filter, and a cache that survives kills, damage and full disks."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from heard import Heard

from oodbench.datasets.adversarial import attack_cache, attacks
from oodbench.datasets.adversarial.adversarial_sets import NOISE_STD, NOISE_STREAM, attacked, resolve
from oodbench.datasets.adversarial.attacks import attack
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.image_set import ImageSet, Source
from oodbench.random_numbers import standard_normal

N = 40


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of cached attacked sets: one cache per test, 16 images per part."""
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attack_cache, "PART", 16)
    return tmp_path / "cache" / "adversarial"


@pytest.fixture
def victim(make_classifier):
    """A network minus its mean logits, so that it can be fooled."""
    classifier = make_classifier()
    classifier.head.bias.data -= classifier(pixels().float() / 255).mean(0)
    return classifier


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (N, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture
def base(victim):
    """Images labelled as the network classifies them, except every fifth."""
    labels = victim(pixels().float() / 255).argmax(1)
    labels[::5] = (labels[::5] + 1) % 4
    whole = Source("Noise", "https://example.org", "public domain", "none", {"test": N})
    return ImageSet(pixels(), labels, name="noise", source=whole, classes=("a", "b", "c", "d"), kind="near-ood", flips=False)


def counted(monkeypatch):
    """Sizes of the batches that are attacked from now on."""
    sizes = []

    def count(classifier, images, *rest, **settings):
        sizes.append(len(images))
        return attack(classifier, images, *rest, **settings)

    monkeypatch.setattr(attacks, "attack", count)
    return sizes


def predicted(victim, images: torch.Tensor) -> torch.Tensor:
    """One image at a time."""
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return torch.stack([victim(image[None])[0].argmax() for image in floats])


# What a set records.


@pytest.mark.parametrize("rounded", [True, False])
def test_a_set_and_its_record(base, victim, rounded):
    heard = Heard()
    found = attacked(base, "pgd", victim, seed=3, settings={"eps": 0.1, "rounded": rounded}, progress=heard)
    raw = attack(victim, base.images.float() / 255, base.labels, "pgd", eps=0.1, seed=3)
    steps = base.images.int()
    wanted = (raw * 255).round().int().clamp(steps - 25, steps + 25).to(torch.uint8) if rounded else raw  # 0.1 is 25.5 steps
    assert torch.equal(found.images, wanted)
    assert found.images.dtype == (torch.uint8 if rounded else torch.float32)
    assert (found.kind, found.name, found.split, found.level) == ("adversarial", "noise+pgd", "test", None)
    assert (found.classes, found.flips, found.negatives) == (base.classes, False, None)
    assert torch.equal(found.labels, base.labels)
    assert torch.equal(found.base_index, base.base_index)
    assert found.base == base.fingerprint
    assert torch.equal(found.clean, base.images)
    assert found.source.title == f"Noise, attacked with pgd against tiny {victim.weights_hash}"
    assert found.official_size == N
    assert heard.stages == ["attacking noise with pgd: 40 images"]
    assert heard.lines == []
    assert heard.done == pytest.approx(heard.expected)

    before, after = predicted(victim, base.images), predicted(victim, found.images)
    right = before == base.labels
    change = [a.double() / (255 if rounded else 1) - b.double() / 255 for a, b in zip(found.images, base.images, strict=True)]
    assert found.attack_record.model_dump() == {
        "attack": "pgd",
        "network": f"tiny {victim.weights_hash}",
        "settings": {"eps": 0.1, "step": 2 / 255, "steps": 10, "rounded": rounded, "filtered": False},
        "attacked": N,
        "kept": N,
        "unchanged": 0.0,
        "clean_accuracy": 0.8,
        "adversarial_accuracy": pytest.approx(float((after == base.labels).double().mean())),
        "success_rate": pytest.approx(float((after != base.labels)[right].double().mean())),
        "mean_l2": pytest.approx(sum(c.square().sum().sqrt().item() for c in change) / N, rel=1e-6),
        "mean_linf": pytest.approx(sum(c.abs().max().item() for c in change) / N, rel=1e-6),
    }
    assert found.attack_record.success_rate > 0.5


@pytest.mark.parametrize(("eps", "steps"), [(0.0301, 7), (0.05, 12), (8 / 255, 8)])
def test_rounding_carries_no_pixel_beyond_eps(base, victim, eps, steps):
    for name in ("fgsm", "bim", "pgd", "iterll"):
        found = attacked(base, name, victim, settings={"eps": eps})
        assert int((found.images.int() - base.images.int()).abs().max()) == steps


def test_a_selection_is_attacked_as_in_the_whole(base, victim):
    rows = torch.tensor([3, 30, 17])
    whole = attacked(base, "pgd", victim).select(rows)
    some = attacked(base.select(rows), "pgd", victim)
    assert torch.equal(some.images, whole.images)
    assert torch.equal(some.base_index, rows)
    assert some.base == whole.base == base.fingerprint


def test_images_that_decode_on_demand(base, victim):
    class OnDemand:
        shape = (N, 3, 8, 8)
        largest = 0

        def __len__(self):
            return N

        def __getitem__(self, rows):
            OnDemand.largest = max(OnDemand.largest, len(rows))
            return base.images[list(rows)]

    settings = {"eps": 0.1, "filtered": True}
    lazy = attacked(replace(base, images=OnDemand()), "fgsm", victim, settings=settings, batch_size=8)
    found = attacked(base, "fgsm", victim, settings=settings)
    assert torch.equal(lazy.images, found.images)
    assert torch.equal(lazy.negatives.images, found.negatives.images)
    assert lazy.attack_record == found.attack_record


# The filter.


@pytest.mark.parametrize("rounded", [True, False])
def test_the_filter_against_its_definition(base, victim, rounded):
    settings = {"eps": 0.1, "filtered": True, "noise_std": 0.1, "rounded": rounded}
    found = attacked(base, "bim", victim, seed=5, settings=settings)
    everything = attacked(base, "bim", victim, seed=5, settings={"eps": 0.1, "rounded": rounded})
    clean = (base.images.float() / 255).double()
    noisy = (clean + 0.1 * standard_normal(attacks.keys_of(5, torch.arange(N), NOISE_STREAM), (3, 8, 8))).clamp(0, 1)
    noisy = (noisy * 255).round().to(torch.uint8) if rounded else noisy.float()
    kept = [
        row
        for row in range(N)
        if predicted(victim, base.images[[row]]) == base.labels[row]
        and predicted(victim, noisy[[row]]) == base.labels[row]
        and predicted(victim, everything.images[[row]]) != base.labels[row]
    ]
    right = predicted(victim, base.images) == base.labels
    assert 0 < len(kept) < int(right.sum())  # the noise turns some, or the test says little
    assert found.base_index.tolist() == kept
    assert torch.equal(found.images, everything.images[kept])
    assert torch.equal(found.clean, base.images[kept])
    assert torch.equal(found.labels, base.labels[kept])

    negatives = found.negatives
    pure = base.images[kept] if rounded else base.images[kept].float() / 255
    assert torch.equal(negatives.images, torch.cat([pure, noisy[kept]]))
    assert torch.equal(negatives.clean, torch.cat([pure, pure]))
    assert negatives.noisy.tolist() == [False] * len(kept) + [True] * len(kept)
    assert negatives.base_index.tolist() == kept * 2
    assert negatives.labels.tolist() == base.labels[kept].tolist() * 2
    assert negatives.base == found.base == base.fingerprint
    assert (negatives.name, negatives.source.title) == ("noise, clean and noisy", "Noise")

    made = found.attack_record
    assert (made.attacked, made.kept, found.official_size) == (N, len(kept), len(kept))
    assert made.settings["noise_std"] == 0.1
    assert made.success_rate == everything.attack_record.success_rate  # before the filter
    change = (everything.images[kept].double() / (255 if rounded else 1) - base.images[kept].double() / 255).flatten(1)
    assert made.mean_l2 == pytest.approx(float(change.norm(dim=1).mean()), rel=1e-6)


def test_filtering_does_not_attack_again(base, victim, monkeypatch):
    attacked(base, "fgsm", victim, settings={"eps": 0.1})
    sizes = counted(monkeypatch)
    attacked(base, "fgsm", victim, settings={"eps": 0.1, "filtered": True})
    assert sizes == []


def test_noise_is_that_of_the_paper_by_attack():
    assert {name: resolve(name, {})[1].noise_std for name in ("fgsm", "bim", "cw")} == NOISE_STD
    mean_std = (0.2023 + 0.1994 + 0.2010) / 3  # by which Lee et al. normalise CIFAR-10
    for name, normalised in {"fgsm": 0.0625, "bim": 0.065, "cw": 0.025}.items():
        assert NOISE_STD[name] == pytest.approx(normalised * mean_std, rel=0.01)


# The cache.


def test_an_attack_runs_once(base, victim, monkeypatch, folder):
    first = attacked(base, "pgd", victim)
    sizes, heard = counted(monkeypatch), Heard()
    again = attacked(base, "pgd", victim, progress=heard, batch_size=7)
    assert sizes == []
    assert torch.equal(again.images, first.images)
    assert again.attack_record == first.attack_record
    assert heard.done == pytest.approx(heard.expected)
    assert sorted(file.name for file in folder.glob("*/*")) == [f"0000{part}.safetensors" for part in range(3)]


def test_what_decides_the_images_decides_where_they_are_kept(base, victim, make_classifier, folder):
    def made() -> int:
        return len(list(folder.iterdir()))

    attacked(base, "pgd", victim)
    assert made() == 1
    attacked(base, "pgd", victim, settings={"filtered": False, "noise_std": 0.1, "eps": 8 / 255})  # all the same
    assert made() == 1
    attacked(base, "pgd", victim, seed=1)
    attacked(base, "pgd", victim, settings={"eps": 0.1})
    attacked(base, "pgd", victim, settings={"rounded": False})
    attacked(base, "bim", victim)
    attacked(base.select(torch.arange(20)), "pgd", victim)
    attacked(replace(base, base_index=torch.arange(N).flip(0), base="x"), "pgd", victim)
    attacked(replace(base, labels=base.labels.roll(1)), "pgd", victim)
    assert made() == 8
    other = make_classifier(seed=1)
    attacked(replace(base, labels=predicted(other, base.images)), "pgd", other)
    same_weights = make_classifier(seed=1)
    same_weights.module.layer2[2] = torch.nn.LeakyReLU().eval()
    assert same_weights.weights_hash == other.weights_hash
    attacked(replace(base, labels=predicted(other, base.images)), "pgd", same_weights)
    assert made() == 10


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def empty(file):
    file.write_bytes(b"")


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def another_part(file):
    file.write_bytes((file.parent / "00000.safetensors").read_bytes())


def hostile_pickle(file):
    class Bomb:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    file.write_bytes(pickle.dumps(Bomb()).ljust(16 * 192 + 300, b"\0"))


def sparse_giant(file):
    with file.open("r+b") as stream:
        stream.truncate(2**40)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, another_part, hostile_pickle, sparse_giant])
def test_a_damaged_part_is_made_again(damage, base, victim, monkeypatch, folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    whole = attacked(base, "pgd", victim)
    (file,) = folder.glob("*/00001.safetensors")
    good = file.read_bytes()
    damage(file)
    sizes, heard = counted(monkeypatch), Heard()
    again = attacked(base, "pgd", victim, progress=heard)
    assert torch.equal(again.images, whole.images)
    assert sizes == [16]
    (line,) = heard.lines
    assert str(file) in line
    assert "attacking these images again" in line
    assert file.read_bytes() == good
    assert not (tmp_path / "pwned").exists()


def test_something_else_in_the_place_of_a_part(base, victim, monkeypatch, folder):
    whole = attacked(base, "pgd", victim)
    (file,) = folder.glob("*/00001.safetensors")
    for make in (file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to(file)):
        file.unlink()
        make()
        heard = Heard()
        assert torch.equal(attacked(base, "pgd", victim, progress=heard).images, whole.images)
        if file.is_dir():  # it cannot be replaced
            assert len(heard.lines) == 1
            assert "are not cached" in heard.lines[0]
            file.rmdir()
            attacked(base, "pgd", victim)
        assert file.is_file()
        assert not file.is_symlink()


def test_a_cache_that_cannot_be_written_costs_one_line(base, victim, monkeypatch, tmp_path):
    wanted = attacked(base, "pgd", victim)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path / "file"))
    heard = Heard()
    assert torch.equal(attacked(base, "pgd", victim, progress=heard).images, wanted.images)
    (line,) = heard.lines
    assert line.startswith("noise+pgd: attacked images are not cached, so the next run attacks again: cannot write")
    assert "free space there or set OODBENCH_CACHE to another folder" in line


def test_a_full_disk_costs_one_line_and_leaves_no_half_file(base, victim, monkeypatch, folder):
    def full(file):
        raise OSError(28, "No space left on device")

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        found = attacked(base, "pgd", victim, progress=heard)
    assert len(heard.lines) == 1
    assert "No space left on device" in heard.lines[0]
    assert list(folder.glob("*/*")) == list(folder.glob("*/.*")) == []
    assert torch.equal(attacked(base, "pgd", victim).images, found.images)


VICTIM = """
import sys, time
import torch
import oodbench
from oodbench.datasets.adversarial import adversarial_sets, attack_cache
from oodbench.progress import Progress

class Slow(Progress):
    def advance(self, units):
        time.sleep(float(sys.argv[1]))

attack_cache.PART = 4
torch.manual_seed(0)
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
classifier = oodbench.Classifier(network, name="victim")
images = torch.randint(0, 256, (24, 3, 8, 8)).to(torch.uint8)
base = oodbench.ImageSet(images, classifier(images / 255).argmax(1), name="noise")
found = adversarial_sets.attacked(base, "cw", classifier, settings={"steps": 30, "weight": 5.0}, progress=Slow())
print(found.fingerprint, found.attack_record.success_rate, found.attack_record.mean_l2)
"""


def test_a_killed_attack_goes_on_where_it_stopped(tmp_path):
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)

    def start(cache: str, seconds_a_step: float = 0) -> subprocess.Popen:
        environment = os.environ | {"OODBENCH_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", str(script), str(seconds_a_step)]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    killed = start("killed", 0.05)
    deadline = time.monotonic() + 300
    while len(done := sorted((tmp_path / "killed").glob("adversarial/*/[0-9]*"))) < 2:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(done) < 6
    written = {file: file.stat().st_mtime_ns for file in done}

    started = [start("killed"), start("killed"), start("fresh")]  # two at once in one cache
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    (resumed, _), (beside, _), (fresh, _) = said
    assert resumed == beside == fresh
    assert len(fresh.split()) == 3
    assert {file: file.stat().st_mtime_ns for file in done} == written  # not made again
    parts = [sorted((tmp_path / cache).glob("adversarial/*/[0-9]*")) for cache in ("killed", "fresh")]
    assert [len(files) for files in parts] == [6, 6]
    assert [file.read_bytes() for file in parts[0]] == [file.read_bytes() for file in parts[1]]


# What is refused.


@pytest.mark.parametrize(
    ("name", "settings", "error", "said"),
    [
        ("pgd", {"filter": True}, UsageError, r"unknown setting 'filter' of pgd; did you mean 'filtered'\?"),
        ("pgd", {"filtered": 1}, UsageError, "filtered of pgd is 1; give true or false"),
        ("pgd", {"rounded": "no"}, UsageError, "rounded of pgd is 'no'"),
        ("pgd", {"noise_std": 0}, UsageError, "noise_std of pgd is 0; give a number above 0"),
        ("pgd", {"eps": 8}, UsageError, "eps of pgd is 8"),
        ("pdg", {}, UsageError, "unknown attack 'pdg'"),
        ("fgsm", {"eps": 0, "filtered": True}, Unsuitable, r"noise\+fgsm: the filter keeps none of 40 images"),
    ],
)
def test_settings_that_are_refused(name, settings, error, said, base, victim):
    with pytest.raises(error, match=said) as caught:
        attacked(base, name, victim, settings=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"labels": None}, Unsuitable, "noise has no labels, and fgsm needs them"),
        ({"labels": torch.arange(N)}, BadData, "labels go from 0 to 15, but tiny has classes 0 to 3"),
        ({"images": pixels()[:, :2]}, Unsuitable, r"tiny does not take images of shape \(2, 8, 8\)"),
    ],
)
def test_sets_that_are_refused(changed, error, said, base, victim):
    with pytest.raises(error, match=said):
        attacked(replace(base, **changed), "fgsm", victim)


def test_a_network_that_gets_nothing_right(base, victim):
    wrong = (predicted(victim, base.images) + 1) % 4
    with pytest.raises(Unsuitable, match=r"tiny gets no image of noise right.*; check weights and labels"):
        attacked(replace(base, labels=wrong), "fgsm", victim)


def test_an_image_without_finite_logits_is_named(base, victim):
    """Such an image once counted as classified: ``argmax`` gives a class for NaN and infinity too."""
    base.images[17] = 255
    forward = victim.module.forward
    victim.module.forward = lambda x: forward(x) / (x.amin((1, 2, 3)) < x.max()).float()[:, None]
    with pytest.raises(
        BadData, match=r"^tiny gives logits that are not finite \(NaN or infinity\) for row 17 of noise \(test\)"
    ):
        attacked(base, "fgsm", victim, seed=0)
