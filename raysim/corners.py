"""The ends of a search space tried on the task, as `raysim run` would try them, before the first trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

from raysim import domains
from raysim.errors import ConfigError
from raysim.launch import planned
from raysim.plan import Search
from raysim.run import check_algorithm, check_cohort
from raysim.space import Space
from raysim.types import Task

NETWORK = "task.network"
TRIED = 32  # combinations with other keys of the network, before a value is taken for wrong


def check_corners(search: Search, task: Task) -> None:
    """Raises ConfigError for an end of the space that the task, its network or an algorithm itself refuses.

    Keys of the data are left to the trials: each end of theirs may be hours of preparation.
    """
    for key, values in search.space.corners():
        if key.startswith("task.data.") or key == "holdout":
            continue
        try:
            _check(search, task, key, values)
        except ConfigError as error:
            raise ConfigError(
                f"the search space: {key} is {domains.written(search.space.domains[key])}: {error}"
            ) from error


def _check(search: Search, task: Task, key: str, values: Mapping[str, Any]) -> None:
    if key.startswith("task."):
        _check_task(search, key, values)
        return
    config = search.config(values, search.cells[0])
    check_cohort(task, config.cohort.size)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)


def _check_task(search: Search, key: str, values: Mapping[str, Any]) -> None:
    """Of a key of the network: raises the first error if it goes together with nothing that the others may be."""
    first: ConfigError | None = None
    for whole in _with_others(search.space, key, values):
        config = search.config(whole, search.cells[0])
        try:
            planned(config, config.task.build(None), Path.cwd())
        except ConfigError as error:
            first = first or error
        else:
            return
    assert first is not None
    raise first


def _with_others(space: Space, key: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    others = [other for other in space.domains if other.startswith(NETWORK) and other != key]
    if not key.startswith(NETWORK):
        others = []
    for drawn in islice(product(*(domains.samples(space.domains[other]) for other in others)), TRIED):
        whole = {**values, **dict(zip(others, drawn, strict=True))}
        yield {name: whole[name] for name in space.domains if name in whole}
