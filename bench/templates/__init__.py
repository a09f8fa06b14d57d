"""Files that ``oodbench new`` writes: one folder per kind; ``$name`` and the like stand for what the user chose."""
