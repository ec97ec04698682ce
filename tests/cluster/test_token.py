"""Clusters that require a token: only the right token joins, and no token is written anywhere."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
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


FIRST_RUN = """
import os, stat
from pathlib import Path
from tempfile import TemporaryDirectory
import ray
from raysim.distributed.connection import connect
with connect(None):
    session = Path(ray.init(ignore_reinit_error=True).address_info["session_dir"])
    for path in (Path.home() / ".ray", Path.home() / ".ray" / "auth_token", session.parent.parent):
        print(oct(stat.S_IMODE(path.stat().st_mode)), path)
print("mode", os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.mark.slow
def test_the_token_and_the_session_of_a_local_ray_are_private() -> None:
    with TemporaryDirectory(dir="/tmp", prefix="home-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "r").mkdir(0o1777)
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"HOME": str(home), "RAY_TMPDIR": str(home / "r")}
        line = ["sh", "-c", 'umask 022; exec "$0" -c "$1"', sys.executable, FIRST_RUN]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=150, check=False)
        *lines, mode = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["0o700", "0o600", "0o700"], done.stdout + done.stderr
        assert mode == "mode None"  # as before
        if os.getuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("reading as a second user needs root and setpriv")
        other = ["setpriv", "--reuid", "65534", "--clear-groups"]
        for path in (home / ".ray" / "auth_token", home / "r" / f"raysim-{os.getuid()}"):
            read = subprocess.run(
                [*other, "ls", f"{path}/" if path.is_dir() else str(path)], capture_output=True, check=False
            )
            assert read.returncode != 0
            assert b"Permission denied" in read.stderr


AUTO = """
from pathlib import Path
from tempfile import TemporaryDirectory
import os, sys
from raysim.distributed.connection import connect
from tests.support.fake_head import fake_head
with fake_head(required=True) as head:
    file = Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(head.address)
    os.chown(file, 65534, 65534)
    try:
        with connect("auto"):
            pass
    except Exception as error:
        print(error)
    print("tokens", head.tokens)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a file of another user")
def test_auto_joins_no_ray_that_another_user_has_named(tmp_path: Path) -> None:
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]  # without the Rays of this machine
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no new PID namespace")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_TMPDIR": str(tmp_path), "RAY_AUTH_TOKEN": "secret"}
    line = [*alone, sys.executable, "-c", AUTO]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "another user of this machine has started the Ray" in done.stdout, done.stderr
    assert "tokens []" in done.stdout
