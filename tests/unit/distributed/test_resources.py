"""The actors that fit on nodes, counted by hand, and refusals with settings that would fit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

from raysim.config.schema import Resources, SiteResources
from raysim.core.errors import ConfigError, PlacementError
from raysim.distributed.load_balancing import assign, makespan, rebalance
from raysim.distributed.resources import ActorResources, NodeCapacity, NodeResources, live_nodes, plan_actors


def node(cpus: float, gpus: float = 0) -> NodeResources:
    return NodeResources("10.0.0.1", cpus, gpus)


def names(count: int) -> list[str]:
    return [f"s{i:02}" for i in range(count)]


def requested(**fields: Any) -> Resources:
    return Resources(**fields)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "count"),
    [
        (requested(), 4, 0, 4),
        (requested(cpus_per_client=0.5), 3, 0, 6),
        (requested(cpus_per_client=0.1), 1, 0, 10),  # 1 / 0.1 is slightly less than 10 in floating point
        (requested(cpus_per_client=3), 8, 0, 2),
        (requested(gpus_per_client=0.5), 16, 2, 4),
        (requested(gpus_per_client=0.6), 16, 2, 2),  # the 0.4 left on each GPU cannot be combined
        (requested(gpus_per_client=0.1), 4, 1, 4),
        (requested(gpus_per_client=2), 16, 5, 2),
        (requested(gpus_per_client=1), 16, 0, 0),
    ],
)
def test_how_many_actors_fit_on_a_node(resources: Resources, cpus: float, gpus: float, count: int) -> None:
    free, actor = NodeCapacity(node(cpus, gpus)), ActorResources(resources.cpus_per_client, resources.gpus_per_client)
    assert sum(free.take(actor) for _ in range(99)) == count


@pytest.mark.parametrize(
    ("clients", "sites", "cluster", "count"),
    [
        ("auto", 3, [node(8)], 3),
        ("auto", 30, [node(8)], 8),
        ("auto", 30, [node(2), node(1.5)], 3),  # an actor never spans two nodes
        ("per_site", 3, [node(2), node(1)], 3),
        (2, 30, [node(8)], 2),
        (8, 3, [node(8)], 3),
        (8, 3, [node(4)], 3),  # at most one actor per site is started, so more need not fit
    ],
)
def test_how_many_clients(clients: Any, sites: int, cluster: list[NodeResources], count: int) -> None:
    assert plan_actors(requested(client_actors=clients), names(sites), cluster) == [ActorResources(1.0, 0.0)] * count


@pytest.mark.parametrize(
    ("resources", "sites", "cluster"),
    [
        (requested(cpus_per_client=99), 3, [node(4)]),
        (requested(client_actors="per_site"), 9, [node(4)]),
        (requested(client_actors=5, cpus_per_client=2), 9, [node(4), node(4)]),
        (requested(gpus_per_client=0.5, client_actors=4), 9, [node(16, 1)]),
        (requested(gpus_per_client=1), 9, [node(16, 0)]),
        (requested(client_actors="per_site", gpus_per_client=0.5), 9, [node(4, 2)]),
        (requested(client_actors="per_site", cpus_per_client=3), 3, [node(4), node(4)]),
        (
            requested(client_actors=4, cpus_per_client=3),
            9,
            [node(1), node(7)],
        ),  # 4 x 2 CPUs equal the total of 8, but the node with one CPU fits none
        (requested(client_actors=64, gpus_per_client=1), 99, [node(16, 1)]),
        (requested(client_actors=3, gpus_per_client=0.7), 9, [node(16, 1), node(16, 1)]),
    ],
)
def test_each_setting_that_a_refusal_names_fits(resources: Resources, sites: int, cluster: list[NodeResources]) -> None:
    with pytest.raises(PlacementError) as caught:
        plan_actors(resources, names(sites), cluster)
    message = str(caught.value)
    assert all(f"{n.cpus:g} CPU, {n.gpus:g} GPU" in message for n in cluster)
    settings = message.partition("What would fit: ")[2].split(", or ")
    for setting in settings:
        fields: dict[str, Any] = yaml.safe_load(re.sub(r"resources\.(\w+)=(\S+)\s*", r"\1: \2\n", setting))
        assert plan_actors(replace(resources, **fields), names(sites), cluster)
    assert any("_per_client=" in setting for setting in settings)


def own(**fields: Any) -> SiteResources:
    return SiteResources(**fields)


def test_a_site_may_have_a_dedicated_actor() -> None:
    wish = requested(gpus_per_client=0.25, sites={"s01": own(gpus=0.5, cpus=2.0), "s00": own()})
    # GPU 1: s01's half and two quarters; GPU 2: s00's quarter and three more. Nine CPUs: 2 + 1 + at most six others.
    expected = [*[ActorResources(1.0, 0.25)] * 5, ActorResources(1.0, 0.25, "s00"), ActorResources(2.0, 0.5, "s01")]
    assert plan_actors(wish, names(40), [node(9, 2)]) == expected
    assert plan_actors(replace(wish, client_actors=2), names(40), [node(9, 2)]) == expected[3:]
    assert plan_actors(replace(wish, client_actors="per_site"), names(4), [node(9, 2)]) == expected[3:]


def test_shared_actors_start_only_for_sites_without_a_dedicated_actor() -> None:
    wish = requested(sites={"s00": own(), "s01": own()})
    alone = [ActorResources(1.0, 0.0, "s00"), ActorResources(1.0, 0.0, "s01")]
    assert plan_actors(wish, names(2), [node(8)]) == alone
    assert plan_actors(wish, names(2), [node(8)], outside=["far"]) == [ActorResources(1.0, 0.0), *alone]
    two = requested(client_actors=3, sites={"far": own()})
    assert plan_actors(two, names(3), [node(8)], outside=["far"]) == [
        *[ActorResources(1.0, 0.0)] * 3,
        ActorResources(1.0, 0.0, "far"),
    ]


@pytest.mark.parametrize(
    ("wish", "cluster", "message"),
    [
        (
            requested(sites={"s01": own(gpus=1.0)}),
            [node(8, 0)],
            r"of 1 CPU and 1 GPU for site 's01'; .*not fit.* resources\.sites\.s01\.gpus=0, or the same run without",
        ),
        (requested(sites={"s01": own(cpus=9.0)}), [node(8)], r"9 CPU and 0 GPU .* resources\.sites\.s01\.cpus=7"),
        (
            requested(sites={"s01": own(cpus=2.0)}),
            [node(2)],
            r"requested 1 client .*; 0 fit .* in addition to the dedicated",
        ),
    ],
)
def test_a_request_of_one_site_is_refused_with_its_name(
    wish: Resources, cluster: list[NodeResources], message: str
) -> None:
    with pytest.raises(PlacementError, match=message):
        plan_actors(wish, names(3), cluster)


def test_invalid_gpu_shares_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"GPUs of a client actor: 1\.5; expected a fraction up to 1, or a whole number"
    ):
        plan_actors(requested(gpus_per_client=1.5), names(3), [node(8, 4)])


def test_a_thousand_sites_are_refused_with_settings_that_fit() -> None:
    with pytest.raises(
        PlacementError, match=r"What would fit: resources\.client_actors=512, or resources\.client_actors=auto"
    ):
        plan_actors(requested(client_actors="per_site", gpus_per_client=0.25), names(1000), [node(64, 8)] * 16)


def test_dead_nodes_are_not_counted() -> None:
    listed = [
        {"NodeManagerAddress": "a", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeManagerAddress": "b", "Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"NodeManagerAddress": "c", "Alive": True, "Resources": {"GPU": 2.0}},
    ]
    assert live_nodes(listed) == [NodeResources("a", 4, 0), NodeResources("c", 0, 2)]


def test_sites_are_assigned_longest_first() -> None:
    # 5 to x; 4 and 3 to y; then 2 to x (5 is less than 7); 1 to x, the first of two actors with equal load 7.
    costs = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    site_to_actor = assign(costs, ["x", "y"])
    assert site_to_actor == {"e": "x", "d": "y", "c": "y", "b": "x", "a": "x"}


def test_the_assignment_does_not_depend_on_order() -> None:
    costs = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert assign(costs, ["x", "y"]) == assign(dict(reversed(costs.items())), ["x", "y"])


def test_exchanges_improve_an_assignment_by_the_longest_first() -> None:
    # The longest first gives 16 + 9 and 13 + 9 + 9 = 31; 16 + 13 = 29 and 3 x 9 = 27 is the best.
    costs = {"a": 16.0, "b": 13.0, "c": 9.0, "d": 9.0, "e": 9.0}
    site_to_actor = assign(costs, ["x", "y"])
    assert makespan(site_to_actor, costs) == 29
    assert site_to_actor["a"] == site_to_actor["b"]
    assert site_to_actor["c"] == site_to_actor["d"] == site_to_actor["e"]


def test_a_site_is_moved_if_that_shortens_the_round() -> None:
    # The sum is 26, so that 13 for each actor is the best.
    costs = {"a": 6.0, "b": 6.0, "c": 5.0, "d": 4.0, "e": 4.0, "f": 1.0}
    assert makespan(assign(costs, ["x", "y"]), costs) == 13


def test_sites_stay_unless_a_move_shortens_the_round() -> None:
    costs = {"a": 10.0, "b": 10.0, "c": 1.0}
    swapped = {"a": "y", "b": "x", "c": "x"}
    assert rebalance(swapped, costs, ["x", "y"], {}) == swapped  # already the best
    assert rebalance(dict.fromkeys("abc", "x"), costs, ["x", "y"], {}) != dict.fromkeys("abc", "x")
    nearly = {"a": "x", "b": "x", "c": "y", "d": "y"}  # 20.2 and 20: a better assignment saves 0.5%
    assert rebalance(nearly, {"a": 10.1, "b": 10.1, "c": 10.0, "d": 10.0}, ["x", "y"], {}) == nearly


def test_dedicated_sites_are_never_moved() -> None:
    costs = {"a": 9.0, "b": 1.0, "c": 1.0}
    site_to_actor = assign(costs, ["x", "y", "z"], {"b": "z"})
    assert site_to_actor == {"a": "x", "b": "z", "c": "y"}
    assert rebalance(site_to_actor, {"b": 1.0, "c": 1.0}, ["x", "y", "z"], {"b": "z"}) == {"b": "z", "c": "y"}
    # If b is absent, its actor stays idle: another site would get the threads of b.
    crowded = {"a": "x", "c": "x", "d": "x"}
    found = rebalance(crowded, {"a": 1.0, "c": 1.0, "d": 1.0}, ["x", "y", "z"], {"b": "z"})
    assert set(found.values()) == {"x", "y"}
    assert rebalance({"b": "z"}, {"b": 1.0}, ["z"], {"b": "z"}) == {"b": "z"}
    assert assign({"b": 1.0}, ["z"], {"b": "z"}) == {"b": "z"}


def test_as_few_sites_as_possible_are_moved() -> None:
    # x has 12, y 8: only b moves, although the longest first would move all sites.
    costs = {"a": 5.0, "b": 2.0, "c": 5.0, "d": 4.0, "e": 4.0}
    site_to_actor = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "y"}
    assert rebalance(site_to_actor, costs, ["x", "y"], {}) == site_to_actor | {"b": "y"}


def test_exchanges_end_for_any_costs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        costs = {
            f"s{i}": float(c) for i, c in enumerate(rng.choice([0.1, 0.2, 0.3, 1e-9, 1e-17, 1.0], rng.integers(1, 9)))
        }
        actors = ["x", "y", "z"][: rng.integers(1, 4)]
        site_to_actor = assign(costs, actors)
        assert set(site_to_actor) == set(costs)
        assert makespan(site_to_actor, costs) <= sum(costs.values()) / len(actors) + max(costs.values())
