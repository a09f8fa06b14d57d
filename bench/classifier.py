"""The network under test: normalisation inside, eval mode, frozen, with its last linear layer and its layers known."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.datasets.transform import Transform
from oodbench.errors import BadData, OodbenchError, Unsuitable, around_call, contained, line_of, reason
from oodbench.models.exact import float64_for

# The layers that layered detectors read, by architecture: the first pattern whose modules all exist is used.
# For ResNets the stem and stages, for DenseNets the first convolution, transitions and final norm (Lee et al. 2018);
# for other families likewise the stem and four stages, or the last block of each quarter (``blocks.*``).
LAYER_PATTERNS: tuple[tuple[str, ...], ...] = (
    ("relu", "layer1", "layer2", "layer3", "layer4"),  # ours and torchvision's ResNets
    ("act1", "layer1", "layer2", "layer3", "layer4"),  # timm's
    ("relu", "layer1", "layer2", "layer3"),  # CIFAR ResNets: three stages
    ("conv1", "trans1", "trans2", "relu"),  # our DenseNet-BC
    ("features.conv0", "features.transition1", "features.transition2", "features.transition3", "features.norm5"),
    ("features.0.0", "features.*"),  # torchvision's Swins, ConvNeXts, EfficientNets and MobileNets
    ("conv_proj", "encoder.layers.*"),  # its ViTs
    ("stem", "trunk_output.*"),  # its RegNets
    ("conv_stem", "blocks.*"),  # timm's EfficientNets and MobileNets
    ("patch_embed", "blocks.*"),  # its ViTs
    ("patch_embed", "layers.*"),  # its Swins
    ("stem", "stages.*"),  # its ConvNeXts
    ("stem", "s1", "s2", "s3", "s4"),  # its RegNets
)
HALF = (torch.float16, torch.bfloat16)
# Operations by their names in autograd's graph, up to ``Backward``; the others leave values as they are.
SIGMOIDS = ("Sigmoid", "LogSigmoid", "Hardsigmoid")
KEEP_VALUES = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Slice", "Select", "Index")


class Classifier(nn.Module):
    """A network that takes images in [0, 1], so that every epsilon is in pixel units.

    Args:
        module: maps normalised images (N, C, H, W) to logits (N, classes), or to a tuple, dict or object that holds them (see
            ``logits_of``). It is put into eval mode and its parameters are frozen, in place.
        mean: means of the channels (C,), for the normalisation, applied inside; None for a module that normalises by itself.
        std: standard deviations of the channels (C,), or None as ``mean``.
        head: dotted name of the final linear layer; by default the last ``nn.Linear`` of the module. Empty for a module whose
            logits do not come from a linear layer.
        layers: dotted names of the modules that layered detectors read, first to last; by default those of the known
            families: ResNet, DenseNet, and in torchvision and timm ViT, Swin, ConvNeXt, RegNet, EfficientNet and MobileNet.
        name: its name in result tables.
        transform: how images of any size become its input, if the network states that; sets are read so by default.
        filter: what is applied to images (N, C, H, W) in [0, 1] before the normalisation, such as a denoiser.
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
        transform: Transform | None = None,
        filter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        self.module = module
        self.name = name or type(module).__name__
        self.transform = transform
        self.filter = filter
        # Buffers stay float64 and are cast to the dtype of the images when used, so that float64 images lose no digits.
        self.register_buffer("mean", None if mean is None else torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1))
        modules = dict(module.named_modules())
        last = next((n for n, m in reversed(modules.items()) if isinstance(m, nn.Linear)), None)
        self._headless = head == ""
        self.head_name = None if self._headless else head or last
        self.layer_names: tuple[str, ...] = tuple(layers) if layers is not None else _known_layers(modules)
        for wanted in (*self.layer_names, *([head] if head else [])):
            if wanted not in modules:
                raise ValueError(f"{self.name} has no module '{wanted}'")
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Classifier":
        """Always stays in eval mode: a benchmark must not change running statistics."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Classifier":
        """What ``to``, ``cuda`` and the like call. Means and standard deviations in float64 go where it is available."""
        with float64_for(fn(torch.zeros(())).device):
            return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), floats in [0, 1], to logits (N, classes)."""
        images = self.normalised(images)
        with around_call.get()(f"one forward pass of {self.name}"):
            return logits_of(self.module(images))

    def normalised(self, images: Tensor) -> Tensor:
        """What the module takes: images (N, C, H, W), floats in [0, 1], filtered, with the normalisation applied."""
        if self.filter is not None:
            images = self.filter(images)
        if self.mean is None or self.std is None:
            return images
        return (images - self.mean.to(images)) / self.std.to(images)  # a device without float64 has them on the CPU

    @property
    def head(self) -> nn.Linear:
        """The final linear layer. Raises Unsuitable if there is none."""
        module = dict(self.module.named_modules()).get(self.head_name) if self.head_name is not None else None
        if not isinstance(module, nn.Linear):
            remedy = "use detectors that read no features" if self._headless else "name one with Classifier(…, head=…)"
            raise Unsuitable(f"{self.name} has no final linear layer; {remedy}")
        return module

    @property
    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """W (classes, features) and b (classes,) of the final linear layer; b is zero if the layer has no bias."""
        head = self.head
        bias = head.bias if head.bias is not None else head.weight.new_zeros(head.out_features)
        return head.weight.detach(), bias.detach()

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters; images are moved to it."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's first parameter of real floats; images are cast to it. Others are complex, or quantised."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def weights_hash(self) -> str:
        """SHA-256 (16 hex digits) of names, dtypes, shapes and bytes of parameters and buffers, including normalisation.

        Plain values and quantised tensors in the state dict count too. Raises Unsuitable for other objects there.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            try:
                for part in _parts(name, value):
                    digest.update(part)
            except (TypeError, RuntimeError) as error:  # tensors without bytes, such as sparse ones
                raise Unsuitable(
                    f"{self.name}: its weights have no hash, because '{name}' in its state dict is not supported"
                    f" ({reason(error)}); keep dense or quantised tensors and plain values there"
                ) from error
        return digest.hexdigest()[:16]

    @property
    def unfiltered_hash(self) -> str:
        """``weights_hash`` of the classifier without its filter."""
        own, self.filter = self.filter, None
        try:
            return self.weights_hash
        finally:
            self.filter = own

    def check(self, images: Tensor) -> None:
        """Check that images (N, C, H, W) give finite logits (N, classes), the same in each forward pass.

        Raises Unsuitable for a network that needs other images or more inputs, whose output is not logits (but probabilities
        or their logarithms, for example), or whose logits change from pass to pass or with the rest of the batch; raises
        BadData for logits that are not finite.
        """
        training = [name for name, module in self.module.named_modules() if module.training]
        if training:
            raise Unsuitable(
                f"{self.name}: '{training[0] or type(self.module).__name__}' stays in training mode after eval();"
                " its train(mode) must apply the mode"
            )
        logits = self._checked_pass(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise Unsuitable(
                f"{self.name} gives {got} for {len(images)} images, not logits ({len(images)}, classes);"
                " wrap it in a module that returns only the logits"
            )
        if not logits.is_floating_point():
            dtype = str(logits.dtype).removeprefix("torch.")
            raise Unsuitable(f"{self.name} gives logits in {dtype}; wrap it in a module that returns real floats")
        if not torch.isfinite(logits).all():
            raise BadData(f"{self.name} gives logits that are not finite; check its weights and normalisation")
        if (given := _probabilities(logits)) is not None:
            raise Unsuitable(f"{self.name} gives {given} for each image, not logits; leave out its last (log-)softmax")
        if self._ends_in_sigmoid(images, logits):
            raise Unsuitable(f"{self.name} ends in a (log-)sigmoid, so it does not give logits; leave out that layer")
        # Rounding may change half the digits; dropout or a dependence on the batch changes more.
        slack = torch.finfo(logits.dtype).eps ** 0.5 * float(logits.abs().max())
        if torch.allclose(self._checked_pass(images[:1]), logits[:1], rtol=0, atol=slack):
            return
        if torch.allclose(self._checked_pass(images), logits, rtol=0, atol=slack):
            raise Unsuitable(
                f"{self.name} gives an image different logits in different batches; make it use running statistics"
                " (BatchNorm: track_running_stats=True), or scales of its own if it is dynamically quantised"
            )
        raise Unsuitable(
            f"{self.name} gives the same images different logits each time; turn off its randomness"
            " (dropout: F.dropout(x, training=self.training))"
        )

    def _ends_in_sigmoid(self, images: Tensor, logits: Tensor) -> bool:
        """Whether the last operation is a sigmoid, in autograd's record: the values alone could be small logits.

        False for a network that autograd does not record.
        """
        if (logits > 0).any() and not ((logits >= 0) & (logits <= 1)).all():  # out of the range of both kinds
            return False
        try:
            with torch.inference_mode(False), torch.enable_grad(), contained():
                leaf = images.to(self.device, self.dtype).clone().requires_grad_()
                last = self(leaf.clone()).grad_fn  # a copy, because a network may change its input in place
        except Exception:  # sound in inference, all the same
            return False
        while last is not None and (operation := last.name().partition("Backward")[0]) in KEEP_VALUES:
            last = last.next_functions[0][0]
        return last is not None and operation in SIGMOIDS

    def _checked_pass(self, images: Tensor) -> Tensor:
        try:
            with torch.inference_mode(), contained():
                return self(images.to(self.device, self.dtype))
        except OodbenchError:
            raise
        except Exception as error:  # third-party forward() may raise anything
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, TypeError) and "argument" in said:
                raise Unsuitable(
                    f"{self.name} needs more inputs than images: {said}; wrap it in a module whose forward(images) adds them"
                ) from error
            if self.dtype in HALF:
                remedy = f"convert it from {str(self.dtype).removeprefix('torch.')} to float32 with module.float()"
            else:
                remedy = "choose another model, or resize with the suite's size"
            said += f" ({place})" if (place := line_of(error)) else ""
            raise Unsuitable(
                f"{self.name} does not take images of shape {tuple(images.shape[1:])}: {said}; {remedy}"
            ) from error


def logits_of(output: Any) -> Any:
    """The logits in what a network gives; what holds none that are sure is given back as it is.

    They are the value of the key or attribute ``logits``, as in outputs of Hugging Face, or the first of a tuple or list whose
    only tensor of two dimensions it is.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(named := getattr(output, "logits", None), Tensor):
        return named
    if isinstance(output, tuple | list):
        flat = [part for part in output if isinstance(part, Tensor) and part.dim() == 2]
        return flat[0] if len(flat) == 1 and flat[0] is output[0] else output
    return output


def _known_layers(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The layers of the first pattern that fits; ``()`` if none does."""

    def each(name: str) -> list[str]:
        if not name.endswith(".*"):
            return [name]
        parent = modules.get(name[:-2])
        parts = [f"{name[:-1]}{child}" for child, _ in parent.named_children()] if parent is not None else []
        return [parts[len(parts) * quarter // 4 - 1] for quarter in (1, 2, 3, 4)] if len(parts) >= 4 else [name]

    patterns = (tuple(one for name in pattern for one in each(name)) for pattern in LAYER_PATTERNS)
    return next((names for names in patterns if all(name in modules for name in names)), ())


def _probabilities(logits: Tensor) -> str | None:
    """What outputs (N, classes) are if they are not logits: probabilities or log-probabilities, up to rounding and scale."""
    outputs, slack = logits.cpu().double(), 16 * torch.finfo(logits.dtype).eps
    if outputs.shape[1] < 2:
        return None

    spread = float((outputs - outputs[:1]).abs().max())

    def common(sums: Tensor, one: float, least: float) -> bool:
        """Whether all sums are ``one``, or the same for outputs that differ by more than ``least`` times rounding."""
        different = logits.dtype not in HALF and spread > least * slack * float(sums.mean().abs())
        of = sums.mean() if different else torch.tensor(one).to(sums)
        return bool(((sums - of).abs() <= slack * of.abs().clamp_min(1)).all())

    if (outputs >= 0).all() and common(outputs.sum(1), 1, 0):
        return "probabilities, which have the same sum"
    # Untrained networks may give all images nearly the same logits, with nearly the same sum.
    return "log-probabilities, whose exponentials have the same sum" if common(outputs.logsumexp(1), 0, 10) else None


def _parts(name: str, value: Any) -> Iterator[bytes]:
    """What a value of a state dict adds to a hash. Raises TypeError or RuntimeError for a value that is not supported."""
    if isinstance(value, Tensor):
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        if value.is_quantized:
            yield from _parts("values", value.int_repr())
            if value.qscheme() == torch.per_tensor_affine:
                yield from _parts("scale", (value.q_scale(), value.q_zero_point()))
            else:
                yield from _parts("scales", (value.q_per_channel_scales(), value.q_per_channel_zero_points()))
        elif value.dim():
            yield value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        else:
            yield repr(value.item()).encode()
    elif isinstance(value, list | tuple):
        yield f"{name} {len(value)}".encode()
        for part in value:
            yield from _parts("", part)
    elif isinstance(value, Mapping):
        yield f"{name} {len(value)}".encode()
        for key, part in sorted(value.items()):
            yield from _parts(str(key), part)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        yield f"{name} {value!r}".encode()
    else:
        raise TypeError(f"it holds an object of {type(value).__module__}.{type(value).__qualname__}")
