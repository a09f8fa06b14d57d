"""``oodbench publish``: a static site from stored results. It opens from disk, and makes no request to anywhere else."""
