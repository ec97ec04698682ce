"""Actors that are killed, checkpoints that are torn, sites that fail: the run goes on, to the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray

from algorithms.fedavg import FedAvg
from raysim import Fleet, LocalFleet, Metrics, Model, Reply, Site, Task
from raysim.cli.main import main
from raysim.config.schema import Resources, SiteResources
from raysim.core.errors import ConfigError, LostObjectError, PlacementError, RunError, SiteError
from raysim.core.events import Notice, RoundEvent, RunFinished
from raysim.core.fault_injection import FaultPlan, parse_faults
from raysim.core.results import FailureAction
from raysim.distributed.driver import stream_events
from raysim.distributed.load_balancing import assign
from raysim.distributed.ray_fleet import RayFleet
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.federation.runner import run_federation
from raysim.storage import checkpoint
from tests.support import toy
from tests.support.remote import (
    Dying,
    Sharing,
    Sleeping,
    Telling,
    dies_always,
    dies_once,
    fails_at_d,
    hangs_once,
    keep,
    start_client,
)

MEMINFO = Path("/proc/meminfo")
NAMES = ("a", "b", "c", "d", "e", "f")
SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def task() -> Task:
    return toy.task({name: ((number + 1.0, number),) for number, name in enumerate(NAMES)})


def plan(out: Path, algorithm: Any, **fields: Any) -> Plan:
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    defaults: dict[str, Any] = {
        "algorithm_name": "fedavg",
        "task": task(),
        "rounds": 4,
        "cohort": 1.0,
        "seed": 0,
        "evaluate_every": 1,
        "checkpoint_every": 1,
        "metric": "inside/test/distance",
    }
    return Plan(out=out, algorithm=algorithm, **defaults | fields)


def on_local(plan: Plan) -> list[Any]:
    return list(run_federation(plan, LocalFleet(plan.task, seed=plan.seed, rounds=plan.rounds)))


def digest(events: list[Any]) -> str:
    found: str = events[-1].values["digest"]
    return found


def failures(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


@pytest.fixture
def fleet(ray_started: None) -> Iterator[RayFleet]:
    """Two client actors of its own: they are killed."""
    actors = {name: start_client(name, task()) for name in ("x", "y")}
    site_to_actor = assign(dict.fromkeys(NAMES, 1.0), list(actors))
    made = RayFleet(task(), actors, site_to_actor, partial(start_client, task=task()), seed=0, rounds=4)
    yield made
    for actor in made.actors.values():
        ray.kill(actor)


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_only_its_unfinished_sites_play_again(fleet: RayFleet, tmp_path: Path) -> None:
    replies = fleet.map(dies_once, str(tmp_path))
    assert list(replies) == list(NAMES)
    (incident,) = fleet.ledger.failures
    assert "c" in incident.sites
    assert incident.action == FailureAction.RETRIED
    assert incident.actor in ("x", "y")
    tries = {name: len((tmp_path / name).read_text()) for name in NAMES}
    assert tries["c"] == 2
    assert {name: count for name, count in tries.items() if name not in incident.sites} == dict.fromkeys(
        set(NAMES) - set(incident.sites), 1
    )
    assert list(fleet.map(dies_once, str(tmp_path))) == list(NAMES)  # and the fleet works on


@pytest.mark.ray
def test_a_site_that_kills_every_actor_ends_the_run(fleet: RayFleet) -> None:
    with pytest.raises(RunError, match=r"site 'c' failed in round 1: the actor .* 3 losses .*task\.batch_size"):
        fleet.map(dies_always)
    assert fleet.ledger.failures[-1].action == FailureAction.RUN_ENDED


@pytest.mark.ray
def test_a_site_that_kills_every_actor_is_left_out_where_enough_answer(fleet: RayFleet) -> None:
    fleet.ledger.min_replies = 0.8
    assert list(fleet.map(dies_always)) == ["a", "b", "d", "e", "f"]
    last = fleet.ledger.failures[-1]
    assert (last.sites, last.action) == (("c",), FailureAction.LEFT_OUT)
    assert [incident.action for incident in fleet.ledger.failures[:-1]] == [FailureAction.RETRIED] * 2


@pytest.mark.ray
def test_quick_sites_spread_over_all_actors(ray_started: None, tmp_path: Path) -> None:
    four = plan(tmp_path, Telling(**SGD), task=toy.task(dict.fromkeys("abcd", ((1.0, 1),))), rounds=4)
    list(stream_events(four, Resources(client_actors="per_site", cpus_per_client=0.5), "spread"))
    table = pd.read_parquet(tmp_path / "sites.parquet")
    pids = table[table["metric"] == "pid"].groupby("round")["value"].nunique()
    assert pids.tolist() == [4, 4, 4, 4]


@pytest.mark.ray
def test_every_site_may_have_an_actor_to_itself(ray_started: None, tmp_path: Path) -> None:
    own = {name: SiteResources(cpus=0.5) for name in NAMES}
    alone = plan(tmp_path / "ray", FedAvg(**SGD), cohort=0.5)
    events = list(stream_events(alone, Resources(sites=own), "all-alone"))
    assert digest(events) == digest(on_local(plan(tmp_path / "local", FedAvg(**SGD), cohort=0.5)))


@pytest.mark.ray
def test_a_run_with_a_killed_actor_has_the_bits_of_one_without(fleet: RayFleet, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    events = list(run_federation(plan(tmp_path / "run", Dying(**SGD, marks=str(tmp_path))), fleet))
    assert digest(events) == digest(calm)
    (failure,) = failures(tmp_path / "run")
    assert (failure["round"], failure["action"]) == (3, FailureAction.RETRIED)
    table = pd.read_parquet(tmp_path / "run" / "rounds.parquet")
    assert table["failures"].tolist() == [0, 0, 1, 0]
    assert table["seconds_lost"][2] > 0
    assert next(event.text for event in events if isinstance(event, Notice)).startswith("round 3, call 1: ")


@pytest.mark.ray
def test_a_site_that_hangs_is_given_up_and_plays_again(fleet: RayFleet, tmp_path: Path) -> None:
    fleet.map(keep)  # the actors are up
    fleet.ledger.site_timeout_s = 3.0
    assert list(fleet.map(hangs_once, str(tmp_path))) == list(NAMES)
    (incident,) = fleet.ledger.failures
    assert "c" in incident.sites
    assert (incident.cause, incident.action) == ("no answer for 3 s (site_timeout_s)", FailureAction.RETRIED)


@pytest.mark.ray
def test_a_round_that_waits_says_for_whom(ray_started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysim.distributed.driver.QUIET", 2.0)
    waiting = plan(tmp_path, Sleeping(**SGD, seconds=7.0), rounds=1)
    events = list(stream_events(waiting, Resources(client_actors=2), "waiting"))
    notes = [event.text for event in events if isinstance(event, Notice)]
    assert any(re.match(r"round 1, call 1: nothing for \d+ s; 5 of 6 sites done; at work: b$", note) for note in notes)


@pytest.mark.ray
def test_the_server_can_be_killed_and_the_run_resumed(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", Sharing(**SGD)))
    killed = plan(tmp_path / "run", Sharing(**SGD))
    events = stream_events(killed, Resources(client_actors=2), "killed-server")
    second = next(event for event in events if isinstance(event, RoundEvent) and event.number == 2)
    os.kill(int(second.values["server/pid"]), signal.SIGKILL)
    with pytest.raises(RunError, match="the server actor was lost: ActorDiedError"):
        list(events)
    assert failures(tmp_path / "run")[-1]["actor"] == "server"
    assert failures(tmp_path / "run")[-1]["round"] >= 3
    again = list(stream_events(replace(killed, resume=True), Resources(client_actors=1), "again"))
    assert digest(again) == digest(calm)


@pytest.mark.ray
def test_a_site_with_resources_of_its_own_has_an_actor_to_itself(ray_started: None, tmp_path: Path) -> None:
    own = {"b": SiteResources(cpus=2.0), "d": SiteResources(cpus=0.5)}
    resources = Resources(client_actors=2, cpus_per_client=0.5, sites=own)
    telling = plan(tmp_path / "ray", Telling(**SGD), rounds=3, chaos=parse_faults("kill client@2"))
    events = list(stream_events(telling, resources, "alone"))
    assert [failure["action"] for failure in failures(tmp_path / "ray")] == [FailureAction.RETRIED]
    table = pd.read_parquet(tmp_path / "ray" / "sites.parquet")
    pids = {site: set(rows["value"]) for site, rows in table[table["metric"] == "pid"].groupby("site")}
    shared = set().union(*(pids[site] for site in "acef"))
    assert shared.isdisjoint(pids["b"] | pids["d"])
    assert pids["b"].isdisjoint(pids["d"])
    threads = table[table["metric"] == "threads"].groupby("site")["value"].agg(set).to_dict()
    assert threads == {site: {2.0} if site == "b" else {1.0} for site in NAMES}
    # In one process the same number of threads belongs to each site, so that the bits are the same.
    local = plan(tmp_path / "local", Telling(**SGD), rounds=3)
    here = list(run_federation(local, LocalFleet(local.task, rounds=3, own_threads={"b": 2})))
    assert digest(events) == digest(here)
    table = pd.read_parquet(tmp_path / "local" / "sites.parquet")
    assert table[table["metric"] == "threads"].groupby("site")["value"].agg(set).to_dict() == threads


def test_absent_sites_are_drawn_by_the_seed_and_told(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        patchy = plan(tmp_path / name, FedAvg(**SGD), dropout=0.4, rounds=8)
        found.append(digest(list(run_federation(patchy, LocalFleet(patchy.task, rounds=8)))))
    assert found[0] == found[1]
    table = pd.read_parquet(tmp_path / "one" / "rounds.parquet")
    assert (table["sites"] + table["absent"]).tolist() == [6] * 8
    assert 5 <= table["absent"].sum() <= 35
    assert table["failures"].tolist() == [0] * 8  # to be absent is no failure


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_the_cure(small_disk: Path) -> None:
    words = ["rounds=300", "backend=local", "task.data.sites=2", "task.data.outside=[]", "task.data.size=[16, 16]"]
    words += ["network={name: unet, channels: [2, 4], strides: [2]}", "task.data.cases=2", "task.data.test=1"]
    out = small_disk / "run"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_500_000))
    command = [sys.executable, "-m", "raysim", "run", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    message = f"raysim: cannot write to {out}: .*No space left on device.* Make room there, then: raysim resume {out}"
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    filler.unlink()
    start = checkpoint.read(next(checkpoint.newest_first(out / "checkpoints")))
    assert 1 <= start.number < 300


def test_a_disk_without_room_for_a_checkpoint_is_refused(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["backend=local", "network={name: unet, channels: [32, 64, 128], strides: [2, 2]}", "task.data.cases=2"]
    assert main(["run", *words, "--out", str(small_disk / "run")]) == 3
    assert re.search(r"has 2\.1 MB free, and checkpoints of this network take \S+ MB at least", capsys.readouterr().err)
    assert not (small_disk / "run").exists()


@pytest.mark.ray
def test_an_actor_that_runs_out_of_memory_is_replaced_and_the_bits_stay(tmp_path: Path) -> None:
    size = {n: 1024 * int(v.split()[0]) for n, _, v in (s.partition(":") for s in MEMINFO.read_text().splitlines())}
    if size["MemAvailable"] < 12e9:
        pytest.skip("needs 12 GB of free memory, of which a site takes some before Ray kills it")
    limit = 1 - (size["MemAvailable"] - 5e9) / size["MemTotal"]
    client_state = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "50"}
    words = ["task.data.sites=3", "task.data.outside=[]", "task.data.size=[16, 16]", "rounds=3"]
    words += [
        "algorithm=tests.support.remote:Greedy",
        f"algorithm.once={tmp_path / 'once'}",
        "resources.cpus_per_client=0.5",
    ]
    command = [sys.executable, "-m", "raysim", "run", *words, "--out"]
    subprocess.run([*command, str(tmp_path / "run")], check=True, env={**os.environ, **client_state})
    subprocess.run([*command, str(tmp_path / "calm"), "backend=local"], check=True)  # the file is there by now
    lost = failures(tmp_path / "run")[0]
    assert lost["cause"].startswith("OutOfMemoryError: ")
    assert (lost["round"], lost["sites"], lost["action"]) == (2, ["site-02"], FailureAction.RETRIED)
    found = [json.loads((tmp_path / name / "summary.json").read_text())["digest"] for name in ("run", "calm")]
    assert found[0] == found[1]


@pytest.mark.ray
@pytest.mark.parametrize("end", ["done", "interrupted", "killed"])
def test_no_process_is_left_behind(end: str, tmp_path: Path) -> None:
    words = ["task.data.sites=2", "task.data.outside=[]", "task.data.size=[16, 16]", "resources.cpus_per_client=0.5"]
    rounds = 2 if end == "done" else 100_000
    command = [sys.executable, "-m", "raysim", "run", *words, f"rounds={rounds}", "--out", str(tmp_path / "run")]
    mark = {"RAYSIM_TEST_MARK": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **mark}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round ") and end != "done":
                assert len(marked(str(tmp_path))) > 3
                process.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode == {"done": 0, "interrupted": 130, "killed": -signal.SIGKILL}[end]
    wait = time.monotonic() + 30
    while (left := marked(str(tmp_path))) and time.monotonic() < wait:
        time.sleep(0.2)
    assert left == {}


def marked(mark: str) -> dict[str, str]:
    """The processes that have the mark in their environment, with what they run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            what = (folder / "cmdline").read_text().replace("\0", " ")[:200]
            if what.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")):
                continue  # where all else was killed, Ray gives these a minute to tell its head, which is gone
            if f"RAYSIM_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found[folder.name] = what
    return found


def test_a_failed_site_is_left_out_where_enough_answer() -> None:
    fleet = LocalFleet(task())
    fleet.ledger.min_replies = 0.8  # 4.8 of 6: five
    assert list(fleet.map(fails_at_d)) == ["a", "b", "c", "e", "f"]
    (incident,) = fleet.ledger.failures
    assert (incident.sites, incident.action, incident.cause) == (
        ("d",),
        FailureAction.LEFT_OUT,
        "LookupError: no such organ",
    )
    assert "fails_at_d" in incident.remote


def test_a_site_that_failed_was_sent_the_message_all_the_same(tmp_path: Path) -> None:
    failing = plan(tmp_path, Failing(**SGD), min_replies=0.5, rounds=2)
    list(run_federation(failing, LocalFleet(failing.task, rounds=2)))
    table = pd.read_parquet(tmp_path / "rounds.parquet")
    assert table["left_out"].tolist() == [1, 1]
    assert (table["bytes_down"] * 5 == table["bytes_up"] * 6).all()


def exits(site: Site[Any], _: Any) -> Reply[int]:
    raise SystemExit(3)


def test_an_exit_of_ones_own_code_is_a_failure_like_another() -> None:
    with pytest.raises(SiteError, match="site 'a' failed in round 1: SystemExit: 3"):
        LocalFleet(task()).map(exits)


@pytest.mark.parametrize("least", [1.0, 6, 10])
def test_too_few_replies_end_the_round(least: float) -> None:
    fleet = LocalFleet(task())
    fleet.ledger.min_replies = least
    with pytest.raises(SiteError, match="site 'd' failed in round 1: LookupError"):
        fleet.map(fails_at_d)


def test_no_reply_at_all_is_always_a_failure() -> None:
    fleet = LocalFleet(task()).at(["d"])
    fleet.ledger.min_replies = 0.01
    with pytest.raises(SiteError, match="site 'd'"):
        fleet.map(fails_at_d)


@dataclass(frozen=True, kw_only=True)
class Failing(FedAvg):
    """Fails at site d."""

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        fails_at_d(site, model)
        return FedAvg.client(self, site, model)


@dataclass(frozen=True, kw_only=True)
class Losing(FedAvg):
    """Once, in the third round, finds that a node took an object along."""

    mark: str

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        state, metrics = FedAvg.round(self, fleet, model)
        assert isinstance(fleet, BaseFleet)
        if fleet.ledger.round == 2 and not Path(self.mark).exists():
            Path(self.mark).touch()
            raise LostObjectError("an object was lost")
        return state, metrics


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_run_goes_back_to_its_last_checkpoint_when_objects_are_lost(tmp_path: Path, every: int) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    losing = Losing(**SGD, mark=str(tmp_path / "mark"))
    events = on_local(plan(tmp_path / "run", losing, checkpoint_every=every))
    assert digest(events) == digest(calm)
    again = {1: [3], 2: [3], 4: [1, 2, 3]}[every]
    assert [event.number for event in events if isinstance(event, RoundEvent)] == [1, 2, *again, 4]
    assert failures(tmp_path / "run")[0]["action"] == FailureAction.ROLLED_BACK
    for name in ("rounds", "sites"):
        tables = [pd.read_parquet(tmp_path / run / f"{name}.parquet") for run in ("calm", "run")]
        first, second = (table.drop(columns="seconds", errors="ignore") for table in tables)
        assert first.equals(second)


@pytest.mark.parametrize("damage", ["none", "torn", "all"])
def test_resume_takes_the_newest_checkpoint_that_is_whole(tmp_path: Path, damage: str) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    stopped = plan(tmp_path / "run", FedAvg(**SGD))
    events = run_federation(stopped, LocalFleet(stopped.task, rounds=4))
    assert [next(events) for _ in range(3)][-1].number == 3  # type: ignore[union-attr]  # rows
    events.close()  # type: ignore[attr-defined]  # a generator
    for path in (tmp_path / "run" / "checkpoints").glob("round_000[23]" if damage == "all" else "round_0003"):
        if damage != "none":
            (path / "state.safetensors").write_bytes(b"half")
    events_again = on_local(replace(stopped, resume=True))
    assert digest(events_again) == digest(calm)
    first = {"none": 4, "torn": 3, "all": 1}[damage]
    assert [event.number for event in events_again if isinstance(event, RoundEvent)] == list(range(first, 5))
    notes = " ".join(event.text for event in events_again if isinstance(event, Notice))
    assert ("damaged" in notes) == (damage != "none")
    assert isinstance(events_again[-1], RunFinished)
    assert pd.read_parquet(tmp_path / "run" / "rounds.parquet")["round"].tolist() == [1, 2, 3, 4]


def test_a_run_that_is_killed_is_resumed_to_the_same_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rounds=4", "backend=local", "task.data.sites=2", "task.data.outside=[]", "task.data.size=[16, 16]"]
    command = [sys.executable, "-m", "raysim", "run", *words]
    calm = subprocess.run([*command, "--out", str(tmp_path / "calm")], capture_output=True, text=True, check=True)
    out = tmp_path / "run"
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if line.startswith("round 2"))
        os.kill(process.pid, signal.SIGKILL)
    assert main(["resume", str(out)]) == 0
    wanted = next(line for line in calm.stdout.splitlines() if line.startswith("digest"))
    assert wanted in capsys.readouterr().out
    assert main(["resume", str(out)]) == 2
    assert "is done, all 4 rounds" in capsys.readouterr().err


def test_a_run_that_lacks_only_its_summary_is_finished(tmp_path: Path) -> None:
    finished = plan(tmp_path, FedAvg(**SGD))
    calm = on_local(finished)
    (tmp_path / "summary.json").unlink()
    again = on_local(replace(finished, resume=True))
    assert digest(again) == digest(calm)
    assert not [event for event in again if isinstance(event, RoundEvent)]
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"] == 4


@dataclass(frozen=True, kw_only=True)
class LosingAll(FedAvg):
    """Loses an object in every try of the third round, or once in every round."""

    always: bool
    folder: str

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        assert isinstance(fleet, BaseFleet)
        mark = Path(self.folder) / str(fleet.ledger.round)
        if fleet.ledger.round == 2 if self.always else not mark.exists():
            mark.touch()
            raise LostObjectError("an object was lost")
        return FedAvg.round(self, fleet, model)


def test_losses_that_were_mended_do_not_add_up(tmp_path: Path) -> None:
    losing = plan(tmp_path, LosingAll(**SGD, always=False, folder=str(tmp_path)), rounds=8, checkpoint_every=2)
    events = on_local(losing)
    assert isinstance(events[-1], RunFinished)
    back = [failure for failure in failures(tmp_path) if failure["action"] == FailureAction.ROLLED_BACK]
    assert [failure["round"] for failure in back] == list(range(1, 9))
    assert [failure["seconds"] > 0 for failure in back] == [False, True] * 4  # of finished rounds that were lost


def test_losses_in_a_row_end_the_run(tmp_path: Path) -> None:
    losing = plan(tmp_path, LosingAll(**SGD, always=True, folder=str(tmp_path)))
    with pytest.raises(RunError, match="an object was lost; that was 5 times in a row"):
        on_local(losing)
    actions = [failure["action"] for failure in failures(tmp_path)]
    assert actions == [FailureAction.ROLLED_BACK] * 4 + [FailureAction.RUN_ENDED]


def test_only_a_run_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "no run's folder" in capsys.readouterr().err


def test_chaos_is_read() -> None:
    chaos = parse_faults("kill client@3; kill node@5;kill client@5; slow site 02 x4; drop 0.1")
    assert chaos == FaultPlan({3: ("client",), 5: ("node", "client")}, {"site 02": 4.0}, 0.1)
    assert parse_faults(None) == parse_faults(" ; ") == FaultPlan()


@pytest.mark.parametrize("text", ["kill", "kill client", "kill server@2", "slow a", "slow a x", "drop 2", "drop", "x"])
def test_chaos_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"chaos: cannot read .*expected kill client@ROUND"):
        parse_faults(text)


def test_chaos_names_sites_and_rounds_that_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no site 'z'"):
        parse_faults("slow z x2").check(NAMES, 4)
    with pytest.raises(ConfigError, match="there is no round 5; the run has 4"):
        parse_faults("kill client@5").check(NAMES, 4)


def test_dropped_replies_are_drawn_by_the_seed(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        dropping = plan(tmp_path / name, FedAvg(**SGD), chaos=parse_faults("drop 0.3"), min_replies=1)
        fleet = LocalFleet(dropping.task, rounds=4, chaos=dropping.chaos)
        events = list(run_federation(dropping, fleet))
        found.append((digest(events), [f["sites"] for f in failures(tmp_path / name)]))
    assert found[0] == found[1]
    assert 1 <= len(found[0][1]) < 24
    assert digest(on_local(plan(tmp_path / "calm", FedAvg(**SGD)))) != found[0][0]


def test_what_went_wrong_is_written_once_however_the_run_ends(tmp_path: Path) -> None:
    failing = plan(tmp_path, Failing(**SGD), min_replies=0.5)
    events = run_federation(failing, LocalFleet(failing.task, rounds=4))
    assert isinstance(next(events), Notice)
    assert isinstance(next(events), RoundEvent)
    events.close()  # type: ignore[attr-defined]  # a generator
    assert [failure["sites"] for failure in failures(tmp_path)] == [["d"]]


def test_chaos_is_refused_before_data_are_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    for text, part in (("kill it", "cannot read 'kill it'"), ("kill client@2", "backend=local has no actor")):
        assert main(["run", "backend=local", f"chaos={text}"]) == 2
        said = capsys.readouterr()
        assert part in said.err
        assert "preparing the data" not in said.out


def test_a_slow_site_is_slow() -> None:
    fleet = LocalFleet(task(), chaos=parse_faults("slow b x1000"))
    fleet.map(keep)
    seconds = fleet.ledger.seconds
    assert seconds["b"] > 100 * max(seconds["c"], seconds["d"])


@pytest.mark.ray
def test_chaos_kills_a_client_and_the_bits_stay(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos=parse_faults("kill client@2"))
    events = list(stream_events(troubled, Resources(client_actors=2), "chaos"))
    assert events[-1].values["digest"] == digest(calm)
    assert [failure["round"] for failure in failures(tmp_path / "run")] == [2]


@pytest.mark.ray
def test_chaos_kills_two_clients_where_it_is_asked_to(ray_started: None, tmp_path: Path) -> None:
    calm = on_local(plan(tmp_path / "calm", FedAvg(**SGD)))
    chaos = parse_faults("kill client@2; kill client@2; kill client@4; kill client@4")
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos=chaos)
    events = list(stream_events(troubled, Resources(client_actors=2), "chaos-two"))
    assert events[-1].values["digest"] == digest(calm)
    lost = {failure["actor"] for failure in failures(tmp_path / "run") if failure["round"] == 2}
    assert lost == {"client-01", "client-02"}


def test_dropped_replies_are_refused_where_all_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "backend=local", "chaos=drop 0.1", "task.data.sites=2"]) == 2
    assert "give min_replies=0.5, say" in capsys.readouterr().err


@pytest.mark.ray
def test_chaos_cannot_kill_the_only_node(ray_started: None, tmp_path: Path) -> None:
    troubled = plan(tmp_path / "run", FedAvg(**SGD), chaos=parse_faults("kill node@2"))
    with pytest.raises(PlacementError, match="on a node other than the command's"):
        list(stream_events(troubled, Resources(client_actors=1), "chaos-node"))
