"""A finished run with the state of one round, and its method for prediction at the sites of another task."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raysim.config.merge import read_file
from raysim.config.resolve import resolve
from raysim.config.schema import Cohort, RunConfig
from raysim.core.contracts import Algorithm, PredictionSet, Predictor, Site, Task
from raysim.core.errors import ConfigError, RunError
from raysim.core.formatting import quote_path
from raysim.core.network_factories import train_only
from raysim.core.registry import classes_of
from raysim.core.results import ResumePoint, RunOutcome
from raysim.core.suggestions import did_you_mean
from raysim.federation.continuation import with_kept_weights
from raysim.storage import checkpoint
from raysim.storage.run_directory import BEST, CHECKPOINTS, check_run_directory, read_summary, reading_runs
from raysim.tasks.new_cases import TrainedTask

RoundChoice = Literal["best", "last"]
NEW_SITE = "(new)"  # a site that is not in the run; no site of a table can have this name
OUTCOMES = {RunOutcome.FAILED: "has failed", RunOutcome.INTERRUPTED: "was interrupted"}


@dataclass(frozen=True)
class TrainedMethod:
    """The predictors of a method at sites of any task. A site of the run keeps its role, all other sites are outside.

    inside, outside: the sites of the run.
    """

    algorithm: Algorithm[Any]
    inside: tuple[str, ...]
    outside: tuple[str, ...]

    def predictor(self, site: Site[Any], state: Any) -> Predictor | PredictionSet | None:
        """The predictor of the algorithm for the site, with the sites of the run."""
        is_new = site.name not in (*self.inside, *self.outside)
        outside = (*self.outside, site.name) if is_new else self.outside
        return self.algorithm.predictor(
            replace(site, task=replace(site.task, inside=self.inside, outside=outside)), state
        )


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with its state after round `number`. `checkpoint` is the SHA-256 of the checkpoint's index."""

    directory: Path
    config: RunConfig
    summary: Mapping[str, Any]
    number: int
    point: ResumePoint[Any]
    checkpoint: str

    @property
    def inside(self) -> tuple[str, ...]:
        """The inside sites."""
        return tuple(site for site, found in self.summary["sites"].items() if found["role"] == "inside")

    @property
    def outside(self) -> tuple[str, ...]:
        """The outside sites."""
        return tuple(site for site, found in self.summary["sites"].items() if found["role"] == "outside")

    @property
    def method(self) -> TrainedMethod:
        """The method, which predicts as in the run."""
        return TrainedMethod(self.config.algorithm, self.inside, self.outside)

    @property
    def task(self) -> TrainedTask:
        """The task of the run. Its initial weights are those that the run has kept."""
        config = with_kept_weights(self.config.task, self.directory)
        return TrainedTask(config, tuple(self.summary["shape"]), self.summary["classes"])

    def with_trained_part(self, task: Task) -> Task:
        """`task` with the network as in the run: only the parameters that the run has trained are in its models."""
        return train_only(task, getattr(self.config.algorithm, "trainable", None))

    @property
    def facts(self) -> dict[str, Any]:
        """The entries about the run in summary.json of a prediction or an evaluation."""
        facts = {key: self.summary[key] for key in ("algorithm", "task", "seed", "shape", "classes", "digest")}
        return facts | {"run": str(self.directory), "round": self.number, "checkpoint": self.checkpoint}

    @property
    def rounds(self) -> tuple[int, int]:
        """The last evaluated round, and the best round; 0 if no best round was chosen."""
        return self.summary["evaluated_round"], self.summary["best"]["round"] or 0

    def check_site(self, site: str) -> None:
        """Raises ConfigError for a name that is not a site of the run."""
        names = (*self.inside, *self.outside)
        if site not in names:
            raise ConfigError(
                f"--site {site}: the run has no such site{did_you_mean(site, names)}; its sites: {', '.join(names)}. "
                "Leave out --site for images of another hospital"
            )


def with_computed(config: RunConfig, computed: Mapping[str, Any]) -> RunConfig:
    """The configuration with the values of keys under `task.data` that the run has computed (`Task.computed`)."""
    if not computed:
        return config
    values: dict[str, Any] = {key: tuple(value) for key, value in computed.items()}
    return replace(config, task=replace(config.task, data=replace(config.task.data, **values)))


def without_training(config: RunConfig) -> RunConfig:
    """The configuration for work without training: needs every reply, has no faults and the default `metric`."""
    return replace(
        config, metric=None, chaos=None, early_stopping=None, min_replies=1.0, cohort=Cohort(size=1, dropout=0.0)
    )


def open_run(directory: str | Path, choice: RoundChoice | None = None) -> TrainedRun:
    """The run in `directory` after its best or its last round; by default the best, if one was chosen.

    Raises ConfigError if there is no finished run, or no intact checkpoint of that round.
    """
    folder = Path(directory).absolute()
    with reading_runs([folder]):
        return _open_run(folder, choice)


def _open_run(folder: Path, choice: RoundChoice | None) -> TrainedRun:
    check_run_directory(folder)
    summary = read_summary(folder)
    if summary.get("status") != RunOutcome.DONE:
        found = OUTCOMES.get(summary.get("status", ""), "has not ended")
        raise ConfigError(f"{folder}: the run {found}; complete it first: raysim resume {quote_path(folder)}")
    if "shape" not in summary:
        raise ConfigError(
            f"{folder} is a run of an earlier version, without the shape of examples in summary.json; run it again: "
            f"raysim run -c {quote_path(folder / 'config.yaml')}"
        )
    config = with_computed(resolve(read_file(str(folder / "config.yaml"))), summary.get("computed", {}))
    path = _checkpoint_path(folder, summary, choice)
    try:
        point = checkpoint.read(path, trusted=[cls.__module__ for cls in classes_of(config.algorithm)])
        digest = hashlib.sha256((path / "checkpoint.json").read_bytes()).hexdigest()
    except RunError as error:
        raise ConfigError(f"{error}; restore the file, or choose the other round with --round") from error
    return TrainedRun(folder, config, summary, point.number, point, digest)


def _checkpoint_path(folder: Path, summary: Mapping[str, Any], choice: RoundChoice | None) -> Path:
    best = summary["best"]
    if choice == "best" and best["round"] is None:
        raise ConfigError(f"--round best: no best round was chosen in {folder}: {best['reason']}; use --round last")
    is_best = choice != "last" and best["round"] is not None
    if is_best:
        path = checkpoint.path_of(folder / BEST, best["round"])
    else:
        path = next(checkpoint.newest_first(folder / CHECKPOINTS), folder / CHECKPOINTS)
    if not (path / "checkpoint.json").is_file():
        where = path.parent if is_best else path
        raise ConfigError(
            f"{folder} has no checkpoint of the {'best' if is_best else 'last'} round in {where.name}/; "
            "copy the complete run directory, or run it again"
        )
    return path
