"""MLflow and Weights & Biases beside the search's own files, where a user asks for them."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from raysim.core.errors import ConfigError
from raysim.search.spec import SearchSpec

Tracker = Literal["mlflow", "wandb"]


def check_tracker(name: str | None) -> None:
    """Raises ConfigError if its package is not installed, does not know who is asking, or is told a wrong place."""
    if name is None:
        return
    if find_spec(name) is None:
        raise ConfigError(f"--tracker {name} needs the package {name}: pip install {name}")
    online = name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled")
    if online and not import_module("wandb").login(prompt=False):
        raise ConfigError("--tracker wandb: no account is known; log in by `wandb login`, or set WANDB_MODE=offline")
    if name == "mlflow" and (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        _check_mlflow(uri)


def _check_mlflow(uri: str) -> None:
    mlflow = import_module("mlflow")
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except (mlflow.exceptions.MlflowException, ImportError) as error:
        raise ConfigError(f"--tracker mlflow: {uri}: {error}") from error


def build_trackers(name: str | None, search: SearchSpec) -> list[Any]:
    """Ray Tune's own callback for it: into MLFLOW_TRACKING_URI, or a database in the search's folder; into the account
    of Weights & Biases, or, offline, that folder. Raises ConfigError if MLflow does not take it."""
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        class Told(MLflowLoggerCallback):
            """MLflow's names know no @, which here tells another answer than the method's own."""

            def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
                super().log_trial_result(iteration, trial, {k.replace("@", ":"): v for k, v in result.items()})

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{search.out / 'mlflow.db'}"
        _check_mlflow(uri)
        return [Told(experiment_name=search.out.name, tracking_uri=uri)]
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        settings = import_module("wandb").Settings(silent=True)
        return [WandbLoggerCallback(project=search.out.name, dir=str(search.out), settings=settings)]
    return []
