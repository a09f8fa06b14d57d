"""Weights published by their authors. A separate table, so that listing does not import torch."""

from typing import NamedTuple


class Published(NamedTuple):
    """A weights file published by its authors."""

    file: str
    sha256: str
    url: str


_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"

# Idelbayev, Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch: top-1 errors 8.27, 7.37, 6.90, 6.61 %.
PUBLISHED = {
    name: Published(file, sha256, _AKAMASTER + file)
    for name, file, sha256 in (
        ("resnet20-cifar10", "resnet20-12fca82f.th", "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
        ("resnet32-cifar10", "resnet32-d509ac18.th", "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
        ("resnet44-cifar10", "resnet44-014dd654.th", "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
        ("resnet56-cifar10", "resnet56-4bfd9763.th", "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    )
}
