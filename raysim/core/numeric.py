"""Checks of values from tables, logs and configurations."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float; bool, a subclass of int, does not count."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that can be compared: neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)
