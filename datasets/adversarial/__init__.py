"""Attacks on the network under test, and the sets that are made of attacked images."""

from oodbench.datasets.adversarial.attacks import ATTACKS, attack

__all__ = ["ATTACKS", "attack"]
