"""Attacks on the network under test, and data sets of attacked images."""

from oodbench.datasets.adversarial.attacks import ATTACKS, attack

__all__ = ["ATTACKS", "attack"]
