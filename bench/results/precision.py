"""How far a lower precision of forward passes moves AUROC.

Imports no torch: leaderboards read what a run measured.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from oodbench.results.facts import Facts, Int64

KEY = "precision_shift"  # in the provenance of a run
Share = Annotated[float, Field(ge=0, le=1)]


class PrecisionShift(Facts):
    """AUROC of each detector on each set, in float32 and in the lower precision, on at most ``images`` of each side."""

    precision: str
    images: Annotated[Int64, Field(ge=1)]
    auroc: Annotated[dict[str, Annotated[dict[str, tuple[Share, Share]], Field(min_length=1)]], Field(min_length=1)]

    def sentence(self) -> str:
        """The mean and the largest shift of each detector, the detectors with the largest first."""
        found = {}
        for name, of in self.auroc.items():
            shifts = np.subtract([lower for _, lower in of.values()], [full for full, _ in of.values()])
            found[name] = shifts.mean(), np.abs(shifts).max()
        parts = [
            f"{name} {100 * mean:+.2f} (at most {100 * most:.2f})"
            for name, (mean, most) in sorted(found.items(), key=lambda pair: (-pair[1][1], pair[0]))
        ]
        return (
            f"Forward passes in {self.precision}. AUROC minus that in float32, in points, mean over sets and largest, on at"
            f" most {self.images:,} images of each side: {', '.join(parts)}."
        )


def stored(provenance: Mapping[str, Any]) -> PrecisionShift | None:
    """What a run recorded; None for one in float32."""
    try:
        return PrecisionShift.model_validate(provenance.get(KEY))
    except ValidationError:
        return None
