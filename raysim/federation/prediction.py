"""Prediction of new cases with the method of a finished run: masks or a table of classes, and scores."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raysim.core.atomic_io import replacing, write_json
from raysim.core.contracts import Array, CaseName, Split, Task
from raysim.core.errors import ConfigError
from raysim.core.events import Event, Progress, RunFinished
from raysim.core.formatting import join_names
from raysim.core.results import CaseScores, Score, role_of
from raysim.data.label_columns import label_rows
from raysim.federation.fleet import BaseFleet, LocalFleet
from raysim.federation.plan import Plan
from raysim.federation.prediction_job import PartResult, PredictionJob, name_predictor, predict_part, score_cases
from raysim.federation.trained_run import TrainedRun
from raysim.storage.csv_file import to_csv
from raysim.storage.evaluation_files import write_evaluation
from raysim.tasks.new_cases import NewCases
from raysim.tasks.prediction_columns import prediction_columns

PREDICTION_PHASE = "prediction"
PREDICTIONS_FILE = "predictions.csv"
JOB_FILE = "prediction.json"  # in the output folder: what is predicted with which model


@dataclass(frozen=True)
class Prediction:
    """The prediction of `cases` by a run, with its output folder. `identity` is the content of JOB_FILE."""

    run: TrainedRun
    cases: NewCases
    job: PredictionJob
    out: Path
    identity: Mapping[str, Any]


def predict_cases(prediction: Prediction, plan: Plan, fleet: BaseFleet) -> Iterator[Event]:
    """Yields the progress, then RunFinished with the number of cases, the predictor and the scores of labelled cases.

    Existing masks are not predicted again. Raises ConfigError if the method has no predictor for the site.
    """
    job, count = prediction.job, len(prediction.cases.names)
    fleet.accounting.open_round(prediction.run.number - 1)
    first = next(iter(job.parts))
    kind = fleet.evaluate(name_predictor, job, PREDICTION_PHASE, [first])[first].payload
    if kind is None:
        raise _no_predictor(prediction)
    write_json(prediction.out / JOB_FILE, prediction.identity)
    results = yield from _predict_parts(job, fleet, count)
    write_predictions(prediction, results, kind)
    summary = _write_scores(prediction, results, kind)
    yield RunFinished({"cases": count, "predictor": kind, "summary": summary})


def _predict_parts(
    job: PredictionJob, fleet: BaseFleet, count: int
) -> Generator[Progress, None, dict[str, PartResult]]:
    # A local fleet predicts one part after another, so that progress is shown between the parts.
    groups = [[part] for part in job.parts] if isinstance(fleet, LocalFleet) else [list(job.parts)]
    results = dict[str, PartResult]()
    for group in groups:
        yield Progress(phase=PREDICTION_PHASE, done=job.parts[group[0]][0], total=count)
        replies = fleet.evaluate(predict_part, job, PREDICTION_PHASE, group)
        results |= {part: reply.payload for part, reply in replies.items()}
    return results


def _no_predictor(prediction: Prediction) -> ConfigError:
    run, site = prediction.run, prediction.job.site
    name = type(run.config.algorithm).__name__
    having = [each for each in run.inside if each in run.point.client_states]
    where = f"site '{site}'" if site in (*run.inside, *run.outside) else "sites outside the run"
    return ConfigError(
        f"{name} has no model for {where}: it predicts only at sites that have trained; choose one with --site: "
        f"{join_names(having)}"
    )


def write_predictions(prediction: Prediction, results: Mapping[str, PartResult], kind: str) -> None:
    """Write predictions.csv with a row per case: image or row of the table, mask or class, and the predictor.

    A row without a mask has a class, labels or a number, as from `prediction_columns`, and the probability of each
    class or label.
    """
    cases, masks = prediction.cases, prediction.job.masks
    of_rows = all(image is None for image in cases.images)
    table = pd.DataFrame({"row": cases.names} if of_rows else {"image": cases.images})
    if masks is not None:
        table = table.assign(prediction=masks.targets, predictor=kind)
    else:
        predicted, columns = prediction_columns(prediction.run.task, _logits(results))
        table = table.assign(prediction=predicted, predictor=kind, **columns)
    with replacing(prediction.out / PREDICTIONS_FILE) as partial:
        partial.write_text(to_csv(table), encoding="utf-8")


def _logits(results: Mapping[str, PartResult]) -> Array:
    return np.concatenate([result.logits for result in results.values() if result.logits is not None])


def _write_scores(prediction: Prediction, results: Mapping[str, PartResult], kind: str) -> dict[str, Any] | None:
    """Write summary.json and cases.parquet of the labelled cases. Returns the summary, or None without labels."""
    run, cases, job = prediction.run, prediction.cases, prediction.job
    labelled = [number for number, label in enumerate(cases.labels) if label is not None]
    if not labelled:
        return None
    metrics, values = _mask_scores(results) if job.masks else _class_scores(cases, results, labelled)
    role = role_of(job.site, run.inside)
    scores = [Score(job.site, role, "test", name, value, len(labelled)) for name, value in metrics.items()]
    by_case = list[CaseScores]()
    if values:
        stacked = np.stack([*values.values()]).astype(np.float64)
        by_case = [CaseScores(job.site, "test", kind, np.array(labelled), tuple(values), stacked)]
    return write_evaluation(
        prediction.out,
        _scored_task(prediction, role, len(labelled)),
        scores,
        by_case,
        chosen=f"{role}/test/{next(iter(cases.task.score.better))}",
        facts={**run.facts, **prediction.identity},
        number=run.number,
        rounds=run.rounds,
        anonymous=run.config.anonymous_cases,
    )


def _scored_task(prediction: Prediction, role: str, count: int) -> Task:
    """A task that has only the site of the prediction; its cases have the names of the prediction."""
    site = prediction.job.site
    sizes = {site: {"train": 0, "val": 0, "test": count, "unlabelled": 0}}
    sites: dict[str, Any] = {"inside": (), "outside": ()} | {role: (site,)}
    task, cases = prediction.cases.task, prediction.cases
    of_table = task.case_names(site, "test") if task.case_names else [CaseName()] * len(cases.names)
    names = [
        CaseName(None if image is None else name, known.patient)
        for image, name, known in zip(cases.images, cases.names, of_table, strict=True)
    ]
    return replace(task, sizes=sizes, case_names=lambda *_: names, **sites)


def _mask_scores(results: Mapping[str, PartResult]) -> tuple[dict[str, float], dict[str, Array]]:
    """The mean of each metric over the masks that define it, and its values by case, NaN where it is not defined."""
    each = [values for result in results.values() for values in result.values if values is not None]
    names = dict.fromkeys(name for values in each for name in values)
    columns = {name: np.array([values.get(name, np.nan) for values in each]) for name in names}
    return {name: float(np.nanmean(column)) for name, column in columns.items()}, columns


def _class_scores(
    cases: NewCases, results: Mapping[str, PartResult], labelled: Sequence[int]
) -> tuple[Mapping[str, float], Mapping[str, Array]]:
    logits = _logits(results)[list(labelled)]
    found: Any = [cases.labels[number] for number in labelled]
    numbers = np.arange(len(labelled))
    return score_cases(cases.task, Split(logits, label_rows(found), numbers, np.zeros((len(labelled), 0))))
