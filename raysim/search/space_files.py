"""Spaces in files: a user's own, and those that come along in `search_spaces`."""

from __future__ import annotations

import ast
import pkgutil
import runpy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean
from raysim.search.space import Space, from_mapping

PACKAGE = "search_spaces"


def read_space(name: str) -> Space:
    """The space in a Python file (`my_space.py`), or of this short name in `search_spaces`.

    Raises ConfigError where there is none.
    """
    path = Path(name) if name.endswith(".py") else _shipped(name)
    try:
        found = runpy.run_path(str(path))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no search space {name}; see `raysim list spaces`, or give a file of yours"
        ) from error
    except Exception as error:  # whatever is wrong with it, it is the user's to mend
        raise ConfigError(f"the search space {name} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found.get("SPACE"), Mapping):
        raise ConfigError(
            f"the search space {name} has no SPACE: expected SPACE = {{'algorithm.lr': tune.loguniform(...)}}"
        )
    return from_mapping(found["SPACE"], found.get("POINTS", ()), name)


def shipped() -> dict[str, str]:
    """The short names of the spaces that come along, each with its first line."""
    folder = _folder()
    return {module.name: _first_line(folder / f"{module.name}.py") for module in pkgutil.iter_modules([str(folder)])}


def _first_line(path: Path) -> str:
    return _said(path).split("\n")[0]


def _said(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def text_of(name: str) -> str:
    """What the space of this short name, or in this file, says of itself."""
    return _said(Path(name) if name.endswith(".py") else _shipped(name))


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE!r} is not installed; install raysim whole (`pip install .`)")
    return Path(next(iter(spec.submodule_search_locations)))


def _shipped(name: str) -> Path:
    known = shipped()
    if name not in known:
        raise ConfigError(
            f"unknown search space '{name}'{did_you_mean(name, known)}; valid: {', '.join(sorted(known))}, "
            "or a file of yours that ends with .py"
        )
    return _folder() / f"{name}.py"
