"""Reads PyTorch's pickled files with bounds. ``torch.load(weights_only=True)`` runs no code, but 2 kB can use all memory.

Before it follows a file's instructions, they are counted and searched for what grows; afterwards the tensors may claim no more
bytes than the file has.
"""

import io
import pickletools
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

MOST_INSTRUCTIONS = 2**20  # of a file; a tensor and its name take some 25
MOST_COPIED = 2**27  # bytes: the calls that copy their argument, times the bytes of the instructions
LEGACY_PICKLES = 5  # in a file older than PyTorch 1.6, before the values: three of its format, the content, the storages' keys
REMEDY = "save the module's state_dict() alone, as dense tensors on the CPU, if you trust the file"
# Functions that torch.load calls, and that allocate or read more than the file holds.
GROWING = {
    "builtins.bytearray": "a bytearray",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor without storage",
}
PUT, GET, CALL = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET"), ("REDUCE", "NEWOBJ")  # the only ones torch.load follows
MOST_SHARED = 8  # names of one value: tied weights, and several names of one state dict
COPYING = ("_codecs.encode", "builtins.set", "collections.Counter", "collections.OrderedDict", "torch.Size", "Tensor")


class Unbounded(ValueError):
    """The file would take more than its size allows; the message continues a sentence that begins with its path."""


def load(file: Path | io.BytesIO) -> Any:
    """What ``torch.load(weights_only=True)`` gives for a file, on the CPU.

    Raises Unbounded for a file that may grow: compressed, of too many instructions, or of tensors that are not plain; and any
    other error for a file that is malicious or truncated.
    """
    with ExitStack() as opened:
        stream = opened.enter_context(file.open("rb")) if isinstance(file, Path) else file
        if stream.read(4) == b"PK\3\4":  # as torch.load tells them apart
            _check_archive(stream)
        else:
            stream.seek(0)
            _check_instructions(stream, LEGACY_PICKLES)
        stream.seek(0)
        with warnings.catch_warnings():  # about unusual pickles, which are refused or read completely anyway
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([Namespace]):  # arguments of a training script: only attributes
                return torch.load(stream, map_location="cpu", weights_only=True)


def require_stored(tensors: Iterable[tuple[str, Tensor]], size: int) -> None:
    """Raise Unbounded for named tensors with more values than their storage, or that together claim more than ``size`` bytes.

    A storage may be larger than what the file holds of it, and many tensors may share one.
    """
    storages, claimed, named = set(), 0, 0
    for name, value in tensors:
        stored = 0 if value.is_meta else value.untyped_storage().nbytes()
        if stored < value.numel() * value.element_size():
            raise Unbounded(
                f"holds fewer values of {name} than its shape {tuple(value.shape)} needs, as after expand(); save a copy"
                " of the tensor (clone()) if you trust the file"
            )
        if (place := value.untyped_storage().data_ptr()) not in storages:
            storages.add(place)
            claimed += stored
        named += value.numel() * value.element_size()
        if claimed > size or named > MOST_SHARED * size:
            raise Unbounded(
                f"has {size:,} bytes, and its tensors up to {name} claim {max(claimed, named):,}; save copies of them (clone())"
                " if you trust the file"
            )


def every_tensor(value: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dicts, lists and tuples, by their dotted place; each container is read once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from every_tensor(part, f"{name}.{key}" if name else str(key), seen)


def _check_archive(stream: IO[bytes]) -> None:
    """Check a zip file: ``torch.save`` does not compress, and an archive may hold a thousand times its bytes."""
    with zipfile.ZipFile(stream) as archive:
        parts = archive.infolist()
        held, size = sum(part.file_size for part in parts), stream.seek(0, io.SEEK_END)
        if held > size:
            raise Unbounded(f"is compressed, and holds {held:,} bytes; save it with torch.save, if you trust the file")
        for part in parts:
            if part.filename.lower().endswith("data.pkl"):
                with archive.open(part) as instructions:
                    _check_instructions(instructions)


def _check_instructions(stream: IO[bytes], pickles: int = 1) -> None:
    """Check the instructions of pickles, one after the other, without following them.

    A call that copies its argument matters where this comes from the memo: each such call takes six bytes.
    """
    count = copies = 0
    for _ in range(pickles):
        names: dict[Any, str] = {}  # functions in the memo
        called: list[bool] = []  # for each function whose arguments follow, whether it copies them
        copying = 0  # how many of these do
        name = ""  # of the function that was put on the stack last
        for opcode, argument, _place in pickletools.genops(stream):
            count += 1
            if count > MOST_INSTRUCTIONS:
                raise Unbounded(f"has more than {MOST_INSTRUCTIONS:,} pickle instructions; {REMEDY}")
            if opcode.name in PUT:
                names[argument] = name
                continue
            name = names.get(argument, "") if opcode.name in GET else ""
            if opcode.name == "GLOBAL":
                name = _function(str(argument))
            if name:
                called.append(name.endswith(COPYING))
                copying += called[-1]
            elif opcode.name in GET:
                copies += copying > 0
            elif opcode.name in CALL and called:
                copying -= called.pop()
        if copies * (length := stream.tell()) > MOST_COPIED:
            raise Unbounded(f"has {copies:,} calls that may copy {length:,} bytes each; {REMEDY}")


def _function(argument: str) -> str:
    """The dotted name of a function, as torch.load finds it. Raises Unbounded for one whose result has no bound."""
    name = argument.replace(" ", ".").replace("__builtin__", "builtins")  # its name in Python 2, which pickles keep
    if grows := GROWING.get(name, "a sparse tensor" if name.startswith("torch.sparse.") else ""):
        raise Unbounded(f"holds {grows}, whose size has no bound; {REMEDY}")
    return name
