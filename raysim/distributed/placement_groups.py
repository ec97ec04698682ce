"""Slots of client actors in Ray's placement groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysim.distributed.resources import ActorResources


@dataclass(frozen=True)
class ActorSlot:
    """The resources of one client actor, and the bundle of a placement group that reserves them."""

    resources: ActorResources
    strategy: PlacementGroupSchedulingStrategy

    def is_allocated(self) -> bool:
        """Whether a node has reserved the slot. If the cluster can grow, its node may not have joined yet."""
        return is_group_ready(self.strategy.placement_group)


def actor_slots(groups: Sequence[PlacementGroup], actors: Sequence[ActorResources]) -> list[ActorSlot]:
    """A slot for each actor: a bundle of its size if there is one. The groups may have more and larger bundles."""
    bundles = [
        (group.bundle_specs[i], PlacementGroupSchedulingStrategy(group, i))
        for group in groups
        for i in range(group.bundle_count)
    ]
    slots = list[ActorSlot]()
    for actor in actors:
        matching = [bundle for bundle in bundles if bundle[0] == actor.resources]
        chosen = (matching or bundles)[0]
        bundles.remove(chosen)
        slots.append(ActorSlot(actor, chosen[1]))
    return slots


def is_group_ready(group: PlacementGroup) -> bool:
    """Whether all bundles of the group are reserved. `group.wait(0)` is sometimes False for a group that is ready."""
    return bool(placement_group_table(group)["state"] == "CREATED")
