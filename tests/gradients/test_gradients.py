"""Per-sample gradients against one backward pass an image in float64: every rule, whole networks, and what no rule covers."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn

import oodbench
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.gradients import factors, inner_products, norms_and_products, squared_norms
from oodbench.gradients.losses import confounding, cross_entropy, mse, reconstruction
from oodbench.models.build import build
from oodbench.probe import Probe


def reference(module, images: Tensor, loss) -> dict[str, Tensor]:
    """Each image's own gradients, (N, *shape) by name, by N backward passes of plain autograd."""
    network = module.module if isinstance(module, oodbench.Classifier) else module
    named = dict(network.named_parameters())
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for parameter in named.values():
        parameter.requires_grad_(True)
    for image in images.split(1):
        value = loss(module(image), image).sum()
        for name, gradient in zip(named, torch.autograd.grad(value, list(named.values()), allow_unused=True), strict=True):
            found[name].append(torch.zeros_like(named[name]) if gradient is None else gradient)
    for parameter in named.values():
        parameter.requires_grad_(False)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def assert_exact(module, images: Tensor, loss="ones", uncovered: tuple[str, ...] = ()):
    """Norms and products equal the reference's, and ``torch.func`` is needed for these parameters only."""
    module.eval()
    function = confounding(1.0) if loss == "ones" else loss
    expected = reference(module, images, function)
    random = torch.Generator().manual_seed(3)
    directions = {name: torch.randn(g.shape[1:], generator=random).to(g) for name, g in expected.items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        norms, products = norms_and_products(module, images, directions, loss)
    assert list(norms) == list(expected)
    for name, gradients in expected.items():
        real = (torch.view_as_real(part) if part.is_complex() else part for part in (gradients, directions[name]))
        gradients, direction = (part.reshape(size, -1) for part, size in zip(real, (len(images), 1), strict=True))
        torch.testing.assert_close(norms[name], gradients.square().sum(1), rtol=1e-9, atol=1e-20, msg=name)
        scale = float(gradients.norm(dim=1).max() * direction.norm()) + 1e-20
        product = gradients @ direction[0]
        assert gradients.any() or name == "idle", name
        torch.testing.assert_close(products[name], product, rtol=1e-9, atol=1e-12 * scale, msg=name)
    text = " ".join(str(warning.message) for warning in said if "no rule covers" in str(warning.message))
    assert all(name in text for name in uncovered), text
    assert bool(text) == bool(uncovered), text


class Network(nn.Module):
    """Layers between a convolution that gives them 8 channels of 8x8 and a mean that makes logits of what they give."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.first(images)).tanh().flatten(2).mean(2)


class Tokens(nn.Module):
    """Layers on (N, tokens, channels)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.flatten(2).transpose(1, 2)).tanh().mean(1)


def settled(layer: nn.Module) -> nn.Module:
    """With running statistics and affine parameters that are not those of a fresh layer."""
    with torch.no_grad():
        for tensor in (*layer.parameters(), *(b for n, b in layer.named_buffers() if n.startswith("running"))):
            tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
    return layer


SPATIAL = {
    "conv": nn.Conv2d(8, 6, 3),
    "conv, same size": nn.Conv2d(8, 8, 3, padding=1, bias=False),
    "conv, stride": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "conv, stride larger than kernel": nn.Conv2d(8, 6, 2, stride=3),
    "conv, dilation": nn.Conv2d(8, 6, 3, dilation=2, padding=2),
    "conv, stride and dilation": nn.Conv2d(8, 6, 3, stride=2, dilation=3, padding=3),
    "conv, oblong": nn.Conv2d(8, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)),
    "conv, groups": nn.Conv2d(8, 12, 3, groups=4, padding=1),
    "conv, depthwise": nn.Conv2d(8, 8, 3, groups=8, padding=1, stride=2),
    "conv, depthwise with multiplier": nn.Conv2d(8, 16, 3, groups=8),
    "conv, padding by name": nn.Conv2d(8, 6, 4, padding="same"),
    "conv, circular": nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    "conv, 1x1": nn.Conv2d(8, 6, 1),
    "transposed": nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
    "transposed, output padding": nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, dilation": nn.ConvTranspose2d(8, 6, 3, dilation=2, stride=3, output_padding=2),
    "transposed, groups": nn.ConvTranspose2d(8, 12, 3, groups=4),
    "batch norm": settled(nn.BatchNorm2d(8)),
    "group norm": settled(nn.GroupNorm(4, 8)),
    "layer norm over maps": settled(nn.LayerNorm([8, 8, 8])),
    "layer norm over channels": settled(tv.convnext.LayerNorm2d(8)),
    "linear on rows": nn.Linear(8, 5),
    "in-place activation behind": nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3)),
}


WAYS = [
    (name, way)
    for name in SPATIAL
    for way in ("by cost", *(("product", "gram", "grouped", "patches") if name[:4] in ("conv", "tran") else ()))
]


@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_layers_in_float32(name):
    """As they run: ways that only float32 takes are among them."""
    torch.manual_seed(0)
    network = Network(SPATIAL[name]).double()
    images = torch.rand(4, 3, 8, 8)
    expected = squared_norms(network, images.double())
    for parameter, norms in squared_norms(network.float(), images).items():
        torch.testing.assert_close(norms.double(), expected[parameter], rtol=1e-4, atol=1e-9, msg=parameter)


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_spatial_layers(name, way, monkeypatch):
    if way != "by cost":
        monkeypatch.setattr(factors.Correlation, "_way", way)
        monkeypatch.setattr(factors, "CHUNK_BYTES", 2**12)  # several chunks
    torch.manual_seed(0)
    assert_exact(Network(SPATIAL[name]).double(), torch.rand(4, 3, 8, 8, dtype=torch.float64))


class Overwriting(nn.Module):
    """Changes in place what a layer has read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(2).transpose(1, 2))
        y = self.second(x)
        x.mul_(2)
        return y.mean(1)


def test_an_input_that_is_overwritten_is_never_used():
    with (
        pytest.warns(UserWarning, match="no rule covers second.bias, second.weight"),
        pytest.raises(Unsuitable, match="inplace operation"),
    ):
        squared_norms(Overwriting(), torch.rand(2, 3, 8, 8))


class Embedded(nn.Module):
    """Images as tokens of 7 grey values, with rows that meet and a row that learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding((images[:, 0] * 6.99).long()).tanh().mean((1, 2))


SEQUENTIAL = {
    "linear": Tokens(nn.Linear(3, 5)),
    "linear, more places than channels": Tokens(nn.Linear(3, 4), nn.Linear(4, 5)),
    "linear, fewer places than channels": Tokens(nn.Linear(3, 200), nn.Linear(200, 300)),
    "layer norm": Tokens(nn.Linear(3, 6), settled(nn.LayerNorm(6))),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 4, stride=2, padding=1, dilation=2), nn.Flatten(2)),
    "conv1d, groups": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 3, groups=3), nn.Flatten(2)),
    "batch norm 1d": nn.Sequential(nn.Flatten(), nn.Linear(192, 6), settled(nn.BatchNorm1d(6)), nn.Tanh(), nn.Linear(6, 3)),
    "embedding": Embedded(),
}


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_layers_on_sequences(name):
    loss = mse(0.5) if "conv1d" in name else "ones"
    assert_exact(SEQUENTIAL[name].double(), torch.rand(4, 3, 8, 8, dtype=torch.float64), loss)


class Bare(nn.Module):
    """Parameters of no layer: in front of tokens, on top of them, and as scales."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.position = nn.Parameter(torch.randn(1, 65, 3))
        self.scale = nn.Parameter(torch.randn(3))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.linear = nn.Linear(3, 4)
        self.idle = nn.Parameter(torch.randn(5))

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1) + self.position
        tokens *= self.scale
        return self.linear(tokens.tanh()).tanh().mean(1) / self.temperature


def test_bare_parameters():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    # What the network never uses is tried too: autograd says that its gradient is zero.
    assert_exact(Bare().double(), images)
    assert (squared_norms(Bare().double(), images)["idle"] == 0).all()


class Scales(nn.Module):
    """Parameters without dimensions: under a function, against a buffer, expanded, and against the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.logarithm, self.factor, self.offset, self.gain = (nn.Parameter(torch.tensor(v)) for v in (0.5, 1.5, 0.3, 2.0))
        self.register_buffer("unit", torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.mean((2, 3))).tanh() * self.logarithm.exp() * self.gain
        return (logits * (self.factor * self.unit) + self.offset.expand(()).sin()).tanh()


def test_parameters_without_dimensions():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 2, 2, dtype=torch.float64)
    assert_exact(Scales().double(), images)


class Attention(nn.Module):
    """Attention with packed weights on 16 patches of an image."""

    def __init__(self, first: bool = True, calls: str = "itself", **options) -> None:
        super().__init__()
        self.first, self.calls, self.options = first, calls, options
        self.patches = nn.Conv2d(3, 6, 2, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=first, bias=calls != "no bias")

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x if self.first else x.transpose(0, 1)
        own, weights = self.attention(x, x * 2 if self.calls == "others" else x, x, **self.options)
        own = own if self.first else own.transpose(0, 1)
        return own.tanh().mean(1) if weights is None else torch.cat([own.tanh().mean(1), weights.square().flatten(1)], 1)


@pytest.mark.parametrize(
    ("network", "slow"),
    [
        (Attention(), ()),
        (Attention(need_weights=False), ()),
        (Attention(average_attn_weights=False), ()),
        (Attention(calls="no bias"), ()),
        (Attention(first=False), ()),
        (Attention(calls="others"), ("attention.in_proj_weight", "attention.in_proj_bias")),
        (Attention(need_weights=False, attn_mask=torch.eye(16, dtype=torch.bool)), ("attention.in_proj_weight",)),
        (nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), ()),
    ],
    ids=["weights", "no weights", "weights of heads", "no bias", "tokens first", "not to itself", "mask", "encoder layer"],
)
def test_attention_with_packed_weights(network, slow):
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    network = network.double().eval()
    if isinstance(network, nn.Sequential):
        network.append(nn.Flatten())
    assert_exact(network, images, uncovered=slow)


class FromParameters(nn.Module):
    """Tensors that are computed from parameters alone, and how they meet the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(3, 4), nn.Linear(4, 4)
        self.first, self.second = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))  # of a bias
        self.table = nn.Parameter(torch.randn(5, 1))  # entries by distance, some of them several times
        self.rows = nn.Parameter(torch.randn(1, 3, 4))  # meets four constant rows first
        self.scale, self.counted = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(1.3))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("index", torch.tensor([[0, 1, 2], [3, 0, 1], [4, 3, 0]]))
        self.register_buffer("constants", torch.arange(48.0).view(4, 3, 4) / 48)
        self.register_buffer("cells", torch.zeros(3))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.flatten(2)[:, :, :3].transpose(1, 2))  # (N, 3, 4)
        bias = torch.cat([self.first, torch.zeros_like(self.second), self.second])[[0, 1, 4, 5]]
        x = F.linear(x.tanh(), self.body.weight, bias) + self.body.bias.sin()
        mask = (self.table[self.index.view(-1)].view(1, 1, 3, 3) + self.cells).contiguous()
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=mask)[:, 0]
        x = x + (self.rows * self.constants).mean(0)
        gain = self.scale.exp().clone()
        gain.mul_(2)
        return (F.linear(x, self.weight.square()) * gain).mean(1).tanh() * float(self.counted.detach().numpy())


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_what_is_made_from_parameters_alone(size):
    torch.manual_seed(0)
    network = FromParameters().double()
    images = torch.rand(size, 3, 8, 8, dtype=torch.float64)
    expected = reference(network.eval(), images, confounding(1.0))
    with pytest.warns(UserWarning, match="no rule covers weight of FromParameters: "):
        found = squared_norms(network, images)
    for name, gradients in expected.items():
        torch.testing.assert_close(found[name], gradients.flatten(1).square().sum(1) if gradients.dim() > 1 else gradients**2)


class Complex(nn.Module):
    """Complex parameters: a filter of frequencies, a layer with a rule, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 2, 2, dtype=torch.cdouble))
        self.mixed = nn.Linear(12, 6, dtype=torch.cdouble)
        self.phase = nn.Parameter(torch.tensor(0.3 + 0.4j, dtype=torch.cdouble))
        self.linear = nn.Linear(6, 5, dtype=torch.double)

    def forward(self, images: Tensor) -> Tensor:
        spectrum = (torch.fft.rfft2(images) * self.filter).flatten(1)
        return self.linear((self.mixed(spectrum) * self.phase).abs())


def test_complex_parameters():
    torch.manual_seed(0)
    images, network = torch.rand(4, 3, 2, 2, dtype=torch.float64), Complex()
    assert_exact(network, images, cross_entropy(), uncovered=("mixed.weight", "mixed.bias"))
    single = copy.deepcopy(network)._apply(lambda tensor: tensor.to(torch.cfloat if tensor.is_complex() else torch.float32))
    expected = squared_norms(network, images, "cross-entropy")
    for name, found in squared_norms(single, images.float(), "cross-entropy").items():
        assert found.dtype == torch.float32
        assert (found >= 0).all()
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-3, atol=1e-9)


class Shared(nn.Module):
    """One layer used twice, one weight in two layers, one used by hand, one derived, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.tied.weight
        self.by_hand = nn.Linear(3, 3)
        self.derived = nn.Parameter(torch.randn(3, 3))
        self.tokens_first = nn.Linear(3, 3)
        self.plain = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).transpose(1, 2)
        x = self.twice(self.twice(x).tanh()).tanh()
        x = self.other(self.tied(x).tanh()).tanh()
        x = x @ self.by_hand.weight + self.by_hand.bias
        x = F.linear(x, self.derived.exp())
        x = self.tokens_first(x.transpose(0, 1).contiguous()).tanh().transpose(0, 1)
        return self.plain(x.mean(1))


def test_what_no_rule_covers_goes_through_torch_func():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    network = Shared().double()
    assert_exact(network, images, uncovered=("by_hand.weight",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        squared_norms(network, images)
    # And where the number of tokens is that of images.
    assert_exact(network, torch.rand(64, 3, 8, 8, dtype=torch.float64), uncovered=())


class By(nn.Module):
    """A network that is one function of itself and its images, with these parts."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)


def tokens_first(branch):
    """Six tokens before the batch, and a branch beside a linear embedding."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x.reshape(len(x), 6, 32)).transpose(0, 1)
        return self.head((x + branch(self, self.side(x).tanh())).mean(0))

    return forward


def routed(self, x: Tensor) -> Tensor:
    """Each image through one of two experts; none of noise through the second."""
    x = x.flatten(1)
    bright = x.mean(1) > 0.9
    made = x.new_zeros(len(x), 4)
    made[~bright], made[bright] = self.first(x[~bright]), self.second(x[bright])
    return made


def last_state(self, x: Tensor) -> Tensor:
    return self.head(self.lstm(x.flatten(2).transpose(1, 2))[0][:, -1])


EMBEDDING = {"embedding": nn.Linear(32, 8), "side": nn.Linear(8, 8), "head": nn.Linear(8, 4)}
ODD = {
    "one layer in two places": (lambda layer: nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer))(nn.Linear(192, 192)),
    "nothing covered": By(lambda self, x: x.flatten(1) @ self.weight, weight=torch.randn(192, 4)),
    "weight norm": nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(192, 4))),
    "by keyword": By(
        lambda self, x: torch.add(self.linear(x.flatten(1)), other=self.bare), linear=nn.Linear(192, 4), bare=torch.randn(4)
    ),
    "without gradient": By(
        lambda self, x: self.head(torch.no_grad()(self.stem)(x.flatten(1)).tanh()), stem=nn.Linear(192, 8), head=nn.Linear(8, 4)
    ),
    "LSTM": By(last_state, lstm=nn.LSTM(3, 5, batch_first=True), head=nn.Linear(5, 4)),
    "experts": By(routed, first=nn.Linear(192, 4), second=nn.Linear(192, 4)),
    # Beside the others' norms theirs is next to nothing, and all the same it must be right.
    "tokens first behind a small scale": By(tokens_first(lambda self, y: y * 1e-6), **EMBEDDING),
    # Random images never reach it, so trying the network tells nothing of it.
    "tokens first in a branch for bright images": By(
        tokens_first(lambda self, y: y * (self.embedding.bias.sum() * 0 + self.seen)), **EMBEDDING
    ),
    "scripted": torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize("name", ODD)
def test_odd_networks(name, size):
    network = ODD[name].double().eval()
    images = torch.rand(size, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    if "bright" in name:
        network.seen = 0.0
        squared_norms(network, images)
        network.seen = 1.0
    if name == "experts":
        images[0] = 1
    before = [id(parameter) for part in network.modules() for parameter in part.parameters(recurse=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = squared_norms(network, images)
    assert before == [id(parameter) for part in network.modules() for parameter in part.parameters(recurse=False)]
    for parameter, gradients in reference(network, images, confounding(1.0)).items():
        expected = gradients.reshape(size, -1).square().sum(1)
        torch.testing.assert_close(found[parameter], expected, rtol=1e-9, atol=0, msg=parameter)


def test_a_network_that_no_gradient_can_be_had_of_is_refused():
    network = By(
        lambda self, x: self.head(torch.from_numpy(self.stem(x.flatten(1)).numpy())),
        stem=nn.Linear(192, 8),
        head=nn.Linear(8, 4),
    )
    with (
        pytest.warns(UserWarning, match="no rule covers"),
        pytest.raises(Unsuitable, match="cannot compute parameter gradients of By"),
    ):
        squared_norms(network, torch.rand(2, 3, 8, 8))


def test_trying_a_network_changes_no_buffer():
    def forward(self, x: Tensor) -> Tensor:
        self.norm.num_batches_tracked += 1
        return self.norm(x).mean((2, 3))

    network = By(forward, norm=nn.BatchNorm2d(3).eval())
    squared_norms(network, torch.rand(2, 3, 8, 8))
    assert network.norm.num_batches_tracked == 1


def small_vit():
    return tv.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def small_convnext():
    settings = [tv.convnext.CNBlockConfig(16, 24, 2), tv.convnext.CNBlockConfig(24, None, 2)]
    return tv.convnext.ConvNeXt(settings, num_classes=10)


def of_timm(name: str, **options):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, **options)


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}

NETWORKS = {
    "ResNet-18": (lambda: build("resnet18", 10).module, 32, ()),
    "ResNet-20": (lambda: build("resnet20-cifar10", 10).module, 32, ()),
    "DenseNet-BC": (lambda: build("densenet-bc-100-12", 10).module, 32, ()),
    "MobileNetV3": (lambda: tv.mobilenet_v3_small(num_classes=10), 64, ()),
    "ConvNeXt": (small_convnext, 64, ()),
    "ViT": (small_vit, 32, ()),
    "Swin": (lambda: tv.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=10), 32, ()),
    "timm's ViT with registers and scales": (lambda: of_timm("vit_small_patch14_reg4_dinov2", **VIT), 32, ()),
    "timm's distilled ViT": (lambda: of_timm("deit_tiny_distilled_patch16_224", **VIT), 32, ()),
    "timm's BEiT": (lambda: of_timm("beit_base_patch16_224", **VIT), 32, ()),
    "timm's Swin": (lambda: of_timm("swin_tiny_patch4_window7_224", **SWIN), 32, ()),
    "timm's Swin V2": (lambda: of_timm("swinv2_tiny_window8_256", **SWIN), 32, ()),
    "timm's ConvNeXt": (lambda: of_timm("convnext_atto", dims=(8, 8, 8, 12), depths=(1, 1, 1, 1)), 32, ()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name):
    make, size, uncovered = NETWORKS[name]
    torch.manual_seed(0)
    network = make().double()
    for parameter in network.parameters():  # a fresh ViT's head is zero, and so were all gradients behind it
        parameter.data += 0.05 * torch.randn_like(parameter)
    assert_exact(network, torch.rand(2, 3, size, size, dtype=torch.float64), uncovered=uncovered)


@pytest.mark.parametrize(
    "loss",
    [
        confounding(torch.tensor([1.0, 0.0, 1.0, 0.5])),
        cross_entropy(2),
        cross_entropy(torch.tensor([0, 1, 2, 3, 0])),
        cross_entropy(),
        mse(3.0),
        lambda logits, images: logits.exp().sum(1) * images.mean((1, 2, 3)),
    ],
)
def test_losses(make_classifier, loss):
    classifier = make_classifier(dtype=torch.float64)
    images = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    expected = reference(classifier, images, lambda logits, image: loss(classifier(images), images)[found(image, images)])
    for name, norms in squared_norms(classifier, images, loss).items():
        torch.testing.assert_close(norms, expected[name].flatten(1).square().sum(1), rtol=1e-9, atol=1e-18, msg=name)


def found(image: Tensor, images: Tensor) -> Tensor:
    """Which of the images it is: a loss may have a target of its own for each."""
    return (images == image).flatten(1).all(1)


def test_a_reconstruction_is_a_loss_of_outputs_and_images():
    torch.manual_seed(0)
    coder = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid()).double()
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    expected = reference(coder, images, reconstruction)["2.weight"].flatten(1).square().sum(1)
    found = squared_norms(coder, images, "reconstruction", parameters=["2.weight"])
    assert list(found) == ["2.weight"]
    torch.testing.assert_close(found["2.weight"], expected, rtol=1e-9, atol=0)


def test_a_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)).train()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        first = squared_norms(network, torch.rand(4, 3, 8, 8) * 0 + images)
    second = squared_norms(network, images)
    assert all(torch.equal(first[name], second[name]) for name in first)  # no dropout
    assert all(module.training for module in network.modules())
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_dtype_and_names_are_the_networks(classifier):
    images = torch.rand(4, 3, 8, 8)
    found = squared_norms(classifier, images)
    assert list(found) == [name for name, _ in classifier.module.named_parameters()]
    assert all(norms.shape == (4,) and norms.dtype == torch.float32 for norms in found.values())
    directions = {"linear.weight": classifier.module.linear.weight}
    assert list(inner_products(classifier, images, directions)) == ["linear.weight"]


def test_bad_input_is_named(classifier):
    images = torch.rand(4, 3, 8, 8)
    with pytest.raises(UsageError, match=r"unknown loss 'one'; did you mean 'ones'\?"):
        squared_norms(classifier, images, "one")
    with pytest.raises(UsageError, match=r"unknown parameter 'linear.wait'; did you mean 'linear.weight'\?"):
        squared_norms(classifier, images, parameters=["linear.wait"])
    with pytest.raises(UsageError, match=r"no parameter 'linear.bias' of shape \(3,\)"):
        inner_products(classifier, images, {"linear.bias": torch.ones(3)})
    mixing = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(Unsuitable, match="normalises images by their batch"):
        squared_norms(mixing, images)


def test_the_probe_gives_them_beside_everything_else(make_classifier):
    classifier = make_classifier(dtype=torch.float64)
    images = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    expected = torch.stack(list(squared_norms(classifier, images).values()), 1)
    passes = []
    classifier.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    probe = Probe(classifier, images)
    with probe.mode():
        step = probe.input_gradient(lambda p: p.logits.sum(1))
        torch.testing.assert_close(probe.gradient_norms(), expected)
        assert torch.equal(probe.gradient_norms("ones"), probe.gradient_norms())
        other = probe.gradient_norms(confounding(0.0), key="none")
        assert not torch.allclose(other, expected)
        assert step.abs().sum() > 0
    assert passes == [5]  # one pass for all, and the network was tried before
    alone = Probe(classifier, images[:1], {"gradient_norms"})
    torch.testing.assert_close(alone.gradient_norms(), expected[:1])
    with pytest.raises(BadData, match="'gradient_norms' without declaring it"):
        Probe(classifier, images, {"logits"}).gradient_norms()
