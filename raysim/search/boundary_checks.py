"""The ends of a search space tried on the task, as `raysim run` would try them, before the first trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.federation.plan import build_plan
from raysim.federation.validation import check_algorithm, check_cohort, validate
from raysim.search import distributions
from raysim.search.space import Space
from raysim.search.spec import SearchSpec

MAX_DRAWS = 32  # draws of the other keys of the task, before a value is taken for wrong


def check_boundary_points(search: SearchSpec, task: Task) -> None:
    """Raises ConfigError for an end of the space that the task, its network or an algorithm itself refuses.

    Keys of the data are left to the trials: each end of theirs may be hours of preparation.
    """
    for key, values in search.space.boundary_points():
        if key.startswith("task.data.") or key == "holdout":
            continue
        try:
            _check(search, task, key, values)
        except ConfigError as error:
            raise ConfigError(
                f"the search space: {key} is {distributions.to_text(search.space.domains[key])}: {error}"
            ) from error


def _check(search: SearchSpec, task: Task, key: str, values: Mapping[str, Any]) -> None:
    if _of_task(key):
        _check_task(search, values)
        return
    config = search.config(values, search.variants[0])
    check_cohort(task, config.cohort.size)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)


def _check_task(search: SearchSpec, values: Mapping[str, Any]) -> None:
    """Raises the first error if the value goes together with nothing that other keys of the task may be."""
    errors: list[ConfigError] = []
    for whole in _with_others(search.space, values):
        config = search.config(whole, search.variants[0])
        try:
            validate(build_plan(config, Path.cwd()))
        except ConfigError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _with_others(space: Space, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The value with others that trials may draw for the task: its own first points, then any."""
    for number in range(1, MAX_DRAWS + 1):
        drawn = {name: value for name, value in space.sample(0, number).items() if _of_task(name)}
        whole = {**drawn, **values}
        yield {name: whole[name] for name in space.domains if name in whole}


def _of_task(key: str) -> bool:
    return key.startswith("task.") and not key.startswith("task.data.")
