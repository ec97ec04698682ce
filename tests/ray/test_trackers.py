"""Runs and searches in MLflow, at a real server on this machine, and in Weights & Biases, offline."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raysim import resume, run
from raysim.cli.main import main
from raysim.core.errors import ConfigError, RunError
from raysim.core.events import Event, Notice, RoundEvent
from raysim.reporting.tracked_runs import mlflow_name
from tests.support.mlflow_server import MlflowServer
from tests.support.searches import LR, ONE, TINY, trials

pytestmark = pytest.mark.slow
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed: pip install mlflow")
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed: pip install wandb")
KEYS: dict[str, Any] = {
    "rounds": 3,
    "task.data": {"sites": 2, "outside": [], "size": [16, 16], "cases": 4},
    "task.network": {"name": "unet", "channels": [2, 4], "strides": [2]},
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path_factory.mktemp("server"))
    yield made
    made.stop()


@pytest.fixture
def server(process: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """The server, started again if a test has stopped it."""
    process.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", process.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return process


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


def tracked_run(directory: Path) -> Any:
    return client().get_run(json.loads((directory / "tracker.json").read_text())["run"])


def steps(directory: Path, metric: str = "loss") -> list[int]:
    return [each.step for each in client().get_metric_history(tracked_run(directory).info.run_id, metric)]


def files(directory: Path, folder: str | None = None) -> set[str]:
    found = client().list_artifacts(tracked_run(directory).info.run_id, folder)
    return {each.path for each in found}


def at_round(number: int, act: Callable[[], None], notices: list[str] | None = None) -> Callable[[Event], None]:
    """A callback that acts after round `number`, and collects notices."""

    def show(event: Event) -> None:
        if isinstance(event, RoundEvent) and event.number == number:
            act()
        if isinstance(event, Notice) and notices is not None:
            notices.append(event.text)

    return show


def interrupt() -> None:
    raise KeyboardInterrupt


@needs_mlflow
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_run_in_mlflow_has_the_names_and_values_of_its_files(server, tmp_path, backend, ray_started) -> None:
    plain = run(KEYS, backend="local", out=tmp_path / "plain")
    result = run(KEYS | {"tracker": "mlflow"}, backend=backend, out=tmp_path / backend)
    assert result.digest == plain.digest
    found = tracked_run(result.path)
    assert (found.info.status, found.info.run_name) == ("FINISHED", backend)
    assert client().get_experiment(found.info.experiment_id).name == "raysim"
    assert found.data.tags["status"] == "done"
    assert found.data.tags["digest"] == result.digest
    assert found.data.tags["algorithm"] == "fedavg"
    assert found.data.tags["version/torch"]
    assert found.data.params["task.data.sites"] == "2"
    assert found.data.params["task.network.channels"] == "[2, 4]"
    rounds = pd.read_parquet(result.path / "rounds.parquet").set_index("round")
    sites = pd.read_parquet(result.path / "sites.parquet").dropna(subset="split")
    expected = {mlflow_name(name): value for name, value in rounds.loc[3].dropna().items()}
    for each in sites[sites["round"] == 3].itertuples():
        expected[mlflow_name(f"sites/{each.site}/{each.split}/{each.metric}")] = each.value
    assert found.data.metrics == pytest.approx(expected)
    assert steps(result.path) == [1, 2, 3]
    assert files(result.path) == {"config.yaml", "summary.json", "report.html", "models", "pictures"}
    assert files(result.path, "models") == {"models/README.md", "models/global.safetensors"}
    assert "pictures/site-01_best.jpg" in files(result.path, "pictures")


@needs_mlflow
def test_a_resumed_run_continues_the_same_tracked_run(server, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(KEYS | {"tracker": "mlflow"}, backend="local", out=out, on_event=at_round(2, interrupt))
    first = tracked_run(out)
    assert (first.info.status, first.data.tags["status"]) == ("KILLED", "interrupted")
    assert steps(out) in ([1], [1, 2])
    resume(out)
    again = tracked_run(out)
    assert again.info.run_id == first.info.run_id
    assert (again.info.status, again.data.tags["status"]) == ("FINISHED", "done")
    assert steps(out) == [1, 2, 3]


@needs_mlflow
def test_a_failed_run_is_marked(server, tmp_path) -> None:
    with pytest.raises(RunError):
        run(KEYS | {"tracker": "mlflow", "algorithm.lr": 1e30}, backend="local", out=tmp_path / "run")
    found = tracked_run(tmp_path / "run")
    assert (found.info.status, found.data.tags["status"]) == ("FAILED", "failed")
    assert "summary.json" in files(tmp_path / "run")


@needs_mlflow
def test_rounds_of_an_outage_are_sent_when_the_server_answers_again(server, tmp_path) -> None:
    out, notices = tmp_path / "run", list[str]()

    def outage() -> None:
        server.stop()

    def show(event: Event) -> None:
        at_round(1, outage, notices)(event)
        if isinstance(event, RoundEvent) and event.number == 3:
            server.start()

    run(KEYS | {"tracker": "mlflow"}, backend="local", out=out, on_event=show)
    assert steps(out) == [1, 2, 3]
    assert tracked_run(out).info.status == "FINISHED"


@needs_mlflow
def test_a_server_that_stays_away_does_not_end_the_run(server, tmp_path) -> None:
    out, notices = tmp_path / "run", list[str]()
    result = run(KEYS | {"tracker": "mlflow"}, backend="local", out=out, on_event=at_round(1, server.stop, notices))
    assert result.summary["status"] == "done"
    assert any("mlflow does not accept data; the run continues" in text for text in notices)
    assert any("mlflow does not have all rounds and files of run" in text for text in notices)


@needs_mlflow
def test_a_server_that_does_not_answer_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 does not answer") as caught:
        run(KEYS | {"tracker": "mlflow"}, backend="local", out=tmp_path / "run")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@needs_mlflow
def test_seeds_share_a_database_beside_their_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for seed in (0, 1):
        run(KEYS | {"rounds": 1, "seed": seed, "tracker": "mlflow"}, backend="local", out=tmp_path / f"seed-{seed}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = [tracked_run(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    assert [each.data.params["seed"] for each in found] == ["0", "1"]
    assert len({each.info.experiment_id for each in found}) == 1


@needs_mlflow
def test_the_trials_of_a_search_are_runs_and_the_best_has_the_files(server, tmp_path, ray_started) -> None:
    out = tmp_path / "search"
    space = ["--space", LR, "--trials", "2", "rounds=2", "--tracker", "mlflow"]
    assert main(["tune", *TINY, *space, *ONE, "--out", str(out)]) == 0
    table = trials(out)
    for number, row in table.iterrows():
        found = tracked_run(out / "trials" / f"{number:04}")
        assert client().get_experiment(found.info.experiment_id).name == "search"
        assert (found.info.status, found.data.tags["status"]) == ("FINISHED", "done")
        assert found.data.tags["digest"] == row["digest"]
        assert float(found.data.params["algorithm.lr"]) == row["algorithm.lr"]
        assert found.data.metrics["inside/val/dice/mean"] == pytest.approx(row["inside/val/dice/mean"])
        assert "time_total_s" not in found.data.metrics
        assert steps(out / "trials" / f"{number:04}") == [1, 2]
    best = int(table["best/inside/val/dice/mean"].idxmax())
    assert files(out / "trials" / f"{best:04}") == {"best.yaml", "config.yaml", "report.html", "summary.json"}
    assert files(out / "trials" / f"{3 - best:04}") == set()


def wandb_records(folder: Path) -> list[Any]:
    """The records of all offline runs below a folder, in order."""
    from wandb.proto import wandb_internal_pb2

    return [
        wandb_internal_pb2.Record.FromString(data)
        for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))
        for data in leveldb_records(path.read_bytes())
    ]


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records in a file of W&B: LevelDB's log format, after a header of 7 bytes."""
    block, at, record = 32768, 7, b""
    while at + 7 < len(content):
        left = block - at % block
        if left < 7:  # padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def wandb_values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@needs_wandb
def test_a_run_in_weights_and_biases_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run(KEYS | {"tracker": "wandb"}, backend="local", out=tmp_path / "run")
    records = wandb_records(tmp_path)
    rounds = pd.read_parquet(result.path / "rounds.parquet").set_index("round")
    history = [wandb_values(each.history.item) for each in records if each.HasField("history")]
    assert [row["round"] for row in history if "loss" in row] == [1, 2, 3]
    assert history[2]["inside/val/dice/mean"] == rounds.loc[3, "inside/val/dice/mean"]
    assert "sites/site-01/val/dice" in history[2]
    assert history[3]["pictures/count"] == 6
    config = next(wandb_values(each.run.config.update) for each in records if each.HasField("run"))
    assert config["algorithm.lr"] == yaml.safe_load((result.path / "config.yaml").read_text())["algorithm"]["lr"]
    saved = {file.path for each in records if each.HasField("files") for file in each.files.files}
    assert {"config.yaml", "summary.json", "report.html", "models/global.safetensors"} <= saved
    assert [each.exit.exit_code for each in records if each.HasField("exit")] == [0]


@needs_wandb
def test_an_interrupted_and_resumed_run_in_weights_and_biases(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(KEYS | {"tracker": "wandb"}, backend="local", out=out, on_event=at_round(2, interrupt))
    resume(out)
    records = wandb_records(tmp_path)
    assert len({each.run.run_id for each in records if each.HasField("run")}) == 1
    assert [each.exit.exit_code for each in records if each.HasField("exit")] == [1, 0]
    history = [wandb_values(each.history.item) for each in records if each.HasField("history")]
    assert [row["round"] for row in history if "loss" in row] == [1, 2, 3]


@needs_wandb
def test_weights_and_biases_without_an_account_or_a_server_is_refused(tmp_path, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # without .netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    with pytest.raises(ConfigError, match="no account is configured"):
        run(KEYS | {"tracker": "wandb"}, backend="local", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
