"""How fast JPEGs are decoded and resized, by which library, and whether the pixels are the same.

    python tests/benchmarks/decoders.py [--folder DIR] [--count 300] [--size 224] [--shorter-side 256]

Prints images per second on one thread for Pillow, which oodbench uses, for torchvision.io, and for simplejpeg if it is
installed: decoding alone, and with the bicubic resizing and cropping of a network, which is always Pillow's. Beside them is the
largest and the mean difference of a pixel from those of Pillow. Without a folder, JPEGs are generated.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from streaming import generate
from torchvision.io import ImageReadMode, decode_jpeg

from oodbench.datasets.resize import fit


def pillow(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


def torchvision_io(content: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def simplejpeg(content: bytes) -> torch.Tensor:
    from simplejpeg import decode_jpeg as decode

    return torch.from_numpy(decode(content)).permute(2, 0, 1)


def rate(work: Callable[[bytes], object], contents: list[bytes]) -> float:
    """Images per second, the best of three rounds."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        for content in contents:
            work(content)
        taken.append(time.perf_counter() - start)
    return len(contents) / min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--shorter-side", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        if options.folder is None:
            generate(Path(place), 2 * options.count)
        folder = options.folder or Path(place)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[: options.count]
        contents = [file.read_bytes() for file in files]
    print(f"{len(contents)} JPEGs of {np.mean(list(map(len, contents))) / 1000:.0f} kB on average, one thread")
    ways = [pillow, torchvision_io, *([simplejpeg] if find_spec("simplejpeg") else [])]
    for decode in ways:

        def read(content: bytes, decode: Callable[[bytes], torch.Tensor] = decode) -> torch.Tensor:
            return fit(decode(content), (options.size, options.size), "bicubic", options.shorter_side)

        differences = [(decode(one).int() - pillow(one).int()).abs() for one in contents[:50]]
        most, mean = max(int(one.max()) for one in differences), np.mean([float(one.double().mean()) for one in differences])
        print(
            f"{decode.__name__}: decoding {rate(decode, contents):.0f} images/s, with resizing {rate(read, contents):.0f};"
            f" pixels differ by at most {most}, on average {mean:.4f}"
        )


if __name__ == "__main__":
    main()
