"""Image sets and splits: what a set refuses, where its rows come from, and that no image is both learnt from and tested on."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from oodbench import protocols
from oodbench.errors import BadData, OodbenchError, Unsuitable
from oodbench.image_set import ImageSet


def make_set(size: int, seed: int = 0, classes: int = 0, **more) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (size,), generator=generator) if classes else None
    return ImageSet(images, labels, **{"name": f"set{seed}", **more})


class OnDemand:
    """Images that decode on demand; remembers the rows asked for."""

    def __init__(self, stored):
        self.stored, self.shape, self.asked = stored, tuple(stored.shape), []

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, rows):
        assert all(type(row) is int for row in rows)
        self.asked += rows
        return self.stored[list(rows)]


# Image sets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8)}, r"mine \(test\) holds no images; put images there or leave"),
        ({"images": torch.zeros(2, 3, 4, 4)}, r"mine: images are torch.float32 \(2, 3, 4, 4\); a set holds uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"images are torch.uint8 \(2, 4, 4\)"),
        ({"labels": torch.zeros(3)}, "mine has 2 images and 3 labels; its files disagree"),
        ({"kind": "odd"}, "mine: unknown kind 'odd' .one of near-ood, far-ood"),
        ({"base_index": torch.arange(3)}, "mine has 2 images and 3 base rows"),
    ],
)
def test_image_set_refuses(arguments, message):
    with pytest.raises(BadData, match=message):
        ImageSet(**{"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "name": "mine", **arguments})


@pytest.mark.parametrize("on_demand", [False, True])
def test_select_keeps_the_way_back(on_demand):
    original = make_set(10, classes=3)
    stored = original.images
    if on_demand:
        original = replace(original, images=OnDemand(stored))
    twice = original.select(torch.tensor([9, 1, 4, 4])).select(torch.tensor([2, 0]))
    assert twice.base_index.tolist() == [4, 9]
    assert twice.base == original.fingerprint
    assert torch.equal(twice.read([0, 1]), stored[[4, 9]])
    assert torch.equal(twice.read(np.array([1])), stored[[9]])
    assert torch.equal(twice.labels, original.labels[[4, 9]])
    assert protocols.shares_images(twice, original)
    assert not protocols.shares_images(twice, make_set(10, seed=1))


def test_fingerprint_is_content():
    images = make_set(1030, classes=3)  # more than one block of 1024
    before = images.fingerprint
    assert replace(images, name="other", split="train").fingerprint == before
    assert replace(images, images=OnDemand(images.images)).fingerprint == before
    changed = images.images.clone()
    changed[1029, 2, 3, 3] ^= 1
    assert replace(images, images=changed).fingerprint != before
    assert replace(images, labels=images.labels.roll(1)).fingerprint != before
    assert replace(images, labels=None).fingerprint != before
    assert replace(images, images=images.images.reshape(1030, 3, 2, 8)).fingerprint != before


# Splits


def test_every_prefix_holds_the_classes_in_proportion():
    labels = np.repeat(np.arange(4), [400, 200, 100, 20])
    order = protocols.stratified_order(len(labels), labels, seed=3)
    assert sorted(order) == list(range(len(labels)))
    for size in (36, 100, 333, 700):
        counts = np.bincount(labels[order[:size]], minlength=4)
        expected = size * np.bincount(labels) / len(labels)
        assert np.abs(counts - expected).max() <= 2, size


def test_no_class_comes_first_more_often_than_its_share():
    labels = np.repeat([0, 1], [400, 20])
    first = [labels[protocols.stratified_order(420, labels, seed)[0]] for seed in range(40)]
    assert sum(first) <= 5  # the rare class is first with a probability of 1/40


def test_orders_are_seeded():
    labels = np.arange(100) % 7
    for given in (None, labels):
        first = protocols.stratified_order(100, given, seed=0)
        assert (first == protocols.stratified_order(100, given, seed=0)).all()
        assert (first != protocols.stratified_order(100, given, seed=1)).any()
        assert (first != np.arange(100)).any()


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (9, 1), (200, 20)])
def test_held_out_is_a_stratified_tenth(size, expected):
    labels = np.arange(size) % 10
    mask = protocols.held_out(size, labels, seed=0)
    assert mask.sum() == expected
    if size == 200:
        assert np.bincount(labels[mask], minlength=10).tolist() == pytest.approx([2] * 10, abs=1)


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (10, 5), (11, 5), (2002, 1000)])
def test_at_most_half_of_a_side_is_learnt_from(size, expected):
    assert protocols.validation_size(size) == expected


@pytest.mark.parametrize(("share", "learnt"), [(0.5, 50), (0.1, 10), (0.29, 29)])
def test_per_shift_learns_from_a_share_of_each_side(share, learnt):
    inside, outside = make_set(100, classes=4), make_set(300, seed=1, classes=4)
    split = protocols.per_shift(inside, outside, 0, share)
    assert (len(split.in_validation), len(split.out_validation)) == (learnt, learnt)
    assert (len(split.in_fit), len(split.in_test), len(split.out_test)) == (learnt // 2, 100 - learnt, 300 - learnt)
    with pytest.raises(Unsuitable, match=rf"per-shift.* needs {round(4 / share)} images per side"):
        protocols.per_shift(make_set(round(4 / share) - 1), outside, 0, share)


def test_limited_draws_the_same_way_and_keeps_the_order():
    images = make_set(100, classes=4)
    some = protocols.limited(images, 30, seed=5)
    assert len(some) == 30
    assert (some.base_index.diff() > 0).all()
    assert set(some.base_index.tolist()) < set(protocols.limited(images, 60, seed=5).base_index.tolist())
    assert protocols.limited(images, None, seed=5) is images
    assert protocols.limited(images, 100, seed=5) is images


def test_unsupervised_split_tests_on_everything():
    split = dict(protocols.whole(make_set(5), make_set(7, seed=1)))
    assert {name: len(rows) for name, rows in split.items() if len(rows)} == {"in_test": 5, "out_test": 7}


@pytest.mark.parametrize(("n_in", "n_out", "size"), [(3000, 2500, 1000), (100, 300, 50), (300, 41, 20)])
def test_per_shift_sizes_and_disjointness(n_in, n_out, size):
    split = protocols.per_shift(make_set(n_in), make_set(n_out, seed=1), seed=0)
    for side, total in (("in", n_in), ("out", n_out)):
        fit, choose, test = (getattr(split, f"{side}_{part}") for part in ("fit", "choose", "test"))
        assert (len(fit), len(choose), len(test)) == (size // 2, size - size // 2, total - size)
        assert sorted(np.concatenate([fit, choose, test])) == list(range(total))


def test_per_shift_is_seeded_and_stratified():
    inside, outside = make_set(400, classes=4), make_set(400, seed=1)
    splits = [protocols.per_shift(inside, outside, seed) for seed in (0, 0, 1)]
    assert (splits[0].in_fit == splits[1].in_fit).all()
    assert (splits[0].in_fit != splits[2].in_fit).any()
    validation = np.concatenate([splits[0].in_fit, splits[0].in_choose])
    counts = np.bincount(inside.labels[validation], minlength=4)
    assert np.abs(counts - np.bincount(inside.labels) / 2).max() <= 2


def copies_of(original: ImageSet, rows: torch.Tensor) -> ImageSet:
    """Darkened copies of these rows: a derived set."""
    return replace(original.select(rows), images=original.images[rows] // 2, name="darker", kind="corruption")


@pytest.mark.parametrize(
    "rows",
    [torch.arange(60), torch.arange(60).flip(0), torch.arange(60).repeat(5), torch.arange(0, 60, 2).repeat(2)],
    ids=["all", "reversed", "five-levels", "half-of-them-twice"],
)
def test_copies_of_one_image_stay_on_one_side(rows):
    inside = make_set(60, classes=3)
    outside = copies_of(inside, rows)
    split = protocols.per_shift(inside, outside, seed=0)
    where: dict[int, set[str]] = {}
    for name, chosen in split:
        images = inside if name.startswith("in_") else outside
        for base in images.base_index[chosen].tolist():
            where.setdefault(base, set()).add(name.split("_")[1])
    assert set(where) == set(range(60))
    assert all(len(parts) == 1 for parts in where.values())
    for part in ("fit", "choose"):
        bases = [set(s.base_index[getattr(split, f"{side}_{part}")].tolist()) for side, s in (("in", inside), ("out", outside))]
        assert bases[0] == bases[1]
    assert sum(len(chosen) for _, chosen in split) == len(inside) + len(outside)


def test_disjoint_parts_of_one_set_are_different_images():
    """Held-out classes: rows of the very set that the in-distribution images are rows of."""
    whole = make_set(100)
    inside, outside = whole.select(torch.arange(60)), whole.select(torch.arange(60, 100))
    split = protocols.per_shift(inside, outside, seed=0)
    assert {name: len(rows) for name, rows in split} == {
        "in_fit": 10, "in_choose": 10, "in_test": 40, "out_fit": 10, "out_choose": 10, "out_test": 20,
    }  # fmt: skip


def test_half_of_the_images_in_common_are_learnt_from():
    whole = make_set(100)
    inside, outside = whole.select(torch.arange(60)), whole.select(torch.arange(40, 100))
    split = protocols.per_shift(inside, outside, seed=0)
    assert {name: len(rows) for name, rows in split} == {
        "in_fit": 5, "in_choose": 5, "in_test": 50, "out_fit": 5, "out_choose": 5, "out_test": 50,
    }  # fmt: skip
    learnt = inside.base_index[split.in_validation].tolist()
    assert set(learnt) < set(range(40, 60))
    with pytest.raises(Unsuitable, match=r"set0 has 60 and set0 47, 7 of them in common$"):
        protocols.per_shift(inside, whole.select(torch.arange(53, 100)), seed=0)


def test_a_split_is_not_changed():
    with pytest.raises(FrozenInstanceError):
        protocols.whole(make_set(5), make_set(7, seed=1)).in_test = np.arange(3)


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 100), (100, 7)])
def test_too_small_sides_are_named(n_in, n_out):
    with pytest.raises(Unsuitable, match=f"per-shift needs 8 images per side; set0 has {n_in} and set1 {n_out}$"):
        protocols.per_shift(make_set(n_in), make_set(n_out, seed=1), seed=0)
    protocols.per_shift(make_set(max(n_in, 8)), make_set(max(n_out, 8), seed=1), seed=0)


def check_no_leak(split, inside, outside, source=None):
    learnt_from = protocols.Sides(inside, outside if source is None else source)
    protocols.check_no_leak(split, learnt_from, protocols.Sides(inside, outside))


def test_a_leak_is_an_error():
    inside, outside = make_set(20), make_set(20, seed=1)
    split = protocols.per_shift(inside, outside, seed=0)
    check_no_leak(split, inside, outside)
    with pytest.raises(OodbenchError, match="1 images of set0 and set1 would be both fitted and tested on"):
        check_no_leak(replace(split, in_test=np.append(split.in_test, split.in_fit[0])), inside, outside)
    with pytest.raises(OodbenchError, match="both fitted and tested on"):
        check_no_leak(replace(split, out_choose=split.out_test), inside, outside)


def test_a_leak_through_a_derived_set_is_an_error():
    inside = make_set(40)
    outside = copies_of(inside, torch.arange(40))
    split = protocols.per_shift(inside, outside, seed=0)
    with pytest.raises(OodbenchError, match="both fitted and tested on"):
        check_no_leak(replace(split, out_test=split.in_fit), inside, outside)
    unrelated = replace(outside, base="another set")  # the same rows of another base are other images
    check_no_leak(replace(split, out_fit=split.in_test, out_choose=split.in_test, out_test=split.in_fit), inside, unrelated)


# Images that are equal


def same_by_pairs(*sets):
    """The slow, obvious way: join what shares a base row or pixels until nothing changes; numbered by first appearance."""
    images = [(s.identity, int(row), s.images[place].numpy().tobytes()) for s in sets for place, row in enumerate(s.base_index)]
    number = list(range(len(images)))
    changed = True
    while changed:
        changed = False
        for one, (base, row, pixels) in enumerate(images):
            for other in range(one):
                alike = (base, row) == images[other][:2] or pixels == images[other][2]
                if alike and number[one] != number[other]:
                    number[one] = number[other] = min(number[one], number[other])
                    changed = True
    ranks = {value: rank for rank, value in enumerate(dict.fromkeys(number))}
    return [ranks[value] for value in number]


def test_images_are_one_by_base_or_by_content_or_by_way_of_others():
    first = make_set(12)
    copied = copies_of(first, torch.tensor([3, 3, 5]))  # of one base
    stranger = make_set(6, seed=1)
    stranger.images[2], stranger.images[4] = first.images[7], copied.images[2]  # of equal pixels
    stranger.images[5] = stranger.images[0]
    found = protocols.same_images(first, copied, stranger)
    assert np.concatenate(found).tolist() == same_by_pairs(first, copied, stranger)
    assert found[0].tolist() == list(range(12))
    assert found[1].tolist() == [3, 3, 5]
    assert found[2].tolist() == [12, 13, 7, 14, 5, 12]


def test_sets_without_copies_have_as_many_numbers_as_images():
    first, other = make_set(12), make_set(7, seed=1)
    subset = first.select(torch.tensor([5, 3]))
    found = protocols.same_images(other, subset, first)
    assert np.concatenate(found).tolist() == same_by_pairs(other, subset, first)
    assert [one.tolist() for one in found] == [[*range(7)], [7, 8], [9, 10, 11, 8, 12, 7, *range(13, 19)]]


def test_a_set_that_holds_each_image_several_times_is_split_by_image():
    inside, once = make_set(60), make_set(20, seed=1)
    outside = ImageSet(once.images.repeat(4, 1, 1, 1), name="four")  # its rows know nothing of each other
    split = protocols.per_shift(inside, outside, seed=0)
    learnt, tested = ({*(rows % 20).tolist()} for rows in (split.out_validation, split.out_test))
    assert len(learnt) == len(tested) == 10
    assert not learnt & tested


def test_transfer_knows_a_copied_set_by_its_content():
    inside, source = make_set(60), make_set(50, seed=1)
    outside = ImageSet(torch.cat([source.images, make_set(1, seed=2).images]), name="one more")
    split = transferred(inside, source, outside)
    assert not {*split.out_test.tolist()} & {*split.out_validation.tolist()}
    assert len(split.out_test) == 26


def test_a_few_images_on_both_sides_are_tested_and_teach_nothing():
    inside, outside = make_set(60), make_set(40, seed=1)
    outside.images[:3] = inside.images[10:13]
    split = protocols.per_shift(inside, outside, seed=0)
    assert {10, 11, 12} <= {*split.in_test.tolist()}
    assert {0, 1, 2} <= {*split.out_test.tolist()}
    assert len(split.out_validation) == 20


# Transfer


def transferred(inside, source, outside):
    learnt = protocols.per_shift(inside, source, 0)
    return protocols.transfer(learnt, protocols.Sides(inside, source), protocols.Sides(inside, outside))


def test_transfer_learns_as_per_shift_does_and_tests_on_all_of_another_set():
    inside, source, outside = make_set(60, classes=3), make_set(50, seed=1), make_set(40, seed=2)
    learnt, split = protocols.per_shift(inside, source, 0), transferred(inside, source, outside)
    for name, rows in learnt:
        if name != "out_test":
            np.testing.assert_array_equal(dict(split)[name], rows)
    assert split.out_test.tolist() == list(range(40))


def test_transfer_leaves_out_copies_of_what_was_learnt_from():
    inside = make_set(60, classes=3)
    mild, severe = copies_of(inside, torch.arange(60).flip(0)), copies_of(inside, torch.arange(60).repeat(2))
    split = transferred(inside, severe, mild)
    learnt = set(inside.base_index[split.in_validation].tolist())
    assert learnt == set(severe.base_index[split.out_validation].tolist())
    assert sorted(mild.base_index[split.out_test].tolist()) == sorted(set(range(60)) - learnt)
    # Learnt from another set, tested on copies of in-distribution images, of which some were learnt from too.
    other = make_set(50, seed=1)
    split = transferred(inside, other, mild)
    learnt = set(inside.base_index[split.in_validation].tolist())
    assert len(learnt) == 25
    assert sorted(mild.base_index[split.out_test].tolist()) == sorted(set(range(60)) - learnt)
    # A set made from another anomalous one.
    blurred = copies_of(other, torch.arange(50))
    split = transferred(inside, other, blurred)
    assert not set(other.base_index[split.out_validation].tolist()) & set(blurred.base_index[split.out_test].tolist())
    assert len(split.out_test) == 25


def test_transfer_without_anything_left_is_unsuitable():
    inside, source = make_set(60), make_set(50, seed=1)
    learnt = protocols.per_shift(inside, source, 0)
    copies = copies_of(source, torch.from_numpy(learnt.out_validation[:5]))
    with pytest.raises(Unsuitable, match="all of darker are copies of images of set1 that transfer learns from"):
        protocols.transfer(learnt, protocols.Sides(inside, source), protocols.Sides(inside, copies))


def test_a_leak_of_a_transfer_is_an_error():
    inside, source, outside = make_set(60), make_set(50, seed=1), make_set(40, seed=2)
    split = transferred(inside, source, outside)
    check_no_leak(split, inside, outside, source)
    with pytest.raises(OodbenchError, match="both fitted and tested on"):
        check_no_leak(replace(split, out_test=split.out_fit), inside, source, source)
    copies = copies_of(source, torch.from_numpy(split.out_choose[:1]))
    with pytest.raises(OodbenchError, match="1 images of set0 and darker"):
        check_no_leak(replace(split, out_test=np.array([0])), inside, copies, source)


def test_negatives_of_a_set_are_split_with_it_and_tested_but_for_what_transfer_learnt_from():
    inside = make_set(60, classes=3)
    attacked = replace(copies_of(inside, torch.arange(20, 60)), name="attacked", kind="adversarial")
    clean_and_noisy = inside.select(torch.arange(20, 60).repeat(2))
    split = protocols.per_shift(clean_and_noisy, attacked, seed=0)
    base = clean_and_noisy.base_index.numpy()
    assert {*base[split.in_fit]} == {*attacked.base_index.numpy()[split.out_fit]}
    assert len(split.in_fit) == 2 * len(split.out_fit)
    assert not {*base[split.in_test]} & {*base[split.in_validation]}
    source = make_set(50, seed=1)
    learnt = protocols.per_shift(inside, source, 0)
    moved = protocols.transfer(learnt, protocols.Sides(inside, source), protocols.Sides(clean_and_noisy, attacked))
    seen = inside.base_index.numpy()[learnt.in_validation]
    assert moved.in_test.tolist() == np.flatnonzero(~np.isin(base, seen)).tolist()
    assert moved.out_test.tolist() == np.flatnonzero(~np.isin(attacked.base_index.numpy(), seen)).tolist()
