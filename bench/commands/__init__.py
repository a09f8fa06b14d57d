"""The commands of ``oodbench``, one file each. They import torch and pandas only where they need them."""
