"""Attacks: images changed so that a network misclassifies them, made against this very network.

Distances are in pixel units, and all images are in [0, 1]. The randomness of an image is a hash of (seed, image, trial), so a
result does not depend on the batch or the order, apart from the network's own rounding. The attacks know the network only:
they do not adapt to a detector.
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
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.models.exact import exact
from oodbench.progress import Progress
from oodbench.random_numbers import GOLDEN, mix, uniform

BATCH_SIZE = 256
STEP = 2  # cost, in forward passes, of one forward pass and one backward pass to the images only
OTHER_PASSES = 100  # of a library attack, whose cost is unknown: a guess for the progress bar
ROUNDING = 1e-6  # how far outside [0, 1] a pixel may be
STREAM = 0x61747461636B  # separates the randomness of attacks from that of corruptions with the same seed


class Network:
    """A classifier for attacks: logits in float64, gradients with respect to the images only, and a count of passes."""

    def __init__(self, classifier: Classifier, progress: Progress) -> None:
        self._classifier, self._progress = classifier, progress
        self.passes = 0.0  # number of images forward, plus STEP times the number forward and backward

    def logits(self, images: Tensor) -> Tensor:
        """Return logits, float64 (N, classes), without a graph."""
        with torch.no_grad():
            logits = self._classifier(images).double()
        self._count(len(images))
        return logits

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (N, classes), and the gradient (N, C, H, W) of the summed ``loss(logits)``: each image's own."""
        leaf = images.detach().requires_grad_()
        # Pass a copy, because a network may work in place. Use float64, because a confident network's softmax rounds to 1.
        logits = self._classifier(leaf.clone()).double()
        if not logits.requires_grad:
            raise Unsuitable(f"{self._classifier.name} passes no gradient to its images; attack another network")
        (gradient,) = torch.autograd.grad(loss(logits).sum(), leaf)
        if not torch.isfinite(gradient).all():  # the sign of NaN is 0
            raise BadData(f"{self._classifier.name} gives gradients that are not finite; attack another network")
        self._count(STEP * len(images))
        return logits.detach(), gradient

    def count_up_to(self, passes: float) -> None:
        """Count up to the announced number of passes, if fewer were needed."""
        self._count(max(0.0, passes - self.passes))

    def _count(self, passes: float) -> None:
        self.passes += passes
        self._progress.advance(passes)


def fgsm(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float) -> Tensor:
    """Take one step of ``eps`` along the sign of the gradient (Goodfellow, Shlens & Szegedy, ICLR 2015)."""
    return _signed_steps(network, images, images, labels, eps, eps, 1)


def bim(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """Take small steps within the ball of ``eps`` around the image (Kurakin, Goodfellow & Bengio 2016, arXiv 1607.02533)."""
    return _signed_steps(network, images, images, labels, eps, step, steps)


def pgd(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """Run BIM from a random point in the ball (Madry et al., ICLR 2018)."""
    start = images + eps * (2 * uniform(keys, images.shape[1:]) - 1).to(images)
    return _signed_steps(network, images, start.clamp(0, 1), labels, eps, step, steps)


def iterll(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """Run BIM towards the class that is least likely for the clean image (Kurakin et al. 2016, arXiv 1607.02533)."""
    return _signed_steps(network, images, images, network.logits(images).argmin(1), eps, -step, steps)


def _signed_steps(
    network: Network, images: Tensor, start: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """Ascend the cross-entropy of the labels (descend if ``step`` is negative), within eps of the images and within [0, 1]."""
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
    """Search with Adam for the nearest misclassified image in L2, in pixels, projected to [0, 1] (Carlini & Wagner, S&P 2017).

    Minimises squared L2 + weight · max(margin, −kappa), margin = logit of the label − largest other logit. Each image becomes
    its nearest iterate that is misclassified by ``kappa`` or more; without any, it stays unchanged.
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
    """Return the logit of the label minus the largest other logit, (N,): negative where the label is not the prediction."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.amax(1)


def semantic(network: Network, images: Tensor, labels: Tensor, keys: Tensor, *, reading: str, trials: int) -> Tensor:
    """Return the negative image 1 − x, or shift hue and saturation at random until the network errs.

    ``negative``: Hosseini et al. 2017, arXiv 1703.06857. ``hsv``: Hosseini & Poovendran 2018, arXiv 1804.00499: in trial
    i = 0, 1, …, trials − 1 hue + U(0, 1) modulo 1 and saturation + U(−1, 1)·i/trials clipped to [0, 1]. An image that is
    misclassified from the start, or in no trial, stays unchanged.
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
    """run: ``(network, images, labels, keys, **settings) -> images`` for one batch; passes: forward passes per image."""

    run: Callable[..., Tensor]
    settings: dict[str, Any]
    passes: Callable[[Mapping[str, Any]], float]


# Default settings are those of Lee et al. 2018 for fgsm, bim and cw; the others are common to the field's tools.
ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(fgsm, {"eps": 0.05}, lambda s: STEP),
    "bim": Attack(bim, {"eps": 0.05, "step": 0.01, "steps": 6}, lambda s: STEP * s["steps"]),
    "pgd": Attack(pgd, {"eps": 8 / 255, "step": 2 / 255, "steps": 10}, lambda s: STEP * s["steps"]),
    "iterll": Attack(iterll, {"eps": 8 / 255, "step": 2 / 255, "steps": 10}, lambda s: STEP * s["steps"] + 1),
    "cw": Attack(cw, {"weight": 1.0, "lr": 0.01, "kappa": 0.0, "steps": 100}, lambda s: STEP * s["steps"]),
    "semantic": Attack(
        semantic,
        {"reading": "negative", "trials": 1000},
        lambda s: 0 if s["reading"] == "negative" else 1 + s["trials"] / 3,  # an estimate: not all images need all trials
    ),
}
# Alternative defaults, chosen by the setting ``preset``. Lee et al. run C&W in normalised space. In pixels, at CIFAR-10's
# standard deviation of 0.2, lr shrinks by 0.2 and the weight by 0.2².
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
    """Change images so that the classifier misclassifies them.

    Args:
        classifier: the attacked network, on its device and in its dtype; it stays frozen and in eval mode.
        images: floats in [0, 1], (N, C, H, W); up to 1e-6 outside is rounding, and clipped.
        labels: int64 (N,), the true class of each image.
        name: one of ``ATTACKS``, or ``foolbox:CLASS`` or ``art:CLASS`` if those packages are installed.
        seed: the seed; with ``index`` it determines the randomness of an image.
        index: the identifier of each image, int64 (N,), by default 0, 1, …, N − 1.
        progress: receives the work done, in forward passes of one image.
        settings: ``eps``, ``step``, … of this attack, in pixel units; see ``ATTACKS`` for names and defaults.

    Returns: floats in [0, 1], (N, C, H, W), in the dtype and on the device of the images.

    Raises UsageError for an unknown name or setting and for a value out of range, BadData for unsuitable images or labels,
    Unsuitable for a network that does not accept such images or passes no gradient to them.
    """
    how = settings_of(name, settings)
    _check(name, images, labels, index, batch_size)
    images = images.clamp(0, 1)
    if len(images) == 0:
        return images.clone()
    index = torch.arange(len(images)) if index is None else index.to(torch.int64)
    with torch.inference_mode(False), torch.enable_grad(), exact(classifier.device):
        attacked = torch.empty_like(images)
        classifier.check(images[:1])
        with torch.no_grad():
            classes = classifier(images[:1].to(classifier.device, classifier.dtype)).shape[1]
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise BadData(
                f"{name}: labels go from {int(labels.min())} to {int(labels.max())}, but {classifier.name} has classes 0 to"
                f" {classes - 1}; attack images of the set on which it was trained"
            )
        network = Network(classifier, progress or Progress())
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            here = images[rows].detach().to(classifier.device, classifier.dtype).clone()
            result = _run(
                name, network, classifier, here, labels[rows].clone().to(here.device, torch.int64), index[rows], seed, how
            )
            if not torch.isfinite(result).all():
                raise BadData(f"{name} against {classifier.name} produces images that are not finite; choose other settings")
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
    """Estimate the forward passes per image of this attack, with the settings of ``settings_of``."""
    return ATTACKS[name].passes(settings) if name in ATTACKS else OTHER_PASSES


def require(name: str) -> None:
    """Raise UsageError for an unknown attack, or one of a package that is not installed."""
    if name in ATTACKS:
        return
    from oodbench.datasets.adversarial import library_attacks

    if not library_attacks.takes(name):
        listing = f"known: {', '.join(ATTACKS)}, foolbox:CLASS, art:CLASS"
        raise UsageError(registry.unknown("attack", name, ATTACKS, listing))
    library_attacks.require(name)


def settings_of(name: str, given: Mapping[str, Any], beside: Sequence[str] = ()) -> dict[str, Any]:
    """Return all settings of an attack: the given ones, and defaults for the rest. ``beside``: further names for messages.

    Raises UsageError for an unknown attack or setting, and for a value out of range.
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
            raise UsageError(registry.unknown("setting", setting, listing, f"it has: {', '.join(listing)}", of=name))
    preset = given.pop("preset", None)
    if preset is not None:
        if preset not in presets:
            raise UsageError(registry.unknown("preset", str(preset), presets, f"known: {', '.join(presets)}", of=name))
        defaults |= presets[preset]
    return defaults | {setting: _checked(name, setting, value, defaults[setting]) for setting, value in given.items()}


# setting: (condition, accepted values in words)
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
    """Return the value, converted to the type of the default."""
    if isinstance(default, str):
        if value not in READINGS:
            raise UsageError(registry.unknown(setting, str(value), READINGS, f"known: {', '.join(READINGS)}", of=name))
        return value
    holds, wanted = RANGES[setting]
    number = numbers.Integral if isinstance(default, int) else numbers.Real
    if isinstance(value, bool) or not isinstance(value, number) or not math.isfinite(float(value)) or not holds(float(value)):
        raise UsageError(f"{setting} of {name} is {value!r}; give {wanted}")
    return type(default)(value)


def _check(name: str, images: Tensor, labels: Tensor, index: Tensor | None, batch_size: int) -> None:
    """Raise unless the input is a batch of images in [0, 1] with one label per image."""
    if images.dim() != 4 or not images.is_floating_point():
        remedy = "divide them by 255" if images.dtype == torch.uint8 else "convert them first"
        raise BadData(f"{name} takes float images (N, C, H, W), not {images.dtype} {tuple(images.shape)}; {remedy}")
    if not bool(((images >= -ROUNDING) & (images <= 1 + ROUNDING)).all()):
        raise BadData(f"{name} takes images in [0, 1], but these go from {float(images.min()):g} to {float(images.max()):g}")
    if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise BadData(f"{name}: {len(images)} images, but labels {labels.dtype} {tuple(labels.shape)}; give int64 (N,)")
    if index is not None and index.shape != (len(images),):
        raise BadData(f"{name}: {len(images)} images, but an index of shape {tuple(index.shape)}; give one number per image")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}; give a number of images of at least 1")


def keys_of(seed: int, index: Tensor, stream: int = STREAM) -> Tensor:
    """Return the start of each image's random numbers, int64 (N,), separate per stream."""
    return mix(mix(mix(torch.tensor(seed, device=index.device)) + stream) + index * GOLDEN)
