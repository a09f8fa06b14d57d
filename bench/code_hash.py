"""Hashes of what a class or a network computes beyond its weights: code, structure and plain attributes."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from oodbench.classifier import Classifier

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# What plug-ins are made of, which is not their own code, and the packages of built-in ones.
CONTRACTS = (
    *("oodbench.detector", "oodbench.hyperparameters"),
    *("oodbench.active_learning.strategy", "oodbench.quality.metric"),
)
OWN_PLUGINS = ("oodbench.detectors", "oodbench.strategies", "oodbench.quality_metrics")
DEPTH = 6  # of nested lists, because a list may hold itself
INSTALLED = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib", "platstdlib")}

_imported_sources: dict[str, tuple[Any, str | None]] = {}  # by name of the module: its spec, and its source when first read


def of_class(kind: type) -> str:
    """SHA-256 of the modules that a detector's class and its bases come from, and of those that they import from their package.

    A third party's package is its top-level one; of a module without a package, the modules and packages beside it count.
    The contract itself, such as ``oodbench.detector``, comments and layout do not count.
    """
    return _digest(_class_code(kind, set(), whole_package=True))


def of_module(name: str) -> str:
    """SHA-256 of a module, and of those that it imports from its own package. Comments and layout do not count."""
    return _digest(_module_code(name, set()))


def of_network(classifier: Classifier) -> str:
    """SHA-256 of a network's structure, plain attributes (functions too), code, head and layers; of torch's classes the names.

    Two networks of one ``weights_hash`` may compute different things: they may differ in an activation or in ``forward``.
    """
    return _digest(_network(classifier))


def _digest(parts: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _network(classifier: Classifier) -> Iterator[str]:
    yield f"{classifier.head_name} {classifier.layer_names}"
    yield ADDRESS.sub("", repr(classifier.module))
    own, seen = vars(nn.Module()).keys(), set[str]()
    filters = () if classifier.filter is None else classifier.filter.named_modules(prefix="filter")
    for name, module in (*classifier.module.named_modules(), *filters):
        yield f"{name} {type(module).__module__}.{type(module).__qualname__}"
        for key, value in sorted(vars(module).items()):
            if key not in own:
                yield f"{key} = {_plain(value)}"
        for key in sorted(module._non_persistent_buffers_set):  # these are in no state_dict
            yield f"{key} = {_plain(module._buffers.get(key))}"
        if isinstance(module, torch.jit.ScriptModule):
            with suppress(AttributeError, RuntimeError):  # no forward of its own
                yield str(module.code)
        yield from _class_code(type(module), seen)


def _class_code(kind: type, seen: set[str], whole_package: bool = False) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__ in CONTRACTS or base.__module__.split(".")[0] in ("torch", *sys.stdlib_module_names):
            continue
        if _source(base.__module__) is not None:
            yield from _module_code(base.__module__, seen, _root(base.__module__) if whole_package else None)
        else:  # typed into a session
            yield from (f"{name} {_plain(value)}" for name, value in sorted(vars(base).items()) if inspect.isfunction(value))


def _root(module: str) -> str:
    """The package whose modules count as a plug-in's own."""
    return next((package for package in OWN_PLUGINS if module.startswith(f"{package}.")), module.split(".")[0])


def _module_code(name: str, seen: set[str], root: str | None = None) -> Iterator[str]:
    """The code of a module, and of those that it imports from the package ``root``, by default its own."""
    if name in seen or (source := _source(name)) is None:
        return
    seen.add(name)
    tree = ast.parse(source)
    yield f"{name} {ast.dump(tree)}"
    package = name if name in sys.modules and hasattr(sys.modules[name], "__path__") else name.rpartition(".")[0]
    for other in _imported(tree, package):
        if _is_own(other, name, package, root):
            yield from _module_code(other, seen, root if package or root is None else _root(other))


def _is_own(other: str, name: str, package: str, root: str | None) -> bool:
    """Whether what the module ``name`` imports belongs to the same package, or lies beside it where it has none."""
    if not package:
        return _folder_of(name) is not None and _folder_of(other) == _folder_of(name)
    if other == root:  # the package's own __init__; that of our plug-ins is a table of all of them
        return root not in OWN_PLUGINS
    return other.startswith(f"{root or package}.")


def _imported(tree: ast.AST, package: str) -> list[str]:
    """What may be modules among the imports, in order of name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            above = "." * node.level + (node.module or "")
            with suppress(ImportError):  # beyond the top
                start = importlib.util.resolve_name(above, package)
                names.update((start, *(f"{start}.{alias.name}" for alias in node.names)))
    return sorted(names)


def _folder_of(module: str) -> str | None:
    """The folder that holds a module or its top-level package; None for a package that is installed."""
    top = module.partition(".")[0]
    file = None
    with suppress(ImportError, ValueError):
        found = sys.modules.get(top)
        spec = importlib.util.find_spec(top) if found is None else None
        file = getattr(found, "__file__", None) or (spec.origin if spec else None)
    if not file:
        return None
    folder, name = os.path.split(os.path.abspath(file))
    if name != "__init__.py":
        return folder
    return None if os.path.dirname(folder) in INSTALLED else os.path.dirname(folder)


def remember(name: str) -> None:
    """Read the source of a module that is just being imported, so that it still counts after an edit of the file."""
    _source(name)


def _source(name: str) -> str | None:
    """The source of a module as it was imported, or as it is if it is not loaded yet; None where it is unavailable."""
    loaded: Any = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None)  # another one after a reload
    if spec is None:
        return _read_source(name)
    before, source = _imported_sources.get(name, (None, None))
    if before is not spec:
        source = _read_source(name)
        _imported_sources[name] = spec, source
    return source


def _read_source(name: str) -> str | None:
    with suppress(OSError, TypeError, ImportError, ValueError, AttributeError, SyntaxError):
        if name in sys.modules:
            source = inspect.getsource(sys.modules[name])
        else:
            spec: Any = importlib.util.find_spec(name)
            source = spec.loader.get_source(name)
        ast.parse(source)
        return str(source)
    return None


def _plain(value: Any, depth: int = 0) -> str:
    """The same text for the same value in any process. Of other objects only the type counts."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    if isinstance(value, list | tuple) and depth < DEPTH:
        return f"[{', '.join(_plain(part, depth + 1) for part in value)}]"
    if isinstance(value, dict) and depth < DEPTH:
        return f"{{{', '.join(f'{_plain(key, depth + 1)}: {_plain(part, depth + 1)}' for key, part in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial {_plain([value.func, list(value.args), value.keywords], depth + 1)}"
    if isinstance(code := getattr(value, "__code__", None), CodeType):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()] if depth < DEPTH else []
        return f"{_compiled(code)} {_plain([getattr(value, '__defaults__', None), cells], depth + 1)}"
    kind = value if isinstance(getattr(value, "__qualname__", getattr(value, "__name__", None)), str) else type(value)
    name = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", "")  # objects of TorchScript have the first alone
    return f"{getattr(kind, '__module__', '')}.{name}"


def _compiled(code: CodeType) -> str:
    inner = [_compiled(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
