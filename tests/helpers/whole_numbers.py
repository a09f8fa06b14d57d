"""SplitMix64 in Python's own whole numbers: the reference of ``oodbench.random_numbers``."""

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def mixed(value: int) -> int:
    """The finaliser of a whole number, of which the lowest 64 bits count."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
