"""."""

TABLE = {}
