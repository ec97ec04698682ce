"""The client actors of a trial that is too large for one process, in the placement group that Tune reserved for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group

from raysim.core.events import Notice, RoundEvent, RunFailed, RunFinished
from raysim.distributed.placement_groups import actor_slots
from raysim.distributed.resources import live_nodes, plan_actors
from raysim.distributed.server_actor import ServerActor, server_spec
from raysim.federation.plan import Plan


class ActorSession:
    """A server in this process. Its client actors are kept for the next trial."""

    def __init__(self, name: str) -> None:
        self.name, self._starts = name, 0
        self.server: ServerActor | None = None

    def perform(self, plan: Plan) -> Generator[RoundEvent | Notice | RunFinished]:
        """The events of a run. Raises the error of a run that fails."""
        server = self._server(plan)
        # Closed explicitly: a run that is stopped between two rounds must write its records at once.
        with closing(server.run()) as events:
            for event in events:
                if isinstance(event, RunFailed):
                    self.close()  # its actors may be in the middle of a call
                    raise event.error
                if isinstance(event, RoundEvent | Notice | RunFinished):
                    yield event

    def _server(self, plan: Plan) -> ServerActor:
        """The server of this run: the server of the last run with its actors, or a new one if an actor was lost."""
        if self.server is not None:
            with suppress(RayError):
                self.server.renew(server_spec(plan, self.server.spec.slots, self.server.spec.namespace))
                return self.server
            self.close()
        group = get_current_placement_group()
        assert group is not None  # Tune has placed the trial in it
        actors = plan_actors(plan.config.resources, plan.task.inside, live_nodes(ray.nodes()), plan.task.outside)
        self._starts += 1
        namespace = f"raysim-trial-{self.name}-{self._starts}"
        self.server = ServerActor(server_spec(plan, actor_slots([group], actors), namespace))
        placed = self.server.wait_for_actors()
        if isinstance(placed, RunFailed):
            self.close()
            raise placed.error
        return self.server

    def close(self) -> None:
        """End the client actors."""
        if self.server is not None:
            self.server.pool.close()
            self.server = None
