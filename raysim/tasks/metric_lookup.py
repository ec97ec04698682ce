"""Metrics by name: those of a task, and your own as `module:Name`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from raysim.core.errors import ConfigError, RunError
from raysim.core.numeric import is_finite_number, is_number
from raysim.tasks.factory_lookup import find_factory, format_error

Direction = Literal["higher", "lower"]
UNLIMITED = (-math.inf, math.inf)
ROUNDING = 1e-6  # by which a value may exceed its range, because float32 rounds


@dataclass(frozen=True)
class Metric:
    """A metric: its name in tables, the direction in which it improves, its function, and the range of its values."""

    name: str
    better: Direction
    function: Callable[..., float | None]
    range: tuple[float, float] = UNLIMITED

    def __call__(self, *arguments: Any) -> float | None:
        """The value; None where the metric is not defined. Raises RunError for a value that is not in its range."""
        value = self.function(*arguments)
        if value is None:
            return None
        number = _to_float(value)
        if number is None:
            raise RunError(f"metric {self.name} returned {value!r:.80}: expected a finite number, or None if undefined")
        low, high = self.range
        if not low - ROUNDING <= number <= high + ROUNDING:
            raise RunError(
                f"metric {self.name} returned {number:g}: expected {format_range(self.range)}; correct the metric or "
                f"{self.name}.range"
            )
        return number


def format_range(limits: tuple[float, float]) -> str:
    """`0 to 1`, `at least 0`, or `any number`."""
    low, high = limits
    if math.isinf(low) and math.isinf(high):
        return "any number"
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def _to_float(value: Any) -> float | None:
    """A finite number, also as an array or a tensor of one element, as a float; None for anything else."""
    try:
        item = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # more than one element
        return None
    return float(item) if is_finite_number(item) else None


def find_metrics(names: Sequence[str], shipped: Mapping[str, Metric], example: Sequence[Any]) -> tuple[Metric, ...]:
    """The metrics with these names: of `shipped`, or imported as `module:Name` and tried on the `example` arguments.

    Raises ConfigError for an unknown or repeated name, and for an imported metric that fails, has no direction, or
    has a wrong range.
    """
    metrics = tuple(_tried_metric(name, shipped, example) for name in names)
    columns = [metric.name for metric in metrics]
    for column in columns:
        if columns.count(column) > 1:
            given = ", ".join(names)
            raise ConfigError(f"task.metrics=[{given}]: expected each metric once, not {column} twice; remove one")
    return metrics


def _tried_metric(name: str, shipped: Mapping[str, Metric], example: Sequence[Any]) -> Metric:
    metric = find_metric(name, shipped)
    if ":" not in name:
        return metric
    try:
        metric(*example)
    except RunError as error:  # its message is complete
        raise ConfigError(f"metric '{name}' fails on an example: {error}") from error
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"metric '{name}' fails on an example: {format_error(error)}") from error
    return metric


def find_metric(name: str, shipped: Mapping[str, Metric]) -> Metric:
    """The metric of `shipped` with this name, or `module:Name`, a function or a class.

    Raises ConfigError for an unknown name, and for a wrong direction or range.
    """
    found: Any = find_factory("metric", name, {key: metric.function for key, metric in shipped.items()})
    if ":" not in name:
        return next(metric for metric in shipped.values() if metric.function is found)
    try:
        function: Any = found() if inspect.isclass(found) else found
    except Exception as error:  # user code may raise anything
        reason = f"{format_error(error)}; expected a constructor without required arguments"
        raise ConfigError(f"metric '{name}' cannot be created: {reason}") from error
    return Metric(found.__name__, _direction(name, found, function), function, _range(name, found, function))


def _direction(name: str, found: Any, function: Any) -> Direction:
    better: Any = getattr(function, "better", None)
    if better not in get_args(Direction):
        raise ConfigError(
            f"metric '{name}' has better={better!r}; expected 'higher' or 'lower'. "
            f"Add to its module: {found.__name__}.better = 'higher'"
        )
    direction: Direction = better
    return direction


def _range(name: str, found: Any, function: Any) -> tuple[float, float]:
    limits: Any = getattr(function, "range", UNLIMITED)
    if isinstance(limits, tuple | list) and len(limits) == 2 and all(map(is_number, limits)) and limits[0] < limits[1]:
        return float(limits[0]), float(limits[1])
    raise ConfigError(
        f"metric '{name}' has range={limits!r}; expected the lowest and the highest value, such as (0, 1), or "
        f"(0, float('inf')) without a limit. Correct in its module: {found.__name__}.range"
    )
