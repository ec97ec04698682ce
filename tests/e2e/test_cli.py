"""The command line: exit codes, messages, and the files of a run; a refused run writes none."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raysim._version import __version__
from raysim.cli.main import main
from tests.support.slow import slow_except

SMALL = (
    *("rounds=2", "task.data.sites=3", "task.data.size=[16,16]", "task.data.cases=4", "task.data.test=2"),
    *("task.data.val=0", "network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)


LOCAL = (*SMALL, "backend=local")


MINE = '''
"""An algorithm of a user: FedAvg that fails in the third round if `trouble` is set."""

from dataclasses import dataclass
from typing import Annotated

from raysim import LocalTraining, Model, Reply, mean, weights


@dataclass(frozen=True)
class Known:
    model: Model
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Mine(LocalTraining):
    trouble: Annotated[str, "what happens in the third round"] = "none"

    def init(self, task):
        return Known(weights(task.network()))

    def client(self, site, model):
        net = site.load(model)
        if self.trouble == "nan" and site.round == 2 and site.name == "site-02":
            next(net.parameters()).data.fill_(float("nan"))
        if self.trouble == "bug" and site.round == 2 and site.name == "site-02":
            raise LookupError("no such organ")
        return Reply(weights(net), metrics={"loss": self.fit(net, site)})

    def round(self, fleet, state):
        return Known(mean(fleet.map(self.client, state.model)), state.rounds + 1), {}

    def predictor(self, site, state):
        return site.predict_module(state.model)
'''


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithm.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user types it."""
    return subprocess.run([raysim(), *arguments], capture_output=True, text=True, timeout=120, check=False)


def raysim() -> str:
    found = shutil.which("raysim", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "raysim is not installed: pip install -e ."
    return found


def summary(folder: str) -> Any:
    return json.loads((Path(folder) / "summary.json").read_text())


def test_the_version() -> None:
    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, f"raysim {__version__}\n")


@pytest.mark.parametrize("arguments", [["rounds=0"], ["rounds=1", "algorithm=nope"]])
def test_a_refusal_from_the_shell(arguments: list[str]) -> None:
    done = shell("run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("raysim: ")


def test_a_run_leaves_its_files_and_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *LOCAL, "seed=3", "algorithm=fedprox", "algorithm.mu=1e-1", "cohort=2", "--out", "one"]) == 0
    shown = capsys.readouterr().out
    assert {path.name for path in Path("one").iterdir()} == {
        *(
            "config.yaml",
            "env.json",
            "placement.json",
            "rounds.parquet",
            "sites.parquet",
            "cases.parquet",
            "summary.json",
        ),
        *(
            "checkpoints",
            "models",
            "pictures",
            "tensorboard",
            "log.jsonl",
            "report.html",
        ),
    }
    first = summary("one")
    assert (first["status"], first["algorithm"], first["task"], first["seed"]) == ("done", "fedprox", "synthetic", 3)
    assert first["digest"] in shown
    assert len(re.findall(r"^round \d/2 ", shown, re.MULTILINE)) == 2
    assert "site-03" in shown
    assert yaml.safe_load(Path("one/config.yaml").read_text())["algorithm"]["mu"] == 0.1
    assert json.loads(Path("one/env.json").read_text())["raysim"] == __version__
    assert [place["site"] for place in json.loads(Path("one/placement.json").read_text())] == [
        *("outside-1", "site-01", "site-02", "site-03")
    ]

    assert main(["run", "-c", "one/config.yaml", "--out", "two"]) == 0
    assert summary("two")["digest"] == first["digest"]
    assert main(["run", "-c", "one/config.yaml", "seed=4", "--out", "three"]) == 0
    assert summary("three")["digest"] != first["digest"]


def test_default_run_directories_are_numbered() -> None:
    for _ in range(2):
        assert main(["run", *LOCAL, "rounds=1", "task.data.sites=1"]) == 0
    names = ["fedavg-synthetic-001", "fedavg-synthetic-002", "index.html"]
    assert sorted(path.name for path in Path("runs").iterdir()) == names


def test_a_user_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *LOCAL, "algorithm=my_algorithm:Mine", "--out", "own"]) == 0
    assert summary("own")["algorithm"] == "my_algorithm:Mine"
    assert main(["run", "-c", "own/config.yaml", "--out", "again"]) == 0
    assert summary("again")["digest"] == summary("own")["digest"]
    assert main(["list", "algorithms", "my_algorithm:Mine"]) == 0
    assert "trouble" in capsys.readouterr().out


@pytest.mark.slow
def test_a_user_network_in_the_working_directory() -> None:
    lines = (
        "from torch import nn",
        "def net(in_channels, out_channels):",
        " return nn.Conv2d(in_channels, out_channels, 1)",
    )
    Path("my_network.py").write_text("\n".join(lines))
    arguments = ("rounds=1", "task.data.sites=1", "backend=local", "network=my_network:net", "--out", "own")
    done = shell("run", *arguments)
    assert done.returncode == 0, done.stderr
    assert summary("own")["bytes"]["up"] == 2 * 2 * 4  # two weights and two biases


def test_a_loss_that_is_not_finite_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("algorithm=my_algorithm:Mine", "algorithm.trouble=nan", "rounds=5", "--out", "bad")
    assert main(["run", *LOCAL, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("raysim: site 'site-02' failed in round 3: the loss is nan at step 1 of 2; lower the")
    assert pd.read_parquet("bad/rounds.parquet")["round"].tolist() == [1, 2]
    assert (summary("bad")["status"], summary("bad")["rounds"]) == ("failed", 2)
    assert summary("bad")["metrics"]["inside/test/dice"]["mean"] >= 0
    assert Path("bad/checkpoints/round_0002").is_dir()


def test_a_bug_in_a_user_algorithm_is_shown_with_its_location(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("algorithm=my_algorithm:Mine", "algorithm.trouble=bug", "rounds=5", "--out", "bad")
    assert main(["run", *LOCAL, *arguments]) == 1
    error = capsys.readouterr().err
    line = error.splitlines()[-1]
    assert line.startswith(
        "raysim: site 'site-02' failed in round 3: LookupError: no such organ (my_algorithm.py, line "
    )
    assert line.endswith(", in client)")
    assert "site_executor.py" not in error  # the calls of raysim before those of the user
    assert 'raise LookupError("no such organ")' in error


def interrupted(*arguments: str, by: signal.Signals = signal.SIGINT) -> tuple[int, str]:
    """The exit code and the messages of a run that Ctrl-C or a batch system stops after round 1."""
    command = [raysim(), "run", *SMALL, "rounds=100000", "--out", "stopped", *arguments]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=unbuffered()
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("round "):
            break
    if by is signal.SIGINT:
        os.killpg(run.pid, by)  # like a terminal: to the command and all processes that it started
    else:
        run.send_signal(by)
    _, errors = run.communicate(timeout=60)
    return run.returncode, errors


def unbuffered() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("by", slow_except([signal.SIGINT, signal.SIGTERM], [signal.SIGINT]))
def test_an_interrupted_local_run_keeps_its_rounds(by: signal.Signals) -> None:
    code, errors = interrupted("backend=local", by=by)
    assert (code, errors) == (130, "raysim: interrupted\n")
    rounds = pd.read_parquet("stopped/rounds.parquet")["round"].tolist()
    assert (summary("stopped")["status"], summary("stopped")["rounds"]) == ("interrupted", len(rounds))


@pytest.mark.slow
def test_a_closed_output_pipe_does_not_end_the_run() -> None:
    command = shlex.join([raysim(), "run", *SMALL, "rounds=8", "backend=local", "--out", "piped"]) + " | head -n 3"
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, env=unbuffered())
    wait = time.monotonic() + 60
    while not Path("piped/summary.json").exists() and time.monotonic() < wait:
        time.sleep(0.1)
    assert (summary("piped")["status"], summary("piped")["rounds"]) == ("done", 8)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_on_ray_keeps_its_rounds(by: signal.Signals) -> None:
    code, errors = interrupted(by=by)
    assert code == 130
    assert errors.endswith("raysim: interrupted\n")
    rounds = pd.read_parquet("stopped/rounds.parquet")["round"].tolist()
    assert rounds
    assert (summary("stopped")["status"], summary("stopped")["rounds"]) == ("interrupted", len(rounds))


@pytest.fixture
def cluster(ray_started: None) -> str:
    """The address of a Ray that is already running."""
    import ray

    return f"ray_address={ray.get_runtime_context().gcs_address}"


@pytest.mark.slow
def test_a_user_algorithm_has_equal_results_on_a_cluster_and_in_one_process(cluster: str) -> None:
    arguments = ("algorithm=my_algorithm:Mine", "resources.client_actors=2", "resources.cpus_per_client=0.5", "--out")
    done = shell("run", *SMALL, cluster, *arguments, "on-ray")
    assert done.returncode == 0, done.stderr
    assert main(["run", *LOCAL, *arguments, "local"]) == 0
    assert summary("on-ray")["digest"] == summary("local")["digest"]
    places = json.loads(Path("on-ray/placement.json").read_text())
    assert {place["actor"] for place in places} == {"client-01", "client-02"}


@pytest.mark.slow
def test_a_run_that_cannot_be_placed_writes_nothing(cluster: str) -> None:
    done = shell("run", *SMALL, cluster, "resources.cpus_per_client=999", "--out", "big")
    assert done.returncode == 3
    assert re.search(r"raysim: requested 1 client actor of 999 CPU .* What would fit: resources\.cpus", done.stderr)
    assert not Path("big").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "http://127.0.0.1:8265"])
def test_a_missing_cluster_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *SMALL, f"ray_address={address}", "--out", "far"]) == 3
    assert f"raysim: cannot join Ray at {address}: " in capsys.readouterr().err
    assert not Path("far").exists()


def test_the_command_runs_records_and_resumes_it(tmp_path: Path, capsys: Any) -> None:
    arguments = [
        "algorithm=fcl",
        "algorithm.pretrain_rounds=2",
        "algorithm.finetune=localonly",
        "rounds=3",
        "backend=local",
    ]
    arguments += ["task.data.sites=2", "task.data.cases=4", "task.data.size=[16,16]", "task.batch_size=2"]
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "finetune:" in (tmp_path / "out" / "config.yaml").read_text()
    assert main(["run", "-c", str(tmp_path / "out" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert len({_digest(tmp_path / name) for name in ("out", "again")}) == 1
    capsys.readouterr()


def _digest(folder: Path) -> str:
    found: str = yaml.safe_load((folder / "summary.json").read_text())["digest"]
    return found
