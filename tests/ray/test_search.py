"""Searches on real Ray: trials equal runs, stop, fail and continue, and leave no actor or process."""

from __future__ import annotations

import json
import os
import re

import pandas as pd
import pytest
import yaml
from ray.util.placement_group import placement_group, remove_placement_group

from raysim.cli.main import main
from raysim.core.errors import PlacementError
from raysim.distributed.placement_wait import TrialWait
from tests.support.paths import ROOT
from tests.support.searches import LR, ONE, TINY, left_behind, rounds_done, trials, tune

pytestmark = pytest.mark.usefixtures("ray_started")
LOST = "algorithm.lr=choice(1e30)"


def test_the_best_trial_repeats_exactly_and_no_actor_is_left(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "--space", "algorithm.epochs=choice(1,2)", "rounds=2", "--trials", "3", *ONE) == 0
    output = capsys.readouterr().out
    assert re.search(r"3 trials of 2 rounds", output)
    assert output.count("done     round 2") == 3
    assert "Trial" not in output.replace("trial", "")  # no output of Tune
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
    page = (out / "report.html").read_text()
    assert f"<h2>Trial {best}, the best</h2>" in page
    assert ">dice of each case, test<" in page
    assert "val/dice of each site over rounds" in page
    kept = {path.parent.parent.name for path in (out / "trials").glob("*/checkpoints/round_*")}
    assert kept == {f"{best:04}"}
    assert left_behind() == []
    assert not (out / "tune").exists()


@pytest.mark.slow
def test_a_finished_search_continues_with_more_trials(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "rounds=1", "--trials", "1") == 0
    assert main(["tune", "--resume", str(out)]) == 2
    before = trials(out)
    assert main(["tune", "--resume", str(out), "--trials", "3", "--address", "127.0.0.1:1"]) == 3
    assert "cannot join Ray at 127.0.0.1:1" in capsys.readouterr().err
    request = out / "search.yaml"  # like the request of a job, whose folder is removed with its Ray cluster
    request.write_text(request.read_text().replace(f"cwd: {os.getcwd()}", "cwd: /nowhere"))
    assert main(["tune", "--resume", str(out), "--trials", "3", *ONE]) == 0
    assert "started in /nowhere, which does not exist here: relative paths now start from" in capsys.readouterr().out
    after = trials(out)
    assert len(after) == 3
    assert after.loc[1, "digest"] == before.loc[1, "digest"]
    assert tune(tmp_path / "whole", "--space", LR, "rounds=1", "--trials", "3", *ONE) == 0
    assert list(trials(tmp_path / "whole")["digest"]) == list(after["digest"])


@pytest.mark.slow
@pytest.mark.smoke
def test_client_actors_in_a_placement_group_give_equal_results_and_end(tmp_path):
    # The base has seven sites and three client actors; the first trial has two sites.
    arguments = ["tune", *TINY[1:], "--space", "task.data.sites=grid(2,3)", "rounds=2", "--searcher", "grid", *ONE]
    assert main([*arguments, "backend=ray", "resources.client_actors=3", "--out", str(tmp_path / "ray")]) == 0
    assert left_behind() == []
    assert main([*arguments, "--out", str(tmp_path / "local")]) == 0
    assert list(trials(tmp_path / "ray")["digest"]) == list(trials(tmp_path / "local")["digest"])


@pytest.mark.slow
def test_asha_stops_the_worse_trial(tmp_path):
    space = ["--space", "algorithm.lr=grid(0.02,0.0001)", "--searcher", "grid", "algorithm.optimizer=sgd", "rounds=4"]
    assert tune(tmp_path / "out", *space, "--scheduler", "asha", *ONE) == 0
    table = trials(tmp_path / "out")
    assert list(table["status"]) == ["done", "stopped"]
    assert table.loc[2, "rounds"] < 4


def test_labels_of_test_cases_do_not_change_a_choice(tmp_path):
    found = []
    for flip in (0, 1):
        rows = [
            f"{site},{split},{(i + (split == 'test') * flip) % 2},{i % 2 + 0.3 * (i % 5)},{i}"
            for site in "ab"
            for split, count in (("train", 20), ("val", 15), ("test", 15))
            for i in range(count)
        ]
        table, out = tmp_path / f"{flip}.csv", tmp_path / f"search-{flip}"
        table.write_text("\n".join(["site,split,label,x,y", *rows]))
        arguments = ["task=tabular", f"task.data.table={table}", f"task.data.cache={tmp_path}", "rounds=6", *ONE]
        arguments += ["--space", "algorithm.lr=grid(0.1,0.0001)", "--searcher", "grid", "early_stopping=2"]
        assert main(["tune", *arguments, "--scheduler", "asha", "--out", str(out)]) == 0
        best = [line for line in (out / "best.yaml").read_text().splitlines() if line.startswith(("# Trial", "  lr:"))]
        found.append((trials(out), best))
    (one, of_one), (other, of_other) = found
    assert "stopped" in set(one["status"])
    columns = ["status", "rounds", "best/round", "best/inside/val/balanced_accuracy/mean", "digest"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    assert of_one == of_other
    assert (one["best/inside/test/balanced_accuracy/mean"] != other["best/inside/test/balanced_accuracy/mean"]).all()


@pytest.mark.slow
def test_asha_stops_trials_and_seeds_are_averaged(tmp_path):
    out = tmp_path / "out"
    spaces = [
        "--space",
        "algorithm.lr=grid(0.02,0.01,0.0002,0.0001)",
        "--space",
        "algorithm.momentum=choice(0.0,0.0001)",
    ]
    arguments = [*spaces, "algorithm.optimizer=sgd", "rounds=4", "--seeds", "2", "--trials", "1"]
    assert tune(out, *arguments, "--scheduler", "asha", "--metric", "worst", *ONE) == 0
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
    pd.testing.assert_frame_equal(more[more["trial"] <= 4].reset_index(drop=True), rounds)  # no trial ran again
    assert list(trials(out)["status"])[:4] == list(table["status"])
    assert len(trials(out)) == 8


@pytest.mark.slow
def test_a_search_with_a_spent_budget_continues_and_keeps_all_checkpoints(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--space", "algorithm.lr=choice(0.001)", "backend=ray", "resources.client_actors=2", *ONE]
    assert tune(out, *arguments, "rounds=100000", "checkpoint_every=100", "--trials", "1", "--budget", "12s") == 0
    assert left_behind() == []  # also client actors in the middle of a round have ended
    assert not (out / "tune").exists()
    assert "the time budget is spent; to continue: raysim tune --resume" in capsys.readouterr().out
    out = tmp_path / "short"
    assert tune(out, "--space", LR, *ONE, "rounds=2", "--trials", "2", "--budget", "0") == 0
    assert main(["tune", "--resume", str(out), "--budget", "1h", "--keep-checkpoints", "all"]) == 0
    assert list(trials(out)["status"]) == ["done", "done"]
    assert len(list((out / "trials").glob("*/checkpoints/round_0002"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["hyperband", "median", "pbt"])
def test_the_other_schedulers_end(tmp_path, scheduler):
    out = tmp_path / "out"
    limit = ONE if scheduler == "median" else []
    # One trial fails: the other trials must neither wait for it nor fail.
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
        assert set(table.loc[table["rounds"] > 2, "status"]) == {"done"}  # the remaining trials run all rounds
    assert "done" in set(table["status"])
    assert left_behind() == []


@pytest.mark.slow
def test_optuna_samples_the_keys_of_the_algorithm_for_several_objectives(tmp_path):
    out = tmp_path / "out"
    space = ["algorithm=choice(fedavg,fedprox)", "algorithm.fedprox.mu=loguniform(0.01,1)", LR]
    spaces = [argument for each in space for argument in ("--space", each)]
    assert (
        tune(out, *spaces, "rounds=1", "--searcher", "tpe", "--metric", "mean,worst,bytes", "--trials", "5", *ONE) == 0
    )
    table = trials(out)
    assert list(table["status"]) == ["done"] * 5
    assert (table["algorithm.fedprox.mu"].notna() == (table["algorithm"] == "fedprox")).all()
    assert main(["tune", "--resume", str(out), "--trials", "6"]) == 0
    assert len(trials(out)) == 6


@pytest.mark.slow
def test_tpe_learns_the_rounds_of_the_trials_that_asha_stops(tmp_path):
    optuna = pytest.importorskip("optuna")
    out = tmp_path / "out"
    space = ["--space", "algorithm.lr=loguniform(1e-4,2e-2)", "algorithm.optimizer=sgd", "rounds=4", "--trials", "6"]
    assert tune(out, *space, "--searcher", "tpe", "--scheduler", "asha", *ONE) == 0
    assert main(["tune", "--resume", str(out), "--trials", "7"]) == 0
    table, journal = trials(out), optuna.storages.journal.JournalFileBackend(str(out / "optuna.log"))
    study = optuna.load_study(study_name="out", storage=optuna.storages.JournalStorage(journal))
    ended = {each.user_attrs["trial"]: each for each in study.trials}
    states = {"done": "COMPLETE", "stopped": "PRUNED"}
    assert {number: each.state.name for number, each in ended.items()} == dict(table["status"].map(states))
    stopped = table.index[table["status"] == "stopped"]
    assert len(stopped)
    assert [max(ended[number].intermediate_values) for number in stopped] == list(table.loc[stopped, "rounds"])


@pytest.mark.slow
def test_a_failed_trial_has_its_cause_and_the_search_continues(tmp_path, capsys):
    out = tmp_path / "out"
    spaces = ["--space", "algorithm.lr=grid(0.001,1e30)", "--space", "algorithm.momentum=choice(0.0,0.0001)"]
    arguments = [*spaces, "--scheduler", "asha", "--trials", "1", "algorithm.optimizer=sgd", "rounds=2"]
    assert tune(out, *arguments, *ONE) == 0
    table = trials(out)
    assert list(table["status"]) == ["done", "failed"]
    assert "not finite" in table.loc[2, "cause"]
    assert "trial 2/2  failed" in capsys.readouterr().out
    failures = out / "trials" / "0002" / "failures.jsonl"
    assert len(failures.read_text().splitlines()) == 2  # the first attempt and one retry
    assert main(["tune", "--resume", str(out), "--trials", "2"]) == 0
    assert list(trials(out)["status"])[1:] == ["failed", "done", "failed"]
    assert len(failures.read_text().splitlines()) == 2  # not repeated when the search continues
    assert tune(tmp_path / "all", "--space", LOST, "--trials", "2", *ONE, "algorithm.optimizer=sgd", "rounds=1") == 1


@pytest.mark.slow
def test_a_node_with_other_versions_ends_the_search_and_fails_no_trial(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("raysim.distributed.node_probe.versions", lambda: {"torch": "0.1"})
        assert tune(out, "--space", LR, "--trials", "2", "rounds=1", *ONE) == 3
    assert re.search(
        r"a node cannot run trials: \S+ has torch \S+, not 0.1: install the versions", capsys.readouterr().err
    )
    assert list(trials(out)["status"]) == ["unfinished"]
    assert main(["tune", "--resume", str(out)]) == 0
    assert list(trials(out)["status"]) == ["done", "done"]


def test_a_search_with_waiting_trials_reports_it_and_ends():
    wait = TrialWait([{}, {"CPU": 2.0}], growing=False)
    assert wait.due_notice(0) is None
    wait.waiter._start -= 25
    assert re.fullmatch(r"no trial is running: requested 1 x 2 CPU, free now: .*CPU; 25 s", wait.due_notice(0) or "")
    assert wait.due_notice(0) is None  # not yet again
    group = placement_group([{"CPU": 2.0}])
    assert group.wait(30)
    wait.waiter._start -= 40
    assert re.fullmatch(
        r"1 x 2 CPU is reserved, and the process of the first trial is starting; 6\d s", wait.due_notice(0)
    )
    remove_placement_group(group)
    wait.waiter._start -= 2000
    with pytest.raises(PlacementError, match="no trial has run for 1800 s: requested 1 x 2 CPU"):
        wait.due_notice(0)
    assert wait.due_notice(1) is None
    assert wait.due_notice(0) is None


def test_trials_that_never_fit_are_refused_before_the_first_trial(tmp_path, capsys):
    out = tmp_path / "out"
    assert tune(out, "--space", LR, "rounds=1", "resources.cpus_per_client=64") == 3
    assert "What would fit" in capsys.readouterr().err
    assert not out.exists()
    assert tune(out, "--space", LR, "backend=ray", "resources.gpus_per_client=1") == 3
    assert not out.exists()


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path, capsys):
    assert tune(tmp_path / "out", "fedsm", "rounds=3", "--trials", "4", "--seeds", "2", "--dry-run") == 0
    output = capsys.readouterr().out
    assert re.search(r"4 trials of 3 rounds, with 2 federations each; each in a process", output)
    assert re.search(r"4 concurrent trials; a round takes \d", output)
    arguments = ["--space", "algorithm.lr=grid(0.1,0.01,0.001)", "--searcher", "grid", "--max-concurrent", "2"]
    assert tune(tmp_path / "out", *arguments, "--dry-run") == 0
    assert re.search(r"2 concurrent trials; a round takes \d", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trial_with_a_killed_process_continues_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [
        "--space",
        "algorithm.lr=choice(0.001)",
        "--trials",
        "1",
        "rounds=3",
        "algorithm=tests.support.dying:Dying",
    ]
    assert tune(tmp_path / "calm", *arguments) == 0
    for signal in ("SIGKILL", "SIGTERM"):  # Ray sends SIGTERM if the command is killed
        out, marker = tmp_path / signal, tmp_path / f"{signal}-marker"
        assert tune(out, *arguments, f"algorithm.marker={marker}", f"algorithm.by={signal}") == 0
        assert marker.exists()
        assert trials(out).loc[1, "digest"] == trials(tmp_path / "calm").loc[1, "digest"]
        assert rounds_done(out) == 3
        assert not list(out.glob("trials/**/failures.jsonl"))
    assert left_behind() == []


@pytest.mark.slow
def test_sites_of_a_table_are_held_out_in_turn(tmp_path):
    table = ["site,split,label,a,b"]
    splits = ("train", "test", "train", "val") * 3
    table += [f"{s},{split},{i % 2},{i % 2 + 0.1 * i},{i}" for s in "wxyz" for i, split in enumerate(splits)]
    (tmp_path / "table.csv").write_text("\n".join(table))
    arguments = ["task=tabular", f"task.data.table={tmp_path / 'table.csv'}", "network=logistic", "rounds=2"]
    arguments += ["evaluate_every=1", f"task.data.cache={tmp_path / 'cache'}", "task.data.outside=[w]", *ONE]
    assert main(["tune", *arguments, "--holdout", "each", "--out", str(tmp_path / "alone")]) == 0
    alone = trials(tmp_path / "alone")
    assert list(alone["holdout"]) == ["x", "y", "z"]
    each = alone["outside/test/balanced_accuracy/mean"]
    held = yaml.safe_load((tmp_path / "alone" / "trials" / "0001" / "config.yaml").read_text())["task"]["data"]
    assert (held["outside"], held["exclude_sites"]) == (["x"], ["w"])  # trials are not evaluated on w
    space = ["--space", "algorithm.lr=choice(0.001)", "--trials", "1"]
    assert main(["tune", *arguments, *space, "--holdout", "each", "--out", str(tmp_path / "together")]) == 0
    together = trials(tmp_path / "together")
    assert together.loc[1, "outside/test/balanced_accuracy/mean"] == pytest.approx(each.mean())
    assert together.loc[1, "outside/test/balanced_accuracy/worst"] == pytest.approx(each.min())
    assert set(pd.read_parquet(tmp_path / "together" / "rounds.parquet")["federation"]) == {
        f"without-{site}" for site in "xyz"
    }
    assert yaml.safe_load((tmp_path / "together" / "best.yaml").read_text())["task"]["data"]["outside"] == ["w"]


@pytest.mark.slow
def test_the_documented_search_runs_from_python(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "search.md").read_text()
    snippet = re.findall(r"```python\n(# search_from_python.py\n.*?)```", text, re.S)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "search.md", "exec"), {})
    assert re.search(r"^2 0\.\d+$", capsys.readouterr().out, re.M)
    assert (tmp_path / "runs" / "tune-001" / "best.yaml").exists()
    assert left_behind() == []
