"""The command of a search, killed and interrupted."""

from __future__ import annotations

import os
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


def wait_for(enough, out: Path, process) -> None:
    start, end = rounds_done(out), time.monotonic() + 150
    while not enough(rounds_done(out) - start):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)
