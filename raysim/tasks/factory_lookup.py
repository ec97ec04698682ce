"""Finds a library class or function by name, and checks arguments against its signature."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.registry import class_advice, import_advice, import_by_name
from raysim.core.suggestions import did_you_mean, squash

Factory = Callable[..., Any]


def unknown_name_error(kind: str, given: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest name and all valid ones."""
    names = sorted(valid)
    return ConfigError(
        f"unknown {kind} '{given}'{did_you_mean(given, names)}; valid: {', '.join(names) or '(none)'}"
        f"{class_advice(given)}"
    )


def find_factory(kind: str, name: object, factories: Mapping[str, Factory]) -> Factory:
    """The factory with this name; case, underscores and dashes are ignored.

    `package.module:Class` or `folder/file.py:Class` is imported. Raises ConfigError for an unknown name and for an
    import that fails.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{kind} has no name (it is {name!r}); use one of: {', '.join(sorted(factories))}")
    if ":" in name:
        try:
            factory: Factory = import_by_name(name)
        except Exception as error:  # user code may raise anything
            reason = f"{type(error).__name__}: {error}{import_advice(name)}"
            raise ConfigError(f"{kind} '{name}' cannot be imported: {reason}") from error
        if not inspect.isclass(factory) and not inspect.isfunction(factory):
            raise ConfigError(f"{kind} '{name}' has the type {type(factory).__name__}; expected a class or a function")
        return factory
    by_name = {squash(key): factory for key, factory in factories.items()}
    if squash(name) not in by_name:
        raise unknown_name_error(kind, name, factories)
    return by_name[squash(name)]


def factory_parameters(factory: Factory) -> dict[str, inspect.Parameter]:
    """The parameters of the factory, and the parameters of the base class or returned class that get its `**kwargs`."""
    found: dict[str, inspect.Parameter] = {}
    for function in _constructor_chain(factory):
        accepted = dict(inspect.signature(function).parameters)
        found = {**accepted, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            break
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in found.items() if p.kind not in variadic}


def check_arguments(kind: str, factory: Factory, arguments: Mapping[str, Any], supplied: Collection[str] = ()) -> None:
    """Raises ConfigError for an argument that the factory does not accept, and for a missing required one.

    `supplied` are parameters that raysim sets.
    """
    accepted = {name: p for name, p in factory_parameters(factory).items() if name not in supplied}
    for argument in arguments:
        if argument not in accepted:
            raise unknown_name_error(f"argument of {kind} {factory.__name__}:", argument, accepted)
    own_parameters = inspect.signature(factory).parameters
    required = (name for name, p in own_parameters.items() if name in accepted and p.default is p.empty)
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ConfigError(f"{kind} {factory.__name__} needs {', '.join(missing)}; add it next to 'name'")


def doc_summary(factory: Factory) -> str:
    """The first sentence of the documentation as plain text, without links; empty if there is none."""
    text = inspect.cleandoc(factory.__doc__ or getattr(vars(factory).get("__init__"), "__doc__", None) or "")
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z`])| [(<]?https?:|Args:", paragraph)[0]
    plain = re.sub(r":[\w:]+:(?=`)", "", sentence).replace("`", "")
    return re.sub(r"(,? (defined in|based on))?[:,]?$", "", plain)


def format_error(error: Exception) -> str:
    """The type and the first line of an error: MONAI appends installation pages and tracebacks."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _constructor_chain(factory: Factory) -> Sequence[Factory]:
    """The functions that receive the factory's arguments: constructors along the MRO, or of the class it returns."""
    if inspect.isclass(factory):
        return [cls for cls in factory.__mro__ if "__init__" in vars(cls) and cls.__module__ != "builtins"]
    returned = vars(sys.modules[factory.__module__]).get(str(inspect.signature(factory).return_annotation))
    return [factory] if returned is None else [factory, *_constructor_chain(returned)]
