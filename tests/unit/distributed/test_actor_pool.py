"""The assignment of sites to actors, also after an actor was dropped or is late. No actor is started."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from raysim.core.errors import NodeError, RunError
from raysim.distributed.actor_pool import ActorPool

SITES = {"a": "x", "b": "y", "c": "x", "d": "z"}
DEDICATED = {"d": "z"}


def pool(dedicated: dict[str, str] | None = None) -> ActorPool:
    actors: dict[str, Any] = {name: object() for name in ("x", "y", "z")}
    return ActorPool(actors, SITES, actors.__getitem__, dedicated)


def test_the_sites_of_a_dropped_actor_move_to_another() -> None:
    actors = pool(DEDICATED)
    actors.drop("x", NodeError("no data on its node"))
    assert actors.site_to_actor == {"a": "y", "b": "y", "c": "y", "d": "z"}
    assert (actors.names, actors.available_actors(), actors.changes) == (["y", "z"], ["y", "z"], 1)
    with pytest.raises(NodeError, match="no data on this node either"):  # the last shared actor
        actors.drop("y", NodeError("no data on this node either"))


@pytest.mark.parametrize(("actor", "cause"), [("z", NodeError("of its node")), ("x", RunError("of the run"))])
def test_a_dedicated_actor_is_never_dropped_nor_one_whose_node_is_fine(actor: str, cause: Exception) -> None:
    actors = pool(DEDICATED)
    with pytest.raises(type(cause), match=str(cause)):
        actors.drop(actor, cause)  # type: ignore[arg-type]  # both are of raysim
    assert actors.changes == 0


def test_an_actor_takes_sites_of_the_others_unless_one_is_dedicated() -> None:
    actors = pool(DEDICATED)
    queues = actors.site_queues(list(SITES), {"a": 1.0, "b": 3.0, "c": 2.0, "d": 9.0})
    assert queues == {"x": deque(["c", "a"]), "y": deque(["b"]), "z": deque(["d"])}  # 3 s each for x and y
    opened = actors.open_queues(queues)
    assert (opened["x"].keys(), opened["y"].keys(), opened["z"].keys()) == ({"x", "y"}, {"x", "y"}, {"z"})
    assert opened["x"]["y"] is queues["y"]


def test_a_late_actor_gets_no_site_until_it_is_up() -> None:
    actors, ref = pool(), object()
    actors.add_late({ref: "y"}, dict.fromkeys(SITES, 1.0))
    assert (list(actors.pending_starts), actors.available_actors(), actors.has_late_actors) == ([ref], ["x", "z"], True)
    assert sorted(actors.site_to_actor.values()) == ["x", "x", "z", "z"]
    assert actors.site_queues(list(SITES), dict.fromkeys(SITES, 1.0))["y"] == deque()
