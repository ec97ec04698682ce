"""The command of a search, killed and interrupted."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import ray

from raysim.cli.main import main
from raysim.search.trial_store import lineage, load_records, logged_rounds, trial_directory
from raysim.storage.run_directory import read_summary
from tests.support.paths import ROOT
from tests.support.searches import ONE, TINY, left_behind, rounds_done, trials, tune


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.usefixtures("ray_started")
def test_a_killed_or_interrupted_search_continues_and_loses_at_most_one_round(tmp_path, capsys):
    arguments = ["--space", "algorithm.lr=grid(0.001,0.002,0.003)", "--searcher", "grid", "rounds=30", *ONE]
    assert tune(tmp_path / "calm", *arguments, "--scheduler", "asha") == 0
    out, calm = tmp_path / "out", trials(tmp_path / "calm")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "raysim", "tune", *arguments, *TINY, "--scheduler", "asha", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    for sent in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_for(lambda done: done >= 2, out, process)
            process.send_signal(sent)
        except BaseException:
            process.kill()
            raise
        output, _ = process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else 130), output
        assert left_behind() == []
        recorded = rounds_done(out)
        command = [sys.executable, "-m", "raysim", "tune", "--resume", str(out)]
    assert "--resume" in output
    assert main(["tune", "--resume", str(out)]) == 0
    table = trials(out)
    assert rounds_done(out) >= recorded
    done = table.index[table["status"] == "done"]
    assert len(done)
    assert all(table.loc[n, "digest"] == calm.loc[n, "digest"] for n in done if calm.loc[n, "status"] == "done")
    rounds = pd.read_parquet(out / "rounds.parquet").groupby("trial")["round"].apply(list)
    assert all(each == list(range(1, len(each) + 1)) for each in rounds)  # each round once
    assert len(rounds.loc[done[0]]) == 30
    assert not [entry for entry in load_records(out) if entry.unfinished]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_started")
@pytest.mark.parametrize("scheduler", ["fifo", "asha", "median", "hyperband", "pbt"])
def test_a_search_that_is_killed_ten_times_at_random_has_the_rows_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "cache"))
    space = ["--space", "algorithm.lr=loguniform(1e-4,1e-1)", "--trials", "4", "rounds=45"]
    limit = ONE if scheduler in ("fifo", "asha", "median") else []  # the other schedulers need all trials at once
    arguments = [*noisy_table(tmp_path), *space, "--scheduler", scheduler, *limit, "--out"]
    out, times = tmp_path / "out", random.Random(0)
    assert main(["tune", *arguments, str(tmp_path / "calm")]) == 0
    for _ in range(10):
        started = (out / "search.yaml").exists()
        command = ["tune", "--resume", str(out)] if started else ["tune", *arguments, str(out)]
        kill_after(times.randint(0, 5), times.uniform(0, 0.5), out, command)
        assert left_behind() == []
        if not (out / "search.yaml").exists():
            shutil.rmtree(out, ignore_errors=True)
    main(["tune", "--resume", str(out)])  # 0, or 2 if nothing was left to do
    assert not list(out.glob("trials/**/failures.jsonl"))  # a killed command is no failure of a trial
    table, rounds = trials(out), pd.read_parquet(out / "rounds.parquet")
    assert all(list(each) == list(range(1, len(each) + 1)) for _, each in rounds.groupby("trial")["round"])
    if scheduler == "pbt":  # which trial takes over which state depends on the time
        assert list(table["status"]) == ["done"] * 4
        assert_population(out, tmp_path / "again")
        return
    same = ["status", "rounds", "digest", "algorithm.lr", "best/round", "inside/val/auc/mean"]
    pd.testing.assert_frame_equal(table[same], trials(tmp_path / "calm")[same])


def assert_population(out: Path, again: Path) -> None:
    """A trial without a copied state repeats exactly; one with a copied state has the rounds of the donor before it."""
    copied = {each.number: lineage(trial_directory(out, each.number)) for each in load_records(out)}
    rows = {number: list(logged_rounds(trial_directory(out, number))) for number in copied}
    for number, notes in copied.items():
        if not notes:
            config, directory = trial_directory(out, number) / "config.yaml", again / str(number)
            assert main(["run", "-c", str(config), "--out", str(directory)]) == 0
            assert read_summary(directory)["digest"] == trials(out).loc[number, "digest"]
        elif not copied[donor := notes[-1]["from"]]:
            shared = notes[-1]["round"]
            assert rows[number][:shared] == rows[donor][:shared]
    assert not all(copied.values())


def noisy_table(folder: Path) -> list[str]:
    """The keys of a classification of few rows, whose scores differ between rates and rounds."""
    numbers = random.Random(1)
    rows = [
        f"{site},{split},{number % 2},{numbers.gauss(number % 2, 1)},{numbers.gauss(0, 1)}"
        for site in "ab"
        for split, count in (("train", 8), ("val", 20), ("test", 2))
        for number in range(count)
    ]
    (folder / "table.csv").write_text("\n".join(["site,split,label,x,y", *rows]))
    keys = ["task=tabular", f"task.data.table={folder / 'table.csv'}", "network=logistic"]
    return [*keys, "metric=inside/val/auc", "backend=local"]


def kill_after(rounds: int, seconds: float, out: Path, command: list[str]) -> None:
    """Start the command and kill it `seconds` after this number of new rounds, if it has not ended before.

    Its process is a fork of one that has the imports of a search.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raysim.search.api"])
    process, start = context.Process(target=main, args=(command,)), rounds_done(out)
    process.start()
    while process.is_alive() and rounds_done(out) < start + rounds:
        time.sleep(0.02)
    time.sleep(seconds)
    process.kill()
    process.join()


def wait_for(enough, out: Path, process) -> None:
    start, end = rounds_done(out), time.monotonic() + 150
    while not enough(rounds_done(out) - start):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)
