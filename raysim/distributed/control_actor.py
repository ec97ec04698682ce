"""The control actor of a run or a search: `raysim status` reads it, `raysim stop` requests a stop from it.

It is a separate actor without torch, and also exists while the run waits for its resources.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.distributed.timeouts import STATUS_INTERVAL_S

NAMESPACE = "raysim-"  # prefix of the namespace of a run's or a search's actors; its name follows
CONTROL = "control"  # the control actor's name is NAME/control


def run_name(namespace: str) -> str:
    """The run or search whose actors are in this namespace."""
    return namespace.removeprefix(NAMESPACE)


@dataclass(frozen=True)
class RunStatus:
    """The status of a run or a search: a row of `raysim status`."""

    name: str
    description: str = ""  # algorithm and task, or the space of a search
    directory: str = ""
    host: str = ""
    done: int | None = None  # rounds, or trials
    total: int | str | None = None
    state: str = ""  # its present activity, or its outcome
    metric: str = ""
    value: float | None = None  # of the metric, in the last round or the best trial
    round_seconds: float | None = None


class ControlActor:
    """Keeps the last status of a run or a search, and whether a stop was requested."""

    def __init__(self, status: RunStatus) -> None:
        self._status, self._stop_requested = status, False

    def update(self, status: RunStatus) -> bool:
        """Keep this status. Returns whether a stop was requested."""
        self._status = status
        return self._stop_requested

    def status(self) -> RunStatus:
        """The last status."""
        return self._status

    def stop(self) -> None:
        """Request a stop. The run reads the request with its next update."""
        self._stop_requested = True


class RunControl:
    """Used by the run or search: publishes its status, and reads whether a stop was requested.

    The control actor starts with the first published status, at the earliest `start_delay_s` after the creation.
    """

    def __init__(self, name: str, start_delay_s: float = 0.0) -> None:
        self.name = name
        self._actor: Any = None
        self._reply: Any = None
        self._next_update = time.monotonic() + start_delay_s

    def due(self) -> bool:
        """Whether the next status is due."""
        return time.monotonic() >= self._next_update

    def publish(self, status: RunStatus) -> bool:
        """Send the status without waiting. Returns whether a stop was requested before the previous status."""
        self._next_update = time.monotonic() + STATUS_INTERVAL_S
        if self._reply is not None and not ray.wait([self._reply], timeout=0)[0]:
            return False
        try:
            stop_requested = self._reply is not None and bool(ray.get(self._reply))
            self._actor = self._actor or _start_control_actor(self.name, status)
            self._reply = self._actor.update.remote(status)
            return stop_requested
        except (RayError, ValueError):  # lost, or its name is still in use: the run continues and starts a new one
            self._actor = self._reply = None
            return False

    def close(self) -> None:
        """End the control actor."""
        if self._actor is not None:
            ray.kill(self._actor)


def _start_control_actor(name: str, status: RunStatus) -> Any:
    """Start the actor on the node of this process. It requests no resources."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(ControlActor)
    options = {"name": f"{name}/{CONTROL}", "namespace": NAMESPACE + name, "num_cpus": 0}
    return remote.options(**options, scheduling_strategy=here).remote(status)
