"""What every result states about the software and the machine that made it."""

import platform
from typing import Any

import numpy as np

from oodbench import __version__


def provenance(device: str) -> dict[str, Any]:
    """Versions, device and number of threads."""
    import torch

    from oodbench.models.device import name_of

    name = name_of(torch.device(device)) or platform.processor() or platform.machine()
    return {
        "oodbench": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
    }
