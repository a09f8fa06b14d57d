"""Hostile files, and the pieces that they are made of: small files that ask for much time or memory."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

# Names

MARKUP = "<img src=x onerror=alert(1)>"
TEXT = f'</script><script>alert(2)</script>"{MARKUP}\u202e\x1b'  # with an override and a terminal control

# Archives


def tar_of(*members, mode="w"):
    """Bytes of a tar with members (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(*members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicate names, which are what a test is about
        for member, content in members:
            archive.writestr(member, content)
    return buffer.getvalue()


def overlapping(size):
    """A zip of 100 entries of this many zeros, which point to one member."""
    once = zip_of(("set/0000", bytes(size)))
    start = once.index(b"PK\x01\x02")
    entry = once[start : once.index(b"PK\x05\x06")]
    entries = b"".join(entry.replace(b"set/0000", b"set/%04d" % i) for i in range(100))
    end = b"PK\x05\x06" + bytes(4) + (100).to_bytes(2, "little") * 2 + len(entries).to_bytes(4, "little")
    content = once[:start] + entries + end + start.to_bytes(4, "little") + bytes(2)
    return content


# Images and arrays


def jpeg_of(scans, **options):
    """A progressive JPEG whose last scan is repeated until it has this many."""
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (9, 99, 199)).save(stream, "JPEG", progressive=True, **options)
    before, scan, last = stream.getvalue().rpartition(b"\xff\xda")
    return before + (scan + last[:-2]) * (scans - before.count(scan)) + last[-2:]


def element(kind, data, order="<"):
    return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def small(kind, data, order="<"):
    """Up to 4 bytes, packed into the tag."""
    return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")


def array_of(values, name=b"X", order="<", kind=9, stored=2, dimensions=None, flags=0):
    shape = values.shape if dimensions is None else dimensions
    body = element(6, struct.pack(f"{order}II", kind | flags, 0), order)
    body += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    body += (small(1, name, order) if len(name) <= 4 else element(1, name, order)) + element(stored, values.tobytes("F"), order)
    return body


def mat(*elements, order="<"):
    mark = b"IM" if order == "<" else b"MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + mark + b"".join(elements)


def mat_bomb():
    """A small file that inflates to 64 MB, and claims an array X of as many."""
    packer = zlib.compressobj()
    zeros = b"\0" * 2**20
    claimed = array_of(np.zeros((0, 1), np.uint8), dimensions=(2**26, 1))[:-8] + struct.pack("<II", 2, 2**26)
    body = packer.compress(struct.pack("<II", 14, 2**26) + claimed)
    packed = body + b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    return mat(struct.pack("<II", 15, len(packed)) + packed)


# Checkpoints: pickles that torch.load(weights_only=True) follows, written instruction by instruction


def function(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def whole(number):
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def several(*values):
    return b"(" + b"".join(values) + b"t"


def called(name, *arguments):
    return function(name) + several(*arguments) + b"R"


def tensor(shape, stride, stored, more=b""):
    """A float32 tensor on storage 0, which is said to have so many values."""
    storage = several(text("storage"), function("torch.FloatStorage"), text("0"), text("cpu"), whole(stored), more) + b"Q"
    sizes = several(*map(whole, shape)), several(*map(whole, stride))
    return called(
        "torch._utils._rebuild_tensor_v2", storage, whole(0), *sizes, b"\x89", function("collections.OrderedDict") + b")R"
    )


def checkpoint(program, stored=b""):
    """A file of ``torch.save`` with a weight that the program makes, and the bytes of storage 0."""
    buffer = io.BytesIO()
    content = b"\x80\x02}" + text("linear.weight") + program + b"s."
    parts = {"data.pkl": content, "version": b"3\n", "byteorder": b"little", "data/0": stored}
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"archive/{name}", part)
    return buffer.getvalue()


def old_checkpoint(program):
    """As PyTorch wrote before version 1.6: a storage may be named without its values."""
    about = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    head = b"".join(pickle.dumps(part, protocol=2) for part in about)
    return head + b"\x80\x02}" + text("linear.weight") + program + b"s." + pickle.dumps([], protocol=2)


def copies(name):
    """Calls a function 65,536 times with one list of as many numbers."""
    numbers = b"](" + b"".join(b"M" + struct.pack("<H", number) for number in range(2**16)) + b"e"
    return checkpoint(b"(" + numbers + b"q\x01" + function(name) + b"q\x02" + b"h\x02h\x01\x85R" * 2**16 + b"t")


ROWS = 3_000_000
CHECKPOINTS: Mapping[str, tuple[bytes, str]] = {  # and what is said of each
    "expanded": (checkpoint(tensor((ROWS, 64), (0, 0), 1), bytes(4)), r"holds fewer values of linear\.weight than its shape"),
    "a storage without values": (
        old_checkpoint(tensor((ROWS, 64), (64, 1), 1, b"N")),
        r"has \d+ bytes, and its tensors up to linear\.weight claim 768,000,000; save copies",
    ),
    "a tensor without values": (
        checkpoint(called("torch.FloatTensor", whole(10**8))),
        r"has \d+ bytes, and its tensors up to linear\.weight claim 400,000,000; save copies",
    ),
    "bytes": (
        checkpoint(called("__builtin__.bytearray", whole(10**10))),
        r"holds a bytearray, whose size has no bound; save the",
    ),
    "another device": (
        checkpoint(
            called(
                "torch._utils._rebuild_device_tensor_from_cpu_tensor",
                *(tensor((10**10,), (0,), 1), function("torch.float64"), text("cpu"), b"\x89"),
            ),
            bytes(4),
        ),
        "holds a tensor of another device, whose size has no bound; save the",
    ),
    "instructions": (checkpoint(b"(" + b"]" * 2**23 + b"t"), "has more than 1,048,576 pickle instructions; save the"),
    "copies": (copies("collections.Counter"), r"has 65,536 calls that may copy 5\d\d,\d\d\d bytes each; save the"),
    "copies as tensors": (copies("torch.FloatTensor"), r"has 65,536 calls that may copy 5\d\d,\d\d\d bytes each; save the"),
}
