"""Random images, and files of them."""

import numpy as np
from PIL import Image


def random_images(count, height=32, width=32, channels=3, seed=0):
    """uint8 (N, C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def save_image(path, image):
    """Write (C, H, W) in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(path)
