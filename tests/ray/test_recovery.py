"""Killed, hanging and dedicated actors: the run continues, and its results are equal bit by bit."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from algorithms.fedavg import FedAvg
from raysim import LocalFleet
from raysim.config.schema import Resources, SiteResources
from raysim.core.errors import PlacementError, RunError
from raysim.core.events import Notice, RoundEvent
from raysim.core.results import FailureAction
from raysim.distributed.ray_fleet import RayFleet
from raysim.federation.runner import run_federation
from tests.support import toy
from tests.support.remote import (
    Dying,
    ReportsProcess,
    Sharing,
    Sleeping,
    dies_always,
    dies_once,
    hangs_once,
    keep,
    ray_fleet,
    run_on_ray,
    start_client,
)
from tests.support.slow import slow_except
from tests.support.toy_runs import NAMES, SGD, digest, failures, on_local, plan, task


@pytest.fixture
def fleet(ray_started: None) -> Iterator[RayFleet]:
    """A fleet with two client actors that only this test uses, because it kills them."""
    actors = {name: start_client(name, task()) for name in ("x", "y")}
    made = ray_fleet(task(), actors, rounds=4)
    yield made
    made.pool.close()


# A node that stops sends SIGTERM.
@pytest.mark.parametrize("sent", slow_except([signal.SIGKILL, signal.SIGTERM], [signal.SIGKILL]))
def test_a_killed_actor_is_replaced_and_only_its_unfinished_sites_run_again(
    fleet: RayFleet, tmp_path: Path, sent: signal.Signals
) -> None:
    replies = fleet.map(dies_once, (str(tmp_path), sent))
    assert list(replies) == list(NAMES)
    (failure,) = fleet.accounting.failures
    assert "c" in failure.sites
    assert failure.action == FailureAction.RETRIED
    assert failure.actor in ("x", "y")
    tries = {name: len((tmp_path / name).read_text()) for name in NAMES}
    assert tries["c"] == 2
    assert {name: count for name, count in tries.items() if name not in failure.sites} == dict.fromkeys(
        set(NAMES) - set(failure.sites), 1
    )
    assert list(fleet.map(dies_once, (str(tmp_path), sent))) == list(NAMES)  # the fleet can be used again


def test_a_site_that_kills_every_actor_ends_the_run(fleet: RayFleet) -> None:
    with pytest.raises(RunError, match=r"site 'c' failed in round 1: the actor .* 3 losses .*task\.batch_size"):
        fleet.map(dies_always)
    assert fleet.accounting.failures[-1].action == FailureAction.RUN_ENDED


@pytest.mark.slow
def test_a_site_that_kills_every_actor_is_left_out_if_enough_sites_reply(fleet: RayFleet) -> None:
    fleet.options = replace(fleet.options, min_replies=0.8)
    assert list(fleet.map(dies_always)) == ["a", "b", "d", "e", "f"]
    last = fleet.accounting.failures[-1]
    assert (last.sites, last.action) == (("c",), FailureAction.LEFT_OUT)
    assert [failure.action for failure in fleet.accounting.failures[:-1]] == [FailureAction.RETRIED] * 2


@pytest.mark.slow
def test_quick_sites_spread_over_all_actors(ray_started: None, tmp_path: Path) -> None:
    resources = Resources(client_actors="per_site", cpus_per_client=0.5)
    four = plan(tmp_path, ReportsProcess(**SGD), task=toy.task(dict.fromkeys("abcd", ((1.0, 1),))), resources=resources)
    list(run_on_ray(four, "spread"))
    table = pd.read_parquet(tmp_path / "sites.parquet")
    pids = table[table["metric"] == "pid"].groupby("round")["value"].nunique()
    assert pids.tolist() == [4, 4, 4, 4]


@pytest.mark.slow
def test_every_site_may_have_a_dedicated_actor(ray_started: None, tmp_path: Path) -> None:
    own = {name: SiteResources(cpus=0.5) for name in NAMES}
    dedicated = plan(tmp_path / "ray", FedAvg(**SGD), cohort=0.5, resources=Resources(sites=own))
    events = list(run_on_ray(dedicated, "all-alone"))
    assert digest(events) == digest(on_local(plan(tmp_path / "local", FedAvg(**SGD), cohort=0.5)))


@pytest.mark.slow
def test_a_run_with_a_killed_actor_equals_a_run_without(fleet: RayFleet, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    events = list(run_federation(plan(tmp_path / "run", Dying(**SGD, marks=str(tmp_path))), fleet))
    assert digest(events) == digest(calm)
    (failure,) = failures(tmp_path / "run")
    assert (failure["round"], failure["action"]) == (3, FailureAction.RETRIED)
    table = pd.read_parquet(tmp_path / "run" / "rounds.parquet")
    assert table["failures"].tolist() == [0, 0, 1, 0]
    assert table["seconds_lost"][2] > 0
    assert next(event.text for event in events if isinstance(event, Notice)).startswith("round 3, call 1: ")


@pytest.mark.slow
def test_a_hanging_actor_is_replaced_and_its_site_runs_again(fleet: RayFleet, tmp_path: Path) -> None:
    fleet.map(keep)  # the actors are up
    fleet.options = replace(fleet.options, site_timeout_s=3.0)
    assert list(fleet.map(hangs_once, str(tmp_path))) == list(NAMES)
    (failure,) = fleet.accounting.failures
    assert "c" in failure.sites
    assert (failure.cause, failure.action) == ("no result for 3 s (site_timeout_s)", FailureAction.RETRIED)


@pytest.mark.slow
def test_a_waiting_round_reports_its_sites(ray_started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysim.distributed.run_driver.SILENT_ROUND_NOTICE_S", 2.0)
    waiting = plan(tmp_path, Sleeping(**SGD, seconds=7.0), rounds=1, resources=Resources(client_actors=2))
    events = list(run_on_ray(waiting, "waiting"))
    notes = [event.text for event in events if isinstance(event, Notice)]
    assert any(re.match(r"round 1, call 1: no reply for \d+ s; 5 of 6 sites done; running: b$", note) for note in notes)


@pytest.mark.slow
@pytest.mark.smoke
def test_the_server_can_be_killed_and_the_run_resumed(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", Sharing(**SGD)))
    killed = plan(tmp_path / "run", Sharing(**SGD), resources=Resources(client_actors=2))
    events = run_on_ray(killed, "killed-server")
    second = next(event for event in events if isinstance(event, RoundEvent) and event.number == 2)
    os.kill(int(second.values["server/pid"]), signal.SIGKILL)
    with pytest.raises(RunError, match="the server actor was lost: ActorDiedError"):
        list(events)
    assert failures(tmp_path / "run")[-1]["actor"] == "server"
    assert failures(tmp_path / "run")[-1]["round"] >= 3
    one_actor = replace(killed.config, resources=Resources(client_actors=1))
    again = list(run_on_ray(replace(killed, config=one_actor, resume=True), "again"))
    assert digest(again) == digest(calm)


@pytest.mark.slow
def test_a_site_with_separate_resources_has_a_dedicated_actor(ray_started: None, tmp_path: Path) -> None:
    own = {"b": SiteResources(cpus=2.0), "d": SiteResources(cpus=0.5)}
    resources = Resources(client_actors=2, cpus_per_client=0.5, sites=own)
    telling = plan(tmp_path / "ray", ReportsProcess(**SGD), rounds=3, chaos="kill client@2", resources=resources)
    events = list(run_on_ray(telling, "alone"))
    assert [failure["action"] for failure in failures(tmp_path / "ray")] == [FailureAction.RETRIED]
    table = pd.read_parquet(tmp_path / "ray" / "sites.parquet")
    pids = {site: set(rows["value"]) for site, rows in table[table["metric"] == "pid"].groupby("site")}
    shared = set().union(*(pids[site] for site in "acef"))
    assert shared.isdisjoint(pids["b"] | pids["d"])
    assert pids["b"].isdisjoint(pids["d"])
    threads = table[table["metric"] == "threads"].groupby("site")["value"].agg(set).to_dict()
    assert threads == {site: {2.0} if site == "b" else {1.0} for site in NAMES}
    # In one process each site has the same number of threads, so that the results are equal bit by bit.
    local = plan(tmp_path / "local", ReportsProcess(**SGD), rounds=3)
    here = list(run_federation(local, LocalFleet(local.task, rounds=3, own_threads={"b": 2})))
    assert digest(events) == digest(here)
    table = pd.read_parquet(tmp_path / "local" / "sites.parquet")
    assert table[table["metric"] == "threads"].groupby("site")["value"].agg(set).to_dict() == threads


@pytest.mark.slow
def test_chaos_kills_a_client_and_results_are_equal(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    two = Resources(client_actors=2)
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos="kill client@2", resources=two)
    events = list(run_on_ray(troubled, "chaos"))
    assert events[-1].values["digest"] == digest(calm)
    assert [failure["round"] for failure in failures(tmp_path / "run")] == [2]


@pytest.mark.slow
def test_chaos_kills_two_clients(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    chaos = "kill client@2; kill client@2; kill client@4; kill client@4"
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos=chaos, resources=Resources(client_actors=2))
    events = list(run_on_ray(troubled, "chaos-two"))
    assert events[-1].values["digest"] == digest(calm)
    lost = {failure["actor"] for failure in failures(tmp_path / "run") if failure["round"] == 2}
    assert lost == {"client-01", "client-02"}


@pytest.mark.slow
def test_chaos_cannot_kill_the_only_node(ray_started: None, tmp_path: Path) -> None:
    one = Resources(client_actors=1)
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos="kill node@2", resources=one)
    with pytest.raises(PlacementError, match="on a node other than the command's"):
        list(run_on_ray(troubled, "chaos-node"))
