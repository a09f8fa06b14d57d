"""The network under test: normalisation inside, eval mode, frozen, with its last linear layer and its layers known."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oodbench.errors import BadData, OodbenchError, Unsuitable

# What a layered detector reads, by how the network is built: the first pattern of which every module exists wins.
# ResNets give their stem and stages, DenseNets their first convolution, transitions and final norm (Lee et al. 2018).
LAYER_PATTERNS: tuple[tuple[str, ...], ...] = (
    ("relu", "layer1", "layer2", "layer3", "layer4"),  # ours and torchvision's ResNets
    ("act1", "layer1", "layer2", "layer3", "layer4"),  # timm's
    ("relu", "layer1", "layer2", "layer3"),  # CIFAR ResNets: three stages
    ("conv1", "trans1", "trans2", "relu"),  # our DenseNet-BC
    ("features.conv0", "features.transition1", "features.transition2", "features.transition3", "features.norm5"),
)
HALF = (torch.float16, torch.bfloat16)


class Classifier(nn.Module):
    """A network that takes images in [0, 1], so that every epsilon is in pixel units.

    Args:
        module: maps normalised images (N, C, H, W) to logits (N, classes). It is put into eval mode and its parameters
            are frozen, in place.
        mean, std: the normalisation (C,), applied inside; None for a module that normalises by itself.
        head: dotted name of the final linear layer; by default the last ``nn.Linear`` of the module.
        layers: dotted names of the modules that layered detectors read, first to last; by default those of the known
            families (ResNet, DenseNet).
        name: what result tables call it.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        head: str | None = None,
        layers: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        self.module = module
        self.name = name or type(module).__name__
        # A buffer keeps its own dtype here and is cast to the images' when used: float64 images must not lose digits.
        self.register_buffer("mean", None if mean is None else torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1))
        modules = dict(module.named_modules())
        self.head_name = head or next((n for n, m in reversed(modules.items()) if isinstance(m, nn.Linear)), None)
        known = next((p for p in LAYER_PATTERNS if all(n in modules for n in p)), ())
        self.layer_names: tuple[str, ...] = tuple(layers) if layers is not None else known
        for wanted in (*self.layer_names, *([head] if head else [])):
            if wanted not in modules:
                raise ValueError(f"{self.name} has no module '{wanted}'")
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Classifier":
        """Stays in eval mode, always: a benchmark must not move running statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), floats in [0, 1], to logits (N, classes)."""
        if self.mean is not None and self.std is not None:
            images = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        return self.module(images)

    @property
    def head(self) -> nn.Linear:
        """The final linear layer. Raises Unsuitable where there is none."""
        module = dict(self.module.named_modules()).get(self.head_name) if self.head_name is not None else None
        if not isinstance(module, nn.Linear):
            raise Unsuitable(f"{self.name} has no final linear layer; name one with Classifier(…, head=…)")
        return module

    @property
    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """W (classes, features) and b (classes,) of the final linear layer; b is zero where it has none."""
        head = self.head
        bias = head.bias if head.bias is not None else head.weight.new_zeros(head.out_features)
        return head.weight.detach(), bias.detach()

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are; images are moved there."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's parameters; images are cast to it."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    @property
    def weights_hash(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of parameters and buffers, normalisation included (16 hex digits)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                if tensor.dim()
                else repr(tensor.item()).encode()
            )
        return digest.hexdigest()[:16]

    def check(self, images: Tensor) -> None:
        """Forward passes of (N, C, H, W) images that must give finite logits (N, classes), the same each time.

        Raises Unsuitable for a network that wants other images or more than images, whose outputs are no logits, or whose
        logits change from pass to pass or with the other images of a batch; BadData for logits that are not finite.
        """
        training = [name for name, module in self.module.named_modules() if module.training]
        if training:
            raise Unsuitable(
                f"{self.name}: '{training[0] or type(self.module).__name__}' stays in training mode after eval();"
                " its train(mode) must obey"
            )
        logits = self._checked_pass(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Unsuitable(
                f"{self.name} gives {got} for {len(images)} images, not logits ({len(images)}, classes);"
                " wrap it in a module that returns the logits alone"
            )
        if not torch.isfinite(logits).all():
            raise BadData(f"{self.name} gives logits that are not finite; check its weights and normalisation")
        # What rounding may change: half the digits. Dropout, or the others of a batch, change them all.
        slack = torch.finfo(logits.dtype).eps ** 0.5 * float(logits.abs().max())
        if torch.allclose(self._checked_pass(images[:1]), logits[:1], rtol=0, atol=slack):
            return
        if torch.allclose(self._checked_pass(images), logits, rtol=0, atol=slack):
            raise Unsuitable(
                f"{self.name} gives an image other logits in another batch; make it use running statistics"
                " (BatchNorm: track_running_stats=True)"
            )
        raise Unsuitable(
            f"{self.name} gives the same images other logits each time; turn off what is random in it"
            " (dropout: F.dropout(x, training=self.training))"
        )

    def _checked_pass(self, images: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                return self(images.to(self.device, self.dtype))
        except OodbenchError:
            raise
        except Exception as error:  # a forward of anyone's may raise anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, TypeError) and "argument" in said:
                raise Unsuitable(
                    f"{self.name} does not take images alone: {said}; wrap it in a module whose forward(images) gives the rest"
                ) from error
            if self.dtype in HALF:
                remedy = f"convert it from {str(self.dtype).removeprefix('torch.')} to float32 with module.float()"
            else:
                remedy = "choose another model, or resize with the suite's size"
            raise Unsuitable(
                f"{self.name} does not take images of shape {tuple(images.shape[1:])}: {said}; {remedy}"
            ) from error
