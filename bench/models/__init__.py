"""The networks: one file per architecture; each name refers to a function ``build(num_classes) -> Classifier``.

In addition, ``oodbench.models.load`` accepts ``timm:NAME``, ``torchvision:NAME``, ``module:function``, and ``denoised:`` before
any name.
"""

from oodbench.registry import Entry

_HE = "He et al. 2016, arXiv 1512.03385"


DENOISED = "denoised:"


def undenoised(name: str) -> tuple[str, str | None]:
    """``denoised:SETTINGS:NAME`` -> (``NAME``, ``SETTINGS``), empty in ``denoised:NAME``. None for any other name."""
    if not name.startswith(DENOISED):
        return name, None
    rest = name.removeprefix(DENOISED)
    settings, _, inner = rest.partition(":")
    return (inner, settings) if "=" in settings else (rest, "")


def imports_code(name: str) -> bool:
    """Whether the name is ``module:function``, so that loading the model runs code that the name chooses."""
    name, _ = undenoised(name)
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in ("timm", "torchvision")


PATTERNS = {  # names that stand for many networks
    "timm:NAME": Entry("", "Any network of timm, with your weights, such as timm:resnet18", "https://huggingface.co/docs/timm"),
    "torchvision:NAME": Entry(
        "", "Any classifier of torchvision, with your weights", "https://docs.pytorch.org/vision/stable/models.html"
    ),
    "module:function": Entry("", "Your own function of a module; it returns a Classifier or a torch.nn.Module"),
    "denoised:NAME": Entry(
        "", "Any of these, on images that a filter has removed noise from", "Buades et al. 2005, 10.1109/CVPR.2005.38"
    ),
}
TABLE = {
    "resnet20-cifar10": Entry("oodbench.models.cifar_resnet:resnet20", "CIFAR-10 ResNet-20, published weights", _HE),
    "resnet32-cifar10": Entry("oodbench.models.cifar_resnet:resnet32", "CIFAR-10 ResNet-32, published weights", _HE),
    "resnet44-cifar10": Entry("oodbench.models.cifar_resnet:resnet44", "CIFAR-10 ResNet-44, published weights", _HE),
    "resnet56-cifar10": Entry("oodbench.models.cifar_resnet:resnet56", "CIFAR-10 ResNet-56, published weights", _HE),
    "resnet18": Entry("oodbench.models.resnet:resnet18", "ResNet-18 with a stem for 32x32 images", _HE),
    "resnet34": Entry("oodbench.models.resnet:resnet34", "ResNet-34 with a stem for 32x32 images", _HE),
    "resnet50": Entry("oodbench.models.resnet:resnet50", "ResNet-50 with a stem for 32x32 images", _HE),
    "resnet101": Entry("oodbench.models.resnet:resnet101", "ResNet-101 with a stem for 32x32 images", _HE),
    "densenet-bc-100-12": Entry(
        "oodbench.models.densenet:densenet_bc_100_12",
        "DenseNet-BC, depth 100, growth rate 12, for 32x32 images",
        "Huang et al. 2017, arXiv 1608.06993",
    ),
    "curetsr-net": Entry(
        "oodbench.models.curetsr_net:curetsr_net",
        "The small network of CURE-TSR's authors, for 28x28 images",
        "Temel et al. 2017, arXiv 1712.02463",
    ),
    "duq-resnet18": Entry(
        "oodbench.models.duq:duq_resnet18",
        "ResNet-18 with a kernel per class in place of logits (DUQ), for 32x32 images",
        "van Amersfoort et al. 2020, arXiv 2003.02037",
    ),
    "sngp-resnet18": Entry(
        "oodbench.models.sngp:sngp_resnet18",
        "ResNet-18 with bounded convolutions and a Gaussian process (SNGP), for 32x32 images",
        "Liu et al. 2020, arXiv 2006.10108",
    ),
    "resnet8-digits": Entry(
        "oodbench.models.cifar_resnet:resnet8",
        "ResNet-8 for the embedded 8x8 digits, with its weights",
        _HE,
    ),
}
