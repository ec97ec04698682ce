"""Fixtures that several files share: one Ray for the whole session."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The count of threads decides how torch splits its sums: the same for every test, whatever ran before it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """A Ray with room for eight client actors of one CPU each, whatever the machine has."""
    import ray

    quiet = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    ray.init(address="local", num_cpus=8, num_gpus=0, **quiet)  # type: ignore[arg-type]
    yield
    ray.shutdown()


LONGEST = ("test_search.py", "test_contract.py", "test_recovery.py", "test_watch.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then what else starts a Ray, so that the workers of pytest-xdist end together."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        first = LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        return first, item.get_closest_marker("ray") is None

    items.sort(key=place)
