"""The suites of the package, one TOML file each, and what reads any suite file: one run, or a grid of runs."""
