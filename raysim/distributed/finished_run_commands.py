"""Prediction and evaluation with a finished run, without training, on Ray or in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from raysim.config.merge import expand_dotted_keys
from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_text
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError, RunError, SiteError
from raysim.core.events import ActorsPlaced, Event, EventCallback, Message, Progress
from raysim.core.formatting import join_names, quote_path
from raysim.core.results import RunResult
from raysim.data.cache import cache_key, fingerprint
from raysim.data.file_paths import absolute_path
from raysim.data.image_sites import ImageSites
from raysim.data.predicted_masks import PredictedMasks
from raysim.distributed import node_probe
from raysim.distributed.launcher import follow, ray_events
from raysim.federation.plan import Plan, chosen_metric, warnings_as_notices
from raysim.federation.prediction import JOB_FILE, Prediction, predict_cases
from raysim.federation.prediction_job import PredictionJob, split_into_parts, task_of_parts
from raysim.federation.run_evaluation import evaluate_run, evaluation_config, evaluation_task, written_config
from raysim.federation.runner import local_fleet
from raysim.federation.trained_run import NEW_SITE, RoundChoice, TrainedRun, open_run, without_training
from raysim.reporting.html_report import write_report
from raysim.storage.run_directory import check_new_directory, exclusive_lock, read_mapping, reserve_directory
from raysim.tasks.new_cases import NewCases, prepare_new_cases, target_files

if TYPE_CHECKING:
    from raysim.distributed.server_actor import Work

Backend = Literal["ray", "local"]


def predict(
    run: str | Path,
    images: str,
    out: str | Path,
    *,
    site: str | None = None,
    round: RoundChoice | None = None,
    probabilities: bool = False,
    backend: Backend | None = None,
    ray_address: str | None = None,
    on_event: EventCallback | None = None,
) -> Mapping[str, Any]:
    """Predict the `images` (a folder or a table) with the method of a finished run, and write the results to `out`.

    The predictor is that of `site`, by default that of a new outside site. If `out` has a part of the same prediction,
    the missing files are added. Returns `cases`, `predictor` and `summary`, which is None without labels.
    Raises ConfigError or PlacementError, before anything is written, for input that does not fit the run.
    """
    emit: EventCallback = on_event or (lambda _: None)
    trained = open_run(run, round)
    if site is not None:
        trained.check_site(site)
    _check_output_name(out)
    emit(Message("preparing the images"))
    with warnings_as_notices(emit):
        cases = prepare_new_cases(
            trained.task,
            images,
            site or NEW_SITE,
            scanner=site is not None,
            progress=lambda done, total: emit(Progress(phase="preparing cases", done=done, total=total)),
        )
    cases = replace(cases, task=trained.with_trained_part(cases.task))
    folder = Path(out).absolute()
    identity = _identity(trained, cases, images, site, probabilities)
    job = _job(trained, cases, site or NEW_SITE, folder, probabilities)
    with _output_folder(folder, identity), exclusive_lock(folder):
        prediction = Prediction(trained, cases, job, folder, identity)
        task = task_of_parts(cases.task, job.site, job.parts, folder)
        plan = _plan(trained, task, folder, backend, ray_address)
        try:
            return _execute(plan, partial(predict_cases, prediction), emit)
        except (RunError, KeyboardInterrupt) as error:
            if (folder / JOB_FILE).exists():
                emit(Message(f"the finished files are in {folder}; the same command computes the missing ones"))
            if not isinstance(error, SiteError):
                raise
            failed = RunError(error.cause)  # without the site, which is only a part of the cases
            failed.remote = error.remote
            raise failed from error


def evaluate(
    run: str | Path,
    overrides: Mapping[str, Any],
    *,
    round: RoundChoice | None = None,
    out: str | Path | None = None,
    on_event: EventCallback | None = None,
) -> RunResult:
    """Evaluate a finished run on the data of `overrides`, keys as in a configuration file, without training.

    The results are written to `out`, by default to a new folder in `evaluations` of the run. Raises ConfigError or
    PlacementError, before anything is written, for keys or data that do not fit the run.
    """
    emit: EventCallback = on_event or (lambda _: None)
    trained = open_run(run, round)
    config = evaluation_config(trained, expand_dotted_keys(overrides, "the overrides"))
    check_new_directory(None if out is None else str(out), "an evaluation")
    emit(Message("preparing the data"))
    with warnings_as_notices(emit):
        task = evaluation_task(
            trained, config, lambda done, total: emit(Progress(phase="preparing cases", done=done, total=total))
        )
    chosen_metric(task, config.metric)
    folder = Path(out).absolute() if out is not None else _free_folder(trained, config)
    with reserve_directory(str(folder), "") as directory, exclusive_lock(directory):
        plan = Plan(config=config, task=task, directory=directory, versions=node_probe.versions())
        summary = _execute(plan, partial(evaluate_run, trained), emit)
        written = to_mapping(written_config(trained, config))
        write_text(directory / "config.yaml", yaml.safe_dump(written, sort_keys=False))
        emit(Message(f"report: {write_report(directory)}"))
    return RunResult(directory, summary)


def _free_folder(trained: TrainedRun, config: RunConfig) -> Path:
    """The first unused folder for an evaluation on this table."""
    stem = Path(getattr(config.task.data, "table", "") or config.task.name).stem
    names = (trained.directory / "evaluations" / f"{stem}-{number:03}" for number in count(1))
    return next(path for path in names if not path.exists())


def _check_output_name(out: str | Path) -> None:
    """Raises ConfigError if `out` is a URL or a file."""
    if "://" in str(out):
        check_new_directory(str(out), "a prediction")
    if Path(out).is_file():
        raise ConfigError(f"--out {out} is a file; choose a folder")


def _identity(
    trained: TrainedRun, cases: NewCases, source: str, site: str | None, probabilities: bool
) -> dict[str, Any]:
    """The values that determine the files of a prediction. The cases of a table without images are its rows."""
    images = [image for image in cases.images if image is not None]
    files = [fingerprint(path) for path in images or [absolute_path(source)]]
    return {
        "run": str(trained.directory),
        "round": trained.number,
        "checkpoint": trained.checkpoint,
        "site": site,
        "probabilities": probabilities,
        "images": cache_key(files),
    }


def _job(trained: TrainedRun, cases: NewCases, site: str, out: Path, probabilities: bool) -> PredictionJob:
    masks, opener = None, cases.task.open
    if isinstance(opener, ImageSites) and opener.preparation.classes is not None:
        values = {name: int(value) for name, value in trained.task.classes.items()}
        images = [str(image) for image in cases.images]
        masks = PredictedMasks(opener.preparation, images, target_files(cases), out, values, probabilities)
    return PredictionJob(
        method=trained.method,
        state=trained.point.state,
        client_state=trained.point.client_states.get(site),
        site=site,
        run_task=trained.task.config,
        masks=masks,
        labels=cases.labels,
        parts=split_into_parts(len(cases.names)),
    )


def _plan(trained: TrainedRun, task: Task, out: Path, backend: Backend | None, ray_address: str | None) -> Plan:
    config = without_training(trained.config)
    config = replace(
        config,
        backend=backend or config.backend,
        ray_address=ray_address or config.ray_address,
        resources=replace(config.resources, sites={}, client_actors="auto"),
    )
    return Plan(config=config, task=task, directory=out, versions=node_probe.versions())


@contextmanager
def _output_folder(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """A block with the folder of a new or an interrupted prediction; an empty folder is removed at the end.

    Raises ConfigError if the folder has other files, such as those of a prediction with another `identity`.
    """
    existing = folder.is_dir() and any(folder.iterdir())
    found = read_mapping(folder / JOB_FILE)
    if existing and found != identity:
        other = [name for name in identity if found and found.get(name) != identity[name]]
        what = f"a prediction that differs in {join_names(other)}" if other else "other files"
        raise ConfigError(f"--out {quote_path(folder)} has {what}, and nothing is overwritten; choose a new folder")
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror or error}; the files there are intact: repeat the command"
        ) from error
    finally:
        with suppress(OSError):  # a folder is not empty
            for each in created:
                each.rmdir()


def _execute(plan: Plan, work: Work, emit: EventCallback) -> Mapping[str, Any]:
    """Run `work` on the backend of the plan; returns the values of its last event."""
    return follow(_local_events(plan, work) if plan.config.backend == "local" else ray_events(plan, work), emit)


def _local_events(plan: Plan, work: Work) -> Generator[Event]:
    yield ActorsPlaced([], dict.fromkeys(plan.sites, "local"))
    yield from work(plan, local_fleet(plan))
