"""Finds a class of a library by the name a user writes, and checks its arguments before it is called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.registry import import_by_name
from raysim.core.suggestions import did_you_mean, squash

Factory = Callable[..., Any]


def unknown(kind: str, given: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist: the nearest one, and all there are."""
    names = sorted(valid)
    return ConfigError(f"unknown {kind} '{given}'{did_you_mean(given, names)}; valid: {', '.join(names) or '(none)'}")


def find_factory(kind: str, name: object, makers: Mapping[str, Factory]) -> Factory:
    """The maker of this name, whatever its case and underscores; `package.module:Class` is found anywhere."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{kind} has no name (it is {name!r}); give one of: {', '.join(sorted(makers))}")
    if ":" in name:
        try:
            maker: Factory = import_by_name(name)
        except Exception as error:  # whatever is wrong with it, it is the user's to mend
            raise ConfigError(f"{kind} '{name}' cannot be imported: {type(error).__name__}: {error}") from error
        if not inspect.isclass(maker) and not inspect.isfunction(maker):
            raise ConfigError(f"{kind} '{name}' is a {type(maker).__name__}; expected a class or a function")
        return maker
    by_name = {squash(key): maker for key, maker in makers.items()}
    if squash(name) not in by_name:
        raise unknown(kind, name, makers)
    return by_name[squash(name)]


def parameters(maker: Factory) -> dict[str, inspect.Parameter]:
    """What the maker takes, with what its `**kwargs` pass on to a base class or to the class it returns."""
    found: dict[str, inspect.Parameter] = {}
    for step in _signed(maker):
        taken = dict(inspect.signature(step).parameters)
        found = {**taken, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            break
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in found.items() if p.kind not in variadic}


def check_arguments(kind: str, maker: Factory, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError if the maker does not take one of `arguments`, or needs one more."""
    taken = parameters(maker)
    for argument in arguments:
        if argument not in taken:
            raise unknown(f"argument of {kind} {maker.__name__}:", argument, taken)
    own = inspect.signature(maker).parameters
    needed = (name for name, p in own.items() if name in taken and p.default is p.empty)
    missing = [name for name in needed if name not in arguments]
    if missing:
        raise ConfigError(f"{kind} {maker.__name__} needs {', '.join(missing)} too; give it beside 'name'")


def _signed(maker: Factory) -> Sequence[Factory]:
    if inspect.isclass(maker):
        return [cls for cls in maker.__mro__ if "__init__" in vars(cls) and cls.__module__ != "builtins"]
    returned = vars(sys.modules[maker.__module__]).get(str(inspect.signature(maker).return_annotation))
    return [maker] if returned is None else [maker, *_signed(returned)]
