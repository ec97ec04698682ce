"""Killed commands, full disks and full memory: no process is left, and runs can be resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from raysim import resume, run
from raysim.cli.main import main
from raysim.core.events import Event, RoundEvent
from raysim.core.results import FailureAction
from raysim.storage import checkpoint
from tests.support.toy_runs import failures

MEMINFO = Path("/proc/meminfo")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_the_cure(small_disk: Path) -> None:
    arguments = ["rounds=300", "backend=local", "task.data.sites=2", "task.data.outside=[]", "task.data.size=[16, 16]"]
    arguments += ["network={name: unet, channels: [2, 4], strides: [2]}", "task.data.cases=2", "task.data.test=1"]
    out = small_disk / "run"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_500_000))
    command = [sys.executable, "-m", "raysim", "run", *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(f"raysim: cannot write to {out}: .*No space left on device", done.stderr)
    assert f"Free some space there, then run: raysim resume {out}" in done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    start = checkpoint.read(next(checkpoint.newest_first(out / "checkpoints")))
    assert 1 <= start.number < 300


def test_a_disk_without_space_for_a_checkpoint_is_refused(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["backend=local", "network={name: unet, channels: [32, 64, 128], strides: [2, 2]}", "task.data.cases=2"]
    assert main(["run", *arguments, "--out", str(small_disk / "run")]) == 3
    message = r"has 2\.1 MB free, but checkpoints of this network need at least \S+ MB\. .* or choose another --out"
    assert re.search(message, capsys.readouterr().err)
    assert not (small_disk / "run").exists()


@pytest.mark.slow
def test_an_actor_that_runs_out_of_memory_is_replaced_and_results_are_equal(tmp_path: Path) -> None:
    size = {n: 1024 * int(v.split()[0]) for n, _, v in (s.partition(":") for s in MEMINFO.read_text().splitlines())}
    if size["MemAvailable"] < 12e9:
        pytest.skip("needs 12 GB of free memory, of which a site takes some before Ray kills it")
    limit = 1 - (size["MemAvailable"] - 5e9) / size["MemTotal"]
    memory_limits = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "50"}
    arguments = ["task.data.sites=3", "task.data.outside=[]", "task.data.size=[16, 16]", "rounds=3"]
    arguments += [
        "algorithm=tests.support.remote:Greedy",
        f"algorithm.once={tmp_path / 'once'}",
        "resources.cpus_per_client=0.5",
    ]
    command = [sys.executable, "-m", "raysim", "run", *arguments, "--out"]
    subprocess.run([*command, str(tmp_path / "run")], check=True, env={**os.environ, **memory_limits})
    subprocess.run([*command, str(tmp_path / "calm"), "backend=local"], check=True)  # the file exists by now
    lost = failures(tmp_path / "run")[0]
    assert lost["cause"].startswith("OutOfMemoryError: ")
    assert (lost["round"], lost["sites"], lost["action"]) == (2, ["site-02"], FailureAction.RETRIED)
    found = [json.loads((tmp_path / name / "summary.json").read_text())["digest"] for name in ("run", "calm")]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["done", "interrupted", "killed"])
def test_no_process_is_left_behind(end: str, tmp_path: Path) -> None:
    arguments = [
        "task.data.sites=2",
        "task.data.outside=[]",
        "task.data.size=[16, 16]",
        "resources.cpus_per_client=0.5",
    ]
    rounds = 2 if end == "done" else 100_000
    command = [sys.executable, "-m", "raysim", "run", *arguments, f"rounds={rounds}", "--out", str(tmp_path / "run")]
    mark = {"RAYSIM_TEST_MARK": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **mark}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round ") and end != "done":
                assert len(marked(str(tmp_path))) > 3
                process.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode == {"done": 0, "interrupted": 130, "killed": -signal.SIGKILL}[end]
    wait = time.monotonic() + 30
    while (left := marked(str(tmp_path))) and time.monotonic() < wait:
        time.sleep(0.2)
    assert left == {}


def marked(mark: str) -> dict[str, str]:
    """The processes that have the mark in their environment, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            what = (folder / "cmdline").read_text().replace("\0", " ")[:200]
            if what.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent")):
                continue  # after a kill, Ray gives these a minute to reach its head, which is lost
            if f"RAYSIM_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found[folder.name] = what
    return found


def test_a_run_that_is_killed_is_resumed_to_the_same_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rounds=4", "backend=local", "task.data.sites=2", "task.data.outside=[]", "task.data.size=[16, 16]"]
    command = [sys.executable, "-m", "raysim", "run", *arguments]
    calm = subprocess.run([*command, "--out", str(tmp_path / "calm")], capture_output=True, text=True, check=True)
    out = tmp_path / "run"
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if line.startswith("round 2"))
        os.kill(process.pid, signal.SIGKILL)
    assert main(["resume", str(out)]) == 0
    wanted = next(line for line in calm.stdout.splitlines() if line.startswith("digest"))
    assert wanted in capsys.readouterr().out
    assert main(["resume", str(out)]) == 2
    assert "is done, all 4 rounds" in capsys.readouterr().err


def test_a_run_that_a_callback_stops_is_resumed_to_the_same_digest(tmp_path: Path) -> None:
    data = {"sites": 2, "outside": [], "cases": 2, "val": 1, "test": 1, "size": [8, 8]}
    keys = {"rounds": 3, "backend": "local", "task.data": data}
    calm = run(keys, out=tmp_path / "calm")

    def stop(event: Event) -> None:
        if isinstance(event, RoundEvent) and event.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(keys, out=tmp_path / "stopped", on_event=stop)
    assert resume(tmp_path / "stopped").digest == calm.digest
