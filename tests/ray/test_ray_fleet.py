"""The fleet on real Ray: transfers between processes, placement of actors, and the end of runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
import ray

from algorithms.fedavg import FedAvg
from raysim import LocalFleet, Model, Reply, Task, federate, run, weights
from raysim.config.schema import Resources
from raysim.core.errors import NodeError, PlacementError, RunError, SiteError
from raysim.core.events import ActorsPlaced, Progress, RoundEvent, RunFailed, RunFinished
from raysim.core.results import FailureAction
from raysim.data.file_paths import ABSOLUTE_PATH
from raysim.distributed.load_balancing import assign
from raysim.distributed.ray_fleet import RayFleet
from raysim.federation.plan import Plan
from raysim.storage.digest import digest
from tests.support import toy
from tests.support.plans import make_plan
from tests.support.remote import (
    OPENED,
    Breaking,
    Sharing,
    fails_at_clients,
    fails_at_d,
    keep,
    mapped_file,
    offer,
    ray_fleet,
    read_all,
    run_on_ray,
    start_client,
    where,
)
from tests.support.slow import slow_except

pytestmark = pytest.mark.usefixtures("ray_started")
SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
NAMES = ("a", "b", "c", "d", "e", "f")


def task(names: tuple[str, ...] = NAMES) -> Task:
    return toy.task({name: ((number + 1.0, number),) for number, name in enumerate(names)})


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Any]]:
    """Three client actors, started as the server starts them; the test replaces the server."""
    started = {f"c{i}": start_client(f"c{i}", task()) for i in range(3)}
    yield started
    for one in started.values():
        ray.kill(one)


@pytest.fixture
def fleet(clients: dict[str, Any]) -> RayFleet:
    return ray_fleet(task(), clients, rounds=3)


@pytest.mark.slow
def test_a_late_actor_on_an_unfit_node_is_dropped_if_others_are_up(clients: dict[str, Any]) -> None:
    costs = dict.fromkeys(NAMES, 1.0)
    late = start_client("late", task(), {"torch": "0.1"})
    site_to_actor = assign(costs, list(clients))
    fleet = ray_fleet(task(), {**clients, "late": late}, site_to_actor=site_to_actor, rounds=3)
    fleet.pool.add_late({(place := late.place.remote()): "late"}, costs)
    ray.wait([place])
    rounds = list(federate(FedAvg(**SGD), task(), fleet, rounds=3))
    (failure,) = [failure for each in rounds for failure in each.failures]
    assert (failure.actor, failure.action, failure.sites) == ("late", FailureAction.ACTOR_DROPPED, ())
    assert "has torch" in failure.cause
    assert set(fleet.pool.names) == clients.keys()
    calm = list(federate(FedAvg(**SGD), task(), LocalFleet(task(), rounds=3), rounds=3))
    assert digest(rounds[-1].state, dict(fleet.client_states)) == digest(calm[-1].state, {})

    alone = ray_fleet(task(), {"late": late}, rounds=3)
    alone.pool.add_late({late.place.remote(): "late"}, costs)
    with pytest.raises(NodeError, match="has torch"):
        list(federate(FedAvg(**SGD), task(), alone, rounds=3))
    ray.kill(late)


def locations(held: Any) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = ray.experimental.get_object_locations(list(held._held.values()))
    return found


@pytest.mark.parametrize("size", slow_except([10, 1_000_000], [1_000_000]))
def test_exchanged_payloads_never_enter_the_server(fleet: RayFleet, size: int) -> None:
    sizes = {name: size + number for number, name in enumerate(NAMES)}
    OPENED.clear()
    held = fleet.exchange(offer, sizes)
    # Ray keeps small objects in the owner's memory; they have no node. The owner hears of a node a moment later.
    assert eventually(lambda: all(place["node_ids"] for place in locations(held).values()))
    with pytest.raises(RuntimeError, match="the server cannot read an exchange"):
        held["a"]
    assert {site: metrics["size"] for site, metrics in held.metrics.items()} == sizes

    replies = fleet.map(read_all, held)
    sums = [ord(name) * sizes[name] for name in NAMES]
    assert [reply.payload[:-2] for reply in replies.values()] == [sums] * 6
    assert [reply.payload[-2] for reply in replies.values()] == [0] * 6
    assert any(reply.payload[-1] for reply in replies.values())  # payloads leave marks where they are opened
    assert OPENED == []  # none was opened in this process
    total = sum(sizes.values())
    assert fleet.accounting.traffic().between == {name: total - sizes[name] for name in NAMES}
    assert sum(fleet.accounting.traffic().up.values()) == 6 * 8 * 8  # eight numbers of each site, no payload


def test_a_small_payload_that_is_not_exchanged_is_sent_to_the_server(fleet: RayFleet) -> None:
    OPENED.clear()
    fleet.map(offer, dict.fromkeys(NAMES, 10))
    assert OPENED == [10] * 6


@pytest.mark.parametrize("sites", [NAMES[:1], NAMES])
def test_the_model_is_put_once_for_any_number_of_sites(
    fleet: RayFleet, sites: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[Any] = []
    put = ray.put

    def counting(value: Any, **options: Any) -> Any:
        puts.append(value)
        return put(value, **options)

    monkeypatch.setattr(ray, "put", counting)
    FedAvg(**SGD).round(fleet.at(sites), weights(toy.Line()))
    assert len(puts) == 1


def test_sites_read_the_model_without_a_copy(fleet: RayFleet) -> None:
    model = Model.of({"w": np.zeros(500_000, np.float32)})
    replies = fleet.map(where, model)
    assert {reply.payload[0] for reply in replies.values()} == {False}
    assert all("plasma" in reply.payload[1] for reply in replies.values())  # Ray's shared memory, not a copy


def test_the_server_reads_large_replies_without_a_copy(fleet: RayFleet) -> None:
    replies = fleet.map(lambda site, _: Reply(Model.of({"w": np.zeros(500_000, np.float32)})))
    assert all("plasma" in mapped_file(reply.payload) for reply in replies.values())


def test_client_states_stay_in_the_object_store_and_can_be_read(fleet: RayFleet) -> None:
    for _ in range(3):
        assert all(reply.payload for reply in fleet.map(keep).values())
    assert isinstance(fleet.client_states.held["a"], ray.ObjectRef)
    assert fleet.client_state("a").tolist() == [2, 2, 2]
    fleet.client_states.restore({"a": np.full(3, 7.0)})
    fleet.map(keep)
    assert (fleet.client_state("a")[0], fleet.client_state("b")[0]) == (8, 3)


def test_a_failure_names_the_site_and_the_others_can_continue(fleet: RayFleet) -> None:
    fleet.accounting.open_round(4)
    with pytest.raises(SiteError, match="site 'd' failed in round 5: LookupError: no such organ") as caught:
        fleet.map(fails_at_d)
    assert "in fails_at_d" in caught.value.remote
    others = [name for name in NAMES if name != "d"]
    assert [reply.payload for reply in fleet.at(others).map(fails_at_d).values()] == others


def test_sites_get_only_their_arguments(fleet: RayFleet) -> None:
    replies = fleet.map(lambda site, shared, own: Reply((site.name, own)), per_site={name: name * 2 for name in NAMES})
    assert [reply.payload for reply in replies.values()] == [(name, name * 2) for name in NAMES]
    assert fleet.accounting.traffic().down == dict.fromkeys(NAMES, 2)


# Whole runs, with a server actor.


def plan(out: Path, algorithm: Any, rounds: int, names: tuple[str, ...] = NAMES[:3], **resources: Any) -> Plan:
    return make_plan(out, task(names), algorithm, rounds=rounds, resources=Resources(**resources))


def alive() -> set[str]:
    """The titles of all actors that are up or starting, without the name of the run before the title."""
    return {actor["name"].partition("/")[2] for actor in ray.util.list_named_actors(all_namespaces=True)} - {""}


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether the condition becomes true in time: Ray ends actors in the background."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def summary(out: Path) -> Any:
    return json.loads((out / "summary.json").read_text())


def test_a_run_from_its_placement_to_its_end(tmp_path: Path) -> None:
    algorithm = Sharing(**SGD)
    sharing = plan(tmp_path, algorithm, 3, client_actors="per_site", cpus_per_client=0.5)
    events, seen, named = run_on_ray(sharing, "test-run"), [], set[str]()
    for event in events:
        seen.append(event)
        if isinstance(event, RoundEvent) and not named:
            named = alive()
            assert ray.get_actor("test-run/server", namespace="test-run")
    assert eventually(lambda: not alive() & named)

    assert named >= {"server", "client-01[a]", "client-02[b]", "client-03[c]"}
    placed = next(event for event in seen if isinstance(event, ActorsPlaced))
    assert placed.site_to_actor == {"a": "client-01", "b": "client-02", "c": "client-03"}
    assert [(place.title, place.cpus, place.gpus, place.device, place.threads) for place in placed.places] == [
        (f"client-0{i}[{site}]", 0.5, 0.0, "cpu", 1) for i, site in enumerate("abc", start=1)
    ]
    rows = [event.values for event in seen if isinstance(event, RoundEvent)]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert {row["server/pid"] for row in rows}.isdisjoint({os.getpid(), *(place.pid for place in placed.places)})
    assert [(row["server/opened"], row["server/inlined"]) for row in rows] == [(0, 0)] * 3
    assert [row["bytes_between"] for row in rows] == [3 * 2 * 10] * 3
    assert all(isinstance(event, ActorsPlaced | RoundEvent | RunFinished | Progress) for event in seen)
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].values == summary(tmp_path)

    here = task(NAMES[:3])
    *_, end = federate(algorithm, here, LocalFleet(here, rounds=3), rounds=3)
    assert summary(tmp_path)["digest"] == digest(end.state, {})


@pytest.mark.slow
def test_sites_that_share_an_actor_are_in_its_title(tmp_path: Path) -> None:
    events = run_on_ray(plan(tmp_path, FedAvg(**SGD), 1, NAMES, client_actors=1), "test-shared")
    placed = next(event for event in events if isinstance(event, ActorsPlaced))
    events.close()
    assert [place.title for place in placed.places] == ["client-01[a,b,c,d,+2]"]
    assert set(placed.site_to_actor.values()) == {"client-01"}
    assert eventually(lambda: not alive() & {"server", "client-01[a,b,c,d,+2]"})


@pytest.mark.parametrize(
    ("at", "place"), slow_except([("b", "site 'b'"), ("server", "the server")], [("b", "site 'b'")])
)
def test_a_failure_ends_the_run_and_keeps_its_rounds(tmp_path: Path, at: str, place: str) -> None:
    *_, last = run_on_ray(plan(tmp_path, Breaking(at=at, **SGD), 5, client_actors=1), f"test-failing-{at}")
    assert isinstance(last, RunFailed)
    assert str(last.error).startswith(f"{place} failed in round 3: LookupError: no such organ (")
    assert last.error.exit_code == 1
    assert 'raise LookupError("no such organ")' in last.error.remote
    assert pd.read_parquet(tmp_path / "rounds.parquet")["round"].tolist() == [1, 2]
    assert (summary(tmp_path)["status"], summary(tmp_path)["rounds"]) == ("failed", 2)
    assert eventually(lambda: "server" not in alive())


@pytest.mark.slow
def test_a_client_actor_that_cannot_start_reports_the_cause(tmp_path: Path) -> None:
    broken = replace(plan(tmp_path, FedAvg(), 1, client_actors=1), task=replace(task(), network=fails_at_clients))
    with pytest.raises(RunError, match=r"^client-01 has not started: ActorDiedError") as caught:
        list(run_on_ray(broken, "test-broken"))
    assert "LookupError: no such organ" in caught.value.remote
    assert eventually(lambda: "server" not in alive())


@dataclass(frozen=True)
class Reading:
    """The keys of a task with a file."""

    table: Annotated[str, ABSOLUTE_PATH]


@pytest.mark.slow
def test_a_client_actor_with_other_versions_is_refused(tmp_path: Path) -> None:
    other = replace(plan(tmp_path, FedAvg(), 1, client_actors=1), versions={"torch": "0.1"})
    with pytest.raises(PlacementError, match=r"^node \S+ has torch \S+, not 0\.1: install the versions"):
        list(run_on_ray(other, "test-versions"))
    other = replace(other, versions={}, config=replace(other.config, task=Reading("/nowhere/table.csv")))
    with pytest.raises(PlacementError, match=r"^node \S+ cannot read /nowhere/table\.csv: No such file"):
        list(run_on_ray(other, "test-data"))
    assert eventually(lambda: "server" not in alive())


def test_closing_the_events_interrupts_the_run(tmp_path: Path) -> None:
    events = run_on_ray(plan(tmp_path, FedAvg(**SGD), 100_000, client_actors=1), "test-interrupted")
    seen = next(event for event in events if isinstance(event, RoundEvent))
    events.close()
    assert seen.number == 1
    assert summary(tmp_path)["status"] == "interrupted"
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")["round"].tolist()
    assert rounds == list(range(1, summary(tmp_path)["rounds"] + 1))
    assert eventually(lambda: "server" not in alive())


def test_a_run_that_can_never_be_placed_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        PlacementError, match=r"3 client actors of 99 CPU .*What would fit: resources.cpus_per_client=2$"
    ):
        next(run_on_ray(plan(tmp_path, FedAvg(), 1, client_actors="per_site", cpus_per_client=99), "test-refused"))
    assert time.monotonic() - start < 5
    assert "server" not in alive()


def test_a_missing_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"0 GPU\).*What would fit: resources.gpus_per_client=0$"):
        next(run_on_ray(plan(tmp_path, FedAvg(), 1, gpus_per_client=0.5), "test-no-gpu"))


@pytest.mark.slow
@pytest.mark.smoke
def test_run_from_python_has_the_same_result_on_ray_and_without(tmp_path: Path) -> None:
    data = {"sites": 2, "outside": [], "cases": 2, "val": 1, "test": 0, "size": [8, 8]}
    network = {"name": "unet", "channels": [2, 4], "strides": [2]}
    keys = {"rounds": 2, "task.data": data, "task.network": network, "resources.client_actors": 2}
    events: list[Any] = []
    on_ray = run(keys, backend="ray", out=tmp_path / "ray", on_event=events.append)
    assert on_ray.digest == run(keys, backend="local", out=tmp_path / "local").digest
    assert (on_ray.status, list(on_ray.sites.index)) == ("done", ["site-01", "site-02"])
    placed = json.loads((tmp_path / "ray" / "placement.json").read_text())
    assert [place["actor"] for place in placed] == ["client-01", "client-02"]
    assert sum(isinstance(event, RoundEvent) for event in events) == 2
