"""Detectors in use: a fitted detector with its threshold, and verdicts on new images."""
