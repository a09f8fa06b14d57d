"""Checks whether a plug-in of any family but models, built-in or third-party, fulfils its contract."""

from oodbench.conformance.outcomes import Outcome
from oodbench.conformance.run import check, family_of

__all__ = ["Outcome", "check", "family_of"]
