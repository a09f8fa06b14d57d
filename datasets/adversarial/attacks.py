"""Attacks: images changed so that a network gets them wrong, made against that very network.

Distances are in pixel units of [0, 1], and so is what comes out. The randomness of an image is a hash of (seed, image,
trial), so a result depends neither on the batch an image comes in nor on the order, the network's own rounding aside.
The attacks do not adapt to a detector: they know the network alone.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.datasets.adversarial import hsv
from oodbench.datasets.corruptions import GOLDEN, mix
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.progress import Progress

BATCH_SIZE = 256
STEP = 2  # a forward pass and one backward to the images alone, in forward passes
OTHER_PASSES = 100  # of an attack of another package, whose cost is not known: a guess for the progress bar
STREAM = 0x61747461636B  # keeps an attack's randomness apart from a corruption's of the same seed


class Network:
    """A classifier as the attacks use it: logits in float64, gradients of the images alone, and a count of its work."""

    def __init__(self, classifier: Classifier, progress: Progress) -> None:
        self._classifier, self._progress = classifier, progress
        self.passes = 0.0  # images that went forward, and STEP times those that came back too

    def logits(self, images: Tensor) -> Tensor:
        """float64 (N, classes), without a graph."""
        with torch.no_grad():
            logits = self._classifier(images).double()
        self._count(len(images))
        return logits

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(logits (N, classes), the gradient (N, C, H, W) of ``loss(logits)`` summed over the batch, each image's own)."""
        leaf = images.detach().requires_grad_()
        # A copy goes in, for a network may work in place. From the logits on float64: a sure network's softmax is 1.
        logits = self._classifier(leaf.clone()).double()
        if not logits.requires_grad:
            raise Unsuitable(f"{self._classifier.name} lets no gradient through to its images; attack another network")
        (gradient,) = torch.autograd.grad(loss(logits).sum(), leaf)
        if not torch.isfinite(gradient).all():  # of what is no number the sign is 0
            raise BadData(f"{self._classifier.name} gives gradients that are not finite; attack another network")
        self._count(STEP * len(images))
        return logits.detach(), gradient

    def count_up_to(self, passes: float) -> None:
        """Where less was needed than was announced."""
        self._count(max(0.0, passes - self.passes))

    def _count(self, passes: float) -> None:
        self.passes += passes
        self._progress.advance(passes)


def fgsm(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float) -> Tensor:
    """One step of ``eps`` along the sign of the gradient (Goodfellow, Shlens & Szegedy, ICLR 2015)."""
    return _signed_steps(network, images, images, labels, eps, eps, 1)


def bim(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """Small steps within the ball of ``eps`` around the image (Kurakin, Goodfellow & Bengio 2016, arXiv 1607.02533)."""
    return _signed_steps(network, images, images, labels, eps, step, steps)


def pgd(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """BIM from a random place in the ball (Madry et al., ICLR 2018)."""
    start = images + eps * (2 * uniform(keys, images.shape[1:]) - 1).to(images.dtype)
    return _signed_steps(network, images, start.clamp(0, 1), labels, eps, step, steps)


def iterll(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """BIM towards the class that is least likely of the clean image (Kurakin, Goodfellow & Bengio 2016, arXiv 1607.02533)."""
    return _signed_steps(network, images, images, network.logits(images).argmin(1), eps, -step, steps)


def _signed_steps(
    network: Network, images: Tensor, start: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """Up the cross-entropy of the labels (down, where ``step`` is negative), within eps of the images and within [0, 1]."""
    attacked = start
    for _ in range(steps):
        _, gradient = network.gradient(attacked, lambda logits: F.cross_entropy(logits, labels, reduction="none"))
        attacked = attacked + step * gradient.sign()
        attacked = torch.minimum(torch.maximum(attacked, images - eps), images + eps).clamp(0, 1)
    return attacked


def cw(
    network: Network,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    *,
    weight: float,
    lr: float,
    kappa: float,
    steps: int,
) -> Tensor:
    """The nearest wrong image in L2 that Adam comes by (Carlini & Wagner, IEEE S&P 2017), in pixels, projected to [0, 1].

    Minimises squared L2 + weight · max(margin, −kappa), margin = logit of the label − largest other logit. Each image gets
    its best iterate: the nearest that is misclassified by ``kappa`` or more; without any, it stays as it was.
    """
    attacked = images.clone()
    adam = torch.optim.Adam([attacked], lr=lr)
    best, nearest = images, torch.full((len(images),), torch.inf, device=images.device, dtype=images.dtype)
    for _ in range(steps):
        logits, gradient = network.gradient(attacked, lambda z: weight * margin(z, labels).clamp(min=-kappa))
        distance = (attacked - images).square().flatten(1).sum(1)
        better = (margin(logits, labels) <= -kappa) & (logits.argmax(1) != labels) & (distance < nearest)
        best = torch.where(better.view(-1, 1, 1, 1), attacked, best)
        nearest = torch.where(better, distance, nearest)
        attacked.grad = gradient + 2 * (attacked - images)
        adam.step()
        attacked.clamp_(0, 1)
    return best


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,): the logit of the label less the largest other, negative where the label does not win."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def semantic(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, reading: str, trials: int) -> Tensor:
    """The negative image 1 − x, or hue and saturation shifted at random until the network errs.

    ``negative``: Hosseini et al. 2017, arXiv 1703.06857. ``hsv``: Hosseini & Poovendran 2018, arXiv 1804.00499: in trial
    i = 0, 1, …, trials − 1 hue + U(0, 1) modulo 1 and saturation + U(−1, 1)·i/trials clipped to [0, 1]; an image that is
    wrong from the start, and one that no trial fools, stays as it was.
    """
    if reading == "negative":
        return 1 - images
    if images.shape[1] != 3:
        raise Unsuitable(f"semantic with reading='hsv' shifts the hue of RGB images, not of {images.shape[1]} channels")
    attacked = images.clone()
    left = (network.logits(images).argmax(1) == labels).nonzero()[:, 0]  # rows not yet fooled
    hue, saturation, value = hsv.from_rgb(images).unbind(1)
    draws = uniform(keys, (trials, 2)).to(images.dtype)  # (N, trials, 2)
    for trial in range(trials):
        if len(left) == 0:
            break
        shift = draws[left, trial, :, None, None]  # (n, 2, 1, 1)
        turned = (hue[left] + shift[:, 0]) % 1
        faded = (saturation[left] + (2 * shift[:, 1] - 1) * trial / trials).clamp(0, 1)
        tried = hsv.to_rgb(torch.stack([turned, faded, value[left]], 1))
        fooled = network.logits(tried).argmax(1) != labels[left]
        attacked[left[fooled]] = tried[fooled]
        left = left[~fooled]
    return attacked


class Attack(NamedTuple):
    """run: ``(network, images, labels, keys, **settings) -> images`` of one batch; passes: forward passes an image."""

    run: Callable[..., Tensor]
    settings: dict[str, Any]
    passes: Callable[[Mapping[str, Any]], float]


# Each attack with its settings' defaults: Lee et al. 2018 for fgsm, bim and cw, else those that the field's tools share.
ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(fgsm, {"eps": 0.05}, lambda s: STEP),
    "bim": Attack(bim, {"eps": 0.05, "step": 0.01, "steps": 6}, lambda s: STEP * s["steps"]),
    "pgd": Attack(pgd, {"eps": 8 / 255, "step": 2 / 255, "steps": 10}, lambda s: STEP * s["steps"]),
    "iterll": Attack(iterll, {"eps": 8 / 255, "step": 2 / 255, "steps": 10}, lambda s: STEP * s["steps"] + 1),
    "cw": Attack(cw, {"weight": 1.0, "lr": 0.01, "kappa": 0.0, "steps": 100}, lambda s: STEP * s["steps"]),
    "semantic": Attack(
        semantic,
        {"reading": "negative", "trials": 1000},
        lambda s: 0 if s["reading"] == "negative" else 1 + s["trials"] / 3,  # what not all images need
    ),
}
# Other defaults by the setting ``preset``. Lee et al. run C&W in normalised space: in pixels, at CIFAR-10's standard
# deviation of 0.2, lr shrinks by 0.2 and the weight by 0.2².
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"cw": {"lee": {"weight": 0.04, "lr": 0.002}}}
READINGS = ("negative", "hsv")


def attack(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    **settings: Any,
) -> Tensor:
    """Images changed so that the classifier gets them wrong.

    Args:
        classifier: the network attacked, on its device and in its dtype; it stays frozen and in eval mode.
        images: floats in [0, 1], (N, C, H, W).
        labels: int64 (N,), what each image shows.
        name: one of ``ATTACKS``, or ``foolbox:CLASS`` or ``art:CLASS`` where those packages are installed.
        seed, index: with what each image is known by, int64 (N,), the seed decides its randomness. By default the index
            is 0, 1, …, N − 1.
        progress: is told of the work done, in images forward.
        settings: ``eps``, ``step``, … of this attack; see ``ATTACKS`` for names and defaults, in pixel units.

    Returns: floats in [0, 1], (N, C, H, W), in the dtype and on the device of the images.

    Raises UsageError for an unknown name or setting and for a setting out of its range, BadData for images or labels that
    do not fit, Unsuitable for a network that takes no such images or lets no gradient through.
    """
    how = settings_of(name, settings)
    _check(name, images, labels, index, batch_size)
    if len(images) == 0:
        return images.clone()
    index = torch.arange(len(images)) if index is None else index.to(torch.int64)
    with torch.inference_mode(False), torch.enable_grad():
        attacked = torch.empty_like(images)
        classifier.check(images[:1])
        with torch.no_grad():
            classes = classifier(images[:1].to(classifier.device, classifier.dtype)).shape[1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise BadData(
                f"{name}: labels from {int(labels.min())} to {int(labels.max())}, and {classifier.name} has classes 0 to"
                f" {classes - 1}; attack images of the set that it was trained on"
            )
        network = Network(classifier, progress or Progress())
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            here = images[rows].detach().to(classifier.device, classifier.dtype).clone()
            result = _run(
                name, network, classifier, here, labels[rows].clone().to(here.device, torch.int64), index[rows], seed, how
            )
            if not torch.isfinite(result).all():
                raise BadData(f"{name} against {classifier.name} gives images that are not finite; choose other settings")
            attacked[rows] = result.clamp(0, 1).to(images.device, images.dtype)
            network.count_up_to(passes(name, how) * (start + len(here)))
    return attacked


def _run(
    name: str,
    network: Network,
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    seed: int,
    how: dict[str, Any],
) -> Tensor:
    if name in ATTACKS:
        return ATTACKS[name].run(network, images, labels, keys_of(seed, index.to(images.device)), **how)
    from oodbench.datasets.adversarial import library_attacks

    return library_attacks.run(name, classifier, images, labels, seed=int(keys_of(seed, index[:1])) % 2**32, settings=how)


def passes(name: str, settings: Mapping[str, Any]) -> float:
    """About how many forward passes an image this attack takes, with the settings that ``settings_of`` gives."""
    return ATTACKS[name].passes(settings) if name in ATTACKS else OTHER_PASSES


def require(name: str) -> None:
    """Raise UsageError for a name that is no attack, or one of a package that is not installed."""
    if name in ATTACKS:
        return
    from oodbench.datasets.adversarial import library_attacks

    if not library_attacks.takes(name):
        listing = f"known: {', '.join(ATTACKS)}, foolbox:CLASS, art:CLASS"
        raise UsageError(registry.unknown("attack", name, ATTACKS, listing))
    library_attacks.require(name)


def settings_of(name: str, given: Mapping[str, Any], beside: Sequence[str] = ()) -> dict[str, Any]:
    """All settings of an attack: those given, and the defaults of the others. ``beside`` are names for messages alone.

    Raises UsageError for an unknown attack or setting, and for a value out of its range.
    """
    require(name)
    if name not in ATTACKS:
        from oodbench.datasets.adversarial import library_attacks

        return library_attacks.settings_of(name, given)
    defaults, given = dict(ATTACKS[name].settings), dict(given)
    presets = PRESETS.get(name, {})
    known = [*defaults, *(["preset"] if presets else [])]
    for setting in given:
        if setting not in known:
            listing = [*known, *beside]
            raise UsageError(registry.unknown(f"setting of {name}", setting, listing, f"it has: {', '.join(listing)}"))
    preset = given.pop("preset", None)
    if preset is not None:
        if preset not in presets:
            raise UsageError(registry.unknown(f"preset of {name}", str(preset), presets, f"known: {', '.join(presets)}"))
        defaults |= presets[preset]
    return defaults | {setting: _checked(name, setting, value, defaults[setting]) for setting, value in given.items()}


# setting: (what holds, what to give)
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "eps": (lambda v: 0 <= v <= 1, "a number from 0 to 1: it is in pixel units, 8/255 = 0.0314"),
    "step": (lambda v: 0 < v <= 1, "a number above 0 and up to 1: it is in pixel units, 2/255 = 0.0078"),
    "weight": (lambda v: v > 0, "a number above 0"),
    "lr": (lambda v: v > 0, "a number above 0"),
    "kappa": (lambda v: v >= 0, "a number of at least 0"),
    "steps": (lambda v: v >= 1, "a whole number of at least 1"),
    "trials": (lambda v: v >= 1, "a whole number of at least 1"),
}


def _checked(name: str, setting: str, value: Any, default: Any) -> Any:
    """The value in the type of the default."""
    if isinstance(default, str):
        if value not in READINGS:
            raise UsageError(registry.unknown(f"{setting} of {name}", str(value), READINGS, f"known: {', '.join(READINGS)}"))
        return value
    holds, wanted = RANGES[setting]
    number = numbers.Integral if isinstance(default, int) else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(float(value)) or not holds(float(value)):
        raise UsageError(f"{setting} of {name} is {value!r}; give {wanted}")
    return type(default)(value)


def _check(name: str, images: Tensor, labels: Tensor, index: Tensor | None, batch_size: int) -> None:
    """Raise for what is no batch of images in [0, 1] with a label each."""
    if images.dim() != 4 or not images.is_floating_point():
        remedy = "divide them by 255" if images.dtype == torch.uint8 else "convert them first"
        raise BadData(f"{name} takes float images (N, C, H, W), not {images.dtype} {tuple(images.shape)}; {remedy}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise BadData(f"{name} takes images in [0, 1], and these go from {float(images.min()):g} to {float(images.max()):g}")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise BadData(f"{name}: {len(images)} images, and labels {labels.dtype} {tuple(labels.shape)}; give int64 (N,)")
    if index is not None and index.shape != (len(images),):
        raise BadData(f"{name}: {len(images)} images, and an index of shape {tuple(index.shape)}; give one number an image")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; give a number of images of at least 1")


def keys_of(seed: int, index: Tensor, stream: int = STREAM) -> Tensor:
    """int64 (N,): where the random numbers of each image start, apart from those of other streams."""
    return mix(mix(mix(torch.tensor(seed, device=index.device)) + stream) + index * GOLDEN)


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """float64 (N, *shape) in [0, 1), independent: the stream of each key (N,)."""
    place = torch.arange(1, math.prod(shape) + 1, device=keys.device)
    bits = (mix(keys[:, None] + place * GOLDEN) >> 11) & (2**53 - 1)  # (N, P)
    return (bits.double() / 2**53).view(-1, *shape)
