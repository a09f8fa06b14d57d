"""Every reader against damaged and hostile files: images or a one-line OodbenchError; no crash, no hang, no program run.

Each example damages one file of a layout that is sound otherwise, reads the set and decodes all of it. Few examples,
always the same, run by default; ``OODBENCH_FUZZ=5000`` runs so many new ones a test.
"""

import io
import os
import pickle
import shutil
import signal
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile import element
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from oodbench import load_dataset
from oodbench.errors import OodbenchError
from oodbench.image_set import ImageSet

if not hasattr(signal, "SIGALRM"):
    pytest.skip("this system has no alarm, so a reader that hangs would hang the tests", allow_module_level=True)

EXAMPLES = int(os.environ.get("OODBENCH_FUZZ", "25"))
SECONDS = 10  # an example takes milliseconds
MEMORY = 400 * 2**20  # an image of ``MAX_PIXELS``, decoded and copied, is the most that one file may cost

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="OODBENCH_FUZZ" not in os.environ,
    deadline=None,  # the alarm below is one, and works on machines that are busy
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

CIFAR, CIFAR100, SVHN, TINY = "cifar-10-batches-py", "cifar-100-python", "svhn", "tiny-imagenet-200"
ALARMS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove", "os.rename")


class Audit:
    """Notes when a reader runs a program, connects or writes. A hook cannot be taken off, so there is one."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.on and (event in ALARMS or (event == "open" and set("wax+") & set(str(arguments[1] or "")))):
            self.seen.append((event, arguments))


AUDIT = Audit()


def memory(field):
    """Bytes of a line of /proc/self/status; 0 where the system has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


@contextmanager
def bounded():
    """Fails if the code inside hangs, takes too much memory, runs a program or writes."""

    def alarm(*_):
        raise AssertionError(f"hangs: {SECONDS} s are over")

    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, handler = memory("VmRSS"), signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    AUDIT.on, AUDIT.seen = True, []
    try:
        yield
    finally:
        AUDIT.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert AUDIT.seen == []
    assert memory("VmHWM") - before < MEMORY


def read(name, root, split="test"):
    """The set, or the error that says why not; anything else fails the test."""
    said = None
    with bounded():
        try:
            found = load_dataset(name, data=root, split=split, size=8)
        except OodbenchError as error:
            said = error
    if said is not None:
        assert "\n" not in str(said)
        assert len(str(said)) < 1000
        return said
    assert isinstance(found, ImageSet)
    assert tuple(found.images.shape[1:]) == (3, 8, 8)
    return found


def picture(seed=0, size=(9, 11)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(suffix):
    buffer = io.BytesIO()
    picture().save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return buffer.getvalue()


def cifar_batch(protocol=2, labels=b"labels"):
    rows = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": rows, labels: [0, 1], b"filenames": [b"a.png", b"b.png"]}, protocol=protocol)


def svhn_file(compressed):
    buffer = io.BytesIO()
    savemat(buffer, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1.0], [10.0]])}, do_compression=compressed)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# For each file to damage: the set that reads it, and the files of the set.
LAYOUTS = {
    f"{CIFAR}/test_batch": ("cifar10", {f"{CIFAR}/test_batch": cifar_batch(2)}),
    f"{CIFAR}/batches.meta": ("cifar10", {f"{CIFAR}/test_batch": cifar_batch(4)}),
    f"{CIFAR100}/test": ("cifar100", {f"{CIFAR100}/test": cifar_batch(3, b"fine_labels")}),
    f"{SVHN}/test_32x32.mat": ("svhn", {f"{SVHN}/test_32x32.mat": svhn_file(False)}),
    f"{SVHN}/train_32x32.mat": ("svhn", {f"{SVHN}/train_32x32.mat": svhn_file(True)}),
    "CIFAR-10-C/fog.npy": ("cifar10c/fog@3", {"CIFAR-10-C/fog.npy": npy(np.zeros((10, 32, 32, 3), np.uint8))}),
    "CIFAR-10-C/labels.npy": ("cifar10c/fog@3", {"CIFAR-10-C/labels.npy": npy(np.zeros(10, np.uint8))}),
    f"{TINY}/wnids.txt": ("tinyimagenet", {f"{TINY}/wnids.txt": b"n01\nn02\n"}),
    f"{TINY}/val/val_annotations.txt": (
        "tinyimagenet",
        {f"{TINY}/val/val_annotations.txt": b"a.JPEG\tn02\t0\t0\t63\t63\nb.JPEG\tn01\t0\t0\t63\t63\n"},
    ),
    f"{TINY}/val/images/a.JPEG": ("tinyimagenet", {f"{TINY}/val/images/a.JPEG": encoded("jpg")}),
    "GT-final_test.csv": ("gtsrb", {"GT-final_test.csv": b"Filename;Width;Height;ClassId\n00000.ppm;9;11;16\n"}),
    "GTSRB/Final_Test/Images/00000.ppm": ("gtsrb", {"GTSRB/Final_Test/Images/00000.ppm": encoded("ppm")}),
    "GTSRB/Training/00016/00000_00000.ppm": ("gtsrb", {"GTSRB/Training/00016/00000_00000.ppm": encoded("ppm")}),
    f"{TINY}/train/n01/images/n01_0.JPEG": ("tinyimagenet", {f"{TINY}/train/n01/images/n01_0.JPEG": encoded("jpg")}),
    "dtd/images/banded/a.jpg": ("textures", {"dtd/images/banded/a.jpg": encoded("jpg")}),
    "CURE-TSR/Real_Test/Haze-3/01_06_12_03_0001.bmp": (
        "curetsr/Haze@3",
        {"CURE-TSR/Real_Test/Haze-3/01_06_12_03_0001.bmp": encoded("bmp")},
    ),
    "CURE-TSR/UnrealChallenge/12_03/test/02_06_12_03_0001.bmp": (
        "curetsr-unreal/Haze@3",
        {"CURE-TSR/UnrealChallenge/12_03/test/02_06_12_03_0001.bmp": encoded("bmp")},
    ),
    "LSUN/test/a.jpg": ("lsun-crop", {"LSUN/test/a.jpg": encoded("jpg")}),
    "LSUN_resize/LSUN_resize/a.jpg": ("lsun-resize", {"LSUN_resize/LSUN_resize/a.jpg": encoded("jpg")}),
    "Imagenet/test/a.jpg": ("tinyimagenet-crop", {"Imagenet/test/a.jpg": encoded("jpg")}),
    "Imagenet_resize/Imagenet_resize/a.jpg": (
        "tinyimagenet-resize",
        {"Imagenet_resize/Imagenet_resize/a.jpg": encoded("jpg")},
    ),
    "classes/cat/a.png": ("folder:classes", {"classes/cat/a.png": encoded("png")}),
    "lists/test.txt": ("imglist:lists/test.txt", {"lists/test.txt": b"classes/cat/a.png 0\ntest_256/a.jpg 1\n"}),
    "test_256/a.jpg": ("places365", {"test_256/a.jpg": encoded("jpg")}),
    **{f"set/a.{suffix}": ("folder:set", {f"set/a.{suffix}": encoded(suffix)}) for suffix in ("png", "tif", "webp", "bmp")},
}
OTHERS = {
    f"{CIFAR}/batches.meta": pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2),
    f"{CIFAR100}/meta": pickle.dumps({b"fine_label_names": [b"cat", b"dog"]}, protocol=2),
}


@pytest.fixture
def layouts(tmp_path):
    """A data root with all of the sets, whole."""
    for path, content in {**{p: c for _, files in LAYOUTS.values() for p, c in files.items()}, **OTHERS}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def split_of(path):
    return "train" if "train" in path.lower() else "test"


positions = st.one_of(st.integers(0, 200), st.integers(-200, -1), st.integers(0, 2**16))
bits = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([struct.pack(code, v) for code in ("<I", ">I", "<Q", "<H") for v in (0, 1, 2**15, 2**16 - 1)]),
    st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff" * 8]),
)
damages = st.lists(st.tuples(st.sampled_from(("set", "insert", "cut", "end", "swap", "repeat")), positions, bits), max_size=6)


def damaged(content, steps):
    """The bytes after each of the steps: (what is done, where, with which bytes)."""
    for how, where, value in steps:
        place, size = where % (len(content) or 1), len(value)
        head, tail = content[:place], content[place:]
        content = {
            "set": head + value + tail[size:],
            "insert": head + value + tail,
            "cut": head + tail[size:],
            "end": head,
            "swap": tail + head,
            "repeat": content + tail[: 2**12],
        }[how]
    return content


@pytest.mark.parametrize("path", LAYOUTS)
def test_the_layouts_are_sound(layouts, path):
    """Or the tests below would show nothing."""
    assert len(read(LAYOUTS[path][0], layouts, split_of(path))) > 0


@pytest.mark.parametrize("path", LAYOUTS)
def test_damaged_files(layouts, path):
    name, whole = LAYOUTS[path][0], (layouts / path).read_bytes()
    outcomes = set()

    @fuzz
    @given(damages)
    def check(steps):
        (layouts / path).write_bytes(damaged(whole, steps))
        outcomes.add(type(read(name, layouts, split_of(path))))

    check()
    assert len(outcomes) > 1, "some files are still read, and some refused"


# Official files, if available: the one to damage, the set that reads it, and what else the set needs.
OFFICIAL = {
    f"{CIFAR}/test_batch": ("cifar10", f"{CIFAR}/batches.meta"),
    f"{CIFAR100}/test": ("cifar100", f"{CIFAR100}/meta"),
    f"{SVHN}/train_32x32.mat": ("svhn",),
    f"{TINY}/val/val_annotations.txt": ("tinyimagenet", f"{TINY}/wnids.txt", f"{TINY}/val/images/val_100.JPEG"),
    f"{TINY}/val/images/val_100.JPEG": ("tinyimagenet", f"{TINY}/wnids.txt", f"{TINY}/val/val_annotations.txt"),
    "dtd/images/banded/00000.png": ("textures",),
    "gtsrb/00000/00501.png": ("gtsrb",),
}


@pytest.mark.parametrize("path", OFFICIAL)
def test_damaged_official_files(data_root, tmp_path, path):
    name, *needed = OFFICIAL[path]
    for each in (path, *needed):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data_root / each, tmp_path / each)
    whole = (tmp_path / path).read_bytes()
    assert len(read(name, tmp_path, split_of(path))) > 0
    outcomes = set()

    @settings(fuzz, max_examples=max(1, EXAMPLES // 2))
    @given(damages)
    def check(steps):
        (tmp_path / path).write_bytes(damaged(whole, steps))
        outcomes.add(type(read(name, tmp_path, split_of(path))))

    check()
    assert len(outcomes) > 1, "some files are still read, and some refused"


text = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\t;\n\r\v\x85 n0129.-")), max_size=40)


TABLES = f"{TINY}/wnids.txt", f"{TINY}/val/val_annotations.txt", "GT-final_test.csv", "lists/test.txt"


@pytest.mark.parametrize("path", TABLES)
def test_tables_of_any_lines(layouts, path):
    parts = st.sampled_from(
        [
            *("n01", "n02", "a.JPEG", "b.JPEG", "\t", "\n", ";", "0", "42", "43", "Filename", "ClassId", "00000.ppm", "../x"),
            *("\0", "-1", "test_256/a.jpg"),
        ]
    )

    @fuzz
    @given(st.one_of(text, st.lists(st.one_of(parts, text), max_size=30).map("".join)))
    def check(content):
        (layouts / path).write_text(content, encoding="utf-8")
        read(LAYOUTS[path][0], layouts)

    check()


def test_names_of_any_kind(layouts):
    """Files of CURE-TSR, and names of sets."""
    folder = layouts / "CURE-TSR" / "Real_Test" / "Haze-3"
    fields = st.lists(st.sampled_from(["00", "01", "02", "03", "06", "12", "15", "99", "1", "٠١", "0001", ""]), max_size=9)
    name = st.one_of(text.filter(lambda t: "/" not in t and "\0" not in t), fields.map("_".join))

    @fuzz
    @given(name)
    def check(name):
        path = folder / f"{name}.bmp"
        path.write_bytes(encoded("bmp"))
        try:
            with bounded():
                load_dataset("curetsr/Haze@3", data=layouts)
        except OodbenchError:
            pass
        finally:
            path.unlink()

    check()
    parts = ["cifar10c", "curetsr", "folder", "imglist", ":", "/", "@3", "+", "fog"]

    @fuzz
    @given(st.one_of(text, st.lists(st.sampled_from(parts)).map("".join)))
    def look_up(name):
        read(name, layouts)

    look_up()


def long_text(value):
    return b"X" + struct.pack("<I", len(value)) + value


FRAGMENTS = [
    *(
        b"(",
        b"}",
        b"]",
        b")",
        b"N",
        b"t",
        b"R",
        b"b",
        b"a",
        b"e",
        b"s",
        b"u",
        b"d",
        b"l",
        b"0",
        b"2",
        b"1",
        b".",
        b"\x93",
        b"\x81",
    ),
    *(
        b"K\x00",
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"q\x00",
        b"h\x00",
        b"r\xff\xff\xff\x7f",
        b"p99\n",
        b"\x94",
        b"j\xff\xff\xff\x7f",
    ),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ios\nsystem\n", b"Ptrue\n", b"Q", b"\x82\x01", b"o"),
    *(long_text(v) for v in (b"true", b"u1", b"|", b"os", b"system", b"data", b"latin1", b"hex", b"\n\n")),
    *(
        b"U\x04data",
        b"U\x06labels",
        b"C\x02ab",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"\x95" + b"\xff" * 8,
    ),
    *(b"T\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x7f", b"I99999999999\n", b"L9L\n", b"F1e999\n"),
]


def test_pickles_of_any_opcodes(layouts):
    @fuzz
    @given(st.lists(st.sampled_from(FRAGMENTS), max_size=40))
    def check(program):
        (layouts / CIFAR / "test_batch").write_bytes(b"\x80\x02" + b"".join(program) + b".")
        assert isinstance(read("cifar10", layouts), OodbenchError)

    check()


sizes = st.sampled_from([0, 1, 2, 3, 10, 31, 32, -1, 2**31, 2**40, 2**62, 2**63, 2**64, 2**80])
dtypes = st.sampled_from(
    ["|u1", "<u1", "|O", "<f8", "<U999999999", "|V2147483647", "<M8[ns]", "x", "", [("a", "|O")], [], 3, None]
)


def test_headers_of_arrays_of_any_kind(layouts):
    @fuzz
    @given(
        st.one_of(
            st.tuples(dtypes, st.booleans(), st.lists(sizes, max_size=5)).map(
                lambda h: repr({"descr": h[0], "fortran_order": h[1], "shape": tuple(h[2])}).encode()
            ),
            st.sampled_from(
                [b"(" * 9000, b"-" * 9000 + b"1", b"{" * 500, b"[" * 99 + b"]" * 99, b"9" * 9000, b"__import__('os')"]
            ),
            st.binary(max_size=99),
        ),
        st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
        st.sampled_from(["fog", "labels"]),
    )
    def check(header, version, file):
        length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
        path = layouts / "CIFAR-10-C" / f"{file}.npy"
        whole = path.read_bytes()
        path.write_bytes(b"\x93NUMPY" + bytes(version) + length + header + b"\0" * 64)
        read("cifar10c/fog@3", layouts)
        path.write_bytes(whole)

    check()


def test_arrays_of_matlab_that_claim_anything(layouts):
    codes = st.integers(0, 20)
    counts = st.sampled_from([0, 1, 2, 3, 32, -1, 2**31 - 1, -(2**31)])

    @fuzz
    @given(
        codes,
        st.lists(counts, max_size=5),
        st.sampled_from([b"X", b"y", b"", b"\xff\xfe", b"X" * 99]),
        codes,
        st.binary(max_size=40),
        st.sampled_from([14, 15, 5]),
        st.integers(0, 2**16),
    )
    def check(kind, shape, name, stored, data, outer, flags):
        flag = element(6, struct.pack("<II", kind | flags << 8, 0))
        body = flag + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name) + element(stored, data)
        header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
        (layouts / SVHN / "test_32x32.mat").write_bytes(header + element(outer, body))
        read("svhn", layouts)

    check()
