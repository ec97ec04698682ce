"""Metrics by name: those of a task, and your own as `module:Name`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from raysim.core.errors import ConfigError
from raysim.tasks.factory_lookup import Factory, find_factory

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A metric: its name in tables, the direction in which it improves, and the function that computes it."""

    name: str
    better: Direction
    function: Callable[..., float | None]

    def __call__(self, *arguments: Any) -> float | None:
        """The value; None where the metric is not defined. Raises ValueError for a value that is not a number."""
        value = self.function(*arguments)
        if value is None:
            return None
        if isinstance(value, bool) or not math.isfinite(number := float(value)):
            raise ValueError(f"metric {self.name} returned {value!r}; expected a finite number, or None if undefined")
        return number


def find_metrics(names: Sequence[str], shipped: Mapping[str, Metric], example: Sequence[Any]) -> tuple[Metric, ...]:
    """The metrics with these names: of `shipped`, or imported as `module:Name` and tried on the `example` arguments.

    Raises ConfigError for an unknown or repeated name, and for a metric of yours that fails or has no direction.
    """
    metrics = tuple(shipped[name] if name in shipped else _own_metric(name, shipped, example) for name in names)
    columns = [metric.name for metric in metrics]
    for column in columns:
        if columns.count(column) > 1:
            given = ", ".join(names)
            raise ConfigError(f"task.metrics=[{given}]: expected each metric once, not {column} twice; remove one")
    return metrics


def _own_metric(name: str, shipped: Mapping[str, Metric], example: Sequence[Any]) -> Metric:
    factories: dict[str, Factory] = {key: metric.function for key, metric in shipped.items()}
    found: Any = find_factory("metric", name, factories)
    if ":" not in name:  # a shipped one, in another spelling
        return next(metric for metric in shipped.values() if metric.function is found)
    function: Any = found() if inspect.isclass(found) else found
    better: Any = getattr(function, "better", None)
    if better not in get_args(Direction):
        raise ConfigError(
            f"metric '{name}' has better={better!r}; expected 'higher' or 'lower'. "
            f"Add to its module: {found.__name__}.better = 'higher'"
        )
    metric = Metric(found.__name__, better, function)
    try:
        metric(*example)
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"metric '{name}' fails on an example: {type(error).__name__}: {error}") from error
    return metric
