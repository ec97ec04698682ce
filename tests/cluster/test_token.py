"""Clusters that require a token: only the right token joins, and no token is written anywhere."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from raysim.distributed.connection import accepts_token

HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_wrong_token_is_reported_in_one_line_and_no_token_is_shown(tmp_path: Path) -> None:
    right, wrong = secrets.token_hex(32), secrets.token_hex(32)
    seen = list[str]()  # lists of processes, while the commands run
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right}

    def run(address: str, token: str) -> Any:
        arguments = [
            "run",
            "rounds=1",
            "task.data.sites=2",
            f"ray_address={address}",
            "--out",
            str(tmp_path / token[:8]),
        ]
        line = [sys.executable, "-m", "raysim", *arguments]
        # The command detects that a token is required.
        given = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        given["RAY_AUTH_TOKEN"] = token
        process = subprocess.Popen(line, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            time.sleep(0.5)
            seen.append(subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout)
        return subprocess.CompletedProcess(line, process.returncode, *process.communicate())

    with subprocess.Popen([sys.executable, "-c", HEAD], env=env, **pipes) as head:
        assert head.stdout
        assert head.stdin
        address = next(line.split()[1] for line in head.stdout if line.startswith("address "))
        assert (accepts_token(address), accepts_token(address, wrong), accepts_token(address, right)) == (
            False,
            False,
            True,
        )
        refused, accepted = run(address, wrong), run(address, right)
        head.stdin.close()
    assert (refused.returncode, accepted.returncode) == (3, 0), refused.stderr + accepted.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("raysim: ")]
    assert f"cannot join Ray at {address}: it rejects the token in RAY_AUTH_TOKEN" in line
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / wrong[:8]).exists()
    assert "ray::" in "".join(seen)
    files = [path for path in (tmp_path / right[:8]).rglob("*") if path.is_file()]
    written = "".join(path.read_bytes().decode(errors="replace") for path in files)
    for text in (refused.stdout + refused.stderr, accepted.stdout + accepted.stderr, "".join(seen), written):
        assert right not in text
        assert wrong not in text


JOIN = """
import sys
import ray
from raysim.distributed.connection import connect
for address in sys.argv[1:]:
    with connect(address):
        print(ray.get(ray.remote(lambda: "answered").options(num_cpus=0).remote()))
"""


@pytest.mark.slow
def test_a_process_joins_rays_with_a_token_and_without_one_after_the_other() -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    arguments, addresses = [sys.executable, "-c", HEAD], []
    with ExitStack() as held:
        for mode in ("disabled", "token"):
            head = held.enter_context(subprocess.Popen(arguments, env={**env, "RAY_AUTH_MODE": mode}, **pipes))
            held.callback(head.stdin.close)
            addresses.append(next(line.split()[1] for line in head.stdout if line.startswith("address ")))
        line = [sys.executable, "-c", JOIN, addresses[0], addresses[1], addresses[0]]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.split() == ["answered"] * 3, done.stdout + done.stderr
