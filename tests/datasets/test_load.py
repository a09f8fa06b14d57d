"""``load_dataset``: names, resizing, colour, derived sets, third parties, the embedded sets, and real samples of the others."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from image_files import save_image
from PIL import Image

from oodbench import ImageSet, Source, datasets, load_dataset, registry
from oodbench.datasets import TABLE, load
from oodbench.datasets.corruptions import corrupt
from oodbench.datasets.formats.files import ImageFiles
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError

EMBEDDED = ("digits", "digits-heldout", "photos", "uniform")


def random_images(count, channels=3, height=8, width=8, seed=0):
    return torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture
def third_party(monkeypatch):
    """third_party(image_set) registers a data set ``theirs`` whose loader gives it (or raises it)."""

    def register(result):
        def loader(root, split):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr("oodbench.datasets.load.their_loader", loader, raising=False)
        record = registry.Record(
            "datasets", "theirs", "oodbench.datasets.load:their_loader", distribution="their-package", version="1.2"
        )
        monkeypatch.setitem(registry._added, ("datasets", "theirs"), record)

    return register


class OnDemand:
    """Images of varying sizes, as a third party may return them."""

    def __init__(self, images):
        self.images, self.shape, self.asked = images, (len(images), 3, 0, 0), 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.asked += len(rows)
        return torch.stack([self.images[row] for row in rows])


def test_the_table_names_loaders_and_imports_nothing_heavy():
    for name in TABLE:
        assert callable(registry.load("datasets", name))
    heavy = "[m for m in ('torch', 'numpy', 'PIL', 'scipy', 'sklearn') if m in sys.modules]"
    code = f"import sys, oodbench; oodbench.datasets.TABLE; print({heavy})"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert datasets.__getattr__("corruptions").corrupt is corrupt
    with pytest.raises(AttributeError, match="no attribute 'corruption'"):
        _ = datasets.corruption


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", "unknown dataset 'cifr10'; did you mean 'cifar10'"),
        ("", "unknown dataset ''"),
        ("a\nb", "unknown dataset 'a b'"),
        ("digits@3", r"'digits@3': digits has no levels; write digits \(in a suite, leave out levels\), or digits\+noise@1"),
        ("digits+", "unknown change or attack ''"),
        ("digits+nose@3", "unknown change or attack 'nose'; did you mean 'noise'"),
        ("digits+pgd@3", "pgd has no level; write digits\\+pgd"),
        ("digits/fog@3", "digits has no parts, so no 'fog'; write digits"),
        ("digits/", "names no part of digits"),
        ("cifar10c/fog@6", "with a level from 1 to 5"),
        ("cifar10c/fog@mild", "with a level from 1 to 5"),
        ("digits+noise", "'noise' needs a level from 1.*write noise@1"),
        ("digits+noise@", "needs a level"),
        ("digits+noise@0", "needs a level"),
        ("digits+noise@6", "needs a level"),
        ("digits+noise@mild", "needs a level.*'mild'"),
        ("digits+noise@1+noise@2", "needs a level"),
        ("digits:", "names no class"),
        ("digits:9", "unknown class '9' of digits.*8 classes: 0, 1"),
        ("digits:-1", "unknown class"),
        ("photos:china", "photos has no labels"),
    ],
)
def test_names_that_there_are_not(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset(name)
    assert "\n" not in str(caught.value)


def test_an_attack_needs_a_network():
    with pytest.raises(Unsuitable, match=r"digits\+pgd is made against a network"):
        load_dataset("digits+pgd")


def test_other_wrong_arguments():
    for size in (0, -8, 8.0, True, 4097, 10**30):
        with pytest.raises(UsageError, match="give a number of pixels up to 4,096"):
            load_dataset("digits", size=size)
    for workers in (-1, 10**30):
        with pytest.raises(UsageError, match="give a number of processes from 0 to 1,024"):
            load_dataset("digits", workers=workers)
    for change in ("noise@1", "jpeg-85"):
        with pytest.raises(UsageError, match=f"seed is {2**63}; give a whole number of at most {2**63 - 1}"):
            load_dataset(f"digits+{change}", seed=2**63)
    with pytest.raises(UsageError, match="unknown resize filter 'bilinaer'; did you mean 'bilinear'"):
        load_dataset("digits", resize="bilinaer")
    with pytest.raises(UsageError, match="digits has no split 'val'; it has train, test"):
        load_dataset("digits", split="val")


def test_digits():
    from sklearn.datasets import load_digits

    train, test, heldout = load_dataset("digits", split="train"), load_dataset("digits"), load_dataset("digits-heldout")
    assert len(train) + len(test) + len(heldout) == 1797
    assert len(train) / (len(train) + len(test)) == pytest.approx(0.6, abs=0.01)
    for part in (train, test):
        assert part.labels.unique().tolist() == list(range(8))
        share = torch.bincount(part.labels) / len(part)
        assert float((share - 1 / 8).abs().max()) < 0.01, "stratified"
    assert heldout.classes == ("8", "9")
    assert heldout.labels.unique().tolist() == [0, 1]
    everything = {bytes(image.numpy()) for part in (train, test, heldout) for image in part.images}
    values = load_digits().data.reshape(-1, 8, 8)
    assert everything == {bytes(np.round([v * 255 / 16] * 3).astype(np.uint8)) for v in values}
    assert not {bytes(i.numpy()) for i in train.images} & {bytes(i.numpy()) for i in test.images}
    assert not train.flips


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name):
    first, again = load_dataset(name), load_dataset(name, data="/nowhere")
    assert tuple(first.images.shape[1:]) == (3, 8, 8)
    assert (first.images == first.images[:, :1]).all(), "grey, so that colour tells nothing"
    assert first.fingerprint == again.fingerprint
    assert first.source.title
    assert first.source.licence
    assert first.name == name
    if name != "digits":
        assert first.kind == ("near-ood" if name == "digits-heldout" else "far-ood")
        with pytest.raises(UsageError, match="it has test"):
            load_dataset(name, split="train")


def test_photos_and_uniform_hold_what_they_say():
    photos, uniform = load_dataset("photos"), load_dataset("uniform")
    assert len(photos) == len(uniform) == 500
    assert float(uniform.images.double().mean()) == pytest.approx(127.5, abs=2)
    smoothness = [float(s.images[:, 0].double().diff(dim=2).abs().mean()) for s in (photos, uniform)]
    assert smoothness[0] < smoothness[1] / 4, "photographs are smooth, noise is not"


@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 50), (20, 12)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["bilinear", "lanczos"])
def test_resizing_is_pils(third_party, height, width, channels, resize):
    images = random_images(5, channels, height, width)
    third_party(ImageSet(images))
    loaded = load_dataset("theirs", size=20, resize=resize)
    for image, got in zip(images, loaded.images, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
        expected = picture.convert("RGB").resize((20, 20), getattr(Image.Resampling, resize.upper()))
        assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_nothing_is_resampled_that_has_its_size(third_party):
    images = random_images(3, 3, 8, 8)
    third_party(ImageSet(images))
    assert load_dataset("theirs", size=8).images.data_ptr() == images.data_ptr()
    third_party(ImageSet(images[:, :, :, :6]))
    assert torch.equal(load_dataset("theirs").images, images[:, :, :, :6]), "its own size, also where it is not square"


def test_sizes_that_vary_become_32(third_party):
    third_party(ImageSet(OnDemand([random_images(1, 3, h, h)[0] for h in (10, 40, 32)]), labels=torch.tensor([1, 0, 1])))
    loaded = load_dataset("theirs")
    assert isinstance(loaded.images, torch.Tensor)
    assert tuple(loaded.images.shape) == (3, 3, 32, 32)
    assert torch.equal(loaded.images[2], random_images(1, 3, 32, 32)[0])


def test_large_sets_decode_on_demand_and_give_the_same(third_party, monkeypatch):
    source = OnDemand([random_images(1, 3, 40, 30 + i, seed=i)[0] for i in range(6)])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    third_party(ImageSet(source, labels, classes=("cat", "dog")))
    names = ("theirs", "theirs:dog", "theirs+noise@3", "theirs:dog+noise@3")
    small = {name: load_dataset(name) for name in names}
    monkeypatch.setattr(load, "IN_MEMORY", 1000)
    source.asked = 0
    large = load_dataset("theirs")
    assert source.asked == 0, "nothing is decoded before it is read"
    assert torch.equal(large.read([4, 1]), small["theirs"].images[[4, 1]])
    assert source.asked == 2
    for name in names:
        large = load_dataset(name)
        assert not isinstance(large.images, torch.Tensor)
        assert tuple(large.images.shape) == tuple(small[name].images.shape)
        assert torch.equal(large.read(range(len(large))), small[name].images)
        assert (large.fingerprint, large.base) == (small[name].fingerprint, small[name].base)


def test_one_class_by_name_and_by_number(third_party):
    labels = torch.tensor([0, 1, 2, 1])
    names = ("cat", "dog", "owl", "emu")
    third_party(ImageSet(random_images(4), labels, classes=names, source=Source(official_size={"test": 4})))
    whole, dogs = load_dataset("theirs"), load_dataset("theirs:dog")
    assert dogs.name == "theirs:dog"
    assert dogs.base_index.tolist() == [1, 3]
    assert dogs.base == whole.fingerprint
    assert dogs.labels.tolist() == [1, 1]
    assert torch.equal(dogs.images, whole.images[[1, 3]])
    assert dogs.official_size == 2, "the class is whole where the set is"
    assert load_dataset("theirs:1").fingerprint == dogs.fingerprint
    with pytest.raises(BadData, match="holds no image of class 'emu'"):
        load_dataset("theirs:emu")
    third_party(ImageSet(random_images(4), labels, classes=names, source=Source(official_size={"test": 9})))
    assert load_dataset("theirs:dog").official_size != 2, "a class of a subset does not pass for a whole class"


def test_all_classes_but_one_by_name_and_by_number(third_party):
    labels = torch.tensor([0, 1, 2, 1])
    third_party(
        ImageSet(random_images(4), labels, classes=("cat", "dog", "owl", "emu"), source=Source(official_size={"test": 4}))
    )
    whole, others = load_dataset("theirs"), load_dataset("theirs:not-dog")
    assert (others.name, others.base_index.tolist(), others.labels.tolist()) == ("theirs:not-dog", [0, 2], [0, 2])
    assert (others.base, others.official_size, others.classes) == (whole.fingerprint, 2, whole.classes)
    assert load_dataset("theirs:not-1").fingerprint == others.fingerprint
    assert load_dataset("theirs:not-dog+noise@1").base_index.tolist() == [0, 2]
    assert len(load_dataset("theirs:not-emu")) == 4, "a class may have no image in a split"
    with pytest.raises(
        UsageError, match=r"unknown class 'dgo' of theirs; did you mean 'dog'\? \(4 classes: cat, dog, owl, emu\)"
    ):
        load_dataset("theirs:not-dgo")
    with pytest.raises(UsageError, match=r"unknown class '4' of theirs \(4 classes: cat, dog, owl, emu\)"):
        load_dataset("theirs:not-4")
    third_party(ImageSet(random_images(4), labels * 0, classes=("cat",)))
    with pytest.raises(BadData, match=r"theirs .* holds only images of classes that are left out"):
        load_dataset("theirs:not-cat")
    third_party(ImageSet(random_images(4)))
    with pytest.raises(UsageError, match="theirs has no labels, so no class 'cat'; leave ':not-cat' out"):
        load_dataset("theirs:not-cat")


def test_a_class_that_is_called_not_something(third_party):
    third_party(ImageSet(random_images(3), torch.tensor([0, 1, 2]), classes=("cat", "not-cat", "not-not-cat")))
    assert [load_dataset(f"theirs:{name}").base_index.tolist() for name in ("not-cat", "not-0", "not-not-cat")] == [
        [1],
        [1, 2],
        [2],
    ]
    assert load_dataset("theirs:not-not-not-cat").base_index.tolist() == [0, 1]


def test_sets_of_the_user_without_one_class(third_party, tmp_path):
    third_party(ImageSet(random_images(4), torch.tensor([0, 5, 5, 7])))  # numbers alone, as in lists of images
    assert load_dataset("theirs:not-5").base_index.tolist() == [0, 3]
    with pytest.raises(BadData, match="holds no image of class '6'"):
        load_dataset("theirs:not-6")
    for number, name in enumerate(("cat", "dog", "dog+")):
        save_image(tmp_path / "pets" / name / "0.png", random_images(3)[number].numpy())
    (tmp_path / "pets.txt").write_text("pets/cat/0.png 0\npets/dog/0.png 1\n")
    found = {
        name: load_dataset(name, data=tmp_path) for name in ("folder:pets:not-dog++", "folder:pets", "imglist:pets.txt:not-0")
    }
    assert [images.base_index.tolist() for images in found.values()] == [[0, 1], [0, 1, 2], [1]]


@pytest.mark.parametrize("number", [10**18, "9" * 5000])
def test_a_class_number_that_no_label_has(third_party, number):
    """Python reads no more than 4,300 digits, and labels are 64 bits wide."""
    with pytest.raises(UsageError, match=rf"unknown class '{str(number)[:9]}.* of digits"):
        load_dataset(f"digits:{number}")
    third_party(ImageSet(random_images(2), torch.tensor([0, 1])))
    with pytest.raises(UsageError, match=r"has no class .* are numbers of at most 18 digits"):
        load_dataset(f"theirs:{number}")


def test_a_name_that_is_a_number_comes_before_the_number(third_party):
    third_party(ImageSet(random_images(2), torch.tensor([0, 1]), classes=("1", "0")))
    assert load_dataset("theirs:1").base_index.tolist() == [0]


def test_corrupted_sets():
    clean, noisy = load_dataset("digits"), load_dataset("digits+noise@3")
    assert (noisy.name, noisy.kind, noisy.level, noisy.split) == ("digits+noise@3", "corruption", 3, "test")
    assert noisy.base == clean.fingerprint
    assert torch.equal(noisy.base_index, torch.arange(len(clean)))
    assert torch.equal(noisy.labels, clean.labels)
    assert torch.equal(noisy.images, corrupt(clean.images, "noise", 3, seed=0))
    assert "noise at level 3: C-style, generated" in noisy.source.title
    assert noisy.fingerprint != clean.fingerprint
    assert load_dataset("digits+noise@3", seed=1).fingerprint != noisy.fingerprint
    assert load_dataset("digits+noise@3", seed=1).base == noisy.base


def test_corrupted_class_is_the_class_of_the_corrupted_set():
    noisy, part = load_dataset("digits+noise@2"), load_dataset("digits:3+noise@2")
    assert part.name == "digits:3+noise@2"
    assert part.base == noisy.base
    assert torch.equal(part.images, noisy.images[part.base_index])
    assert (part.labels == 3).all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("a string", "dataset 'theirs' of their-package 1.2 returned str; a loader must return an ImageSet"),
        (ImageSet(random_images(2, 4)), "1 or 3"),
        (ImageSet(random_images(2), torch.tensor([0, -1])), "labels below 0; correct"),
        (ImageSet(random_images(2), torch.tensor([0.0, 1.0])), "float32 labels; a loader must return int64"),
        (ImageSet(random_images(2), torch.tensor([0, 2]), classes=("a", "b")), "labels outside 0 to 1, its classes"),
        (ImageSet(OnDemand([torch.zeros(3, 8, 8)])), "float32"),
        (RuntimeError("boom\nbang"), "dataset 'theirs' of their-package 1.2 cannot be loaded: RuntimeError: boom bang"),
    ],
)
def test_third_parties_that_break_the_contract(third_party, result, message):
    third_party(result)
    with pytest.raises(OodbenchError, match=message):
        load_dataset("theirs", size=16)


def test_data_root_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "a.png")
    monkeypatch.setenv("OODBENCH_DATA", str(tmp_path))
    assert len(load_dataset("folder:set")) == 1


def test_fingerprint_knows_neither_path_nor_format(tmp_path):
    for i, image in enumerate(random_images(3, 3, 12, 12)):
        for folder, name in (("here", f"{i}.png"), ("there/deeper", f"x{i}.bmp")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / folder / name)
    prints = {load_dataset(name, data=tmp_path).fingerprint for name in ("folder:here", "folder:there/deeper")}
    assert prints == {ImageSet(random_images(3, 3, 12, 12)).fingerprint}


REAL = {
    ("cifar10", "train"): (8000, 32, 10),
    ("cifar10", "test"): (5000, 32, 10),
    ("cifar100", "test"): (2500, 32, 100),
    ("tinyimagenet", "test"): (2500, 64, 200),
    ("gtsrb", "test"): (2500, 32, 43),
    ("textures", "test"): (1200, 32, 10),
    ("svhn", "train"): (464, 32, 10),
    ("folder:svhn-digits", "test"): (1059, 32, 0),
    ("folder:intel-scenes", "test"): (1000, 32, 6),
    ("folder:fashion-mnist", "test"): (1000, 28, 10),
    ("folder:emnist-letters", "test"): (1000, 28, 26),
}


@pytest.mark.data
@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_pieces(data_root, name, split):
    count, size, classes = REAL[name, split]
    loaded = load_dataset(name, data=data_root, split=split)
    assert tuple(loaded.images.shape) == (count, 3, size, size)
    assert len(loaded.classes) == classes
    assert loaded.labels is None if classes == 0 else loaded.labels.unique().tolist() == list(range(classes))
    assert 20 < float(loaded.images.double().mean()) < 235
    if not name.startswith("folder:"):
        assert loaded.official_size > len(loaded), "a subset is noticed"
        assert loaded.source.citation


@pytest.mark.data
def test_svhn_file_and_folder_show_the_same_digits(data_root):
    """The labelled digits are among the folder's, so the two readers agree on axes and colours."""
    labelled = load_dataset("svhn", data=data_root, split="train").images
    among = {bytes(image.numpy()) for image in load_dataset("folder:svhn-digits", data=data_root).images}
    assert all(bytes(image.numpy()) in among for image in labelled)


def test_headers_of_files_are_not_read_where_the_size_is_given(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (9, 7)).save(tmp_path / "set" / "a.png")
    monkeypatch.setattr(ImageFiles, "shape", property(lambda self: pytest.fail("reads all headers")))
    assert load_dataset("folder:set", data=tmp_path, size=8).images.shape == (1, 3, 8, 8)
