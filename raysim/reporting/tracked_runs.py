"""One interface to runs in the experiment trackers MLflow and Weights & Biases."""

from __future__ import annotations

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raysim.config.merge import dotted_keys
from raysim.config.schema import TrackerName
from raysim.core.errors import ConfigError
from raysim.core.formatting import redact

Points = Sequence[tuple[int, Mapping[str, float]]]  # the metrics of rounds by number
METRICS_PER_REQUEST, PARAMS_PER_REQUEST, MAX_PARAM = 1000, 100, 6000  # limits of MLflow
VARIABLES = {  # values that the user has set take precedence
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # few, because the next round repeats a failed request
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_FINISH_TIMEOUT": "300",
    "WANDB_SILENT": "true",
}


@dataclass(frozen=True)
class RunDescription:
    """The description of a run in a tracker. project: the experiment of MLflow. folder: for files without a server."""

    name: str
    project: str
    folder: Path
    params: Mapping[str, Any]
    tags: Mapping[str, str]


class TrackedRun(ABC):
    """A run in a tracker. Each method raises an exception of the tracker's package if the server fails."""

    id: str

    @abstractmethod
    def log(self, points: Points) -> None:
        """Add the metrics of rounds."""

    @abstractmethod
    def add_files(self, files: Sequence[tuple[Path, str]], pictures: Sequence[tuple[Path, str]]) -> None:
        """Upload files, each with its name in the tracker; `pictures` are given with captions."""

    @abstractmethod
    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """End the run as done, stopped, interrupted or failed."""


def open_run(tracker: TrackerName, description: RunDescription, run_id: str | None) -> TrackedRun:
    """The continued run `run_id`, or a new run if `run_id` is None or does not exist."""
    _set_variables()
    return MlflowRun(description, run_id) if tracker == "mlflow" else WandbRun(description, run_id)


class MlflowRun(TrackedRun):
    """A run in an experiment of MLflow."""

    def __init__(self, description: RunDescription, run_id: str | None) -> None:
        self._mlflow = import_module("mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri(description.folder))
        if run_id is not None and self._exists(run_id):
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            self.id = self._create(description)

    def _exists(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _create(self, description: RunDescription) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or description.project
        experiment = self._client.get_experiment_by_name(project)
        if experiment is None:
            local = None if os.environ.get("MLFLOW_TRACKING_URI") else (description.folder / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(project, artifact_location=local)
        else:
            experiment_id = experiment.experiment_id
        tags = {"mlflow.source.name": "raysim", **description.tags}
        made = self._client.create_run(experiment_id, tags=tags, run_name=description.name)
        run_id = str(made.info.run_id)
        params = [
            self._mlflow.entities.Param(mlflow_name(key), str(value)[:MAX_PARAM])
            for key, value in description.params.items()
        ]
        for chunk in _chunks(params, PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=chunk)
        return run_id

    def log(self, points: Points) -> None:
        """Add the metrics of rounds."""
        now, metric = int(1000 * time.time()), self._mlflow.entities.Metric
        metrics = [metric(mlflow_name(name), value, now, step) for step, row in points for name, value in row.items()]
        for chunk in _chunks(metrics, METRICS_PER_REQUEST):
            self._client.log_batch(self.id, metrics=chunk)

    def add_files(self, files: Sequence[tuple[Path, str]], pictures: Sequence[tuple[Path, str]]) -> None:
        """Upload files to the folders in their names; MLflow shows pictures among the files."""
        for path, name in files:
            self._client.log_artifact(self.id, str(path), str(Path(name).parent) if "/" in name else None)

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """Set the tags, then the status."""
        for name, value in {"status": status, **tags}.items():
            self._client.set_tag(self.id, name, value)
        self._client.set_terminated(self.id, {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED"))


class WandbRun(TrackedRun):
    """A run in a project of Weights & Biases."""

    def __init__(self, description: RunDescription, run_id: str | None) -> None:
        self._wandb = import_module("wandb")
        settings = self._wandb.Settings(silent=True, console="off", reinit="create_new", disable_git=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or description.project,
            name=description.name,
            id=run_id,
            resume="allow" if run_id else None,
            dir=str(description.folder),
            config=dict(description.params),
            allow_val_change=True,
            settings=settings,
        )
        self._run.config.update(dict(description.tags), allow_val_change=True)
        self.id = str(self._run.id)

    def log(self, points: Points) -> None:
        """Add the metrics of rounds."""
        for step, row in points:
            self._run.log({"round": step, **row}, step=step, commit=True)

    def add_files(self, files: Sequence[tuple[Path, str]], pictures: Sequence[tuple[Path, str]]) -> None:
        """Upload files, from the folder that contains them, and pictures for the panels of the page."""
        for path, name in files:
            self._run.save(str(path), base_path=str(path)[: -len(name) - 1], policy="now")
        if pictures:
            self._run.log({"pictures": [self._wandb.Image(str(path), caption=caption) for path, caption in pictures]})

    def end(self, status: str, tags: Mapping[str, str]) -> None:
        """Set the tags in the summary, then upload what is left."""
        self._run.summary.update({"status": status, **tags})
        self._run.finish(exit_code=int(status in ("failed", "interrupted")))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def mlflow_name(name: str) -> str:
    """The name with characters that MLflow accepts: a colon replaces @, an underscore other characters."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", ":"))


def tracking_uri(folder: Path) -> str:
    """The server of MLflow: MLFLOW_TRACKING_URI, or a database in `folder`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"


def check_tracker(tracker: TrackerName | None) -> None:
    """Raises ConfigError if the tracker's package, account or server is missing. Writes nothing."""
    if tracker is None:
        return
    if find_spec(tracker) is None:
        packages = {"mlflow": "mlflow-skinny sqlalchemy alembic"}.get(tracker, tracker)
        raise ConfigError(f"--tracker {tracker} needs the package {tracker}: pip install {packages}")
    _set_variables()
    if tracker == "wandb":
        _check_wandb()
    elif uri := os.environ.get("MLFLOW_TRACKING_URI"):
        _check_mlflow(uri)
    elif find_spec("sqlalchemy") is None or find_spec("alembic") is None:
        raise ConfigError(
            "--tracker mlflow needs a database if there is no server: pip install sqlalchemy alembic, or set "
            "MLFLOW_TRACKING_URI"
        )


def _set_variables() -> None:
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"  # jitter would draw from the random numbers of a local run


def _check_mlflow(uri: str) -> None:
    mlflow = import_module("mlflow")
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        cure = "start it, or set another MLFLOW_TRACKING_URI"
        raise ConfigError(f"--tracker mlflow: {redact(uri)} does not answer: {one_line(error)}; {cure}") from error


def _check_wandb() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    try:
        known = import_module("wandb").login(prompt=False, timeout=20)
    except Exception as error:
        cure = "or set WANDB_MODE=offline"
        raise ConfigError(f"--tracker wandb: the server does not answer: {one_line(error)}; {cure}") from error
    if not known:
        raise ConfigError("--tracker wandb: no account is configured; run: wandb login, or set WANDB_MODE=offline")


def one_line(error: BaseException) -> str:
    """The error without line breaks, secrets in URLs and overlong text."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


def flatten(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The dotted keys of a configuration and their values; a list is one value, as JSON."""
    for key, value in dotted_keys(values):
        yield key, json.dumps(value) if isinstance(value, list | Mapping) else value
