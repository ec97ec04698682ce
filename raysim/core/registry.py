"""Look-up of algorithms and tasks by short name (that of a module), by `package.module:Class` or by `file.py:Class`."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from raysim.core.builtin_packages import BUILTIN_PACKAGES
from raysim.core.class_checks import check_class
from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean

ALGORITHMS = "algorithms"
TASKS = "raysim.tasks"
METHODS = ("init", "round", "predictor")
GROUPS = ("global", "personal", "self-supervised", "domain generalisation", "references")  # of algorithms, as listed
SUPPLIED = {"SelfSupervised": METHODS}  # methods that a subclass inherits, by the name of the base class

BASES = {"LocalTraining": "raysim.training.local_training", "SelfSupervised": "raysim.training.self_supervised"}


class NestedAlgorithm:
    """Marks a field that contains another algorithm. Its keys are nested below the field; a name alone is allowed."""


NESTED_ALGORITHM = NestedAlgorithm()


def algorithm_class(name: str) -> Any:
    """The algorithm class with this short name, `package.module:Class` or `folder/file.py:Class`.

    Raises ConfigError for an unknown one.
    """
    return _find(name, ALGORITHMS, "algorithm", METHODS)


def task_class(name: str) -> Any:
    """The task class with this short name, `package.module:Class` or `folder/file.py:Class`.

    Raises ConfigError for an unknown one.
    """
    return _find(name, TASKS, "task", ("build",))


@dataclass(frozen=True)
class Entry:
    """The first docstring line of a module, and its constant GROUP; empty without one."""

    description: str
    group: str


@cache
def _entries(package: str, methods: tuple[str, ...]) -> dict[str, Entry]:
    """Each module of `package` that has a class with `methods`, by module name.

    The source is parsed and not imported, because the import of torch is slow.
    """
    found = {}
    for module in pkgutil.iter_modules(_folder(package)):
        path = Path(_folder(package)[0]) / f"{module.name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if any(set(methods) <= _method_names(node) for node in classes):
            found[module.name] = Entry((ast.get_docstring(tree) or "").split("\n")[0], _group(tree))
    return found


def _group(tree: ast.Module) -> str:
    """The value of the line `GROUP = "..."`; empty without one."""
    assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = [ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == "GROUP"]
    return str(values[0]) if values else ""


def _method_names(node: ast.ClassDef) -> set[str]:
    """The methods that a class defines, or inherits from a base class in `SUPPLIED`."""
    inherited = [name for base in _base_names(node) for name in SUPPLIED.get(base, ())]
    return {*inherited, *(item.name for item in node.body if isinstance(item, ast.FunctionDef))}


def _base_names(node: ast.ClassDef) -> list[str]:
    """The names of the base classes, without their packages and type arguments."""
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


@cache
def declared_algorithm_fields(name: str) -> Sequence[str]:
    """The fields of the built-in algorithm with this short name, from its source; empty for any other algorithm.

    Raises ConfigError for an unknown short name.
    """
    if ":" in name:
        return ()
    _check_short_name(name, ALGORITHMS, "algorithm", METHODS)
    return tuple(_declared_fields(f"{ALGORITHMS}.{name}"))


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """The module of each name that is imported from a package of algorithms."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    found = {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}
    return {name: module for name, module in found.items() if module.startswith(f"{ALGORITHMS}.")}


def _declared_fields(module: str, class_name: str | None = None) -> Sequence[str]:
    """The fields of a class in the source of `module`, inherited fields first; by default those of its algorithm."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for cls in classes:
        if cls.name == class_name or (class_name is None and set(METHODS) <= _method_names(cls)):
            homes = {**_imported_names(tree), **{other.name: module for other in classes}, **BASES}
            inherited = [n for b in _base_names(cls) if b in homes for n in _declared_fields(homes[b], b)]
            own = (item.target for item in cls.body if isinstance(item, ast.AnnAssign))
            return list(dict.fromkeys([*inherited, *(name.id for name in own if isinstance(name, ast.Name))]))
    return []


def algorithms() -> dict[str, str]:
    """Short names of the algorithms, each with its one-line description."""
    return {name: entry.description for name, entry in _entries(ALGORITHMS, METHODS).items()}


def algorithm_groups() -> dict[str, list[str]]:
    """Short names of the algorithms by group, in the order of GROUPS. A module states its group as `GROUP = "..."`."""
    entries = _entries(ALGORITHMS, METHODS)
    return {group: [name for name, entry in entries.items() if entry.group == group] for group in GROUPS}


def tasks() -> dict[str, str]:
    """Short names of the tasks, each with its one-line description."""
    return {name: entry.description for name, entry in _entries(TASKS, ("build",)).items()}


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
        _check_short_name(name, package, what, methods)
        module = importlib.import_module(f"{package}.{name}")
        return next(c for c in vars(module).values() if _has_methods(c, methods) and c.__module__ == module.__name__)
    module = _import(module_name, what, name)
    cls = getattr(module, class_name, None)
    if cls is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(
            f"{what} {name!r}: the module {module_name} has no {class_name}{did_you_mean(class_name, classes)}; "
            "expected the name of a class in that module"
        )
    check_class(cls, f"{what} {name!r}", methods)
    return cls


def _check_short_name(name: str, package: str, what: str, methods: tuple[str, ...]) -> None:
    known = _entries(package, methods)
    if name not in known:
        valid = ", ".join(sorted(known))
        raise ConfigError(
            f"unknown {what} '{name}'{did_you_mean(name, known)}; valid: {valid}, "
            f"or your own as package.module:Class or folder/file.py:Class{class_advice(name)}"
        )


def _import(module: str, what: str, name: str) -> Any:
    try:
        return import_by_name(module)
    except Exception as error:  # any error in a user's module is reported to the user
        reason = f"{type(error).__name__}: {error}{import_advice(name)}"
        raise ConfigError(f"{what} {name!r} cannot be imported: {reason}") from error


def _has_methods(cls: Any, methods: tuple[str, ...]) -> bool:
    return isinstance(cls, type) and is_dataclass(cls) and all(callable(getattr(cls, m, None)) for m in methods)


def class_advice(name: str) -> str:
    """The end of the message for the name of a file without a class; empty for other names."""
    return f"; write {name}:CLASS, with the name of its class" if name.endswith(".py") else ""


def import_advice(name: str) -> str:
    """The end of the message for a failed import of `name`; empty for a short name.

    A module in a user's folder with the name of a built-in package has to be given by its path.
    """
    module, _, attribute = name.partition(":")
    file = Path(*module.split(".")).with_suffix(".py") if module else Path()
    if file.parts[:1] and file.parts[0] in BUILTIN_PACKAGES and file.is_file():
        return f"; the package {file.parts[0]} is that of raysim: write {file}:{attribute}"
    return "; correct the module, which must be in the working directory or installed" if attribute else ""


def import_by_name(name: str) -> Any:
    """The module `package.module` or `folder/file.py`, or an object in it, as in `package.module:Name`.

    Modules and relative paths may also be in the working directory. It is searched last: a file in it, which may be
    shared, must not replace an installed module.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module, _, attribute = name.partition(":")
    if not module.endswith(".py"):
        return pkgutil.resolve_name(name)
    loaded = _import_file(module)
    return attrgetter(attribute)(loaded) if attribute else loaded


def _import_file(file: str) -> ModuleType:
    """The module in this file. Its name is its dotted name if that finds this file, otherwise its path.

    The path is needed for a file in a user's folder `algorithms`, because the package of that name is raysim's.
    """
    path, dotted = Path(file), ".".join(Path(file).with_suffix("").parts)
    with suppress(ImportError, ValueError):  # a path such as ../file.py has no dotted name
        spec = find_spec(dotted)
        if spec is not None and spec.origin is not None and path.resolve() == Path(spec.origin).resolve():
            return importlib.import_module(dotted)
    if file not in sys.modules:
        spec = spec_from_file_location(file, path)
        assert spec is not None  # None only for a file that does not end with .py
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[file] = module  # before it runs, because the decorator `dataclass` looks it up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[file]
            raise
    return sys.modules[file]


def modules_from_paths() -> list[ModuleType]:
    """The modules that `import_by_name` has loaded under their paths. Another process cannot import them by name."""
    return [module for name, module in list(sys.modules.items()) if name.endswith(".py")]
