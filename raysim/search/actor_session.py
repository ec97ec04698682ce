"""The client actors of a trial that is too large for its own process, in the placement group that Tune gave it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, suppress

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysim.core.events import Notice, RoundEvent, RunFailed, RunFinished
from raysim.distributed.resources import ActorResources, live_nodes, plan_actors
from raysim.distributed.server_actor import ServerActor, scheduling_strategies
from raysim.federation.plan import Plan


class ActorSession:
    """A server in this process, with client actors that stay for the next run."""

    def __init__(self, name: str) -> None:
        self.name, self.times = name, 0
        self.server: ServerActor | None = None

    def perform(self, plan: Plan) -> Generator[RoundEvent | Notice | RunFinished]:
        """The run of `plan`. Raises what `perform` raises."""
        server = self._ready(plan)
        # A run that ends between two rounds leaves its actors idle; closed, for it must write its records then.
        with closing(server.run()) as events:
            for event in events:
                if isinstance(event, RunFailed):
                    self.close()  # they may be in the middle of a call
                    raise event.error
                if isinstance(event, RoundEvent | Notice | RunFinished):
                    yield event

    def _ready(self, plan: Plan) -> ServerActor:
        """The server of this run, its client actors up."""
        held, sizes = [ray.put(plan)], plan.task.sizes
        costs = {site: 1.0 + sizes[site].get("train", 0) for site in plan.sites}
        if self.server is not None:
            with suppress(RayError):
                self.server.renew(held, costs)
                return self.server
            self.close()
        group = get_current_placement_group()
        assert group is not None  # Tune has placed the trial in it
        given = plan_actors(plan.config.resources, plan.task.inside, live_nodes(ray.nodes()), plan.task.outside)
        self.times += 1
        self.server = ServerActor(held, _rooms(group, given), costs, given, f"raysim-trial-{self.name}-{self.times}")
        placed = self.server.placed()
        if isinstance(placed, RunFailed):
            self.close()
            raise placed.error
        return self.server

    def close(self) -> None:
        """End the client actors."""
        if self.server is not None:
            for actor in self.server.fleet.actors.values():
                ray.kill(actor)
            self.server = None


def _rooms(group: PlacementGroup, given: Sequence[ActorResources]) -> list[PlacementGroupSchedulingStrategy]:
    """A room of the right size for each; the group may have more, for it is that of the search's largest trials."""
    left, found = scheduling_strategies([group]), []
    for seat in given:
        fitting = [room for room in left if group.bundle_specs[room.placement_group_bundle_index] == seat.bundle]
        found.append((fitting or left)[0])
        left.remove(found[-1])
    return found
