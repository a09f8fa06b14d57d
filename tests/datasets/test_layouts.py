"""Each reader against its official layout, written here in small, and against files that are broken or hostile."""

import pickle
import struct

import numpy as np
import pytest
import torch
from image_files import random_images, save_image
from PIL import Image
from scipy.io import savemat

from oodbench import load_dataset
from oodbench.errors import BadData, MissingData

CIFAR10_NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]


def python2_batch(images, labels):
    """The bytes that Python 2's cPickle wrote for a CIFAR-10 batch: protocol 2, byte strings, numpy.core."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    pixels = images.tobytes()
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    array += b"(K\x01(" + number(len(images)) + number(3072) + b"t" + dtype
    array += b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    items = text(b"batch_label") + text(b"testing batch 1 of 1")
    items += text(b"labels") + b"](" + b"".join(number(label) for label in labels) + b"e"
    items += text(b"data") + array + text(b"filenames") + b"](" + text(b"x.png") + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_cifar10(root, batches, meta=None):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    for name, value in batches.items():
        (folder / name).write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=2))
    meta = {b"num_cases_per_batch": 10000, b"label_names": CIFAR10_NAMES, b"num_vis": 3072} if meta is None else meta
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def batch(images, labels, key=b"labels"):
    return {b"batch_label": b"x", key: labels, b"data": images.reshape(len(images), -1), b"filenames": [b"x.png"] * len(images)}


def test_cifar10_reads_the_batches_there_are(tmp_path):
    first, second, test = random_images(4), random_images(3, seed=1), random_images(2, seed=2)
    write_cifar10(
        tmp_path,
        {
            "data_batch_1": batch(first, [0, 1, 2, 3]),
            "data_batch_4": batch(second, [9, 8, 7]),
            "test_batch": batch(test, [5, 6]),
        },
    )
    train = load_dataset("cifar10", data=tmp_path, split="train")
    assert np.array_equal(train.images.numpy(), np.concatenate([first, second]))
    assert train.labels.tolist() == [0, 1, 2, 3, 9, 8, 7]
    assert train.labels.dtype == torch.int64
    assert train.classes[:2] == ("airplane", "automobile")
    assert train.flips
    assert (train.name, train.split, train.kind, train.official_size) == ("cifar10", "train", "near-ood", 50_000)
    assert np.array_equal(load_dataset("cifar10", data=tmp_path).images.numpy(), test)


def test_cifar10_as_python_2_wrote_it_and_as_fortran_array(tmp_path):
    images, labels = random_images(5), [3, 1, 4, 1, 5]
    fortran = batch(images, labels) | {b"data": np.asfortranarray(images.reshape(5, -1))}
    prints = set()
    for number, value in enumerate((batch(images, labels), python2_batch(images, labels), fortran)):
        root = tmp_path / str(number)
        root.mkdir()
        write_cifar10(root, {"test_batch": value})
        loaded = load_dataset("cifar10", data=root)
        assert np.array_equal(loaded.images.numpy(), images)
        assert loaded.labels.tolist() == labels
        prints.add(loaded.fingerprint)
    assert len(prints) == 1


def test_cifar100_reads_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    images = random_images(3)
    names = [f"class {i}".encode() for i in range(100)]
    content = batch(images, [99, 0, 7], b"fine_labels") | {b"coarse_labels": [1, 2, 3]}
    (folder / "train").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names, b"coarse_label_names": []}, protocol=2))
    loaded = load_dataset("cifar100", data=tmp_path, split="train")
    assert loaded.labels.tolist() == [99, 0, 7]
    assert loaded.classes[99] == "class 99"
    assert loaded.official_size == 50_000
    with pytest.raises(MissingData, match=r"cifar100 \(test\).*cifar-100-python/test.*cifar-100-python.tar.gz.*--data DIR"):
        load_dataset("cifar100", data=tmp_path)


class Touch:
    """A pickle that makes a file when it is loaded by a trusting unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["top", "data", "label", "meta"])
def test_code_in_a_pickle_is_not_run(tmp_path, where):
    mark = tmp_path / "ran"
    good = batch(random_images(1), [0])
    content = {
        "top": Touch(mark),
        "data": good | {b"data": Touch(mark)},
        "label": good | {b"labels": [Touch(mark)]},
        "meta": good,
    }
    meta = {b"label_names": Touch(mark)} if where == "meta" else None
    folder = write_cifar10(tmp_path, {"test_batch": content[where]}, meta)
    with pytest.raises(BadData, match=f"{folder}.*asks for .*open.*unpack the official archive") as caught:
        load_dataset("cifar10", data=tmp_path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    pickle.loads((folder / ("batches.meta" if where == "meta" else "test_batch")).read_bytes())  # noqa: S301  # our own bytes
    assert mark.exists(), "the trap does not work, so the test above proves nothing"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "os.system"),
        (b"cnumpy\nload\n(X\x01\x00\x00\x00xtR.", "numpy.load"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "encoding"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "array of 'O'"),
        (b"cnumpy\nndarray\n(K\x02tR.", "not callable"),
        (b"\x80\x02}.garbage", "data is NoneType"),
        (b"]", "CIFAR file"),
        (b"", "CIFAR file"),
    ],
)
def test_pickles_that_hold_anything_else(tmp_path, call, why):
    write_cifar10(tmp_path, {"test_batch": call})
    with pytest.raises(BadData, match=why):
        load_dataset("cifar10", data=tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({b"data": random_images(2).reshape(2, -1).astype(np.float32)}, "array of"),
        ({b"data": random_images(2)}, r"uint8 \(2, 3, 32, 32\), not uint8 \(N, 3072\)"),
        ({b"data": random_images(2).reshape(2, -1)[:, :3000]}, "not uint8"),
        ({b"labels": [0]}, "2 images and 1 labels"),
        ({b"labels": [0, 10]}, "classes 0 to 9"),
        ({b"labels": [0, -1]}, "classes 0 to 9"),
        ({b"labels": b"ab"}, "classes 0 to 9"),
    ],
)
def test_cifar_files_that_disagree_with_their_layout(tmp_path, change, why):
    write_cifar10(tmp_path, {"test_batch": batch(random_images(2), [0, 1]) | change})
    with pytest.raises(BadData, match=why):
        load_dataset("cifar10", data=tmp_path)


def test_cifar_file_without_images(tmp_path):
    write_cifar10(tmp_path, {"test_batch": python2_batch(random_images(1)[:0], [])})
    with pytest.raises(BadData, match="holds no images"):
        load_dataset("cifar10", data=tmp_path)


def test_truncated_cifar_file_names_itself(tmp_path):
    whole = pickle.dumps(batch(random_images(2), [0, 1]), protocol=2)
    for size in (1, 40, len(whole) // 2, len(whole) - 1):
        folder = write_cifar10(tmp_path, {"test_batch": whole[:size]})
        with pytest.raises(BadData, match=str(folder / "test_batch")):
            load_dataset("cifar10", data=tmp_path)


def test_cifar_without_its_meta_or_with_a_broken_one(tmp_path):
    folder = write_cifar10(tmp_path, {"test_batch": batch(random_images(1), [0])}, meta={b"label_names": 3})
    with pytest.raises(BadData, match="no list of names"):
        load_dataset("cifar10", data=tmp_path)
    (folder / "batches.meta").unlink()
    with pytest.raises(MissingData, match=r"batches\.meta"):
        load_dataset("cifar10", data=tmp_path)


def write_svhn(root, split="test", **content):
    (root / "svhn").mkdir(exist_ok=True)
    savemat(root / "svhn" / f"{split}_32x32.mat", content, do_compression=True)
    return root / "svhn" / f"{split}_32x32.mat"


def test_svhn_calls_ten_zero(tmp_path):
    with pytest.raises(MissingData, match=r"or download http\S+/test_32x32\.mat and save it under that path, or name"):
        load_dataset("svhn", data=tmp_path)
    images = random_images(4)
    for split, official in (("train", 73_257), ("test", 26_032), ("extra", 531_131)):
        write_svhn(tmp_path, split, X=images.transpose(2, 3, 1, 0), y=np.array([[10], [1], [9], [10]], dtype=np.uint8))
        loaded = load_dataset("svhn", data=tmp_path, split=split)
        assert np.array_equal(loaded.images.numpy(), images)
        assert loaded.labels.tolist() == [0, 1, 9, 0]
        assert loaded.official_size == official
        assert not loaded.flips
        assert loaded.kind == "far-ood"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"X": random_images(2).transpose(2, 3, 1, 0), "y": [[1]]}, "2 images"),
        ({"X": random_images(2).transpose(2, 3, 1, 0), "y": [[1], [11]]}, "1 to 10"),
        ({"X": random_images(2).transpose(2, 3, 1, 0), "y": [[1], [0]]}, "1 to 10"),
        ({"X": random_images(2).transpose(2, 3, 1, 0), "y": "ab"}, "y is not an array of real numbers"),
        ({"X": random_images(2).transpose(2, 3, 1, 0)}, "y is missing"),
        ({"X": random_images(2), "y": [[1], [2]]}, r"not uint8 \(32, 32, 3, N\)"),
        ({"X": random_images(2).transpose(2, 3, 1, 0) / 255.0, "y": [[1], [2]]}, "float64"),
        ({"X": np.array([{"a": 1}], dtype=object), "y": [[1]]}, "X is not an array of real numbers"),
    ],
)
def test_svhn_files_that_disagree_with_their_layout(tmp_path, content, why):
    path = write_svhn(tmp_path, **content)
    with pytest.raises(BadData, match=why) as caught:
        load_dataset("svhn", data=tmp_path)
    assert str(path) in str(caught.value)


def test_truncated_mat_file_names_itself(tmp_path):
    path = write_svhn(tmp_path, X=random_images(4).transpose(2, 3, 1, 0), y=np.full((4, 1), 3, dtype=np.uint8))
    whole = path.read_bytes()
    for size in (0, 100, 130, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(BadData, match=str(path)):
            load_dataset("svhn", data=tmp_path)


def write_tinyimagenet(root):
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\nn03\n")
    save_image(folder / "val" / "images" / "val_0.JPEG", random_images(1, 64, 64)[0])
    save_image(folder / "val" / "images" / "val_1.JPEG", random_images(1, 64, 64, channels=1)[0])
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t0\t0\t63\t63\nval_1.JPEG\tn02\t0\t0\t63\t63\nval_2.JPEG\tn02\t0\t0\t63\t63\n"
    )
    save_image(folder / "train" / "n03" / "images" / "n03_0.JPEG", random_images(1, 64, 64)[0])
    save_image(folder / "train" / "n02" / "images" / "n02_0.JPEG", random_images(1, 64, 64)[0])
    return folder


def test_tinyimagenet_counts_labels_as_wnids_txt_does(tmp_path):
    folder = write_tinyimagenet(tmp_path)
    test, train = (load_dataset("tinyimagenet", data=tmp_path, split=split) for split in ("test", "train"))
    assert test.labels.tolist() == [1, 0]
    assert train.labels.tolist() == [0, 2]
    assert test.classes == ("n02", "n01", "n03")
    assert tuple(test.images.shape) == (2, 3, 64, 64)
    assert test.official_size == 10_000
    assert train.official_size == 100_000
    first = np.asarray(Image.open(folder / "val" / "images" / "val_0.JPEG")).transpose(2, 0, 1)
    assert np.array_equal(test.images[0].numpy(), first)
    assert (test.images[1] == test.images[1, :1]).all(), "a grey JPEG becomes RGB"


def test_tinyimagenet_without_annotations(tmp_path):
    folder = write_tinyimagenet(tmp_path)
    save_image(folder / "val" / "images" / "val_9.JPEG", random_images(1, 64, 64)[0])
    with pytest.raises(BadData, match=r"val_9\.JPEG has no line in val_annotations\.txt"):
        load_dataset("tinyimagenet", data=tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\t0\t63\t63\n")
    with pytest.raises(BadData, match=r"line 1: 'n99' is not in wnids\.txt"):
        load_dataset("tinyimagenet", data=tmp_path)
    (folder / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match="cannot be read as text"):
        load_dataset("tinyimagenet", data=tmp_path)
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(MissingData, match=r"val_annotations\.txt"):
        load_dataset("tinyimagenet", data=tmp_path)


def test_textures_of_all_sizes(tmp_path):
    for name, height in (("banded/b_1.jpg", 40), ("banded/b_0.jpg", 50), ("zigzagged/z_0.jpg", 60)):
        save_image(tmp_path / "dtd" / "images" / name, random_images(1, height, 45)[0])
    loaded = load_dataset("textures", data=tmp_path)
    assert tuple(loaded.images.shape) == (3, 3, 32, 32), "sizes vary, so it is 32x32"
    assert loaded.labels.tolist() == [0, 0, 1]
    assert loaded.classes == ("banded", "zigzagged")
    assert loaded.official_size == 5_640
    assert tuple(load_dataset("textures", data=tmp_path, size=20).images.shape) == (3, 3, 20, 20)


def test_gtsrb_in_its_three_layouts(tmp_path):
    images = random_images(3)
    for number, label in enumerate((7, 0, 42)):
        save_image(tmp_path / "gtsrb" / f"{label:05d}" / f"{number}.png", images[number])
    by_class = load_dataset("gtsrb", data=tmp_path)
    assert by_class.labels.tolist() == [0, 7, 42]
    assert np.array_equal(by_class.images.numpy(), images[[1, 0, 2]])

    for number in range(3):
        save_image(tmp_path / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", images[number])
        save_image(tmp_path / "GTSRB" / "Training" / f"{number:05d}" / "00000_00000.ppm", images[number])
    with pytest.raises(MissingData, match=r"GT-final_test.csv.*GTSRB_Final_Test_GT.zip"):
        load_dataset("gtsrb", data=tmp_path)
    header, row = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n", "{:05d}.ppm;32;32;5;5;27;27;{}\n"
    table = tmp_path / "GTSRB" / "GT-final_test.csv"
    table.write_text(header + "".join(row.format(i, label) for i, label in enumerate((7, 0, 42, 12))))
    test, train = load_dataset("gtsrb", data=tmp_path), load_dataset("gtsrb", data=tmp_path, split="train")
    assert test.labels.tolist() == [7, 0, 42]
    assert np.array_equal(test.images.numpy(), images)
    assert train.labels.tolist() == [0, 1, 2]
    assert np.array_equal(train.images.numpy(), images)
    assert (test.official_size, train.official_size) == (12_630, 26_640)
    assert not test.flips

    table.write_text(table.read_text(), encoding="utf-8-sig")  # as a spreadsheet saves it, a mark before the first name
    assert load_dataset("gtsrb", data=tmp_path).labels.tolist() == [7, 0, 42]

    table.write_text(header + row.format(0, 43))
    with pytest.raises(BadData, match="line 2: ClassId is '43'"):
        load_dataset("gtsrb", data=tmp_path)
    table.write_text(header + row.format(0, 4))
    with pytest.raises(BadData, match=r"00001.ppm has no line"):
        load_dataset("gtsrb", data=tmp_path)


def test_python2_writer_is_a_true_pickle():
    """Or the test of Python 2's format would test nothing."""
    images = random_images(2)
    loaded = pickle.loads(python2_batch(images, [1, 2]), encoding="bytes")  # noqa: S301  # our own bytes
    assert np.array_equal(loaded[b"data"].reshape(images.shape), images)
    assert loaded[b"labels"] == [1, 2]


def test_a_pickle_that_would_grow_is_refused_small(tmp_path):
    nested = [0]
    for _ in range(30):
        nested = [nested] * 10  # a few hundred bytes in the file, 10^30 numbers when copied
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": nested, b"labels": [0]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))
    assert (folder / "test_batch").stat().st_size < 2000
    with pytest.raises(BadData, match="lists of lists"):
        load_dataset("cifar10", data=tmp_path)
