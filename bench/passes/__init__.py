"""The passes over images, each shared by all detectors: learn from the training set, and compute statistics.

A run, ``Detector.fit`` and ``oodbench fit`` share them. A detector that fails is reported to ``on_error`` and left out. A
run gives a ``guard``: if the network has changed after a pass, the pass is done again, watching each detector, and those that
change the network fail. TooSlow of the network or of a set ends the pass for all.

Memory does not grow with the number of images, except for what a detector keeps and its statistics.
"""

from oodbench.passes.learning import calibrate, learn, observe, reset
from oodbench.passes.scoring import Computed, computed, joined, pass_equivalents, statistics
from oodbench.passes.turns import Errors, Keep, OnBatch, OnError, Settings, raise_it, require_unchanged, signals_of, turn

__all__ = [
    "Computed",
    "Errors",
    "Keep",
    "OnBatch",
    "OnError",
    "Settings",
    "calibrate",
    "computed",
    "joined",
    "learn",
    "observe",
    "pass_equivalents",
    "raise_it",
    "require_unchanged",
    "reset",
    "signals_of",
    "statistics",
    "turn",
]
