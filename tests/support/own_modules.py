"""A test's own modules, which must not stay in memory for the tests after it."""

from __future__ import annotations

import sys
from pathlib import Path


def forget_modules(folder: Path) -> None:
    """Remove the modules and packages whose files are in `folder` from `sys.modules`."""
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        paths = [getattr(module, "__file__", None), *(getattr(spec, "submodule_search_locations", None) or ())]
        if any(str(path).startswith(str(folder)) for path in paths):
            del sys.modules[name]
