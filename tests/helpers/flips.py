"""Damage to files, as of a failing disk."""

from collections.abc import Iterator

import numpy as np


def flipped(content: bytes, count: int = 60) -> Iterator[bytes]:
    """Copies of a file's content, each with another random byte changed."""
    random = np.random.default_rng(0)
    for place in random.choice(len(content), min(count, len(content)), replace=False):
        yield content[:place] + bytes([content[place] ^ random.integers(1, 256)]) + content[place + 1 :]
