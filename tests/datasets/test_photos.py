"""The patches of photographs: the images of its splits differ."""

import numpy as np

from oodbench import load_dataset, protocols


def test_no_patch_to_choose_on_is_a_patch_to_test_on():
    tested, chosen_on = load_dataset("photos"), load_dataset("photos", split="val")
    assert chosen_on.images.shape == tested.images.shape == (500, 3, 8, 8)
    ids = protocols.same_images(tested, chosen_on)
    assert not np.intersect1d(*ids).size
    assert len(np.unique(ids[1])) == 500
