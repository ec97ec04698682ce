"""Every algorithm on Ray: results equal those of the local fleet bit by bit, also after the loss of an actor."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from algorithms.fcl import FCL, ClientState
from raysim import LocalFleet, federate
from raysim.core.events import Progress
from raysim.core.fault_injection import FaultPlan
from raysim.core.registry import algorithms
from raysim.storage.digest import digest
from tests.support import remote
from tests.support.contract import EVERY_USE, ROUNDS, algorithm, client_states, run, task, whole
from tests.support.slow import slow_except

SIMILAR = ("elcfs", "ditto", "fedala", "feddg_ga", "fedsimclr", "fclopt")  # use the fleet like another of EVERY_USE
QUICK = [(name, 2) for name in EVERY_USE if name not in SIMILAR] + [
    ("fedavg", 1),
    ("fedavg", 3),
]


@pytest.fixture(scope="module")
def client_actors(ray_started: None) -> Iterator[dict[str, Any]]:
    """Three client actors for the task, started as the server starts them."""
    import ray

    actors = {f"client-{i}": remote.start_client(f"client-{i}", task()) for i in (1, 2, 3)}
    yield actors
    for actor in actors.values():
        ray.kill(actor)


@pytest.mark.parametrize(("name", "count"), slow_except(product(sorted(algorithms()), (1, 2, 3)), QUICK))
def test_results_on_ray_equal_those_of_the_local_fleet(name: str, count: int, client_actors: dict[str, Any]) -> None:
    rounds, fleet = run(algorithm(name), on_ray(client_actors, count))
    assert digest(rounds[-1].state, client_states(fleet)) == whole(name)


def on_ray(client_actors: dict[str, Any], count: int, chaos: FaultPlan | None = None, batch_sites: int = 1) -> Any:
    actors = dict(list(client_actors.items())[:count])
    return remote.ray_fleet(task(), actors, rounds=ROUNDS, chaos=chaos, batch_sites=batch_sites)


def handles(fleet: Any) -> dict[str, Any]:
    """The client actors by name, including replacements."""
    return {name: fleet.pool.handle(name) for name in fleet.pool.names}


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedavg", "fcl"]))
def test_an_actor_that_is_killed_in_a_call_changes_no_bit(name: str, client_actors: dict[str, Any]) -> None:
    fleet = on_ray(client_actors, 2, FaultPlan({3: ("client",)}))  # after the first reply of round 3
    fleet.pool.wait_until_started(Progress(), {}, lambda _: True)
    *_, last = federate(algorithm(name), task(), fleet, rounds=ROUNDS)
    client_actors.update(handles(fleet))
    assert fleet.pool.changes >= 1
    assert digest(last.state, client_states(fleet)) == whole(name)


@pytest.mark.parametrize("name", slow_except(["fedavg", "fedsm"], ["fedavg"]))
def test_groups_that_train_in_one_batch_are_repeated_together(name: str, client_actors: dict[str, Any]) -> None:
    here = LocalFleet(task(), rounds=ROUNDS, batch_sites=2)
    *_, expected = federate(algorithm(name), task(), here, rounds=ROUNDS)
    fleet = on_ray(client_actors, 2, FaultPlan({3: ("client",)}), batch_sites=2)
    fleet.pool.wait_until_started(Progress(), {}, lambda _: True)
    *_, last = federate(algorithm(name), task(), fleet, rounds=ROUNDS)
    client_actors.update(handles(fleet))
    assert fleet.pool.changes >= 1
    assert digest(last.state, client_states(fleet)) == digest(expected.state, client_states(here))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "localonly", "fcl"])  # state, client states, exchange
def test_an_actor_that_is_killed_between_rounds_changes_no_bit(name: str, client_actors: dict[str, Any]) -> None:
    import ray

    fleet = on_ray(client_actors, 2)
    for last in federate(algorithm(name), task(), fleet, rounds=ROUNDS):
        assert bool(last.failures) == (last.number == 3)
        if last.number == 2:
            ray.kill(fleet.pool.handle("client-1"))
    client_actors.update(handles(fleet))
    assert fleet.pool.changes >= 1
    assert digest(last.state, client_states(fleet)) == whole(name)


@pytest.mark.slow
def test_a_bank_and_a_momentum_encoder_survive_a_kill(ray_started: None) -> None:
    import ray

    from raysim.storage.digest import digest
    from tests.support import remote

    method = FCL(pretrain_rounds=3)
    fleets: list[Any] = [LocalFleet(task(), rounds=4)]
    actors = {f"client-{i}": remote.start_client(f"client-{i}", task()) for i in (1, 2)}
    fleets.append(remote.ray_fleet(task(), actors, rounds=4))
    found = []
    for fleet in fleets:
        for last in federate(method, task(), fleet, rounds=4):
            if last.number == 3:
                assert {type(fleet.client_state(site)) for site in task().inside} == {ClientState}
                found.append(digest(last.state, dict(fleet.client_states)))
            if last.number == 2 and fleet is fleets[1]:
                ray.kill(fleet.pool.handle("client-1"))
    assert fleets[1].pool.changes >= 1
    assert found[0] == found[1]
    fleets[1].pool.close()
