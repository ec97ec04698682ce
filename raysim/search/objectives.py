"""The objectives of a search: columns of a round's row, each with its direction (higher or lower is better)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.core.numeric import is_finite_number, is_number
from raysim.core.suggestions import did_you_mean
from raysim.federation.plan import chosen_metric, how_to_add_val_cases, possible_metrics
from raysim.storage.recorder import AGGREGATES, direction

if TYPE_CHECKING:
    from raysim.search.trial_store import TrialRecord

COST_COLUMNS = {"bytes": "bytes", "seconds": "spent"}  # the cumulative costs of a trial
SHORT_METRICS = ("mean", "weighted", "worst", "outside", *COST_COLUMNS)
BEST_PREFIX = "best/"  # of the columns with the values of the best round so far


@dataclass(frozen=True)
class Objective:
    """A column in the result of a trial, and its direction (higher or lower is better)."""

    column: str
    better: Literal["higher", "lower"]

    @property
    def row_column(self) -> str:
        """The column with the value in a round, not in the best round."""
        return self.column.removeprefix(BEST_PREFIX)

    @property
    def of_best_round(self) -> Objective:
        """The objective in the best round so far. Costs are always those of all rounds."""
        return self if self.column in COST_COLUMNS.values() else replace(self, column=f"{BEST_PREFIX}{self.column}")

    @property
    def mode(self) -> str:
        """The direction in the terms of Ray Tune: max or min."""
        return "max" if self.better == "higher" else "min"

    def is_better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better than `other`."""
        return value > other if self.better == "higher" else value < other


def parse_objectives(
    text: str | None, tasks: Sequence[Task], metric: str | None, held_out: bool
) -> tuple[Objective, ...]:
    """The objectives in `text`, separated by commas: `worst`, `mean,worst,bytes`, `outside/test/dice/worst`.

    `tasks` are those of a trial's federations. Short names refer to `metric`, the metric of the run
    (role/split/metric), or to the metric of the outside sites if a site is held out. Raises ConfigError for a metric
    that no site has.
    """
    main = chosen_metric(tasks[0], metric)
    if held_out and metric is None:
        main = _outside_metric(tasks, main)
    objectives = tuple(_parse_objective(part.strip(), tasks, main) for part in (text or "mean").split(","))
    if len({each.column for each in objectives}) < len(objectives):
        raise ConfigError(f"--metric {text}: an objective is given twice; remove one of them")
    if held_out and (inside := [each.column for each in objectives if each.column.startswith("inside/")]):
        raise ConfigError(
            f"{inside[0]} evaluates the sites that train, but --holdout evaluates held-out sites: use --metric outside "
            f"or outside/{inside[0].split('/', 1)[1]}, and no metric of inside sites"
        )
    return objectives


def check_no_test_scores(
    objectives: Sequence[Objective], tasks: Sequence[Task], text: str | None, config: RunConfig
) -> None:
    """Raises ConfigError for an objective on test cases. `text` and `tasks` are those of `parse_objectives`."""
    for column in (each.column for each in objectives if "/test/" in each.column):
        role = column.partition("/")[0]
        all_sites = [task.inside if role == "inside" else task.outside for task in tasks]
        for task, sites in zip(tasks, all_sites, strict=True):
            if not any(task.sizes[site].get("val", 0) for site in sites):
                raise ConfigError(
                    f"{column} is a test score, by which trials are never compared, and no {role} site "
                    f"({join_names(sites)}) has val cases; {how_to_add_val_cases(config.task, task, sites)}"
                )
        given = f"--metric {text}" if text and "/test/" in text else f"metric={config.metric}"
        raise ConfigError(f"{given}: trials are never compared by a test score; use {given.replace('/test/', '/val/')}")


def _parse_objective(name: str, tasks: Sequence[Task], main: str) -> Objective:
    if name in COST_COLUMNS:
        return Objective(COST_COLUMNS[name], "lower")
    if name == "outside":
        main, name = _outside_metric(tasks, main), "mean"
    if name in AGGREGATES:
        return _with_direction(f"{main}/{name}", tasks[0])
    stem, _, aggregate = name.rpartition("/")
    if aggregate not in AGGREGATES:
        stem, aggregate = name, "mean"
    for known in map(possible_metrics, tasks):
        if stem.removesuffix("@global") not in known:
            raise _unknown_metric(name, stem, known)
    return _with_direction(f"{stem}/{aggregate}", tasks[0])


def _unknown_metric(name: str, stem: str, known: Sequence[str]) -> ConfigError:
    """The error of an objective that is none of the `known` metrics; test metrics are not proposed."""
    compared = [each for each in known if "/test/" not in each] or known
    suggestion = did_you_mean(name, [*SHORT_METRICS, *(each + name[len(stem) :] for each in compared)], cutoff=0.7)
    return ConfigError(
        f"--metric {name!r}{suggestion}: expected {', '.join(SHORT_METRICS)}, or one of {', '.join(compared)}, each "
        "also with /worst or /weighted"
    )


def _with_direction(column: str, task: Task) -> Objective:
    better = direction(column.rpartition("/")[0], task.score.better)
    if better is None:
        raise ConfigError(f"--metric {column}: neither higher nor lower values are better; use another metric")
    return Objective(column, better)


def _outside_metric(tasks: Sequence[Task], main: str) -> str:
    """The metric `main` at the outside sites, on the first split that the outside sites of every task have."""
    metric = main.split("/", 2)[2]
    for split in ("val", "test"):
        if all(any(task.sizes[site].get(split, 0) for site in task.outside) for task in tasks):
            return f"outside/{split}/{metric}"
    if not tasks[0].outside:
        raise ConfigError("--metric outside: there is no outside site; add one: task.data.outside=[...]")
    sites = ", ".join(dict.fromkeys(site for task in tasks for site in task.outside))
    raise ConfigError(
        f"no split is present at all outside sites ({sites}): expected val rows, or test rows, at each; add the rows"
    )


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The records that no other record dominates, sorted by the first objective, the best first.

    A record dominates another if it is at least as good in every objective and better in one.
    """

    def is_dominated(one: TrialRecord, other: TrialRecord) -> bool:
        pairs = [(each, one.last[each.column], other.last[each.column]) for each in objectives]
        as_good = not any(each.is_better(a, b) for each, a, b in pairs)
        return as_good and any(each.is_better(b, a) for each, a, b in pairs)

    first = objectives[0]
    front = [record for record in records if not any(is_dominated(record, other) for other in records)]
    return sorted(front, key=lambda record: record.last[first.column], reverse=first.better == "higher")


def tied_records(records: Sequence[TrialRecord], best: TrialRecord, objective: Objective) -> list[TrialRecord]:
    """The other records that ended as the best one did, with the same value."""
    value = best.last[objective.column]
    same = [each for each in records if each.status is best.status and each.last.get(objective.column) == value]
    return [each for each in same if each.number != best.number]


def improve(best: dict[str, float], row: Mapping[str, Any], objectives: Sequence[Objective]) -> None:
    """Update `best`, the best value of each objective over the rounds, with a round."""
    for each in objectives:
        value, known = row.get(each.row_column), best.get(each.row_column)
        if is_finite_number(value) and (known is None or each.is_better(value, known)):
            best[each.row_column] = value


def combine_rows(rows: Sequence[tuple[Hashable, Mapping[str, Any]]], better: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the rows of a trial's federations, each given with its repetition (seed and fold), into one row.

    First combines the held-out sites of a repetition: the mean of each column, and the worst value of a column `worst`.
    Then takes the mean over the repetitions. A mean is over the rows that have the column, because a site may lack a
    metric.
    """
    repetitions: dict[Hashable, list[Mapping[str, Any]]] = {}
    for repetition, row in rows:
        repetitions.setdefault(repetition, []).append(row)
    return _column_means([_combine_held_out(group, better) for group in repetitions.values()])


def _combine_held_out(rows: Sequence[Mapping[str, Any]], better: Mapping[str, Any]) -> dict[str, Any]:
    combined = _column_means(rows)
    for column in combined:
        stem, _, aggregate = column.rpartition("/")
        if aggregate == "worst":
            worst = max if direction(stem.removeprefix(BEST_PREFIX), better) == "lower" else min
            combined[column] = worst(_numbers(rows, column))
    return combined


def _column_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = {name: _numbers(rows, name) for row in rows for name in row}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if is_number(row.get(name))]
