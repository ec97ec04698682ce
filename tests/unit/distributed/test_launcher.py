"""`raysim.run` and `raysim.resume` without Ray: the result, the files, the events, the refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysim import ConfigError, RunResult, SiteError, resume, run
from raysim.config.resolve import load_config
from raysim.core.events import ActorsPlaced, Event, Message, Notice, Progress, RoundEvent, RunFinished, RunPlanned
from raysim.federation.runner import idle_gpu_notices

TINY: dict[str, Any] = {
    "rounds": 2,
    "task.data": {"sites": 2, "outside": ["clinic"], "cases": 2, "val": 1, "test": 1, "size": [8, 8]},
    "task.network": {"name": "unet", "channels": [2, 4], "strides": [2]},
    "algorithm": {"name": "fedavg", "lr": 0.01},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run without a callback."""
    return run(TINY, backend="local", out=tmp_path_factory.mktemp("finished") / "run")


def test_the_result_equals_the_files(finished: RunResult) -> None:
    summary = json.loads((finished.path / "summary.json").read_text())
    assert (finished.path.name, finished.status) == ("run", "done")
    assert (finished.digest, finished.metric) == (summary["digest"], "inside/val/dice")
    assert finished.metrics == summary["metrics"]
    assert finished.sites["role"].to_dict() == {"clinic": "outside", "site-01": "inside", "site-02": "inside"}
    assert finished.sites.loc["clinic", "val/dice"] == finished.metrics["outside/val/dice"]["mean"]
    assert {path.name for path in finished.path.iterdir()} == {
        *(
            "config.yaml",
            "env.json",
            "placement.json",
            "summary.json",
            "rounds.parquet",
            "sites.parquet",
            "cases.parquet",
        ),
        *("best", "checkpoints", "models", "pictures", "tensorboard", "log.jsonl", "report.html"),
    }


def test_a_configuration_and_its_keys_give_the_same_run_which_prints_nothing(
    finished: RunResult, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(load_config(TINY), backend="local")
    assert run(config, out=str(tmp_path / "again")).digest == finished.digest
    assert capfd.readouterr() == ("", "")


def test_events_are_in_order(tmp_path: Path) -> None:
    events: list[Event] = []
    run(TINY, backend="local", out=tmp_path / "run", on_event=events.append)
    # A notice: on a machine with a GPU, that it is idle.
    kinds = [type(event) for event in events if not isinstance(event, Progress | Notice)]
    assert kinds == [Message, RunPlanned, ActorsPlaced, RoundEvent, RoundEvent, RunFinished, Message]
    planned = next(event for event in events if isinstance(event, RunPlanned))
    assert planned == RunPlanned(tmp_path / "run", 2, "inside/val/dice")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"algorithm.rate": 1}, "unknown key 'algorithm.rate'"),
        ({"rounds": 0}, "rounds=0: expected"),
        ({"cohort": 9}, "cohort=9: expected a fraction"),
    ],
)
def test_a_refused_run_leaves_nothing(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run({**TINY, **keys}, backend="local", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_directory_is_never_overwritten(finished: RunResult) -> None:
    with pytest.raises(ConfigError, match="never overwrites"):
        run(TINY, backend="local", out=finished.path)
    with pytest.raises(ConfigError, match="is done, all 2 rounds"):
        resume(finished.path)


def stop(event: Event) -> None:
    if isinstance(event, RoundEvent):
        raise KeyboardInterrupt


def test_a_callback_that_raises_ends_the_run_cleanly(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(TINY, backend="local", out=tmp_path / "stopped", on_event=stop)
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["status"] == "interrupted"


def test_a_failed_run_raises_and_has_a_report(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="failed in round 1"):
        run({**TINY, "algorithm": {"lr": 1e38, "optimizer": "sgd"}}, backend="local", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_local_run_does_not_import_ray(tmp_path: Path) -> None:
    lines = ["import sys", "from raysim import run", f"run({TINY!r}, backend='local', out={str(tmp_path / 'run')!r})"]
    subprocess.run([sys.executable, "-c", "; ".join([*lines, "assert 'ray' not in sys.modules"])], check=True)


def test_idle_gpus_are_reported() -> None:
    assert not [*idle_gpu_notices(requested=0.5, available=2), *idle_gpu_notices(requested=0, available=0)]
    (notice,) = idle_gpu_notices(requested=0, available=2)
    assert notice.text.startswith("the run uses no GPU; available: 2 GPUs. Set resources.gpus_per_client=1")
