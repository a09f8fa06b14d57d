"""Hyper-parameters of a plug-in: the constructor's arguments, kept as plain attributes of the same name."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from oodbench import registry
from oodbench.errors import UsageError, contained


class HasParameters:
    """A plug-in with hyper-parameters."""

    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters by name: the constructor's arguments."""
        return {name: getattr(self, name) for name in arguments(type(self))}

    def non_default(self) -> dict[str, list[Any]]:
        """{name: [value, default]} of the hyper-parameters that differ from the defaults of the class."""
        found = {}
        for name, value in self.parameters().items():
            default = _default(type(self), name)
            if default is not inspect.Parameter.empty and _json(value) != _json(default):
                found[name] = [value, default]
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.parameters().items())})"


def arguments(kind: type) -> list[str]:
    """The names of the constructor's arguments."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]  # an inspection, not a call
        return []
    return list(inspect.signature(kind).parameters)


def _default(kind: type, argument: str) -> Any:
    """The default of a constructor's argument, which a dataclass may make anew for each object."""
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if field.name == argument and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return inspect.signature(kind).parameters[argument].default


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def built(family: str, name: str, contract: type, parameters: Mapping[str, Any], public: str) -> Any:
    """A plug-in by name, with these hyper-parameters; ``public`` is the name by which others know its contract.

    Raises UsageError for an unknown name, for an object that is not a subclass of its contract, and for a hyper-parameter that
    it does not have.
    """
    kind = registry.load(family, name)
    if not (isinstance(kind, type) and issubclass(kind, contract)):
        record, one = registry.find(family, name), registry.singular(family)
        several = family.replace("_", " ")
        added = f"; this command runs {several}, so --plugin {record.target} must name a {one}"
        why = added if record.distribution == "--plugin" else ""
        raise UsageError(f"{one} '{name}' is {kind!r}, not a subclass of {public}{why}")
    registry.check_parameters(name, parameters, arguments(kind))
    with contained():
        return kind(**parameters)
