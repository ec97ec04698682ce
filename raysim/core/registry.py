"""Look-up of algorithms and tasks by short name, which is the name of a module, or by `package.module:Class`."""

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
DECORATOR = "@dataclass(frozen=True, kw_only=True)"
SUPPLIED = {"SelfSupervised": METHODS}  # methods that a subclass inherits, by the name of the base class


class NestedAlgorithm:
    """Marks a field that contains another algorithm. Its keys are nested below the field; a name alone is allowed."""


NESTED_ALGORITHM = NestedAlgorithm()


def algorithm_class(name: str) -> Any:
    """The algorithm class with this short name or `package.module:Class`. Raises ConfigError for an unknown one."""
    return _find(name, ALGORITHMS, "algorithm", METHODS)


def task_class(name: str) -> Any:
    """The task class with this short name or `package.module:Class`. Raises ConfigError for an unknown one."""
    return _find(name, TASKS, "task", ("build",))


@cache
def short_names(package: str, methods: tuple[str, ...]) -> dict[str, str]:
    """The first docstring line of each module of `package` with a class that has `methods`, by module name.

    The source is parsed and not imported, because the import of torch is slow.
    """
    found = {}
    for module in pkgutil.iter_modules(_folder(package)):
        path = Path(_folder(package)[0]) / f"{module.name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if any(set(methods) <= _method_names(node) for node in classes):
            found[module.name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def _method_names(node: ast.ClassDef) -> set[str]:
    """The methods that a class defines, or inherits from a base class in `SUPPLIED`."""
    bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
    inherited = [name for base in bases for name in SUPPLIED.get(base, ())]
    return {*inherited, *(item.name for item in node.body if isinstance(item, ast.FunctionDef))}


def algorithms() -> dict[str, str]:
    """Short names of the algorithms, each with its one-line description."""
    return short_names(ALGORITHMS, METHODS)


def tasks() -> dict[str, str]:
    """Short names of the tasks, each with its one-line description."""
    return short_names(TASKS, ("build",))


def classes_of(algorithm: Any) -> list[type]:
    """The class of an algorithm, and the classes of algorithms in its fields."""
    values = (getattr(algorithm, field.name) for field in fields(algorithm))
    return [type(algorithm), *(cls for value in values if is_algorithm(value) for cls in classes_of(value))]


def is_algorithm(value: Any) -> bool:
    """Whether `value` is an instance of an algorithm."""
    return _has_methods(type(value), METHODS)


def name_of(cls: type) -> str:
    """The shortest name with which `algorithm_class` or `task_class` finds `cls`."""
    package, _, module = cls.__module__.rpartition(".")
    return module if package in (ALGORITHMS, TASKS) else f"{cls.__module__}:{cls.__qualname__}"


def _folder(package: str) -> list[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package!r} is not installed; install raysim completely: `pip install .`")
    return list(spec.submodule_search_locations)


def _find(name: str, package: str, what: str, methods: tuple[str, ...]) -> Any:
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = short_names(package, methods)
        if name not in known:
            valid = ", ".join(sorted(known))
            raise ConfigError(
                f"unknown {what} '{name}'{did_you_mean(name, known)}; valid: {valid}, "
                f"or your own as package.module:Class{import_cure(name)}"
            )
        module = importlib.import_module(f"{package}.{name}")
        return next(c for c in vars(module).values() if _has_methods(c, methods) and c.__module__ == module.__name__)
    cls = getattr(_import(module_name, what, name), class_name, None)
    if cls is None:
        raise ConfigError(f"{what} {name!r}: the module {module_name} has no {class_name}")
    _check_class(cls, f"{what} {name!r}", methods)
    return cls


def _check_class(cls: Any, subject: str, methods: tuple[str, ...]) -> None:
    """Raises ConfigError if `cls` is not a frozen dataclass with these methods."""
    if not isinstance(cls, type):
        raise ConfigError(f"{subject} is a {type(cls).__name__}: expected a frozen dataclass, the class itself")
    if missing := [method for method in methods if not callable(getattr(cls, method, None))]:
        raise ConfigError(f"{subject} has no {' and no '.join(missing)}: expected the methods {', '.join(methods)}")
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


def _import(module: str, what: str, name: str) -> Any:
    try:
        return import_by_name(module)
    except Exception as error:  # any error in a user's module is reported to the user
        reason = f"{type(error).__name__}: {error}{import_cure(name)}"
        raise ConfigError(f"{what} {name!r} cannot be imported: {reason}") from error


def _has_methods(cls: Any, methods: tuple[str, ...]) -> bool:
    return isinstance(cls, type) and is_dataclass(cls) and all(callable(getattr(cls, m, None)) for m in methods)


def import_cure(name: str) -> str:
    """The end of the message for a failed import of `folder/file.py:Name`: the correct name. Empty for other names."""
    file, _, attribute = name.partition(":")
    if not file.endswith(".py"):
        return ""
    path = Path(file.removesuffix(".py"))
    if path.is_absolute() or ".." in path.parts:
        return f"; change to the folder {path.parent} and use {path.name}:{attribute or 'CLASS'} (module without .py)"
    return f"; use {'.'.join(path.parts)}:{attribute or 'CLASS'} (module without .py)"


def import_by_name(name: str) -> Any:
    """The module `package.module`, or the object `package.module:Name`, also from the working directory.

    The working directory is searched last: a file in it, which may be shared, must not replace an installed module.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return pkgutil.resolve_name(name)
