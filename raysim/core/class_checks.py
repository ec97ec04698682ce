"""Checks of the class of an algorithm or a task: a frozen dataclass whose methods have the expected arguments."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.user_errors import source_of

DECORATOR = "@dataclass(frozen=True, kw_only=True)"
ARGUMENTS = {  # of the methods of algorithms and tasks
    "init": ("task",),
    "round": ("fleet", "state"),
    "predictor": ("site", "state"),
    "build": ("progress",),
}


def check_class(cls: Any, subject: str, methods: tuple[str, ...]) -> None:
    """Raises ConfigError if `cls` is not a frozen dataclass with these methods."""
    if not isinstance(cls, type):
        raise ConfigError(f"{subject} is a {type(cls).__name__}: expected a frozen dataclass, the class itself")
    if missing := [method for method in methods if not callable(getattr(cls, method, None))]:
        raise ConfigError(f"{subject} has no {' and no '.join(missing)}: expected the methods {', '.join(methods)}")
    for method in methods:
        _check_arguments(subject, cls, method)
    decorated = "__dataclass_fields__" in vars(cls)
    # A subclass without the decorator would silently ignore the fields that it adds.
    if not is_dataclass(cls) or (not decorated and vars(cls).get("__annotations__")):
        raise ConfigError(
            f"{subject} is not a dataclass, so its fields are not keys; write {DECORATOR} above class {cls.__name__}"
        )
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # missing in the stub
        raise ConfigError(
            f"{subject} is not frozen, so a method could change its fields; write {DECORATOR} above class "
            f"{cls.__name__}"
        )


def _check_arguments(subject: str, cls: type, method: str) -> None:
    """Raises ConfigError if the method does not accept the arguments that the engine passes by position."""
    function, expected = getattr(cls, method), ("self", *ARGUMENTS[method])
    if isinstance(inspect.getattr_static(cls, method), staticmethod | classmethod):
        expected = expected[1:]
    signature = inspect.signature(function)
    try:
        signature.bind(*expected)
    except TypeError:
        raise ConfigError(
            f"{subject} has the method {method}{signature}{source_of(function)}: expected "
            f"{method}({', '.join(expected)})"
        ) from None
