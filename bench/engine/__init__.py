"""Runs a suite: loads it, fits its detectors, scores its sets and measures what each detector costs."""
