"""The actor that stands for a search, or for a run that waits. It is apart from them, who would bring torch along."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAMESPACE = "raysim-"  # of a run's or search's named actors: this, and its name


def run_name(namespace: str) -> str:
    """The run or search whose actors are in this namespace."""
    return namespace.removeprefix(NAMESPACE)


class ControlActor:
    """The actor: keeps what was last said, and whether someone has asked for the end of what it stands for."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said, self.asked = said, False

    def tell(self, said: dict[str, Any]) -> bool:
        """Keep this; whether it is to end."""
        self.said = said
        return self.asked

    def status(self) -> dict[str, Any]:
        """What `raysim status` shows."""
        return self.said

    def stop(self) -> None:
        """End what it stands for when that next says something."""
        self.asked = True


def start_control_actor(name: str, role: str, said: dict[str, Any]) -> Any:
    """The actor of the run or search of this name, beside this process; it needs no room."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made: Any = ray.remote(ControlActor)
    options = {"name": f"{name}/{role}", "namespace": NAMESPACE + name, "num_cpus": 0}
    return made.options(**options, scheduling_strategy=here).remote(said)
