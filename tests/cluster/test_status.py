"""Runs and searches on a cluster, watched and stopped by another process; metrics at the port of a node."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysim.distributed.prometheus import COUNTERS, GAUGES
from tests.support.commands import LONG, execute, lines_of, running, until


def exported(address: str) -> dict[str, dict[str, set[str]]]:
    """The metrics of raysim at the ports that Ray announces to Prometheus, each with its labels and their values."""
    code = (
        "import ray, sys; ray.init(sys.argv[1], logging_level=40)\n"
        "print(*[n['MetricsExportPort'] for n in ray.nodes() if n['Alive']])"
    )
    ports = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, set[str]]] = {}
    for port in ports.stdout.splitlines()[-1].split():
        with urllib.request.urlopen(f"http://{address.partition(':')[0]}:{port}/metrics", timeout=10) as page:
            for name, labels in re.findall(r"^(ray_raysim_\w+){(.*)}", page.read().decode(), re.M):
                for label, value in re.findall(r'(\w+)="(.*?)"', labels):
                    found.setdefault(name, {}).setdefault(label, set()).add(value)
    return found


@pytest.mark.slow
@pytest.mark.smoke
def test_a_run_on_a_cluster_is_watched_and_stopped(address: str, tmp_path: Path) -> None:
    out = tmp_path / "eyes"
    arguments = (*LONG, f"ray_address={address}", 'chaos="kill client@2"', "--out", str(out))
    with running(*arguments) as run:
        assert until(lambda: run.poll() is not None or lines_of(out / "log.jsonl") > 4)
        shown = execute("status", "--address", address, cwd=tmp_path).stdout
        row = re.search(rf"(eyes-\w+) +fedavg on synthetic +\d+/100000 +.*{out}", shown)
        assert row, shown
        assert execute("status", "missing", "--address", address, cwd=tmp_path).returncode == 2

        names = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
        seen = until(lambda: found if names <= set(found := exported(address)) else None)
        assert seen, names - set(exported(address))
        for name, (_, labels) in {**GAUGES, **COUNTERS}.items():
            both = seen.get(f"ray_{name}") or seen[f"ray_{name}_total"]
            assert {"run", *labels} <= both.keys()
            assert row[1] in both["run"], name

        ended = execute("stop", row[1], "--address", address, cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        _, output = run.communicate(timeout=60)
        assert run.returncode == 130
        assert re.search(r"raysim: stopped in round \d+$", output.strip())
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert "no run is active" in execute("status", "--address", address, cwd=tmp_path).stdout
    assert re.search(r"eyes .* interrupted ", execute("status", str(out), cwd=tmp_path).stdout)


@pytest.mark.slow
def test_a_search_on_a_cluster_is_watched_and_stopped(address: str, tmp_path: Path) -> None:
    out = tmp_path / "wide"
    arguments = (*LONG[:-1], "--space", "algorithm.lr=loguniform(1e-4, 1e-1)", "--trials", "5", "--max-concurrent", "2")
    with running(*arguments, "--address", address, "--out", str(out), verb="tune") as search:
        assert until(lambda: search.poll() is not None or len(list(out.glob("trials/*/log.jsonl"))) == 2)
        command = ("status", "--address", address)
        row = until(
            lambda: re.search(
                r"(wide-\w+) +search over 1 key on.* 2 running, 3 wait", execute(*command, cwd=tmp_path).stdout
            )
        )
        assert row
        assert {"search", "status"} <= until(lambda: exported(address).get("ray_raysim_trials")).keys()
        assert re.search(r"wide +search +0/", execute("status", str(out), cwd=tmp_path).stdout)
        ended = execute("stop", row[1], "--address", address, cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        output, _ = search.communicate(timeout=60)
        assert search.returncode == 130
        assert f"to continue: raysim tune --resume {out}" in output
    assert len(pd.read_parquet(out / "trials.parquet")) == 2


@pytest.mark.slow
def test_a_run_starts_on_present_nodes_and_uses_nodes_that_join(
    address: str, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 2, resources: {CPU: 2}}")
    out = tmp_path / "grows"

    def used() -> set[str]:
        return {place["node"] for place in json.loads((out / "placement.json").read_text()) if "node" in place}

    with running(*LONG, f"ray_address={address}", "resources.cpus_per_client=2", "--out", str(out)) as run:
        assert until(lambda: run.poll() is not None or lines_of(out / "log.jsonl") > 2, 200)
        assert len(used()) == 1
        nodes(num_cpus=2)
        assert until(lambda: run.poll() is not None or len(used()) == 2), used()
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        output = "".join(run.communicate(timeout=60))
    assert "1 of 2 client actors can start" in output
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_that_waits_for_a_node_is_listed_and_stopped(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 2, resources: {CPU: 64}}")
    monkeypatch.setenv("RAYSIM_RUNS", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    arguments = (*LONG, "resources.cpus_per_client=64", "resources.client_actors=1", "--out", str(tmp_path / "patient"))
    with running(*arguments) as run:
        assert run.stdout
        assert any("requested 1 x 64 CPU: 2 nodes of at most 3" in line for line in run.stdout)
        pattern = r"(patient-\w+) +fedavg on synthetic .* requested 1 x 64 CPU"
        row = until(lambda: re.search(pattern, execute("status", cwd=tmp_path).stdout))
        assert row
        ended = execute("stop", "--all", cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        assert run.wait(timeout=60) == 130
    assert not (tmp_path / "patient").exists()
