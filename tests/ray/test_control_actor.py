"""The control actor: status and stop of a run or a search, from another process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray

from raysim.distributed import active_runs
from raysim.distributed.control_actor import CONTROL, NAMESPACE, RunControl, RunStatus

pytestmark = pytest.mark.usefixtures("ray_started")


@pytest.fixture
def control() -> Iterator[RunControl]:
    made = RunControl("watched-1f")
    yield made
    made.close()


def published(control: RunControl, status: RunStatus) -> bool:
    """The result of `publish` after the control actor has replied to the previous one."""
    control.publish(status)
    ray.wait([control._reply], timeout=60)
    return control.publish(status)


def test_a_status_and_a_stop_request_are_read(control: RunControl) -> None:
    status = RunStatus("watched-1f", "fedavg on toy", done=3, total=9)
    assert not published(control, status)
    assert control.name in active_runs.active_names()
    assert status in list(active_runs.cluster_statuses())
    ray.get(ray.get_actor(f"{control.name}/{CONTROL}", NAMESPACE + control.name).stop.remote())
    assert published(control, status)


def test_a_lost_control_actor_is_replaced(control: RunControl) -> None:
    first = RunStatus("watched-1f", done=1)
    published(control, first)
    ray.kill(control._actor)
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(each.done == 2 for each in active_runs.cluster_statuses()):
        control.publish(RunStatus("watched-1f", done=2))
        time.sleep(0.2)
    assert RunStatus("watched-1f", done=2) in list(active_runs.cluster_statuses())


def test_it_starts_late_and_reports_at_intervals() -> None:
    late = RunControl("late-2e", start_delay_s=60)
    assert not late.due()
    assert RunControl("now-3d").due()
