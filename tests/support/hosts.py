"""Simulated hosts on one machine, each with separate processes, /tmp/ray, home and network, connected by a bridge.

Needs root on Linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

# `ray stop` must not see processes of other hosts. All namespaces of a host end with its first process.
BEGIN = """
set -e
mount --bind {ray} /tmp/ray
{keep}
mount --rbind {home} {own}
ip link set lo up
echo up
exec sleep 100000
"""


def why_not() -> str:
    """The reason why this machine cannot simulate hosts; empty if it can."""
    if os.geteuid():
        return "needs root"
    if missing := [tool for tool in ("unshare", "nsenter", "ip") if not shutil.which(tool)]:
        return f"needs {', '.join(missing)} (util-linux, iproute2)"
    made = subprocess.run(["unshare", "-npmf", "--mount-proc", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "namespaces are not permitted here"


class Host:
    """One simulated host; `run` runs a command there."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.home = name, folder / name
        ray, own, base = folder / f"{name}-ray", Path.home(), Path(sys.base_prefix)
        for made in (self.home, ray, Path("/tmp/ray")):
            made.mkdir(exist_ok=True)
        keep = ""
        if base.is_relative_to(own):  # the Python installation that all hosts share
            top = base.relative_to(own).parts[0]
            (self.home / top).mkdir()
            keep = f"mount --bind {own / top} {self.home / top}"
        script = BEGIN.format(ray=ray, keep=keep, home=self.home, own=own)
        command = ["unshare", "-npmf", "--mount-proc", "--kill-child", "sh", "-c", script]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "up\n"
        self.pid = int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def start(
        self, arguments: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = ROOT, **kwargs: Any
    ) -> subprocess.Popen[str]:
        """A running command on this host. It does not get the RAY variables of this process."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY")}
        given = {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
        enter = ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "sh", "-c", 'cd "$0" && exec "$@"', str(cwd)]
        return subprocess.Popen([*enter, *arguments], env=given, text=True, **kwargs)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120, **kwargs: Any) -> Any:
        """A finished command on this host, with its output."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = self.start(arguments, env, **pipes, **kwargs)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, output)

    def off(self) -> None:
        """Kill the host, as in a power failure."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[tuple[Host, list[Host]]]:
    """A laptop (10.77.0.254) and hosts (10.77.0.1, 10.77.0.2, ...) in one network."""
    made = [Host(folder, name) for name in ("laptop", *(f"host-{n}" for n in range(1, count + 1)))]
    try:
        laptop = made[0]
        for arguments in ("link add br0 type bridge", "addr add 10.77.0.254/24 dev br0", "link set br0 up"):
            _ip(laptop, arguments)
        for n, host in enumerate(made[1:], start=1):
            _ip(laptop, f"link add v{n} type veth peer name eth0 netns {host.pid}")
            _ip(laptop, f"link set v{n} master br0 up")
            address, route = f"addr add 10.77.0.{n}/24 dev eth0", "route add default via 10.77.0.254"
            for arguments in (address, "link set eth0 up", route):
                _ip(host, arguments)
        yield laptop, made[1:]
    finally:
        for host in made:
            host.off()


def cut(laptop: Host, number: int) -> None:
    """Disconnect host `number` from the network."""
    _ip(laptop, f"link set v{number} down")


def _ip(host: Host, arguments: str) -> None:
    # Enters only the network namespace, because the process ids in the commands are those of this machine.
    subprocess.run(["nsenter", "-t", str(host.pid), "-n", "ip", *arguments.split()], check=True)
