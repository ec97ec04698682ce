"""Algorithms and tasks by name: a short name is a file's name, anything else is `package.module:Class`."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean

ALGORITHMS = "algorithms"
TASKS = "raysim.tasks"
METHODS = ("init", "round", "predictor")


class NestedAlgorithm:
    """Marks a field that holds another algorithm: its keys nest there, and its name alone is short for it."""


NESTED_ALGORITHM = NestedAlgorithm()


def algorithm_class(name: str) -> Any:
    """The algorithm of this short name or `package.module:Class`."""
    return _find(name, ALGORITHMS, "algorithm", METHODS)


def task_class(name: str) -> Any:
    """The task of this short name or `package.module:Class`."""
    return _find(name, TASKS, "task", ("build",))


@cache
def short_names(package: str, methods: tuple[str, ...]) -> dict[str, str]:
    """Each module of `package` with a class that defines `methods`, and the first line of what it says of itself.

    Read from the source, without importing it: a list must not wait for torch.
    """
    found = {}
    for module in pkgutil.iter_modules(_folder(package)):
        path = Path(_folder(package)[0]) / f"{module.name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if any(set(methods) <= {n.name for n in c.body if isinstance(n, ast.FunctionDef)} for c in classes):
            found[module.name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def algorithms() -> dict[str, str]:
    """Short names of the algorithms, each with its one-line description."""
    return short_names(ALGORITHMS, METHODS)


def tasks() -> dict[str, str]:
    """Short names of the tasks, each with its one-line description."""
    return short_names(TASKS, ("build",))


def classes_of(algorithm: Any) -> list[type]:
    """The class of an algorithm, and those of the algorithms in its fields."""
    inner = (getattr(algorithm, field.name) for field in fields(algorithm))
    return [type(algorithm), *(cls for each in inner if is_algorithm(each) for cls in classes_of(each))]


def is_algorithm(value: Any) -> bool:
    """Whether `value` is one, made and ready."""
    return _is_one(type(value), METHODS)


def name_of(cls: type) -> str:
    """The shortest name by which `cls` is found again."""
    package, _, module = cls.__module__.rpartition(".")
    return module if package in (ALGORITHMS, TASKS) else f"{cls.__module__}:{cls.__qualname__}"


def _folder(package: str) -> list[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package!r} is not installed; install raysim whole (`pip install .`)")
    return list(spec.submodule_search_locations)


def _find(name: str, package: str, what: str, methods: tuple[str, ...]) -> Any:
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = short_names(package, methods)
        if name not in known:
            valid = ", ".join(sorted(known))
            raise ConfigError(
                f"unknown {what} '{name}'{did_you_mean(name, known)}; valid: {valid}, or your own as package.module:Class"
            )
        module = importlib.import_module(f"{package}.{name}")
        return next(c for c in vars(module).values() if _is_one(c, methods) and c.__module__ == module.__name__)
    cls = getattr(_import(module_name, what, name), class_name, None)
    if cls is None:
        raise ConfigError(f"{what} {name!r}: the module {module_name} has no {class_name}")
    if not _is_one(cls, methods):
        raise ConfigError(f"{what} {name!r}: expected a dataclass with the methods {', '.join(methods)}")
    return cls


def _import(module: str, what: str, name: str) -> Any:
    try:
        return import_by_name(module)
    except Exception as error:  # whatever is wrong with it, it is the user's to mend
        raise ConfigError(f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _is_one(cls: Any, methods: tuple[str, ...]) -> bool:
    return isinstance(cls, type) and is_dataclass(cls) and all(callable(getattr(cls, m, None)) for m in methods)


def import_by_name(name: str) -> Any:
    """The module `package.module`, or what `package.module:Name` names; found in the working directory too."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return pkgutil.resolve_name(name)
