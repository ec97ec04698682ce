"""Searches on real Ray: trials give the bits of runs, stop, fail, go on, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import ray
import yaml

from raysim.cli.main import main
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError, PlacementError
from raysim.distributed.placement_wait import Patience
from raysim.federation.fleet import LocalFleet
from raysim.federation.round_loop import federate
from raysim.reporting.console import Terminal
from raysim.reporting.search_console import SearchConsole
from raysim.search import dry_run
from raysim.search.api import _build_search, search as search_from_python
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli
from raysim.search.trial_resources import TrialPlacement
from raysim.search.trial_runner import TrialCache, TrialRounds
from raysim.search.trial_store import TrialRecord, lineage, load_records, save_record
from raysim.storage import checkpoint
from raysim.storage.serialization import digest
from tests.support.paths import ROOT

TINY = [
    *("task.data.sites=3", "task.data.outside=[]", "task.data.cases=4", "task.data.test=2", "task.data.val=2"),
    *("task.data.size=[16,16]", "task.network.channels=[4,8]", "task.network.num_res_units=0", "backend=local"),
]
LR = "algorithm.lr=loguniform(1e-4,1e-2)"
LOST = "algorithm.lr=choice(1e30)"
ONE = ["--max-concurrent", "1"]  # a process is started once, and reused
on_ray = pytest.mark.usefixtures("ray_started")


def tune(out: Path, *words: str) -> int:
    return main(["tune", *TINY, *words, "--out", str(out)])


def trials(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "trials.parquet").set_index("trial")


def left_behind() -> list[str]:
    """What of trials and client actors Ray still has, after a moment in which it may notice."""
    found: list[str] = []
    for _ in range(60):
        found = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        found += [f"group {g['state']}" for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
        missing = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
        found += [f"{missing:g} CPU"] if missing else []
        if not found:
            return []
        time.sleep(0.25)
    return found


@pytest.mark.ray
@on_ray
def test_the_best_trial_again_is_the_same_to_the_bit_and_nothing_is_left(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "--space", "algorithm.epochs=choice(1,2)", "rounds=2", "--trials", "3", *ONE) == 0
    said = capsys.readouterr().out
    assert re.search(r"3 trials of 2 rounds", said)
    assert said.count("done     round 2") == 3
    assert "Trial" not in said.replace("trial", "")  # not a word of Tune's
    table = trials(out)
    assert list(table["status"]) == ["done"] * 3
    assert list(table["rounds"]) == [2, 2, 2]
    best = table["inside/val/dice/mean"].idxmax()
    assert main(["run", "-c", str(out / "best.yaml"), "backend=local", "--out", str(tmp_path / "again")]) == 0
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["digest"] == table.loc[best, "digest"]
    assert f"# digest: {summary['digest']}" in (out / "best.yaml").read_text()
    rounds = pd.read_parquet(out / "rounds.parquet")
    assert len(rounds) == 6
    assert set(rounds["trial"]) == {1, 2, 3}
    assert (out / "report.html").exists()
    kept = {path.parent.parent.name for path in (out / "trials").glob("*/checkpoints/round_*")}
    assert kept == {f"{best:04}"}
    assert left_behind() == []
    assert not (out / "tune").exists()


@pytest.mark.ray
@on_ray
def test_a_finished_search_goes_on_with_more_trials_and_keeps_the_others(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "rounds=1", "--trials", "1") == 0
    assert main(["tune", "--resume", str(out)]) == 2
    before = trials(out)
    assert main(["tune", "--resume", str(out), "--trials", "3", "--address", "127.0.0.1:1"]) == 3
    assert "cannot join Ray at 127.0.0.1:1" in capsys.readouterr().err
    asked = out / "search.yaml"  # as of a job, whose folder is gone with its Ray
    asked.write_text(asked.read_text().replace(f"cwd: {os.getcwd()}", "cwd: /nowhere"))
    assert main(["tune", "--resume", str(out), "--trials", "3", *ONE]) == 0
    assert "began in /nowhere, which is no folder here: its paths start in" in capsys.readouterr().out
    after = trials(out)
    assert len(after) == 3
    assert after.loc[1, "digest"] == before.loc[1, "digest"]
    assert tune(tmp_path / "whole", "--space", LR, "rounds=1", "--trials", "3", *ONE) == 0
    assert list(trials(tmp_path / "whole")["digest"]) == list(after["digest"])


@pytest.mark.ray
@on_ray
def test_client_actors_in_a_placement_group_give_the_same_bits_and_go(tmp_path):
    # The base has seven sites, and room for three client actors; the first trial has work for two.
    words = ["tune", *TINY[1:], "--space", "task.data.sites=grid(2,3)", "rounds=2", "--searcher", "grid", *ONE]
    assert main([*words, "backend=ray", "resources.client_actors=3", "--out", str(tmp_path / "ray")]) == 0
    assert left_behind() == []
    assert main([*words, "--out", str(tmp_path / "local")]) == 0
    assert list(trials(tmp_path / "ray")["digest"]) == list(trials(tmp_path / "local")["digest"])


@pytest.mark.ray
@on_ray
def test_asha_stops_trials_and_seeds_are_averaged(tmp_path):
    out = tmp_path / "out"
    spaces = ["--space", "algorithm.lr=grid(0.02,0.01,0.0002,0.0001)", "--space", "algorithm.momentum=choice(0.0)"]
    words = [*spaces, "algorithm.optimizer=sgd", "rounds=4", "--seeds", "2", "--trials", "1"]
    assert tune(out, *words, "--scheduler", "asha", "--metric", "worst", *ONE) == 0
    table = trials(out)
    assert next(iter(table["status"])) == "done"
    assert "stopped" in set(table["status"])
    assert table.loc[table["status"] == "stopped", "rounds"].max() < 4
    rounds = pd.read_parquet(out / "rounds.parquet")
    last = rounds[(rounds["trial"] == 1) & (rounds["round"] == 4)]
    assert set(last["federation"]) == {"seed-0", "seed-1"}
    assert last["inside/val/dice/worst"].mean() == pytest.approx(table.loc[1, "inside/val/dice/worst"])
    assert yaml.safe_load((out / "best.yaml").read_text())["seed"] == 0
    assert table.loc[1, "bytes"] == rounds[rounds["trial"] == 1].filter(like="bytes_").to_numpy().sum()
    assert main(["tune", "--resume", str(out), "--trials", "2"]) == 0
    more = pd.read_parquet(out / "rounds.parquet")
    pd.testing.assert_frame_equal(more[more["trial"] <= 4].reset_index(drop=True), rounds)  # nobody played again
    assert list(trials(out)["status"])[:4] == list(table["status"])
    assert len(trials(out)) == 8


@pytest.mark.ray
@on_ray
def test_what_the_time_cut_off_goes_on_and_all_checkpoints_stay_where_asked(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--space", "algorithm.lr=choice(0.001)", "backend=ray", "resources.client_actors=2", *ONE]
    assert tune(out, *words, "rounds=100000", "checkpoint_every=100", "--trials", "1", "--budget", "12s") == 0
    assert left_behind() == []  # of client actors in the middle of a round
    assert not (out / "tune").exists()
    assert "the time is up" in capsys.readouterr().out
    out = tmp_path / "short"
    assert tune(out, "--space", LR, *ONE, "rounds=2", "--trials", "2", "--budget", "0") == 0
    assert main(["tune", "--resume", str(out), "--budget", "1h", "--keep-checkpoints", "all"]) == 0
    assert list(trials(out)["status"]) == ["done", "done"]
    assert len(list((out / "trials").glob("*/checkpoints/round_0002"))) == 2


@pytest.mark.ray
@on_ray
@pytest.mark.parametrize("scheduler", ["hyperband", "median", "pbt"])
def test_the_other_schedulers_come_to_an_end(tmp_path, scheduler):
    out = tmp_path / "out"
    limit = ONE if scheduler == "median" else []
    # One that fails among them: the others are not to wait for it, nor to fail with it.
    space = ["--space", "algorithm.lr=grid(0.001,0.002,1e30,0.003,0.004,0.005)", "algorithm.optimizer=sgd"]
    space = ["--space", LR, "--trials", "3"] if scheduler == "pbt" else [*space, "--searcher", "grid"]
    assert tune(out, *space, "rounds=5", "--scheduler", scheduler, *limit) == 0
    table = trials(out)
    if scheduler == "pbt":
        assert list(table["status"]) == ["done"] * 3
    else:
        assert list(table["status"]).count("failed") == 1
        assert set(table["status"]) <= {"done", "stopped", "failed"}
        assert table.loc[table["status"] == "done", "rounds"].eq(5).all()
    if scheduler == "hyperband":
        assert set(table.loc[table["rounds"] > 2, "status"]) == {"done"}  # who is left goes through all rounds
    assert "done" in set(table["status"])
    assert left_behind() == []


@pytest.mark.ray
@on_ray
def test_optuna_asks_for_the_keys_of_the_algorithm_and_several_objectives(tmp_path):
    out = tmp_path / "out"
    space = ["algorithm=choice(fedavg,fedprox)", "algorithm.fedprox.mu=loguniform(0.01,1)", LR]
    spaces = [word for each in space for word in ("--space", each)]
    assert (
        tune(out, *spaces, "rounds=1", "--searcher", "optuna", "--metric", "mean,worst,bytes", "--trials", "5", *ONE)
        == 0
    )
    table = trials(out)
    assert list(table["status"]) == ["done"] * 5
    assert (table["algorithm.fedprox.mu"].notna() == (table["algorithm"] == "fedprox")).all()
    assert main(["tune", "--resume", str(out), "--trials", "6"]) == 0
    assert len(trials(out)) == 6


@pytest.mark.ray
@on_ray
def test_a_trial_that_fails_is_marked_with_its_cause_and_the_search_goes_on(tmp_path, capsys):
    out = tmp_path / "out"
    spaces = ["--space", "algorithm.lr=grid(0.001,1e30)", "--space", "algorithm.momentum=choice(0.0)"]
    words = [*spaces, "--scheduler", "asha", "--trials", "1", "algorithm.optimizer=sgd", "rounds=2"]
    assert tune(out, *words, *ONE) == 0
    table = trials(out)
    assert list(table["status"]) == ["done", "failed"]
    assert "not finite" in table.loc[2, "cause"]
    assert "trial 2/2  failed" in capsys.readouterr().out
    failures = out / "trials" / "0002" / "failures.jsonl"
    assert len(failures.read_text().splitlines()) == 2  # once, and once again
    assert main(["tune", "--resume", str(out), "--trials", "2"]) == 0
    assert list(trials(out)["status"])[1:] == ["failed", "done", "failed"]
    assert len(failures.read_text().splitlines()) == 2  # and not when the search goes on
    assert tune(tmp_path / "all", "--space", LOST, "--trials", "2", *ONE, "algorithm.optimizer=sgd", "rounds=1") == 1


@pytest.mark.ray
@on_ray
def test_a_node_with_other_versions_ends_the_search_and_fails_no_trial(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("raysim.distributed.node_probe.versions", lambda: {"torch": "0.1"})
        assert tune(out, "--space", LR, "--trials", "2", "rounds=1", *ONE) == 3
    assert re.search(r"a node cannot play trials: \S+ has torch \S+, not 0.1: install there", capsys.readouterr().err)
    assert list(trials(out)["status"]) == ["unfinished"]
    assert main(["tune", "--resume", str(out)]) == 0
    assert list(trials(out)["status"]) == ["done", "done"]


@pytest.mark.ray
@on_ray
def test_a_search_whose_trials_wait_says_so_and_ends_after_all():
    patience = Patience([{}, {"CPU": 2.0}], growing=False)
    assert patience.on_trial_end(0) is None
    patience._since -= 25
    assert re.fullmatch(
        r"no trial is running: asked for 1 x 2 CPU, free now: .*CPU; 25 s", patience.on_trial_end(0) or ""
    )
    assert patience.on_trial_end(0) is None  # not yet again
    patience._since -= 2000
    with pytest.raises(PlacementError, match="no trial has run for 1800 s: asked for 1 x 2 CPU"):
        patience.on_trial_end(0)
    assert patience.on_trial_end(1) is None
    assert patience.on_trial_end(0) is None


@pytest.mark.ray
@on_ray
def test_what_never_fits_is_refused_before_the_first_trial(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "rounds=1", "resources.cpus_per_client=64") == 3
    assert "What would fit" in capsys.readouterr().err
    assert not out.exists()
    assert tune(out, "--space", LR, "backend=ray", "resources.gpus_per_client=1") == 3
    assert not out.exists()


@pytest.mark.ray
@on_ray
def test_a_dry_run_tells_and_starts_nothing(tmp_path, capsys):
    assert tune(tmp_path / "out", "fedsm", "rounds=3", "--trials", "4", "--seeds", "2", "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"4 trials of 3 rounds, 2 federations in each; each in a process", said)
    assert re.search(r"4 at once; a round takes \d", said)
    words = ["--space", "algorithm.lr=grid(0.1,0.01,0.001)", "--searcher", "grid", "--max-concurrent", "2"]
    assert tune(tmp_path / "out", *words, "--dry-run") == 0
    assert re.search(r"2 at once; a round takes \d", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@on_ray
def test_killed_or_interrupted_in_mid_search_it_goes_on_and_loses_a_round_at_most(tmp_path, capsys):
    words = ["--space", "algorithm.lr=grid(0.001,0.002,0.003)", "--searcher", "grid", "rounds=30", *ONE]
    assert tune(tmp_path / "calm", *words, "--scheduler", "asha") == 0
    out, calm = tmp_path / "out", trials(tmp_path / "calm")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "raysim", "tune", *words, *TINY, "--scheduler", "asha", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    for blow in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_for(lambda done: done >= 2, out, process)
            process.send_signal(blow)
        except BaseException:
            process.kill()
            raise
        said, _ = process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 130), said
        assert left_behind() == []
        standing = rounds_done(out)
        command = [sys.executable, "-m", "raysim", "tune", "--resume", str(out)]
    assert "--resume" in said
    assert main(["tune", "--resume", str(out)]) == 0
    table = trials(out)
    assert rounds_done(out) >= standing
    done = table.index[table["status"] == "done"]
    assert len(done)
    assert all(table.loc[n, "digest"] == calm.loc[n, "digest"] for n in done if calm.loc[n, "status"] == "done")
    played = pd.read_parquet(out / "rounds.parquet").groupby("trial")["round"].apply(list)
    assert all(each == list(range(1, len(each) + 1)) for each in played)  # each once
    assert len(played.loc[done[0]]) == 30
    assert not [entry for entry in load_records(out) if entry.unfinished]


def rounds_done(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (out / "trials").glob("*/log.jsonl"))


def wait_for(enough, out: Path, process) -> None:
    start, end = rounds_done(out), time.monotonic() + 150
    while not enough(rounds_done(out) - start):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)


def searched(out: Path, *words: str, space: Sequence[str] = (LR,), scheduler: str = "fifo"):
    """A search in `out`, prepared and not started."""
    tiny = [word for word in TINY if space == (LR,) or "network" not in word]
    one = build_request(Space(from_cli(space)), {}, parse_pairs([*words, *tiny]), {"scheduler": scheduler})
    return replace(_build_search(one, out, SearchConsole(Terminal(quiet=True))), out=out)


@pytest.mark.parametrize(
    ("space", "match"),
    [
        ("task.network=choice(unet,nonsense)", "nonsense"),
        ("network.foo=choice(1,2)", "foo"),
        ("network.channels=choice([4,8],[4])", "task.network"),
        ("task.loss=choice(dice,nonsense)", "nonsense"),
    ],
)
def test_an_end_that_the_task_refuses_is_refused_before_the_first_trial(tmp_path, space, match):
    with pytest.raises(ConfigError, match=rf"the search space: \S+ is choice\(.*?\): .*{match}"):
        searched(tmp_path, space=[space])


def test_keys_of_the_network_are_tried_together(tmp_path):
    # Its filters alone would be those of the default network, which has none.
    space = ["task.network=choice(segresnet)", "network.init_filters=choice(8)", "task.batch_size=choice(2,4)"]
    assert searched(tmp_path, space=space)
    # What goes only with one value of another key, and with none of the base.
    space = ["network.channels=choice([4,8,16],[4,8])", "network.strides=choice([2],[2,2])"]
    space += ["network.norm=choice(batch,instance)", "network.act=choice(relu,prelu,elu,swish)"]
    assert searched(tmp_path, space=space)


def test_a_trial_without_a_checkpoint_starts_again_with_an_empty_log(tmp_path):
    search = searched(tmp_path, "rounds=4", "checkpoint_every=3")
    lost = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [lost.step()["round"] for _ in range(2)] == [1, 2]
    again = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [again.step()["round"] for _ in range(4)] == [1, 2, 3, 4]
    logged = (tmp_path / "trials" / "0001" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)[0]["round"] for line in logged] == [1, 2, 3, 4]


def test_a_trial_that_takes_another_s_state_goes_on_exactly_from_it(tmp_path):
    search = searched(tmp_path, "algorithm=ditto", "rounds=4", "algorithm.schedule=cosine", scheduler="pbt")
    workshop = TrialCache(search)
    donor, other = (TrialRounds(search, n, {"algorithm.lr": lr}, workshop) for n, lr in ((1, 0.01), (2, 0.0003)))
    donor.step()
    assert donor.step()["round"] == 2
    assert other.step()["round"] == 1
    (tmp_path / "given").mkdir()
    donor.hand_over(tmp_path / "given")
    donor.step()  # and goes on itself, which changes nothing of what it has given
    other.close()
    other = TrialRounds(search, 2, {"algorithm.lr": 0.005}, workshop)
    other.adopt(tmp_path / "given")
    assert other.step()["round"] == 3
    last = other.step()
    assert last["done"]
    # The same by hand: two rounds with the one's rate, then two with the new one.
    start = checkpoint.read(tmp_path / "given" / "federation" / "checkpoints" / "round_0002")
    config = search.config({"algorithm.lr": 0.005}, search.variants[0])
    fleet = LocalFleet(search.task, seed=0, rounds=4)
    *_, final = federate(config.algorithm, search.task, fleet, rounds=4, start=start)
    assert last["digests"] == {"": digest(final.state, fleet.memories())}
    save_record(tmp_path, TrialRecord(2, {"algorithm.lr": 0.0003}))
    assert load_records(tmp_path)[0].values == {"algorithm.lr": 0.005}  # with what a search that ends now goes on
    assert load_records(tmp_path)[0].lineage
    lineage = json.loads((tmp_path / "trials" / "0002" / "lineage.jsonl").read_text())
    assert lineage == {"round": 2, "from": 1, "values": {"algorithm.lr": 0.005}}
    # Its process is lost before Tune has heard of the last round: that is told again, and not played.
    again = TrialRounds(search, 2, {"algorithm.lr": 0.005}, workshop).step()
    assert again == last


def test_a_trial_that_is_given_the_same_state_once_more_keeps_its_own_rounds(tmp_path):
    search = searched(tmp_path, "rounds=4", scheduler="pbt")
    workshop, folder = TrialCache(search), tmp_path / "trials" / "0002"
    donor = TrialRounds(search, 1, {"algorithm.lr": 0.01}, workshop)
    assert [donor.step()["round"] for _ in range(2)] == [1, 2]
    (tmp_path / "given").mkdir()
    donor.hand_over(tmp_path / "given")

    def given() -> TrialRounds:  # as Tune gives it to a new process
        found = TrialRounds(search, 2, {"algorithm.lr": 0.005}, workshop)
        found.adopt(tmp_path / "given")
        return found

    first = given()
    assert first.step()["round"] == 3
    first.close()
    last = given().step()
    assert last["round"] == 4
    assert len(lineage(folder)) == 1

    copies = folder / "adopted"
    copies.mkdir()  # lost before it was whole: it is as if it had not begun
    assert given().step()["round"] == 4
    assert not copies.exists()
    shutil.copytree(tmp_path / "given" / "federation", copies / "federation")
    (copies / "lineage.json").write_text(json.dumps({"round": 2, "from": 1, "values": {"algorithm.lr": 0.01}}))
    shutil.rmtree(folder / "checkpoints")  # lost while it was put in its place, the whole search too
    assert lineage(folder)[-1]["values"] == {"algorithm.lr": 0.01}
    again = TrialRounds(search, 2, {"algorithm.lr": 0.01}, workshop)
    assert [again.step()["round"] for _ in range(2)] == [3, 4]
    assert len(lineage(folder)) == 2
    assert not copies.exists()


@pytest.mark.ray
@on_ray
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [
        "--space",
        "algorithm.lr=choice(0.001)",
        "--trials",
        "1",
        "rounds=3",
        "algorithm=tests.support.dying:Dying",
    ]
    assert tune(tmp_path / "calm", *words) == 0
    assert tune(tmp_path / "killed", *words, f"algorithm.marker={tmp_path / 'struck'}") == 0
    assert (tmp_path / "struck").exists()
    assert trials(tmp_path / "killed").loc[1, "digest"] == trials(tmp_path / "calm").loc[1, "digest"]
    assert rounds_done(tmp_path / "killed") == 3
    assert left_behind() == []


@pytest.mark.ray
@on_ray
def test_sites_of_a_table_are_held_out_in_turn(tmp_path):
    table = ["site,split,label,a,b"]
    splits = ("train", "train", "test") * 4
    table += [f"{s},{split},{i % 2},{i % 2 + 0.1 * i},{i}" for s in "wxyz" for i, split in enumerate(splits)]
    table += ["x,val,0,0.1,3", "x,val,1,1.1,4"]  # the others have none, so test rows judge
    (tmp_path / "table.csv").write_text("\n".join(table))
    words = ["task=tabular", f"task.data.table={tmp_path / 'table.csv'}", "network=logistic", "rounds=2"]
    words += ["evaluate_every=1", f"task.data.cache={tmp_path / 'cache'}", "task.data.outside=[w]", *ONE]
    assert main(["tune", *words, "--holdout", "each", "--out", str(tmp_path / "alone")]) == 0
    alone = trials(tmp_path / "alone")
    assert list(alone["holdout"]) == ["x", "y", "z"]
    each = alone["outside/test/balanced_accuracy/mean"]
    held = yaml.safe_load((tmp_path / "alone" / "trials" / "0001" / "config.yaml").read_text())["task"]["data"]
    assert (held["outside"], held["exclude_sites"]) == (["x"], ["w"])  # w is not what trials are judged by
    space = ["--space", "algorithm.lr=choice(0.001)", "--trials", "1"]
    assert main(["tune", *words, *space, "--holdout", "each", "--out", str(tmp_path / "together")]) == 0
    together = trials(tmp_path / "together")
    assert together.loc[1, "outside/test/balanced_accuracy/mean"] == pytest.approx(each.mean())
    assert together.loc[1, "outside/test/balanced_accuracy/worst"] == pytest.approx(each.min())
    assert set(pd.read_parquet(tmp_path / "together" / "rounds.parquet")["federation"]) == {
        f"without-{site}" for site in "xyz"
    }
    assert yaml.safe_load((tmp_path / "together" / "best.yaml").read_text())["task"]["data"]["outside"] == ["w"]


def held_out(folder: Path, metric: str | None = None, *words: str):
    """Leave-one-out over the cameras of a table of two hospitals, prepared and not started."""
    table = ["site,split,label,camera,a,b"]
    for camera, site in (("c1", "x"), ("c1", "y"), ("c2", "x"), ("c3", "y"), ("c1", "z")):
        splits = enumerate(("train", "train", "test", "val") * 2)
        table += [f"{site},{split},{i % 2},{camera},{i % 2 + 0.1 * i},{i}" for i, split in splits]
    (folder / "table.csv").write_text("\n".join(table))
    given = ["task=tabular", f"task.data.table={folder / 'table.csv'}", "rounds=1", "task.data.partition.by=camera"]
    given += [f"task.data.cache={folder / 'cache'}", "task.data.outside=[z]", *words]
    options = {"holdout": "each"} | ({"metric": metric} if metric else {})
    return _build_search(
        build_request(Space(), {}, parse_pairs(given), options), folder, SearchConsole(Terminal(quiet=True))
    )


def test_sites_that_a_partition_makes_are_held_out(tmp_path):
    search = held_out(tmp_path)
    assert search.space.grid() == [{"holdout": camera} for camera in ("c1", "c2", "c3")]
    for values in search.space.grid():
        (cell,) = search.variants_of(values).values()
        built = search.config(values, cell).task.build(None)
        assert built.outside == (values["holdout"],)
        assert set(built.inside) == {"c1", "c2", "c3"} - {values["holdout"]}  # and z, which stands outside, is away
        assert built.sizes["c1"]["train"] == 8
    parted = held_out(tmp_path, None, "task.data.exclude_sites=[c3]")
    assert parted.space.grid() == [{"holdout": "c1"}, {"holdout": "c2"}]
    with pytest.raises(ConfigError, match=r"unknown site in task.data.exclude_sites: 'c4'"):
        held_out(tmp_path, None, "task.data.exclude_sites=[c4]")


def test_sites_that_train_do_not_judge_what_is_held_out(tmp_path):
    for metric, words in (("inside/val/auc", ()), (None, ["metric=inside/val/auc"])):
        with pytest.raises(ConfigError, match=r"judges the sites that train.* give --metric outside, or outside/"):
            held_out(tmp_path, metric, *words)
    assert held_out(tmp_path, "outside").objectives == held_out(tmp_path).objectives


def test_a_node_without_the_algorithm_s_module_is_unfit(tmp_path):
    search = searched(tmp_path)
    (tmp_path / "search.yaml").touch()
    assert search.unfit() == ""
    own = replace(search, base={"algorithm": "nowhere.at_all:Mine"})
    assert re.match(r"a node cannot play trials: \S+ has not all that the search names: .*nowhere", own.unfit())
    assert "nowhere" in replace(search, space=Space(from_cli(["algorithm=choice(fedavg,'nowhere:Mine')"]))).unfit()


def test_a_space_in_a_file_keeps_its_task_from_python(tmp_path, monkeypatch):
    path = tmp_path / "space.py"
    monkeypatch.setattr("raysim.search.api.tune", lambda found, *_, **__: found)
    path.write_text(
        "from ray import tune\nSPACE = {'task.name': 'tabular', 'algorithm.lr': tune.choice([0.1]), 'rounds': 3}"
    )
    assert resolve(search_from_python(str(path)).base).task.name == "tabular"
    assert resolve(search_from_python(str(path), "synthetic").base).task.name == "synthetic"


def test_the_time_that_a_search_takes_counts_its_rounds_and_client_actors(tmp_path, monkeypatch, capsys):
    search = searched(tmp_path, "evaluate_every=5")
    assert dry_run._round(TrialPlacement(search, [{}], 1, ""), {"algorithm.lr": 0.01}) > 0
    monkeypatch.setattr(dry_run, "_round", lambda *_: 2.0)
    need = TrialPlacement(search, [{}, {"CPU": 1.0}, {"CPU": 1.0}], 2, "each with 2 client actors")
    dry_run.print_dry_run(need, [{"rounds": 3}, {"rounds": 5}], SearchConsole(Terminal()))
    said = capsys.readouterr().out
    assert "2 trials of up to 5 rounds; each with 2 client actors" in said
    assert "about 4 s in all" in said  # 8 rounds of 2 s, two trials at once, two client actors in each


@pytest.mark.ray
@on_ray
def test_the_readme_s_search_runs_from_python(tmp_path, monkeypatch, capsys):
    snippet = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert re.search(r"^2 0\.\d+$", capsys.readouterr().out, re.M)
    assert (tmp_path / "runs" / "tune-001" / "best.yaml").exists()
    assert left_behind() == []
