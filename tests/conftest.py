"""Fixtures that several folders share, markers by folder, groups for pytest-xdist, and the time limit of unit tests."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNIT_LIMIT_S = 2.0  # on a machine that takes REFERENCE_S for `reference_loop`
REFERENCE_S = 0.15
MANY_MODULES = 100


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The number of threads decides how torch splits its sums: the same for every test, whatever ran before it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """A Ray in this process with eight CPUs, whatever the machine has: enough for all client actors of a test."""
    import ray

    quiet = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    ray.init(address="local", num_cpus=8, num_gpus=0, **quiet)  # type: ignore[arg-type]
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the cache of the user, and nothing in it is read."""
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes what a test's own modules leave: a run adds the working directory to `sys.path` and imports from it."""
    path, before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        spec = getattr(sys.modules[name], "__spec__", None)
        places = [
            getattr(sys.modules[name], "__file__", None),
            *(getattr(spec, "submodule_search_locations", None) or ()),
        ]
        if any(str(place).startswith(folder) for place in places):
            del sys.modules[name]


@pytest.fixture
def no_ray() -> None:
    """Ends the Ray of earlier tests in this process. The tests that need it come before the unit tests."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def folder_of(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).parts[0]


def group_of(item: pytest.Item) -> str:
    """The xdist group: tests of one group run on one worker, in order."""
    if folder_of(item) == "cluster":
        return "cluster"  # one head for all
    if "ray_started" in getattr(item, "fixturenames", ()):
        # One Ray for each of two groups that take about as long.
        return "ray-search" if item.path.stem == "test_search" else "ray"
    # A command shares nothing; tests of one file share what they cache.
    return item.nodeid if folder_of(item) == "e2e" else str(item.path.relative_to(HERE))


ORDER = (
    "cluster",
    "ray",
    "ray-search",
    "e2e",
    "claims",
    "algorithms",
    "unit",
)  # the longest first, so that the workers end together


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(folder_of(item))
        if folder_of(item) == "claims":
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: ORDER.index(group_of(item) if group_of(item) in ORDER else folder_of(item)))


def reference_loop() -> float:
    """Seconds of CPU time that this machine takes, now, for a fixed piece of work."""
    start = time.process_time()
    sum(number * number for number in range(3_000_000))
    return time.process_time() - start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A unit test fails if it takes more than `UNIT_LIMIT_S` of its process's CPU time.

    A slow or loaded machine takes more for the same work; the limit grows with what it takes for a fixed loop.
    """
    start, modules = time.process_time(), len(sys.modules)
    yield
    seconds, imported = time.process_time() - start, len(sys.modules) - modules
    # The first test that uses a library also imports it.
    limited = folder_of(item) == "unit" and item.get_closest_marker("slow") is None
    if limited and seconds > UNIT_LIMIT_S and imported < MANY_MODULES:
        limit = UNIT_LIMIT_S * max(1.0, reference_loop() / REFERENCE_S)
        if seconds > limit:
            pytest.fail(f"{seconds:.1f} s of CPU time in a unit test; at most {limit:.1f} s on this machine")
