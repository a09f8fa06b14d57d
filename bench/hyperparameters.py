"""Hyper-parameters of a plug-in: the constructor's arguments, kept as plain attributes of the same name."""

import dataclasses
import inspect
import json
from typing import Any


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
