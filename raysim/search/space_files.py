"""Search spaces in Python files: files of the user, and those installed in the package `search_spaces`."""

from __future__ import annotations

import ast
import pkgutil
import runpy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean

if TYPE_CHECKING:
    from raysim.search.space import Space

PACKAGE = "search_spaces"


def read_space(name: str) -> Space:
    """The space in a Python file (`my_space.py`), or the space with this short name in `search_spaces`.

    Raises ConfigError if there is no such file or it defines no space.
    """
    from raysim.search.space import from_mapping  # here, because it imports Ray, and a wrong name is refused before

    try:
        variables = runpy.run_path(str(space_file(name)))
    except Exception as error:  # any error in the user's file
        raise ConfigError(f"the search space {name} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(variables.get("SPACE"), Mapping):
        raise ConfigError(
            f"the search space {name} has no SPACE: expected SPACE = {{'algorithm.lr': tune.loguniform(...)}}"
        )
    return from_mapping(variables["SPACE"], variables.get("POINTS", ()), name)


def space_file(name: str) -> Path:
    """The file of the space. Raises ConfigError if there is none."""
    path = Path(name) if name.endswith(".py") else _installed_file(name)
    if not path.is_file():
        raise ConfigError(
            f"the search space {name} does not exist; give the path of a Python file, or a name that "
            "`raysim list spaces` shows"
        )
    return path


def installed_spaces() -> dict[str, str]:
    """The short names of the installed spaces, each with the first line of its docstring."""
    folder = _package_directory()
    names = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return {name: _docstring(folder / f"{name}.py").split("\n")[0] for name in names}


def space_docstring(name: str) -> str:
    """The docstring of the space with this short name, or of this file."""
    return _docstring(Path(name) if name.endswith(".py") else _installed_file(name))


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _package_directory() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE!r} is not installed; install all packages of raysim: pip install .")
    return Path(next(iter(spec.submodule_search_locations)))


def _installed_file(name: str) -> Path:
    known = installed_spaces()
    if name not in known:
        raise ConfigError(
            f"unknown search space '{name}'{did_you_mean(name, known)}; valid: {', '.join(sorted(known))}, "
            "or the path of a Python file that ends with .py"
        )
    return _package_directory() / f"{name}.py"
