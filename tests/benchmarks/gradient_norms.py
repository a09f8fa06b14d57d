"""What per-sample gradient norms cost beside a bare forward pass, and how exact they are: every bar in one command.

    python tests/benchmarks/gradient_norms.py [--repeats 10] [--device cpu]

Memory: the most that a batch of 256 allocates above what lay there before. Bar: 4 GiB. Time: all parameters of ResNet-18
on a batch of 32 images of 32x32, in bare forward passes, beside the ways there are without rules, a loop of backward
passes and ``torch.func``, and the floor, forward plus the activation gradients' backward; interleaved with bare passes,
the median of the ratios. Bar: 2.7. Likewise for two ViTs, of torchvision (attention with packed weights) and of timm if it is
installed. Bar: 6. Exactness: the largest relative error of a squared norm against that loop in float64, on several networks.
Bar: 1e-6. Exits with 1 where a bar is missed.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oodbench.gradients import squared_norms
from oodbench.gradients.losses import confounding
from oodbench.models.build import build
from oodbench.models.device import peak_memory, resolve_device, synchronise
from oodbench.models.exact import exact

TRANSFORMER_BAR = 6  # forward passes
TIME_BAR, ERROR_BAR, MEMORY_BAR = 2.7, 1e-6, 4096  # forward passes, relative error, MiB
ONES = confounding(1.0)


def convnext() -> nn.Module:
    settings = [tv.convnext.CNBlockConfig(16, 32, 2), tv.convnext.CNBlockConfig(32, None, 2)]
    return tv.convnext.ConvNeXt(settings, num_classes=10)


def vit() -> nn.Module:
    return tv.VisionTransformer(32, 4, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)


def tiny_vit() -> nn.Module:
    return tv.VisionTransformer(32, 4, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10)


def timms_vit() -> nn.Module:
    import timm

    made: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    return made


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {"torchvision's ViT": tiny_vit}
if find_spec("timm"):
    TRANSFORMERS["timm's ViT"] = timms_vit

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: build("resnet18", 10).module, 32),
    "resnet20": (lambda: build("resnet20-cifar10", 10).module, 32),
    "densenet-bc-100-12": (lambda: build("densenet-bc-100-12", 10).module, 32),
    "mobilenet_v3_small": (lambda: tv.mobilenet_v3_small(num_classes=10), 64),
    "convnext": (convnext, 64),
    "vit": (vit, 32),
    "swin": (lambda: tv.SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=10), 32),
}


def one_loop(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The reference: one backward pass per image."""
    named = dict(network.named_parameters())
    rows = []
    for image in images.split(1):
        found = torch.autograd.grad(ONES(network(image), image).sum(), list(named.values()))
        rows.append(torch.stack([gradient.square().sum() for gradient in found]))
    return dict(zip(named, torch.stack(rows, 1), strict=True))


def by_torch_func(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    own = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(own: dict[str, Tensor], image: Tensor) -> Tensor:
        return ONES(functional_call(network, own, (image[None],)), image[None]).sum()

    found = vmap(grad(loss), in_dims=(None, 0), chunk_size=8)(own, images)
    return {name: gradient.flatten(1).square().sum(1) for name, gradient in found.items()}


def activation_gradients(network: nn.Module, images: Tensor) -> None:
    images = images.clone().requires_grad_()
    torch.autograd.grad(ONES(network(images), images).sum(), images)


def bare(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        network(images)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def times(device: torch.device, repeats: int, batch_size: int) -> float:
    network = build("resnet18", 10).module.to(device)
    images = torch.rand(batch_size, 3, 32, 32).to(device)
    learning = build("resnet18", 10).module.requires_grad_(True).to(device)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "oodbench.gradients": (lambda: squared_norms(network, images), repeats),
        "forward + activation gradients": (lambda: activation_gradients(network, images), repeats),
        "loop of backward passes": (lambda: one_loop(learning, images), max(1, repeats // 3)),
        "torch.func": (lambda: by_torch_func(network, images), max(1, repeats // 5)),
    }
    print(f"time: ResNet-18, batch of {batch_size}, {device}, {torch.get_num_threads()} threads, in bare forward passes")
    bare(network, images)
    medians = [passes(name, work, network, images, count) for name, (work, count) in ways.items()]
    print(f"  {'bar':32s}{TIME_BAR:6.2f}")
    return medians[0]


def passes(name: str, work: Callable[[], object], network: nn.Module, images: Tensor, count: int) -> float:
    """What ``work`` takes, in bare forward passes: the median of interleaved repeats."""
    work()
    ratios = []
    for _ in range(count):
        before = seconds(lambda: bare(network, images), images.device)
        taken = seconds(work, images.device)
        ratios.append(2 * taken / (before + seconds(lambda: bare(network, images), images.device)))
    print(f"  {name:32s}{statistics.median(ratios):6.2f}   ({min(ratios):.2f} to {max(ratios):.2f}, {count} repeats)")
    return statistics.median(ratios)


def transformers(device: torch.device, repeats: int, batch_size: int) -> float:
    """The largest over the networks."""
    print(f"time: 12 blocks of 192 channels on 64 patches, batch of {batch_size}, {device}, in bare forward passes")
    images, found = torch.rand(batch_size, 3, 32, 32).to(device), []
    for name, make in TRANSFORMERS.items():
        network = make().eval().requires_grad_(False).to(device)
        bare(network, images)
        found.append(passes(name, lambda network=network: squared_norms(network, images), network, images, repeats))  # type: ignore[misc]
    print(f"  {'bar':32s}{TRANSFORMER_BAR:6.2f}")
    return max(found)


def errors(names: list[str]) -> float:
    print("exactness: largest relative error of a squared norm against the loop, float64")
    worst = 0.0
    for name in names:
        make, size = NETWORKS[name]
        torch.manual_seed(0)
        network = make().double().eval()
        for parameter in network.parameters():  # a fresh ViT's head is zero, and so were all gradients behind it
            parameter.data += 0.05 * torch.randn_like(parameter)
        images = torch.rand(3, 3, size, size, dtype=torch.float64)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = squared_norms(network, images)
        expected = one_loop(network.requires_grad_(True), images)
        error = max(float(((found[p] - expected[p]).abs() / expected[p]).max()) for p in expected)
        slow = [str(warning.message).split(" of ")[0] for warning in said if "no rule covers" in str(warning.message)]
        print(f"  {name:32s}{error:9.1e}   {len(expected)} parameter tensors{'; ' + slow[0] if slow else ''}")
        worst = max(worst, error)
    print(f"  {'bar':32s}{ERROR_BAR:9.1e}")
    return worst


def memory(device: torch.device, batch_size: int) -> float:
    """MiB of one large batch above what lay there before: on the CPU in a process of its own, from its peak."""
    if device.type == "cpu":
        command = [sys.executable, "-P", __file__, "--memory-only", "--large-batch", str(batch_size)]
        used = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    else:
        counted = peak_memory(
            lambda: squared_norms(build("resnet18", 10).module.to(device), torch.rand(batch_size, 3, 32, 32).to(device)), device
        )
        if counted is None:
            print(f"memory: {device} does not count what it allocates")
            return 0.0
        used = counted
    print(f"memory: ResNet-18, batch of {batch_size}, {device}")
    print(f"  {'oodbench.gradients':32s}{used:6.0f} MiB\n  {'bar':32s}{MEMORY_BAR:6.0f} MiB")
    return used


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="of the table of times")
    parser.add_argument("--large-batch", type=int, default=256, help="of the table of memory")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="of the table of errors")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.memory_only:
        network = build("resnet18", 10).module
        squared_norms(network, torch.rand(2, 3, 32, 32))
        before = peak()
        squared_norms(network, torch.rand(options.large_batch, 3, 32, 32))
        print(peak() - before)
        return
    device = resolve_device(options.device)
    used = memory(device, options.large_batch)  # first, for a process is born with the peak of the one that starts it
    sizes = device, options.repeats, options.batch_size
    with exact(device):
        taken = [(times(*sizes), TIME_BAR), (transformers(*sizes), TRANSFORMER_BAR)]
    found = {
        "time on ResNet-18": taken[0],
        "time on transformers": taken[1],
        "exactness": (errors(options.networks), ERROR_BAR),
        "memory": (used, MEMORY_BAR),
    }
    for name, (value, bar) in found.items():
        print(f"{name}: {value / bar:.2f} of the bar")
    missed = sum(not value <= bar for value, bar in found.values())
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
