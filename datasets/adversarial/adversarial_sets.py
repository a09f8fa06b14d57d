"""Data sets under an attack: computed or read from the cache, rounded, described, and filtered as in the papers."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oodbench.batching import require_finite_logits
from oodbench.classifier import Classifier
from oodbench.datasets.adversarial import attacks
from oodbench.datasets.adversarial.attack_cache import AttackCache, key_of
from oodbench.errors import Unsuitable, UsageError
from oodbench.image_set import ImageSet
from oodbench.progress import Progress
from oodbench.random_numbers import standard_normal
from oodbench.results.facts import AttackRecord

# Standard deviation of the noisy twins by attack, in pixel units. For fgsm, bim and cw it is that of Lee et al. 2018 for
# ResNets, 0.0625, 0.065 and 0.025 in normalised space, times 0.201, the mean deviation of their CIFAR-10; others use bim's.
NOISE_STD = {"fgsm": 0.0126, "bim": 0.0131, "cw": 0.0050}
OTHER_NOISE_STD = 0.0131
NOISE_STREAM = 0x6E6F697365


class Options(NamedTuple):
    """How attacked images become a data set.

    rounded: round to 8 bits, as for any stored image. filtered: keep only images that the network classifies correctly when
    clean and when noisy, and wrongly when attacked (Lee et al., NeurIPS 2018). noise_std: standard deviation of that noise,
    in pixel units.
    """

    rounded: bool = True
    filtered: bool = False
    noise_std: float = OTHER_NOISE_STD


def resolve(name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
    """Return all settings of the attack, and the options of the set. Raises UsageError for an unknown or invalid setting."""
    own = {key: value for key, value in settings.items() if key in Options._fields}
    rest = {key: value for key, value in settings.items() if key not in own}
    how = attacks.settings_of(name, rest, Options._fields)
    for flag in ("rounded", "filtered"):
        if not isinstance(own.get(flag, True), bool):
            raise UsageError(f"{flag} of {name} is {own[flag]!r}; give true or false")
    std = own.get("noise_std", NOISE_STD.get(name, OTHER_NOISE_STD))
    if isinstance(std, bool) or not isinstance(std, numbers.Real) or not 0 < float(std) <= 1:
        raise UsageError(f"noise_std of {name} is {std!r}; give a number above 0 and up to 1: it is in pixel units")
    return how, Options(**own | {"noise_std": float(std)})


def attacked(
    base: ImageSet,
    name: str,
    classifier: Classifier,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    batch_size: int = attacks.BATCH_SIZE,
) -> ImageSet:
    """Attack a set against ``classifier``; labels are kept, and images are cached in the cache folder.

    Args:
        base: images with the labels on which the network was trained.
        name: name of the attack; see ``adversarial.attack``.
        settings: settings of the attack, and ``rounded``, ``filtered`` and ``noise_std``; see ``Options``.

    Returns: a set of uint8 images, or float32 in [0, 1] if not rounded, of kind ``adversarial``, with the same base as
    ``base``. ``attack_record`` says what the attack did (see ``docs/attacks.md``). If filtered, ``negatives`` are the
    same images clean, followed by their noisy twins.

    Raises UsageError for an unknown name or setting; Unsuitable for a base without labels, for a network that classifies no
    image correctly or does not accept such images, and if the filter keeps no image; and all errors of ``adversarial.attack``.
    """
    how, options = resolve(name, settings or {})
    if base.labels is None:
        raise Unsuitable(f"{base.name} has no labels, and {name} needs them; attack a labelled set")
    network = _Network(classifier, progress or Progress(), batch_size)
    network.progress.stage(f"attacking {base.name} with {name}: {len(base):,} images")
    network.progress.expect(len(base) * (2 + options.filtered + attacks.passes(name, how)))
    classifier.check(_floats(base, range(1)))
    right = network.right(base)
    if not right.any():
        raise Unsuitable(
            f"{classifier.name} gets no image of {base.name} right, so {name} has nothing to change; check weights and labels"
        )
    against = f"{classifier.name} {classifier.weights_hash}"
    result = replace(
        base,
        images=_images(base, name, how, options, seed, network),
        clean=base.images,
        name=f"{base.name}+{name}",
        kind="adversarial",
        level=None,
        base=base.identity,
        read_as="",
        source=replace(base.source, title=f"{base.source.title}, attacked with {name} against {against}"),
    )
    right_after = network.right(result)
    l2, linf = _distances(result, base, batch_size)
    made_with = how | {"rounded": options.rounded, "filtered": options.filtered}
    kept = torch.arange(len(base))
    if options.filtered:
        noisy = replace(result, images=_noisy(base, options, seed, batch_size))
        kept = torch.nonzero(right & network.right(noisy) & ~right_after)[:, 0]
        if len(kept) == 0:
            raise Unsuitable(
                f"{result.name}: the filter keeps none of {len(base):,} images: none is right clean, right noisy and wrong"
                " attacked; attack harder (eps, steps), or leave filtered out"
            )
        made_with |= {"noise_std": options.noise_std}
        # What is kept of a whole set is whole. For a part, the official size stays and marks it as partial.
        official = {base.split: len(kept)} if base.official_size == len(base) else base.source.official_size
        result = replace(
            result.select(kept),
            negatives=_twins(base.select(kept), noisy.select(kept)),
            source=replace(result.source, official_size=official),
        )
    record = AttackRecord(
        attack=name,
        network=against,
        settings=made_with,
        attacked=len(base),
        clean_accuracy=float(right.double().mean()),
        adversarial_accuracy=float(right_after.double().mean()),
        success_rate=float((~right_after[right]).double().mean()),
        kept=len(kept),
        unchanged=float((linf[kept] == 0).double().mean()),
        mean_l2=float(l2[kept].mean()),
        mean_linf=float(linf[kept].mean()),
    )
    return replace(result, attack_record=record)


class _Network(NamedTuple):
    """The attacked network, with progress and batch size."""

    classifier: Classifier
    progress: Progress
    batch_size: int

    def right(self, images: ImageSet) -> Tensor:
        """Return bool (N,): which images the network classifies as labelled. Raises BadData for logits that are not finite."""
        labels = images.labels
        assert labels is not None  # attacked refused others
        right = torch.empty(len(images), dtype=torch.bool)
        with torch.inference_mode():
            for rows in _batches(len(images), self.batch_size):
                pixels = _floats(images, rows).to(self.classifier.device, self.classifier.dtype)
                logits = self.classifier(pixels)
                require_finite_logits(logits, images, np.asarray(rows), self.classifier.name)
                right[rows.start : rows.stop] = logits.argmax(1).cpu() == labels[rows.start : rows.stop]
                self.progress.advance(len(rows))
        return right


def _images(base: ImageSet, name: str, how: dict[str, Any], options: Options, seed: int, network: _Network) -> Tensor:
    """Return the attacked images (N, C, H, W), uint8 or float32: read from the cache, or computed and stored there."""
    dtype = torch.uint8 if options.rounded else torch.float32
    shape = (len(base), *base.images.shape[1:])
    key = key_of(base, name, how, options.rounded, seed, network.classifier, network.batch_size)
    cache = AttackCache(f"{base.name}+{name}", key, shape, dtype, network.progress)
    labels = base.labels
    assert labels is not None  # attacked refused others
    images = torch.empty(shape, dtype=dtype)
    for part, rows in cache.parts():
        found = cache.read(part, rows)
        if found is None:
            changed = attacks.attack(
                network.classifier,
                _floats(base, rows),
                labels[rows.start : rows.stop],
                name,
                seed=seed,
                index=base.base_index[rows.start : rows.stop],
                batch_size=network.batch_size,
                progress=network.progress,
                **how,
            )
            found = _stored(changed, options.rounded)
            if options.rounded and "eps" in how and name in attacks.ATTACKS:  # eps of library attacks may be in another norm
                found = _within(found, base.read(rows), how["eps"])
            cache.write(part, rows, found)
        else:
            network.progress.advance(len(rows) * attacks.passes(name, how))
        images[rows.start : rows.stop] = found
    return images


def _noisy(base: ImageSet, options: Options, seed: int, batch_size: int) -> Tensor:
    """Add Gaussian noise to each image, clip to [0, 1], and store as the attacked ones are stored."""
    keys = attacks.keys_of(seed, base.base_index, NOISE_STREAM)
    noisy = []
    for rows in _batches(len(base), batch_size):
        images = _floats(base, rows)
        normal = standard_normal(keys[rows.start : rows.stop], images.shape[1:])
        noisy.append(_stored((images.double() + options.noise_std * normal).clamp(0, 1), options.rounded))
    return torch.cat(noisy)


def _twins(clean: ImageSet, noisy: ImageSet) -> ImageSet:
    """Return the clean images followed by the noisy ones, in the same stored form."""
    everything = range(len(clean))
    pixels = clean.read(everything) if noisy.read([0]).dtype == torch.uint8 else _floats(clean, everything)
    return replace(
        noisy,
        images=torch.cat([pixels, noisy.read(everything)]),
        clean=torch.cat([pixels, pixels]),
        labels=None if clean.labels is None else clean.labels.repeat(2),
        base_index=clean.base_index.repeat(2),
        name=f"{clean.name}, clean and noisy",
        source=clean.source,
        noisy=torch.arange(2 * len(clean)) >= len(clean),
        files=[*clean.files, *clean.files],
    )


def _distances(result: ImageSet, base: ImageSet, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the L2 and L∞ distance of each image from its base, both float64 (N,), in pixel units."""
    l2, linf = [], []
    for rows in _batches(len(base), batch_size):
        change = (_floats(result, rows).double() - _floats(base, rows).double()).flatten(1)
        l2.append(change.norm(dim=1))
        linf.append(change.abs().amax(1))
    return torch.cat(l2), torch.cat(linf)


def _batches(size: int, batch_size: int) -> list[range]:
    return [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]


def _floats(images: ImageSet, rows: range) -> Tensor:
    """Read rows as float32 (n, C, H, W) in [0, 1]."""
    pixels = images.read(rows)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _within(rounded: Tensor, base: Tensor, eps: float) -> Tensor:
    """Clip each pixel to within eps of its base, because rounding may exceed it; both uint8 (n, C, H, W)."""
    most = math.floor(eps * 255 + 1e-6)
    base = base.to(torch.int16)
    return torch.minimum(torch.maximum(rounded.to(torch.int16), base - most), base + most).to(torch.uint8)


def _stored(images: Tensor, rounded: bool) -> Tensor:
    return (images * 255).round().to(torch.uint8) if rounded else images.float()
