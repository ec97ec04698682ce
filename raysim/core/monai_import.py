"""Makes `import monai` faster: modules that only a few rarely used functions need are imported when these run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# MONAI and nibabel only call functions of these modules. Their import takes longer than that of the rest of MONAI.
DEFERRED = (
    *("matplotlib", "matplotlib.pyplot", "optuna", "pandas", "pydicom"),
    *("scipy.ndimage", "scipy.optimize", "scipy.signal"),
    *("scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg", "scipy.spatial"),
)
# MONAI imports these if they are installed, and they use classes of scipy: then scipy is imported at once.
USERS_OF_SCIPY = ("skimage", "sklearn")


class _DeferredModule(ModuleType):
    """Replaces a module while MONAI is imported. Its attributes are functions that import the module when called.

    After the import of MONAI, its attributes are those of the module.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self:
            return partial(_call, self.__name__, name)
        return getattr(import_module(self.__name__), name)


def _call(module: str, function: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(import_module(module), function)(*args, **kwargs)


@contextmanager
def _deferred(names: Sequence[str]) -> Iterator[None]:
    """Replaces the modules `names` that are not imported yet; in the block, `import` finds the replacements."""
    replaced = {name: _DeferredModule(name) for name in names if name not in sys.modules and _is_deferrable(name)}
    sys.modules.update(replaced)
    for name, module in replaced.items():
        parent, _, last = name.rpartition(".")
        if parent in replaced:
            setattr(replaced[parent], last, module)
    try:
        yield
    finally:
        for name in replaced:
            del sys.modules[name]


def _is_deferrable(name: str) -> bool:
    package = name.partition(".")[0]
    return find_spec(package) is not None and not (package == "scipy" and any(map(find_spec, USERS_OF_SCIPY)))


class _MonaiLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # set by the import system
        module.__loader__ = module.__spec__.loader = self._loader
        with _deferred(DEFERRED):
            self._loader.exec_module(module)


class MonaiFinder:
    """A finder of `sys.meta_path` for the package `monai`. Its submodules are found by the other finders."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of `monai`; None for any other module, and if MONAI is not installed."""
        spec = PathFinder.find_spec(name, path, target) if name == "monai" else None
        if spec is not None and spec.loader is not None:
            spec.loader = _MonaiLoader(spec.loader)
        return spec


def install_finder() -> None:
    """Add the finder to `sys.meta_path`."""
    if MonaiFinder not in sys.meta_path:
        sys.meta_path.insert(0, MonaiFinder)
