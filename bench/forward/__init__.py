"""The forward pass that all detectors share, and what it keeps of the network's layers."""
