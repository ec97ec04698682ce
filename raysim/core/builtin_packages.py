"""Finds the packages `algorithms` and `search_spaces` beside raysim, independent of the working directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

BUILTIN_PACKAGES = ("algorithms", "search_spaces")
PARENT_FOLDER = str(Path(__file__).parents[2])  # of raysim and of these packages, installed or in a checkout


class BuiltinPackageFinder:
    """A finder of `sys.meta_path` that precedes the search of `sys.path`, which may begin with the working directory.

    It is installed when raysim is imported, so it is also active in the processes of Ray.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a built-in package; None for any other module."""
        return PathFinder.find_spec(name, [PARENT_FOLDER]) if name in BUILTIN_PACKAGES else None


def install_finder() -> None:
    """Add the finder to `sys.meta_path`."""
    if BuiltinPackageFinder not in sys.meta_path:
        sys.meta_path.insert(0, BuiltinPackageFinder)
