"""Cases that run only in `make test-all`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The cases (a tuple has a value for each parameter); those that are not in `kept` are marked slow."""
    return [
        case if case in kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
