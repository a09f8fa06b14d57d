"""Small files, and settings in them, that ask for much time or memory."""

import gzip
import hashlib
import io
import pickle
import random
import re
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import made
import numpy as np
import torch
from hostile import CHECKPOINTS, jpeg_of, mat_bomb, overlapping, zip_of
from PIL import Image
from safetensors.numpy import save
from trial import Row, forked

import oodbench
from oodbench import state
from oodbench.datasets.fetching import archives
from oodbench.errors import OodbenchError
from oodbench.models.checkpoint import Checkpoint
from oodbench.results import pass_file
from oodbench.results.folder import RunFolder
from oodbench.suites.load import load_suite

Bomb = tuple[Callable[[Path], Callable[[], Any]], str]  # writes it into a folder and returns its reader; what is said of it
LARGE = "torchvision:vit_h_14"  # 633 million weights
DEEP, DIGITS = 100_000, "9" * 5000
ZEROS = 200 * 2**20


def attack(times: int, seed: int) -> Row:
    """Each try: write one bomb, and read it under a limit: it is refused in one line that names the bound."""
    faults, worst, memory = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        made.fitted(Path(name))
        oodbench.load_fitted(Path(name, "fitted.safetensors"))  # what each try would import
        known = bombs(Path(name, "fitted.safetensors"))
        chosen = random.Random(seed).sample(sorted(known), min(times, len(known)))
        for number, what in enumerate(chosen):
            folder = Path(name, str(number))
            folder.mkdir()
            make, says = known[what]
            read = make(folder)
            found = forked(partial(_refusal, read))
            worst, memory = max(worst, found.seconds), max(memory, found.megabytes)
            if found.fault or not re.search(says, found.value):
                faults.append(f"{what}: {found.fault or found.value}")
    return Row("bombs", len(chosen), len(chosen) - len(faults), worst, memory, faults)


def _refusal(read: Callable[[], Any]) -> str:
    try:
        read()
    except OodbenchError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            raise AssertionError(f"not one line: {str(error)[:1000]}") from error
        return str(error)
    raise AssertionError("it is read")


def bombs(fitted: Path) -> dict[str, Bomb]:
    """By name; ``fitted`` is a file of ``oodbench fit``."""
    return {
        **{f"checkpoint: {what}": (partial(_weights, content), says) for what, (content, says) in CHECKPOINTS.items()},
        "checkpoint of a training": (_training, "is not a checkpoint.* delete"),
        "safetensors: 30 million classes without values": (_no_values, r"instead of \(8, 64\); give the weights of"),
        **_fitted_files(fitted),
        **_images(),
        **_arrays(),
        **_archives(),
        **_texts(),
    }


def _weights(content: bytes, folder: Path) -> Callable[[], Any]:
    (folder / "a.pth").write_bytes(content)
    return lambda: oodbench.load_model("resnet8-digits", folder / "a.pth")


def _training(folder: Path) -> Callable[[], Any]:
    content, _ = CHECKPOINTS["bytes"]
    (folder / "a").write_bytes(hashlib.sha256(content).digest() + content)
    return lambda: Checkpoint(folder / "a", {}, {}).restore(torch.device("cpu"))


def _no_values(folder: Path) -> Callable[[], Any]:
    tensors = oodbench.load_model("resnet8-digits").module.state_dict() | {"linear.weight": torch.empty(30_000_000, 0)}
    (folder / "a.safetensors").write_bytes(save({name: value.numpy() for name, value in tensors.items()}))
    return lambda: oodbench.load_model("resnet8-digits", folder / "a.safetensors")


def _fitted_files(fitted: Path) -> dict[str, Bomb]:
    def forged(change: Callable[[dict, dict], Any], folder: Path) -> Callable[[], Any]:
        header, found = state.load(fitted)
        change(header, found)
        path = folder / "fitted.safetensors"
        state.save(path, header, found)
        return lambda: oodbench.load_fitted(path)

    def parameter(detector: str, **parameters: Any) -> Callable[[dict, dict], Any]:
        return lambda header, found: header.update(detector=detector, parameters=parameters, head=None)

    large_member = parameter("ensemble", members=[LARGE])

    def network(header: dict, found: dict) -> None:
        from oodbench.inference.fitted import sha256_of

        weights = fitted.with_name("small.safetensors")
        weights.write_bytes(save({"heads.head.weight": np.ones((8, 1280), np.float32)}))
        header["fitted"]["model"].update(name=LARGE, weights=str(weights), weights_sha256=sha256_of(weights))

    def emptied(header: dict, found: dict) -> None:
        found.update({name: [torch.empty(30_000_000, 0)] * len(value) for name, value in found.items()})

    changes: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
        "a billion passes": (parameter("mc-dropout", passes=10**9), "give a whole number from 2 to 1000"),
        "a billion powers": (parameter("gram", powers=10**9), "give a whole number from 1 to 100"),
        "a billion members": (parameter("ensemble", members=10**9), "fit it again"),
        "a large member": (
            lambda header, found: (large_member(header, found), found.update(weights_=[torch.ones(3)])),
            "the fitted networks have another architecture",
        ),
        "a large network": (network, f"does not fit {LARGE}: it lacks"),
        "large images": (
            lambda header, found: header["fitted"]["input"].update(size=[4096, 4096]),
            r"more than 1,048,576, .* --trust-model",
        ),
        "arrays without values": (emptied, "fit it again"),
    }
    return {f"fitted file: {what}": (partial(forged, change), says) for what, (change, says) in changes.items()}


def _images() -> dict[str, Bomb]:
    def image(content: bytes, suffix: str, folder: Path) -> Callable[[], Any]:
        (folder / "set").mkdir()
        (folder / "set" / f"a.{suffix}").write_bytes(content)
        return lambda: oodbench.load_dataset("folder:set", data=folder, size=8).images[:1]

    def black(format: str, side: int = 20_000, **options: Any) -> bytes:
        stream = io.BytesIO()
        Image.new("1" if format != "WEBP" else "RGB", (side, side)).save(stream, format, **options)
        return stream.getvalue()

    texts = zlib.compress(bytes(ZEROS))
    small = black("PNG", 8)
    chunk = b"zTXta\0\0" + texts
    text = small[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
    return {
        "image: 4,000 scans": (partial(image, jpeg_of(4000), "jpg"), "has more than 100 scans; remove it, or save it again"),
        "image: 400 million pixels, PNG": (partial(image, black("PNG"), "png"), "too many pixels .* shrink it if you trust it"),
        "image: 400 million pixels, TIFF": (
            partial(image, black("TIFF", compression="group4"), "tif"),
            "too many pixels .* shrink it if you trust it",
        ),
        "image: text that inflates": (partial(image, text, "png"), "is not an image, or it is truncated"),
    }


def _arrays() -> dict[str, Bomb]:
    def cifar(content: bytes, folder: Path) -> Callable[[], Any]:
        batch = folder / "cifar-10-batches-py"
        batch.mkdir()
        (batch / "test_batch").write_bytes(b"\x80\x02}" + content + b".")
        (batch / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat"]}, protocol=2))
        return lambda: oodbench.load_dataset("cifar10", data=folder)

    def svhn(folder: Path) -> Callable[[], Any]:
        (folder / "svhn").mkdir()
        (folder / "svhn" / "test_32x32.mat").write_bytes(mat_bomb())
        return lambda: oodbench.load_dataset("svhn", data=folder)

    def cifar10c(folder: Path) -> Callable[[], Any]:
        (folder / "CIFAR-10-C").mkdir()
        header = repr({"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)}).encode()
        for file in ("fog", "labels"):
            (folder / "CIFAR-10-C" / f"{file}.npy").write_bytes(
                b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64)
            )
        return lambda: oodbench.load_dataset("cifar10c/fog@3", data=folder).images[:1]

    return {
        "pickle of opcodes": (partial(cifar, b"N0" * 2**24), "more than 1,048,576 pickle instructions"),
        "pickle of a huge memo": (partial(cifar, b"r\xff\xff\xff\xff"), r"index \d+ in a memo"),
        "pickle that copies": (
            partial(cifar, b"U\x04data" + pickle.dumps([bytes(10**6)] * 10**4, 3)[2:-1] + b"s"),
            "it would grow to many times its size",
        ),
        "MATLAB file that inflates": (svhn, r"X is uint8 .*, not uint8 \(32, 32, 3, N\)"),
        "NumPy file of any shape": (cifar10c, "claims the shape"),
    }


def _archives() -> dict[str, Bomb]:
    def archive(write: Callable[[], bytes], folder: Path) -> Callable[[], Any]:
        (folder / "archive").write_bytes(write())
        return lambda: archives.unpack(folder / "archive", folder / "unpacked", ("set",))

    def tar() -> bytes:
        stream = io.BytesIO()
        info = tarfile.TarInfo("set/zeros")
        info.size = ZEROS
        with gzip.open(stream, "wb", 1) as packed:
            packed.write(info.tobuf())
            for _ in range(ZEROS // 2**20):
                packed.write(bytes(2**20))
        return stream.getvalue()

    def header() -> bytes:
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 2**30
        return gzip.compress(info.tobuf() + bytes(2**21))

    says = "is refused: it unpacks to more than [0-9,]+ bytes; none of it was used"
    return {
        "zip": (partial(archive, lambda: zip_of(("set/zeros", bytes(ZEROS)))), says),
        "zip of overlapping members": (partial(archive, lambda: overlapping(2**22)), says),
        "tar.gz": (partial(archive, tar), says),
        "tar.gz of zeros alone": (partial(archive, lambda: gzip.compress(bytes(ZEROS))), "archive"),
        "tar.gz with a header of a gigabyte": (partial(archive, header), "a header of more than 1,048,576 bytes"),
    }


def _texts() -> dict[str, Bomb]:
    def suite(value: str, folder: Path) -> Callable[[], Any]:
        text = f'in_distribution = "digits"\ndetectors = ["knn"]\n[[sets]]\nname = "photos"\nsettings = {{a = {value}}}\n'
        (folder / "a.toml").write_text(text)
        return lambda: load_suite(folder / "a.toml")

    def sparse(name: str, read: Callable[[Path], Any], folder: Path) -> Callable[[], Any]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.truncate(2**40)
        return lambda: read(folder)

    def manifest(text: str, folder: Path) -> Callable[[], Any]:
        (folder / "run.json").write_text(text)
        return lambda: RunFolder(folder).manifest()

    def records(folder: Path) -> Callable[[], Any]:
        packed = zlib.compress(b"[" + b"[]," * 2**26 + b"[]]")
        (folder / "a.safetensors").write_bytes(save({"records": np.frombuffer(packed, np.uint8)}, {"oodbench": ""}))
        return lambda: pass_file.read_records(folder / "a.safetensors")

    def wnids(folder: Path) -> Any:
        (folder / "tiny-imagenet-200" / "train").mkdir()
        return oodbench.load_dataset("tinyimagenet", data=folder, split="train")

    return {
        "suite: nested arrays": (
            partial(suite, "[" * DEEP + "]" * DEEP),
            "nested too deeply; write its arrays and tables flat",
        ),
        "suite: nested tables": (partial(suite, "{a=" * DEEP + "1" + "}" * DEEP), "nested too deeply"),
        "suite: a number of 5,000 digits": (partial(suite, DIGITS), "is not valid TOML: Exceeds the limit"),
        "suite of a terabyte": (
            partial(sparse, "a.toml", lambda folder: load_suite(folder / "a.toml")),
            "more than 16,777,216 for a file of text; shorten it",
        ),
        "run.json: nested arrays": (partial(manifest, "[" * DEEP), "cannot be read"),
        "run.json: a number of 5,000 digits": (partial(manifest, f'{{"provenance": {{"a": {DIGITS}}}}}'), "cannot be read"),
        "run.json of a terabyte": (
            partial(sparse, "run.json", lambda folder: RunFolder(folder).manifest()),
            "more than 16,777,216 for a file of text",
        ),
        "records that inflate": (records, "its records take more than 16,777,216 bytes; run again"),
        "labels of a terabyte": (partial(sparse, "tiny-imagenet-200/wnids.txt", wnids), "too many for a table of labels"),
        "set name: a number of 5,000 digits": (
            lambda folder: lambda: oodbench.load_dataset(f"digits:{DIGITS}"),
            "unknown class '999",
        ),
    }
