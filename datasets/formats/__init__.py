"""Readers of the file formats of data sets. Each treats its input as hostile."""
