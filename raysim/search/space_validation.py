"""Validation of a search space before the first trial: its keys, bounds and points, without the data and with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysim.config.introspection import format_setting
from raysim.config.resolve import resolve
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean
from raysim.federation.plan import build_plan
from raysim.federation.validation import check_algorithm, check_cohort, validate
from raysim.search.early_checks import check_conditional_keys
from raysim.search.space import Space, Values, contains
from raysim.search.spec import SearchSpec

UNSEARCHABLE = {  # keys that a search does not vary, and why
    **dict.fromkeys(("resources", "backend", "ray_address", "tracker"), "it changes no result"),
    **dict.fromkeys(
        ("metric", "evaluate_every", "checkpoint_every"),
        "it defines how trials are evaluated and stored, not how they train",
    ),
    **dict.fromkeys(
        ("task.data.val", "task.data.folds", "task.data.fold"), "trials would be compared on different cases"
    ),
    "chaos": "it injects faults, which are the same in all trials",
}
MAX_SAMPLES = 32  # samples of the task's other keys that are tried before a value counts as invalid


def check_space(space: Space, base: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown key, a bound that is invalid for its key, and a point out of range.

    Needs no data: resolves the configurations and builds no task.
    """
    for key in space.domains:
        reason = UNSEARCHABLE.get(key) or UNSEARCHABLE.get(key.split(".")[0])
        if reason:
            raise ConfigError(f"{key} cannot be searched: {reason}")
    _check_algorithm_names(space)
    for key, values in space.boundary_points():
        _try_resolve(space, base, values, f"{key} is {space.text(key)}")
    for number, point in enumerate(space.points, 1):
        for key, value in point.items():
            _check_point(space, key, value)
        _try_resolve(space, base, space.sample(0, number), f"point {number}")


def _check_algorithm_names(space: Space) -> None:
    domain = space.domains.get("algorithm")
    if domain is not None and not all(isinstance(name, str) for name in space.algorithm_names or [None]):
        raise ConfigError("algorithm is searched by name: expected choice(fedprox, fedsm)")
    check_conditional_keys(space.domains, space.algorithm_names)


def _check_point(space: Space, key: str, value: Any) -> None:
    if key not in space.domains:
        raise ConfigError(f"a point sets {key}, which is not searched{did_you_mean(key, space.domains)}")
    if not contains(space.domains[key], value):
        raise ConfigError(f"a point sets {format_setting(key, value)}, outside of {space.text(key)}")


def _try_resolve(space: Space, base: Mapping[str, Any], values: Values, what: str) -> None:
    try:
        resolve(space.apply(base, values))
    except ConfigError as error:
        raise ConfigError(f"the search space: {what}: {error}") from error


def check_boundaries_on_task(spec: SearchSpec, task: Task) -> None:
    """Raises ConfigError for a bound of the space that is invalid for the task, its network or an algorithm.

    Keys under task.data are not checked, because each of their values may need hours of data preparation.
    """
    for key, values in spec.space.boundary_points():
        if key.startswith("task.data.") or key == "holdout":
            continue
        try:
            _check_boundary(spec, task, key, values)
        except ConfigError as error:
            raise ConfigError(f"the search space: {key} is {spec.space.text(key)}: {error}") from error


def _check_boundary(spec: SearchSpec, task: Task, key: str, values: Values) -> None:
    if _is_task_key(key):
        _check_task_value(spec, values)
        return
    config = spec.config(values, spec.variants[0])
    check_cohort(task, config.cohort.size)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)


def _check_task_value(spec: SearchSpec, values: Values) -> None:
    """Raises the first error if no combination of the task's other searched keys makes the value valid."""
    errors: list[ConfigError] = []
    for combination in _combinations(spec.space, values):
        config = spec.config(combination, spec.variants[0])
        try:
            validate(build_plan(config, Path.cwd()))
        except ConfigError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _combinations(space: Space, values: Values) -> Iterator[dict[str, Any]]:
    """The value with samples of the other keys of the task: first the points of the space, then random ones."""
    for number in range(1, MAX_SAMPLES + 1):
        sampled = {key: value for key, value in space.sample(0, number).items() if _is_task_key(key)}
        combination = {**sampled, **values}
        yield {key: combination[key] for key in space.domains if key in combination}


def _is_task_key(key: str) -> bool:
    return key.startswith("task.") and not key.startswith("task.data.")
