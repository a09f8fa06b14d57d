"""Checks whether a detector or a data set, ours or a third party's, keeps its contract."""

from oodbench.conformance.run import check, family_of

__all__ = ["check", "family_of"]
