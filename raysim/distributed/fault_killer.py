"""Fault injection on Ray: kills client actors and nodes in the rounds of a fault plan."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.core.events import ActorPlacement
from raysim.core.fault_injection import FaultPlan, Victim
from raysim.distributed import ray_compat
from raysim.distributed.actor_pool import ActorPool
from raysim.distributed.timeouts import KILL_TIMEOUT_S


class FaultKiller:
    """Kills the processes of actors and nodes."""

    def __init__(self, plan: FaultPlan, pool: ActorPool) -> None:
        self._pool = pool
        self._kills = dict(plan.kills)  # by round, from 1

    def kill_due(self, round: int) -> None:
        """Kill the victims that are planned for this round. A victim that is not up yet is killed in the next round."""
        killed: list[ActorPlacement] = []
        for victim in self._kills.pop(round, ()):
            placement = self._kill(victim, killed)
            if placement is None:
                self._kills[round + 1] = (*self._kills.get(round + 1, ()), victim)
            else:
                killed.append(placement)

    def remaining(self) -> list[Victim]:
        """The planned victims that have not been killed."""
        return [victim for victims in self._kills.values() for victim in victims]

    def killable_nodes(self) -> list[ActorPlacement]:
        """The available actors on nodes that the run can lose: neither the node of this process nor the head."""
        heads = {node["NodeID"] for node in ray.nodes() if ray_compat.is_head(node)}
        spared = {ray.get_runtime_context().get_node_id(), *heads}
        return [placement for placement in self._pool.placements(available=True) if placement.node not in spared]

    def _kill(self, victim: Victim, killed: Sequence[ActorPlacement]) -> ActorPlacement | None:
        """Kill the last client actor, or the last node with an actor and without the server; None if there is none.

        An actor, or a node, that was `killed` in this round is not killed again.
        """
        if victim is Victim.NODE:
            nodes = {placement.node for placement in killed}
            candidates = [placement for placement in self.killable_nodes() if placement.node not in nodes]
        else:
            candidates = [place for place in self._pool.placements(available=True) if place not in killed]
        if not candidates:
            return None
        target = candidates[-1]
        if victim is Victim.CLIENT and target.node == ray.get_runtime_context().get_node_id():
            os.kill(target.pid, signal.SIGKILL)
            return target
        there = NodeAffinitySchedulingStrategy(target.node, soft=False)
        remote: Any = ray.remote(_kill_process)
        pid = None if victim is Victim.NODE else target.pid
        ref = remote.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(pid)
        with suppress(RayError):  # the task is lost with the node that it kills
            ray.get(ref, timeout=KILL_TIMEOUT_S)
        return target


def _kill_process(pid: int | None) -> None:
    """Kill the process with this id, or without an id the node on which the task runs."""
    os.kill(ray_compat.raylet_pid() if pid is None else pid, signal.SIGKILL)
