"""Watching runs from outside: status, stop, metrics at the port of a node. Real commands, real Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.job_submission import JobStatus

from raysim.cli.main import main
from raysim.core.errors import ConfigError
from raysim.distributed.prometheus import COUNTERS, GAUGES
from raysim.storage.run_directory import exclusive_lock, lock_owner

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
CLUSTER: list[Any] = []  # this file's Ray
LONG = (
    *("rounds=100000", "task.data.sites=3", "task.data.outside=[]", "task.data.size=[16,16]", "task.data.cases=4"),
    *("task.data.val=0", "task.data.test=2", "task.batch_size=2", "resources.client_actors=2"),
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of one node that others may join."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # jobs find this Python
        # The usual ports may be those of a Ray that other tests start; 0 is any free one, but for the dashboard's.
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports = {"dashboard_port": free.getsockname()[1], "dashboard_agent_listen_port": 0}
        head = {"num_cpus": 3, "num_gpus": 0, "include_dashboard": True, **ports}
        made = Cluster(initialize_head=True, head_node_args=head)
    CLUSTER.append(made)
    yield made.address
    made.shutdown()


def until(found: Callable[[], Any], seconds: float = 90) -> Any:
    """What `found` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.5)
    return value


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "raysim", *words]


@contextmanager
def playing(*words: str, verb: str = "run") -> Iterator[subprocess.Popen[str]]:
    """A run that does not outlive the test, however that ends."""
    with subprocess.Popen(command(verb, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            if run.poll() is None:
                run.terminate()
                run.communicate(timeout=60)


def done(*words: str, cwd: Path) -> Any:
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=100, check=False, cwd=cwd, env=wide)


def exported(address: str) -> dict[str, dict[str, set[str]]]:
    """The metrics of raysim at the ports that Ray tells Prometheus of, each with its labels and their values."""
    code = (
        "import ray, sys; ray.init(sys.argv[1], logging_level=40)\n"
        "print(*[n['MetricsExportPort'] for n in ray.nodes()])"
    )
    ports = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, set[str]]] = {}
    for port in ports.stdout.splitlines()[-1].split():
        with urllib.request.urlopen(f"http://{address.partition(':')[0]}:{port}/metrics", timeout=10) as page:
            for name, labels in re.findall(r"^(ray_raysim_\w+){(.*)}", page.read().decode(), re.M):
                for label, value in re.findall(r'(\w+)="(.*?)"', labels):
                    found.setdefault(name, {}).setdefault(label, set()).add(value)
    return found


def test_a_run_on_a_cluster_is_watched_and_ended(address: str, tmp_path: Path) -> None:
    out = tmp_path / "eyes"
    words = (*LONG, f"ray_address={address}", 'chaos="kill client@2"', "--out", str(out))
    with playing(*words) as run:
        log = out / "log.jsonl"
        assert until(lambda: run.poll() is not None or (log.exists() and log.read_text().count("\n") > 4))
        shown = done("status", "--address", address, cwd=tmp_path).stdout
        row = re.search(rf"(eyes-\w+) +fedavg on synthetic +\d+/100000 +.*{out}", shown)
        assert row, shown
        assert done("status", "nobody", "--address", address, cwd=tmp_path).returncode == 2

        names = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
        seen = until(lambda: found if names <= set(found := exported(address)) else None)
        assert seen, names - set(exported(address))
        for name, (_, labels) in {**GAUGES, **COUNTERS}.items():
            both = seen.get(f"ray_{name}") or seen[f"ray_{name}_total"]
            assert {"run", *labels} <= both.keys()
            assert row[1] in both["run"], name

        ended = done("stop", row[1], "--address", address, cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        _, said = run.communicate(timeout=60)
        assert run.returncode == 130
        assert re.search(r"raysim: stopped in round \d+$", said.strip())
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert "no run is alive" in done("status", "--address", address, cwd=tmp_path).stdout
    assert re.search(r"eyes .* interrupted ", done("status", str(out), cwd=tmp_path).stdout)


def test_a_search_on_a_cluster_is_watched_and_ended(address: str, tmp_path: Path) -> None:
    out = tmp_path / "wide"
    words = (*LONG[:-1], "--space", "algorithm.lr=loguniform(1e-4, 1e-1)", "--trials", "5", "--max-concurrent", "2")
    with playing(*words, "--address", address, "--out", str(out), verb="tune") as search:
        assert until(lambda: search.poll() is not None or list(out.glob("trials/*/log.jsonl")))
        asked = ("status", "--address", address)
        row = until(
            lambda: re.search(
                r"(wide-\w+) +search over 1 key on.* 2 running, 3 wait", done(*asked, cwd=tmp_path).stdout
            )
        )
        assert row
        assert {"search", "status"} <= until(lambda: exported(address).get("ray_raysim_trials")).keys()
        assert re.search(r"wide +search +0/", done("status", str(out), cwd=tmp_path).stdout)
        ended = done("stop", row[1], "--address", address, cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        said, _ = search.communicate(timeout=60)
        assert search.returncode == 130
        assert f"raysim tune --resume {out} goes on with it" in said
    assert len(pd.read_parquet(out / "trials.parquet")) == 2


def test_a_run_of_this_machine_is_found_by_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    words = (*LONG[:-1], "backend=local", "--out", str(out))
    with playing(*words) as run:
        assert until(lambda: run.poll() is not None or (out / "log.jsonl").exists())
        assert re.search(r"first +fedavg on synthetic", done("status", cwd=tmp_path).stdout)
        ended = done("stop", "runs/first", cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, "runs/first has ended"), ended.stderr
        run.communicate(timeout=60)
        assert run.returncode == 130
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert done("stop", "runs/first", cwd=tmp_path).returncode == 2
    assert not (out / ".process").exists()


def test_a_run_begins_with_what_is_there_and_uses_nodes_as_they_come(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 1, resources: {CPU: 2}}")
    out = tmp_path / "grows"

    def nodes() -> set[str]:
        return {place["node"] for place in json.loads((out / "placement.json").read_text()) if "node" in place}

    with playing(*LONG, f"ray_address={address}", "resources.cpus_per_client=2", "--out", str(out)) as run:
        log = out / "log.jsonl"
        assert until(lambda: run.poll() is not None or (log.exists() and log.read_text().count("\n") > 2), 200)
        assert len(nodes()) == 1
        joined = CLUSTER[0].add_node(num_cpus=2, num_gpus=0)
        try:
            assert until(lambda: run.poll() is not None or len(nodes()) == 2), nodes()
            assert run.poll() is None
        finally:
            run.send_signal(signal.SIGINT)
            said = "".join(run.communicate(timeout=60))
            CLUSTER[0].remove_node(joined)
    assert "1 of 2 client actors have room" in said
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"


def test_a_run_that_waits_for_a_node_is_seen_and_ended(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 1, resources: {CPU: 64}}")
    monkeypatch.setenv("RAYSIM_RUNS", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    words = (*LONG, "resources.cpus_per_client=64", "resources.client_actors=1", "--out", str(tmp_path / "patient"))
    with playing(*words) as run:
        assert run.stdout
        assert any("asked for 1 x 64 CPU: 1 nodes of at most 2" in line for line in run.stdout)
        asked = r"(patient-\w+) +fedavg on synthetic .* asked for 1 x 64 CPU"
        row = until(lambda: re.search(asked, done("status", cwd=tmp_path).stdout))
        assert row
        ended = done("stop", "--all", cwd=tmp_path)
        assert (ended.returncode, ended.stdout.strip()) == (0, f"{row[1]} has ended"), ended.stderr
        assert run.wait(timeout=60) == 130
    assert not (tmp_path / "patient").exists()


class Jobs:
    """A client of a cluster whose connection is lost twice in the middle of what a job says."""

    def __init__(self) -> None:
        self.tails = 0

    async def tail_job_logs(self, job: str) -> Any:
        self.tails += 1
        for number, line in enumerate(["one\n", "two\n", "three\n"]):
            if number == self.tails:
                raise RuntimeError("connection lost")
            yield line

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.SUCCEEDED

    def get_job_logs(self, job: str) -> str:
        return "one\ntwo\nthree\nfour\n"


def test_a_lost_connection_to_a_job_is_taken_up_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    from raysim.cli.submit import _followed

    jobs = Jobs()
    assert _followed(jobs, "job") == JobStatus.SUCCEEDED
    assert jobs.tails == 3
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_who_is_at_work_in_a_folder(tmp_path: Path) -> None:
    assert lock_owner(tmp_path) is None
    with exclusive_lock(tmp_path):
        assert lock_owner(tmp_path) == json.loads((tmp_path / ".process").read_text())
    assert lock_owner(tmp_path) is None


@pytest.mark.parametrize("words", [["stop"], ["stop", "x", "--all"], ["stop", "x"], ["submit"], ["submit", "fly"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # which submit would set for what comes after
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("raysim: ")


MINE = """
from dataclasses import dataclass

from algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    'FedAvg by another name.'
"""


@pytest.fixture
def submit(address: str, tmp_path: Path) -> Callable[..., Any]:
    """`raysim submit` in a folder of its own, where results come back to `here`."""
    line = command("submit", "--address", f"http://{CLUSTER[0].head_node.webui_url}")
    env = {**os.environ, "RAYSIM_RUNS": str(tmp_path / "here"), "COLUMNS": "300"}
    how: dict[str, Any] = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": False}
    return lambda *words: subprocess.run([*line, *words], **how, timeout=200)


def test_a_submitted_run_is_followed_and_its_results_come_back(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    short = [*LONG[1:], "rounds=2", "algorithm=mine:Mine", f"ray_address={address}"]
    out = tmp_path / "there" / "first"
    done = submit("run", *short, f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2/2" in done.stdout.replace("  ", " ")
    (job,) = re.findall(r"^job (\S+):", done.stdout, re.M)
    mine = tmp_path / "here" / job
    assert json.loads((mine / "summary.json").read_text())["status"] == "done"
    assert (out / "checkpoints").is_dir()
    assert not (mine / "checkpoints").exists()

    again = submit("--attach", job)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "here" / f"{job}-2" / "summary.json").exists()
    wrong = submit("run", *short, "algorithm.lr=-1")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr
    nobody = submit("--attach", "raysim-nobody")
    assert nobody.returncode == 2
    assert "no job raysim-nobody" in nobody.stderr


def test_a_submitted_run_is_watched_and_ended_from_where_it_was_sent(
    address: str, submit: Callable[..., Any], tmp_path: Path
) -> None:
    begun = submit("--detach", "run", *LONG, f"ray_address={address}", "--out", str(tmp_path / "there"))
    (job,) = re.findall(r"^job (\S+):", begun.stdout, re.M)
    assert until(lambda: re.search(r"there-\w+ .* [1-9]\d*/100000", submit("status", "there").stdout), 150)
    ended = submit("stop", "there")
    assert re.search(r"there-\w+ has ended", ended.stdout), ended.stdout + ended.stderr
    cut = submit("--attach", job)
    assert cut.returncode == 130, cut.stdout + cut.stderr
    assert json.loads((tmp_path / "here" / job / "summary.json").read_text())["status"] == "interrupted"


def test_what_is_asked_of_a_cluster_by_submit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from raysim.cli.submit import THERE, JobCommand, _packed, job_command

    monkeypatch.chdir(tmp_path)

    assert job_command(["run", "rounds=2"], "job").folder == f"{THERE}/job"
    assert job_command(["run", "--out=a b"], "job").command == f"python -m raysim run --out {THERE}/'a b'"
    assert job_command(["tune", "fedsm", "--out", "/shared/x"], "job").folder == "/shared/x"
    resumed = job_command(["tune", "--resume", "/shared/x"], "job")
    assert (resumed.folder, resumed.command) == ("/shared/x", "python -m raysim tune --resume /shared/x")
    assert job_command(["doctor"], "job").folder == ""
    long = JobCommand(["run", "-c", f"{'x' * 300}.yaml"])
    _packed(long, tmp_path)  # no file has such a name, and that is not the cluster's silence
    assert long.words[2].startswith("xxx")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").touch()
    (tmp_path / "held").mkdir()
    _packed(JobCommand(["run", "algorithm=methods.mine:Mine"]), tmp_path / "held")
    assert (tmp_path / "held" / "methods" / "mine.py").exists()  # a folder that is no package travels by its name
    for words in (["resume", "runs/x"], ["tune", "--resume=x"]):
        with pytest.raises(ConfigError, match="full path"):
            job_command(words, "job")
    for secret in ("run", "tune"):
        assert main(["submit", secret, "task.data.table=https://me:word@host/t.csv"]) == 2


def test_a_search_comes_back_without_the_checkpoints_of_its_trials(tmp_path: Path) -> None:
    from raysim.cli.artifact_bundle import pack, unpack

    held = tmp_path / "search" / "trials" / "0001"
    (held / "checkpoints" / "round_0001").mkdir(parents=True)
    (held / "checkpoints" / "round_0001" / "model.safetensors").write_bytes(b"0" * 100)
    (held / "trial.json").write_text("{}")
    unpack(pack(tmp_path / "search"), tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["0001", "trial.json", "trials"]
