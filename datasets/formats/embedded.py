"""Files of data that scikit-learn brings along."""

from importlib.util import find_spec
from pathlib import Path


def scikit_learn_file(*parts: str) -> Path:
    """The path of a file of ``sklearn.datasets``.

    scikit-learn itself is not imported, which takes longer than all that a run on finished work does after torch.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0], "datasets", *parts)
