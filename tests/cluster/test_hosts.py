"""cluster/onprem.yaml on hosts with SSH servers: a link is cut, a host is switched off, a node joins late."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import ROOT, Host, cut, hosts

TOOLS = bool(shutil.which("sshd") and shutil.which("rsync"))
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not TOOLS, reason="needs sshd and rsync"),
    pytest.mark.usefixtures("namespaces"),
]
CORES = os.cpu_count()  # every host declares all cores, so that one client actor uses all of them
ARGUMENTS = (
    *("algorithm=tests.support.pacing:Pacing", "rounds=60", "evaluate_every=60", "checkpoint_every=20"),
    *("task.data.sites=6", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2"),
    *(f"resources.cpus_per_client={CORES}", "resources.client_actors=3"),
)
SSHD = """
Port 22
HostKey {key}
AuthorizedKeysFile {key}.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""


def filled(folder: Path, key: Path) -> Path:
    """cluster/onprem.yaml with its marked lines filled in for the test."""
    text = (ROOT / "cluster" / "onprem.yaml").read_text()
    settings = f"RAYSIM_ENV={sys.prefix} RAYSIM_RUNS={folder}/runs PYTHONPATH={ROOT} OMP_NUM_THREADS=1"
    # A lost host is detected within seconds, not after the half minute that Ray waits by default.
    settings += " RAY_health_check_period_ms=500 RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=5"
    for old, new in (
        ("head_ip: 10.0.0.1 ", "head_ip: 10.77.0.1 "),
        ("worker_ips: [10.0.0.2, 10.0.0.3]", "worker_ips: [10.77.0.2, 10.77.0.3]"),
        ("ssh_user: ubuntu", "ssh_user: root"),
        ("ssh_private_key: ~/.ssh/id_ed25519", f"ssh_private_key: {key}"),
        ("RAYSIM_ENV=$HOME/raysim-env RAYSIM_RUNS=/shared/runs", settings),
    ):
        assert old in text
        text = text.replace(old, new)
    text += "min_workers: 0\n"  # they start when a run requests them
    path = folder / "onprem.yaml"
    path.write_text(text)
    return path


def until(true: Callable[[], bool], event: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {event}"
        time.sleep(0.5)


def served(folder: Path, among: Sequence[Host]) -> Path:
    """Start an SSH server on each of these hosts; returns the key that they accept."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(key)], check=True)
    (folder / "sshd").write_text(SSHD.format(key=key))
    Path("/run/sshd").mkdir(exist_ok=True)
    for host in among:
        done = host.run(shutil.which("sshd") or "", "-f", str(folder / "sshd"))
        assert done.returncode == 0, done.stdout
    return key


def join(late: Host, like: Host) -> None:
    """Join the cluster with another host, with the token and the settings of a worker."""
    shutil.copytree(like.home / ".ray", late.home / ".ray", dirs_exist_ok=True)
    shutil.copy(like.home / ".raysim", late.home)
    joined = late.run("bash", "-c", ". ~/.raysim; ray start --address=10.77.0.1:6379")
    assert joined.returncode == 0, joined.stdout


def nodes(out: Path) -> set[str]:
    """The nodes of a run's placed actors."""
    return {place["node"] for place in json.loads((out / "placement.json").read_text()) if "node" in place}


def under_way(head: Host, out: Path) -> Any:
    """Start `raysim run` on the head and wait for its third round. Its output is in a file beside `out`."""
    # A round takes 3 s with one host and 1 s with three, so that hosts leave and join during the run.
    command = f". ~/.raysim; exec python -m raysim run {' '.join(ARGUMENTS)} algorithm.pause=0.5 --out {out}"
    with out.with_name("output").open("w") as output:
        run = head.start(["bash", "-c", command], stdout=output, stderr=subprocess.STDOUT)
    until(lambda: "round  3/60" in out.with_name("output").read_text() or run.poll() is not None, "the third round")
    assert run.poll() is None, out.with_name("output").read_text()
    return run


@pytest.mark.slow
def test_a_run_survives_hosts_that_leave_and_join(tmp_path: Path) -> None:
    out, calm = tmp_path / "run", tmp_path / "calm"
    with hosts(tmp_path, 4) as (laptop, (head, first, second, late)):
        key = served(tmp_path, (head, first, second))
        assert laptop.run("ray", "get-auth-token", "--generate").returncode == 0
        older = {"RAY_UP_enable_autoscaler_v2": "0"}
        up = laptop.run("ray", "up", "-y", str(filled(tmp_path, key)), env=older, timeout=240)
        assert up.returncode == 0, up.stdout
        run = under_way(head, out)
        assert f"requested 3 x {CORES} CPU: 1 of 3 client actors can start" in out.with_name("output").read_text()
        until(lambda: len(nodes(out)) == 3 or run.poll() is not None, "an actor on each host")
        before = nodes(out)
        assert run.poll() is None, out.with_name("output").read_text()
        cut(laptop, 3)
        until(lambda: (out / "failures.jsonl").exists() or run.poll() is not None, "the cut is detected")
        second.off()
        join(late, first)
        assert run.wait(420) == 0, out.with_name("output").read_text()
        assert nodes(out) - before, "the host that joined late was not used"

        down = laptop.run("ray", "down", "-y", str(tmp_path / "onprem.yaml"), timeout=120)
        assert down.returncode == 0, down.stdout
        # Ended processes stay in the list of this host as zombies.
        until(lambda: not re.search("^[^Z]", head.run("ps", "-C", "raylet", "-o", "stat=").stdout, re.M), "no Ray")

    local = [sys.executable, "-m", "raysim", "run", "backend=local", *ARGUMENTS, "--out", str(calm)]
    done = subprocess.run(local, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    digests = {json.loads((folder / "summary.json").read_text())["digest"] for folder in (out, calm)}
    assert len(digests) == 1
