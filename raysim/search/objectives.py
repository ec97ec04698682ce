"""What trials are judged by: columns of a round, each with the direction in which it improves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean
from raysim.federation.plan import chosen_metric
from raysim.storage.recorder import AGGREGATES, direction

COST_COLUMNS = {"bytes": "bytes", "seconds": "spent"}  # what a trial has spent so far
SHORT = ("mean", "weighted", "worst", "outside", *COST_COLUMNS)


@dataclass(frozen=True)
class Objective:
    """A column of a round's row, and which way it improves."""

    column: str
    better: Literal["higher", "lower"]

    @property
    def mode(self) -> str:
        """The direction in Tune's words."""
        return "max" if self.better == "higher" else "min"

    def beats(self, value: float, other: float) -> bool:
        """Whether `value` is better."""
        return value > other if self.better == "higher" else value < other


def objectives(text: str | None, tasks: Sequence[Task], metric: str | None, held_out: bool) -> tuple[Objective, ...]:
    """The objectives that `text` names, separated by commas: `worst`, `mean,worst,bytes`, `outside/test/dice/worst`.

    `tasks` are those of a trial's federations. `metric` is that of the run, role/split/metric, which the short ones
    speak of; where a site is held out it is that of the outside sites. Raises ConfigError for what no site can have.
    """
    main = chosen_metric(tasks[0], metric)
    if held_out and metric is None:
        main = _outside(tasks, main)
    found = tuple(_objective(part.strip(), tasks, main) for part in (text or "mean").split(","))
    if len({each.column for each in found}) < len(found):
        raise ConfigError(f"--metric {text}: the same thing twice")
    if held_out and (trained := [each.column for each in found if each.column.startswith("inside/")]):
        raise ConfigError(
            f"{trained[0]} judges the sites that train, and --holdout those held out: give --metric outside, or "
            f"outside/{trained[0].split('/', 1)[1]}, and no metric of inside sites"
        )
    return found


def _objective(name: str, tasks: Sequence[Task], main: str) -> Objective:
    if name in COST_COLUMNS:
        return Objective(COST_COLUMNS[name], "lower")
    if name == "outside":
        main, name = _outside(tasks, main), "mean"
    if name in AGGREGATES:
        return _judged(f"{main}/{name}", tasks[0])
    stem, _, kind = name.rpartition("/")
    if kind not in AGGREGATES:
        stem, kind = name, "mean"
    if stem.count("/") != 2:
        raise ConfigError(
            f"--metric {name!r}{did_you_mean(name, SHORT)}: expected {', '.join(SHORT)}, or role/split/metric such as "
            f"{main}, with /worst or /weighted after it"
        )
    chosen = [chosen_metric(task, stem) for task in tasks]  # each refuses what its sites do not have
    return _judged(f"{chosen[0]}/{kind}", tasks[0])


def _judged(column: str, task: Task) -> Objective:
    better = direction(column.rpartition("/")[0], task.score.better)
    if better is None:
        raise ConfigError(f"--metric {column}: it has no better and no worse")
    return Objective(column, better)


def _outside(tasks: Sequence[Task], main: str) -> str:
    """The split that the outside sites of every federation have."""
    metric = main.split("/", 2)[2]
    for split in ("val", "test"):
        if all(any(task.sizes[site].get(split, 0) for site in task.outside) for task in tasks):
            return f"outside/{split}/{metric}"
    if not tasks[0].outside:
        raise ConfigError("--metric outside: there is no outside site; name one: task.data.outside=[...]")
    sites = ", ".join(dict.fromkeys(site for task in tasks for site in task.outside))
    raise ConfigError(f"neither val rows nor test rows are at all outside sites to judge by ({sites}); add some")


def combine_rows(rows: Sequence[tuple[int, Mapping[str, Any]]], better: Mapping[str, Any]) -> dict[str, Any]:
    """One row for several federations of a trial, each with its seed: over held-out sites the mean, and the worst of
    what is a worst; then the mean over seeds. Of each column over the rows that have it: a site may lack a metric."""
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for seed, row in rows:
        by_seed.setdefault(seed, []).append(row)
    return _means([_held_out(group, better) for group in by_seed.values()])


def _held_out(rows: Sequence[Mapping[str, Any]], better: Mapping[str, Any]) -> dict[str, Any]:
    found = _means(rows)
    for column in found:
        stem, _, kind = column.rpartition("/")
        if kind == "worst":
            worst = max if direction(stem, better) == "lower" else min
            found[column] = worst(_numbers(rows, column))
    return found


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = {name: _numbers(rows, name) for row in rows for name in row}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if is_number(row.get(name))]


def is_number(value: Any) -> bool:
    """Whether `value` is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that trials can be judged by."""
    return is_number(value) and math.isfinite(value)
