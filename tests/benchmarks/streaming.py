"""Memory and speed of sets that do not fit memory: generates JPEGs in OpenOOD's layout, and runs a network on them.

    python tests/benchmarks/streaming.py [--model torchvision:resnet50] [--images 1250 5000 20000] [--size 224] [--workers 2]

Weights are random, and the device is an accelerator where there is one. For each number of images, prints the largest
resident memory of ``oodbench run`` with half of them in the in-distribution set and half in another, and the time that it
takes; for the first two numbers also those of a bare loop: the same DataLoader, the same forward pass, and nothing else. Each
is a process of its own. Bars: the memory of the last number is at most 1.1 times that of the first, and the rate is at least
.9 of the bare loop's. Rates are those of what one number has more than the one before it, so that start-up and the accuracy
on 2,000 images do not count: of the last two numbers, and for the bare loop of the first two.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import oodbench
from oodbench.batching import default_batch_size
from oodbench.models import weights
from oodbench.models.build import build
from oodbench.models.device import resolve_device

sys.path.append(str(Path(__file__).parent))
from run_folder import measured

RUN = """
import sys
from oodbench.cli import main
from oodbench.datasets import load
load.IN_MEMORY = 0
sys.argv = ["oodbench", *sys.argv[1:]]
main()
"""
BARE = """
import sys, torch
from oodbench import load_dataset, load_model
from oodbench.batching import batches, pieces_of
from oodbench.datasets import load
import numpy as np
load.IN_MEMORY = 0
model, file, data, size, workers, batch = sys.argv[1:]
network = load_model(model, file, device="auto")
with torch.inference_mode():
    for name in ("imagenet", "imagenet/other"):
        images = load_dataset(name, data=data, size=int(size), shorter_side=int(size) * 8 // 7)
        for _, pixels in batches(images, network, pieces_of(np.arange(len(images)), int(batch)), int(workers)):
            network(pixels)
"""


def generate(root: Path, count: int) -> None:
    """Half of the JPEGs as the in-distribution set, half as another; 20 different pictures, each under many names."""
    random = np.random.default_rng(0)
    (root / "benchmark_imglist" / "imagenet").mkdir(parents=True)
    folder = root / "images_largescale"
    folder.mkdir()
    pictures = []
    for number in range(20):
        height, width = random.integers(256, 501, 2)
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((int(width), int(height)))
        coarse.save(folder / f"picture{number}.jpg", quality=92)
        pictures.append((folder / f"picture{number}.jpg").read_bytes())
    for name, label in (("imagenet", 0), ("other", -1)):
        lines = []
        for number in range(count // 2):
            path = folder / f"{name}{number}.jpg"
            path.write_bytes(pictures[number % 20] + f"{name}{number}".encode())  # what follows the end is not decoded
            lines.append(f"{path.name} {label}")
        (root / "benchmark_imglist" / "imagenet" / f"test_{name}.txt").write_text("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--images", type=int, nargs="+", default=[1250, 5000, 20_000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    batch_size = options.batch_size or default_batch_size(options.size, resolve_device("auto"))
    shorter, memory, times, bare = options.size * 8 // 7, [], [], []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "random.safetensors"
        weights.write(file, build(options.model, 1000).module)
        os.environ["OODBENCH_CACHE"] = str(Path(place) / "cache")
        for count in options.images:
            root = Path(place) / str(count)
            generate(root, count)
            arguments = ["run", "imagenet", "--model", options.model, "--weights", str(file), "--data", str(root)]
            arguments += ["--dataset", "imagenet/other", "--detector", "msp", "--detector", "energy", "--out", f"{root}-run"]
            arguments += ["--size", str(options.size), "--shorter-side", str(shorter), "--batch-size", str(batch_size)]
            arguments += ["--workers", str(options.workers), "--no-costs", "--no-report"]
            seconds, gigabytes = measured([sys.executable, "-P", "-c", RUN, *arguments])
            values = [options.model, file, root, options.size, options.workers, batch_size]
            assert oodbench.verify(f"{root}-run").ok
            memory.append(gigabytes)
            times.append(seconds)
            line = f"{count:,} images: {gigabytes:.2f} GB in {seconds:.1f} s"
            if len(bare) < 2:
                seconds, gigabytes = measured([sys.executable, "-P", "-c", BARE, *map(str, values)])
                bare.append(seconds)
                line += f"; bare loop {gigabytes:.2f} GB in {seconds:.1f} s"
            print(line, flush=True)
    ratio, images = memory[-1] / memory[0], options.images
    own_rate = (images[-1] - images[-2]) / (times[-1] - times[-2])
    bare_rate = (images[1] - images[0]) / (bare[1] - bare[0])
    share = own_rate / bare_rate
    print(f"memory of more images: {ratio / 1.1:.2f} of the bar, from {memory[0]:.2f} to {memory[-1]:.2f} GB")
    rates = f"{own_rate:.1f} images/s, {share:.2f} of the bare loop's {bare_rate:.1f}"
    print(f"rate of decoded sets: {0.9 / share:.2f} of the bar, {rates}")
    return int(ratio > 1.1 or share < 0.9)


if __name__ == "__main__":
    raise SystemExit(main())
