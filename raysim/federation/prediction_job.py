"""The client functions of a prediction: they apply the predictor of one site to parts of the cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from raysim.core.contracts import (
    Array,
    CaseScorer,
    CaseValues,
    Data,
    Predictor,
    Reply,
    Site,
    Split,
    Task,
    TaskConfig,
)
from raysim.core.seeding import seed_all
from raysim.core.whole_images import WholeImages
from raysim.data.label_columns import Label
from raysim.data.predicted_masks import PredictedMasks
from raysim.data.required_paths import OpensFiles
from raysim.federation.evaluation import as_prediction_set, describe_predictor
from raysim.federation.return_checks import check_predictor
from raysim.federation.site_executor import EVALUATION_CALL
from raysim.federation.trained_run import TrainedMethod
from raysim.tasks.prediction import predict_batches, predict_slabs

MAX_PARTS = 32  # the cases are divided into parts for several client actors, and to show progress
Parts = Mapping[str, tuple[int, int]]  # the first case of each part, and the one after its last
# The predictor of a process, by the template of its executor: all parts use it, and its adaptation may take long.
_predictors: WeakKeyDictionary[nn.Module, tuple[str, Predictor | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PredictionJob:
    """The prediction of all cases with the predictor of one site.

    site: a site of the run, or any other name for a new outside site. client_state: the client state of the site.
    run_task: opens the training data of an inside site, for methods that train in `predictor`.
    masks: None if cases have no masks. labels: for each case the mask, its label, or None.
    """

    method: TrainedMethod
    state: Any
    client_state: Any
    site: str
    run_task: TaskConfig
    masks: PredictedMasks | None
    labels: Sequence[str | Label | None]
    parts: Parts


@dataclass(frozen=True)
class PartResult:
    """The results of a part, in the order of its cases.

    logits: (cases, K) for classes; None for masks. values: the metrics of each mask; None for a case without a label.
    """

    logits: Array | None
    values: tuple[Mapping[str, float] | None, ...] = ()


@dataclass(frozen=True, eq=False)
class InsideData:
    """The data of an inside site with new cases as its split `test`.

    The other splits are those of the run. They are opened only when a predictor reads them, because few methods do so
    and these data may not be on this machine.
    """

    test: Split
    site: str
    config: TaskConfig

    @cached_property
    def _run(self) -> Data:
        return self.config.build().open(self.site)

    @property
    def train(self) -> Split:
        """The training data of the run."""
        return self._run.train

    @property
    def val(self) -> Split:
        """The validation data of the run."""
        return self._run.val

    @property
    def unlabelled(self) -> Split:
        """The unlabelled data of the run."""
        return self._run.unlabelled

    def __getitem__(self, split: str) -> Split:
        return self.test if split == "test" else self._run[split]


@dataclass(frozen=True)
class PartOpener:
    """Opens the data of all cases, without labels, for each part. All nodes must have the output folder `out`."""

    open: Any
    site: str
    out: Path

    def __call__(self, part: str) -> Data:
        data: Data = self.open(self.site)
        return replace(data, test=replace(data.test, labels=None))

    def paths(self) -> tuple[list[str], list[str]]:
        """The files and folders to read, and the folders to write into."""
        reads, writes = self.open.paths() if isinstance(self.open, OpensFiles) else ([], [])
        return [*reads, str(self.out)], writes


def split_into_parts(count: int) -> dict[str, tuple[int, int]]:
    """Parts of nearly equal numbers of cases, by name."""
    bounds = np.linspace(0, count, min(count, MAX_PARTS) + 1).astype(int).tolist()
    return {f"part-{number:02}": pair for number, pair in enumerate(pairwise(bounds), start=1)}


def task_of_parts(task: Task, site: str, parts: Parts, out: Path) -> Task:
    """The task whose inside sites are the parts of the cases of `site`."""
    sizes = {part: {"train": 0, "val": 0, "test": end - start, "unlabelled": 0} for part, (start, end) in parts.items()}
    return replace(task, inside=tuple(parts), outside=(), sizes=sizes, open=PartOpener(task.open, site, out))


def name_predictor(site: Site[Any], job: PredictionJob) -> Reply[str | None]:
    """The kind of the predictor (`describe_predictor`); None if the method has no predictor for the site of the job."""
    kind, predict = _predictor(site, job)
    return Reply(None if predict is None else kind)


def predict_part(site: Site[Any], job: PredictionJob) -> Reply[PartResult]:
    """The results of the part `site`. Writes its masks; existing masks are not predicted again."""
    first, last = job.parts[site.name]
    if job.masks is None:
        cases = list(_case_logits(site, job, first, last))
        return Reply(PartResult(np.stack([logits.mean(0, np.float64) for _, logits in cases])))
    missing = [case for case in range(first, last) if not job.masks.is_written(case)]
    whole, slices = site.data.test.images, job.masks.preparation.slices
    if missing and whole is not None:
        for case in missing:
            job.masks.write_slabs(case, _case_slabs(site, job, whole, case, slices=slices))
    elif missing:
        for case, logits in _case_logits(site, job, missing[0], missing[-1] + 1):
            if case in missing:
                job.masks.write(case, logits)
    return Reply(PartResult(None, tuple(_mask_values(site.task, job, case) for case in range(first, last))))


def identity(inputs: Tensor) -> Tensor:
    """A predictor for inputs that are predictions."""
    return inputs


def score_cases(task: Task, split: Split) -> tuple[Mapping[str, float], CaseValues]:
    """The metrics of a split whose inputs are predictions, and their values by case."""
    if isinstance(task.score, CaseScorer):
        return task.score.score_cases(identity, split, torch.device("cpu"))
    return task.score(identity, split, torch.device("cpu")), {}


def _mask_values(task: Task, job: PredictionJob, case: int) -> Mapping[str, float] | None:
    label = job.labels[case]
    if job.masks is None or not isinstance(label, str):
        return None
    _, values = score_cases(task, job.masks.scored_split(case, label))
    return {name: float(value[0]) for name, value in values.items()}


def _case_slabs(site: Site[Any], job: PredictionJob, whole: WholeImages, case: int, *, slices: bool) -> Iterator[Array]:
    """The logits of a case whose images keep their sizes, in the parts of `restore_slabs`."""
    _, predict = _predictor(site, job)
    assert predict is not None
    for number in np.flatnonzero(whole.cases == case).tolist():
        slabs = (slab.numpy() for slab in predict_slabs(predict, whole, number, site.task.classes, site.device))
        if slices:
            yield np.concatenate([slab.copy() for slab in slabs], axis=1)[..., None]
        else:
            yield from slabs


def _case_logits(site: Site[Any], job: PredictionJob, first: int, last: int) -> Iterator[tuple[int, Array]]:
    """Yields each case from `first` to before `last` with the logits (n, K, *space) of its examples.

    The batches are those of a prediction of all cases, because predictors may use the statistics of a batch.
    """
    _, predict = _predictor(site, job)
    assert predict is not None
    cases, batch = site.data.test.cases, site.task.batch_size
    start, end = np.searchsorted(cases, [first, last])
    begin = int(start) // batch * batch
    part = _unlabelled_examples(site, begin, -(-int(end) // batch) * batch, masks=job.masks is not None)
    position, case, found = begin, first, list[Array]()
    for logits in predict_batches(predict, part, batch, site.task.classes, site.device):
        for example in logits.float().cpu().numpy():
            number = int(cases[position])
            if number != case and found:
                yield case, np.stack(found)
                found = []
            if first <= number < last:
                case = number
                found.append(example)
            position += 1
    if found:
        yield case, np.stack(found)


def _unlabelled_examples(site: Site[Any], begin: int, end: int, *, masks: bool) -> Split:
    """The examples from `begin` to before `end`. Their labels only set the shape of a prediction."""
    test = site.data.test
    inputs = test.inputs[begin:end]
    shape = (len(inputs), 1, *(inputs.shape[2:] if masks else ()))
    labels = np.broadcast_to(np.uint8(0), shape)
    return Split(inputs, labels, test.cases[begin:end], test.spacing[begin:end])


def _predictor(site: Site[Any], job: PredictionJob) -> tuple[str, Predictor | None]:
    """The kind of the predictor, and the predictor of the site of the job; created once in each process."""
    if site.template not in _predictors:
        _predictors[site.template] = _make_predictor(site, job)
    return _predictors[site.template]


def _make_predictor(site: Site[Any], job: PredictionJob) -> tuple[str, Predictor | None]:
    data: Any = site.data
    if job.site in job.method.inside:
        data = InsideData(site.data.test, job.site, job.run_task)
    view = replace(site, name=job.site, data=data, client_state=job.client_state)
    seed_all(site.seed, site.round, EVALUATION_CALL, job.site)  # as in the evaluation of the run
    found = job.method.predictor(view, job.state)
    check_predictor(found, type(job.method.algorithm).__name__)
    predictions = as_prediction_set(found)
    if predictions is None:
        return "", None
    return describe_predictor(predictions.main, view, job.state), predictions.main
