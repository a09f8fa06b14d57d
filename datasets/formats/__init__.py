"""Readers of the file formats that data sets come in. Each takes its input as hostile."""
