"""Small finished runs on files: pictures, volumes, classes and rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysim import RunResult, run
from tests.support.wrong_files import write_data_sets

Runs = Callable[..., Path]  # the folder of a finished run, by the arguments of `trained`
UNET = {"name": "unet", "channels": [2, 4], "strides": [2], "num_res_units": 0}
TASKS: dict[str, dict[str, Any]] = {
    "pictures": {"name": "segmentation", "data": {"table": "table.csv", "size": [12, 20]}, "network": UNET},
    "volumes": {
        "name": "segmentation",
        "data": {"table": "volumes.csv", "size": [16, 16, 4], "spacing": [1.5, 1.0, 1.0], "fit": "pad"},
        "network": UNET,
    },
    "slices": {"name": "segmentation", "data": {"table": "volumes.csv", "slices": True}, "network": UNET},
    "classes": {
        "name": "classification",
        "data": {"table": "classes.csv"},
        "network": {"name": "Classifier", "channels": [2], "in_shape": [1, 16, 16], "classes": 2},
    },
    "labels": {
        "name": "multilabel",
        "data": {"table": "findings.csv", "labels": ["edema", "effusion"]},
        "network": {"name": "Classifier", "channels": [2], "in_shape": [1, 16, 16], "classes": 2},
    },
    "numbers": {
        "name": "regression",
        "data": {"table": "findings.csv", "target": "age"},
        "network": {"name": "Classifier", "channels": [2], "in_shape": [1, 16, 16], "classes": 1},
    },
    "rows": {"name": "tabular", "data": {"table": "rows.csv", "categorical": ["sex"]}},
}


def trained(
    folder: Path,
    kind: str,
    algorithm: str = "fedavg",
    data: dict[str, Any] | None = None,
    on_event: Any = None,
    **keys: Any,
) -> RunResult:
    """A finished run of two rounds in `folder/run`, on new data sets in `folder`; by default site b is outside."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data_sets(folder)
    task = TASKS[kind]
    own = {"outside": ["b"], "cache": str(folder / "cache"), **task["data"], **(data or {})}
    own["table"] = str(folder / own["table"])
    config = {
        "backend": "local",
        "rounds": 2,
        "task": {**task, "data": own, "batch_size": 2},
        "algorithm.name": algorithm,
    }
    return run({**config, "algorithm.lr": 0.05, **keys}, out=folder / "run", on_event=on_event)


def shared_runs(make_folder: Callable[[str], Path]) -> Runs:
    """A function that trains each run once; `make_folder` makes a folder with a name."""
    made: dict[str, Path] = {}

    def get(kind: str, algorithm: str = "fedavg", **keys: Any) -> Path:
        key = repr((kind, algorithm, keys))
        if key not in made:
            made[key] = make_folder(kind)
            trained(made[key], kind, algorithm, **keys)
        return made[key]

    return get
