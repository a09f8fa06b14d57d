"""MATLAB files: the same arrays as scipy reads, and no array that claims more than its limit."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hostile import array_of, element, mat, mat_bomb
from scipy.io import loadmat, savemat

from oodbench.datasets.formats.mat_file import read_arrays, read_strings

LIMITS = {"X": 10**6, "y": 10**4}  # bytes


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (1, 7), (1, 1), (300, 1)])
def test_arrays_are_those_that_scipy_reads(tmp_path, compressed, kind, shape):
    values = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    path = tmp_path / "a.mat"
    other = {"cell": np.array([[1, "a"]], dtype=object), "struct": {"a": 1}, "text": "abc", "logical": values > 50}
    savemat(path, {"X": values, **other, "y": np.arange(3, dtype=np.uint8)}, do_compression=compressed)
    expected, found = loadmat(path), read_arrays(path, LIMITS)
    assert set(found) == {"X", "y"}
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert np.array_equal(array, expected[name])


def squeezed(body):
    packed = zlib.compress(body)
    return struct.pack("<II", 15, len(packed)) + packed


def test_numbers_stored_in_a_smaller_type_and_in_the_other_byte_order(tmp_path):
    path = tmp_path / "a.mat"
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path.write_bytes(mat(element(14, array_of(values, kind=6)), squeezed(element(14, array_of(values, b"y", kind=6)))))
    for array in read_arrays(path, LIMITS).values():
        assert array.dtype == np.float64
        assert np.array_equal(array, values)
    big = array_of(values.astype(">u2"), order=">", kind=11, stored=4)
    path.write_bytes(mat(element(14, big, ">"), order=">"))
    assert np.array_equal(read_arrays(path, LIMITS)["X"], values)
    assert np.array_equal(loadmat(path)["X"], values), "scipy agrees that this is such a file"


ONE = np.ones((1, 1), np.uint8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (mat()[:-2] + b"??", "no MATLAB 5 header"),
        (mat(struct.pack("<II", 14, 2**32 - 1)), "claims 4,294,967,295 of 0 bytes"),
        (mat(element(2, b"12345678")), "type 2"),
        (mat(element(14, array_of(ONE, dimensions=(2**31 - 1, 2**31 - 1)))), "claims the shape"),
        (mat(element(14, array_of(ONE, dimensions=(-1, 1)))), "claims the shape"),
        (mat(element(14, array_of(ONE, dimensions=(-1, -1)))), "claims the shape"),
        (mat(element(14, array_of(ONE, dimensions=(0, 2**31 - 1)))), "type 2 holds 1 bytes"),
        (mat(element(14, array_of(ONE, dimensions=()))), "claims the shape"),
        (mat(element(14, array_of(ONE, dimensions=(1,) * 40))), "holds 160 bytes"),
        (mat(element(14, array_of(ONE, dimensions=(1, 5)))), "holds 1 of"),
        (mat(element(14, array_of(ONE, flags=0x800))), "not an array of real numbers"),
        (mat(element(14, array_of(ONE, kind=1))), "not an array of real numbers"),
        (mat(element(14, array_of(ONE, kind=8))), "claims int8"),
        (mat(element(14, array_of(ONE, stored=4))), "not a whole number"),
        (mat(element(14, array_of(ONE, stored=99))), "type 99"),
        (mat(element(14, array_of(ONE, name=b"x" * 64))), "holds 64 bytes"),
        (mat(element(14, array_of(ONE)), element(14, array_of(ONE))), "two arrays named X"),
        (mat(squeezed(element(14, array_of(ONE)[:-8]))), "truncated|too early"),
        (mat(squeezed(squeezed(element(14, array_of(ONE))))), "not an array"),
        (mat(squeezed(element(14, array_of(ONE)) + b"\0" * 10**6)), "no end"),
    ],
)
def test_files_that_claim_what_they_do_not_hold(tmp_path, content, says):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_arrays(path, LIMITS)


@pytest.mark.parametrize("kind", ["u1", "f8"])
def test_the_limit_is_one_of_bytes(tmp_path, kind):
    """As float64 the pixels of a set take eight times the memory that they take as uint8."""
    values, path = np.ones((10, 100), kind), tmp_path / "a.mat"
    savemat(path, {"X": values})
    assert np.array_equal(read_arrays(path, {"X": values.nbytes})["X"], values)
    with pytest.raises(ValueError, match=r"claims the shape \(10, 100\) of .*, more than the possible [0-9,]+ bytes"):
        read_arrays(path, {"X": values.nbytes - 1})


def test_a_flipped_bit_in_a_compressed_array_is_noticed(tmp_path):
    path = tmp_path / "a.mat"
    values = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    content = bytearray(mat(squeezed(element(14, array_of(values)))))
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises((ValueError, zlib.error)):
        read_arrays(path, LIMITS)


def test_a_bomb_stays_small(tmp_path):
    """A small file that inflates to 64 MB: refused for its claim, or no more of it is inflated than requested."""
    path = tmp_path / "a.mat"
    path.write_bytes(mat_bomb())
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    for limits in (LIMITS, {"y": 1}):
        if "X" in limits:
            with pytest.raises(ValueError, match="claims the shape"):
                read_arrays(path, limits)
        else:
            assert read_arrays(path, limits) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


TWO_ROWS = np.empty((1, 1), dtype=object)
TWO_ROWS[0, 0] = np.array(["ab", "cd"])
STRINGS = np.array([["I01.bmp", "", "größer.bmp"]], dtype=object).T


@pytest.mark.parametrize("compressed", [True, False])
def test_strings_of_a_cell_are_those_that_scipy_reads(tmp_path, compressed):
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.eye(3), "names": STRINGS, "other": np.array([[1, "a"]], dtype=object)}, do_compression=compressed)
    assert read_strings(path, "names", 3) == ["I01.bmp", "", "größer.bmp"]
    assert read_strings(path, "absent", 3) is None
    assert np.array_equal(read_arrays(path, LIMITS)["X"], np.eye(3))


@pytest.mark.parametrize(
    ("name", "value", "most", "says"),
    [
        ("names", STRINGS, 2, "not at most 2 strings"),
        ("names", np.eye(2), 9, "is of class 6"),
        ("names", np.array([["a", 7]], dtype=object), 9, "of class"),
        ("names", np.array([["a", np.array([[1.0]])]], dtype=object), 9, "of class 6 and shape"),
        ("names", np.array([["a" * 5000]], dtype=object), 9, "not a short string"),
        ("names", TWO_ROWS, 9, "not a string"),
    ],
)
def test_cells_of_anything_else_are_refused(tmp_path, name, value, most, says):
    path = tmp_path / "a.mat"
    savemat(path, {name: value})
    with pytest.raises(ValueError, match=says):
        read_strings(path, name, most)


def test_truncated_cells_are_refused_wherever_they_end(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"names": STRINGS})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            found = read_strings(path, "names", 3)
        except ValueError:
            continue
        assert found is None  # nothing but the header is there
        assert length == 128 or whole[:length] == whole
