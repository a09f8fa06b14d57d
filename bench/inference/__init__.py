"""Inference: a fitted detector with its threshold, and verdicts on new images."""
