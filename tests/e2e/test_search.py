"""The command of a search, killed and interrupted."""

from __future__ import annotations

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
from raysim.search.trial_store import load_records
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
def test_a_search_that_is_killed_ten_times_at_random_has_the_rows_of_an_uninterrupted_one(tmp_path, scheduler):
    space = ["--space", "algorithm.lr=loguniform(1e-4,1e-2)", "--trials", "4", "rounds=12"]
    limit = ONE if scheduler in ("fifo", "asha", "median") else []  # the other schedulers need all trials at once
    arguments = [*space, "--scheduler", scheduler, *limit]
    assert tune(tmp_path / "calm", *arguments) == 0
    out, calm, times = tmp_path / "out", trials(tmp_path / "calm"), random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    first = [sys.executable, "-m", "raysim", "tune", *arguments, *TINY, "--out", str(out)]
    for _ in range(10):
        started = (out / "search.yaml").exists()
        command = [sys.executable, "-m", "raysim", "tune", "--resume", str(out)] if started else first
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            kill_after(times.randint(0, 5), times.uniform(0, 0.5), out, process)
        finally:
            process.kill()
        process.communicate(timeout=60)
        assert left_behind() == []
        if not (out / "search.yaml").exists():
            shutil.rmtree(out, ignore_errors=True)
    main(["tune", "--resume", str(out)])  # 0, or 2 if nothing was left to do
    assert not list(out.glob("trials/**/failures.jsonl"))  # a killed command is no failure of a trial
    table, rounds = trials(out), pd.read_parquet(out / "rounds.parquet")
    assert all(list(each) == list(range(1, len(each) + 1)) for _, each in rounds.groupby("trial")["round"])
    if scheduler == "pbt":  # which trial takes over which state depends on the time
        assert list(table["status"]) == ["done"] * 4
        return
    same = ["status", "rounds", "digest", "algorithm.lr", "inside/val/dice/mean"]
    pd.testing.assert_frame_equal(table[same], calm[same])


def kill_after(rounds: int, seconds: float, out: Path, process: subprocess.Popen[bytes]) -> None:
    """Kill the search `seconds` after it has logged this number of new rounds; nothing if it ends before."""
    start = rounds_done(out)
    while process.poll() is None and rounds_done(out) < start + rounds:
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)


def wait_for(enough, out: Path, process) -> None:
    start, end = rounds_done(out), time.monotonic() + 150
    while not enough(rounds_done(out) - start):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)
