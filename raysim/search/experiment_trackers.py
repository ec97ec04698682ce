"""Experiment trackers that also record the trials of a search: MLflow, Weights & Biases."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from raysim.core.errors import ConfigError
from raysim.search.options import TrackerName
from raysim.search.spec import SearchSpec
from raysim.search.tune_compat import mlflow_callback, wandb_callback


def check_tracker(name: TrackerName | None) -> None:
    """Raises ConfigError if the tracker's package, account or server is missing."""
    if name is None:
        return
    if find_spec(name) is None:
        raise ConfigError(f"--tracker {name} needs the package {name}: pip install {name}")
    online = name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled")
    if online and not import_module("wandb").login(prompt=False):
        raise ConfigError("--tracker wandb: no account is configured; run: wandb login, or set WANDB_MODE=offline")
    if name == "mlflow" and (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        _check_mlflow(uri)


def _check_mlflow(uri: str) -> None:
    mlflow = import_module("mlflow")
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except (mlflow.exceptions.MlflowException, ImportError) as error:
        raise ConfigError(f"--tracker mlflow: {uri}: {error}") from error


def build_trackers(name: TrackerName | None, spec: SearchSpec) -> list[Any]:
    """Ray Tune's callbacks for the tracker; empty without one. Raises ConfigError if MLflow's server cannot be used.

    MLflow writes to MLFLOW_TRACKING_URI, or to a database in the search directory. Weights & Biases writes to the
    user's account, or to the search directory if it is offline.
    """
    if name == "mlflow":
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{spec.out / 'mlflow.db'}"
        _check_mlflow(uri)
        return [mlflow_callback(experiment_name=spec.out.name, tracking_uri=uri)]
    if name == "wandb":
        settings = import_module("wandb").Settings(silent=True)
        return [wandb_callback(project=spec.out.name, dir=str(spec.out), settings=settings)]
    return []
