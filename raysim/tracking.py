"""MLflow and Weights & Biases beside the search's own files, where a user asks for them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from raysim.errors import ConfigError
from raysim.plan import Search

Tracker = Literal["mlflow", "wandb"]


def check_tracker(name: str | None) -> None:
    """Raises ConfigError if its package is not installed."""
    if name is not None and find_spec(name) is None:
        raise ConfigError(f"--track {name} needs the package {name}: pip install {name}")


def trackers(name: str | None, search: Search) -> list[Any]:
    """Ray Tune's own callback for it."""
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return [MLflowLoggerCallback(experiment_name=search.out.name, tracking_uri=(search.out / "mlruns").as_uri())]
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return [WandbLoggerCallback(project=search.out.name)]
    return []
