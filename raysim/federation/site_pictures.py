"""Pictures of cases and the summary of the data of each site, for the report: one call per site at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from raysim.core.contracts import (
    EVALUATED_SPLITS,
    SPLITS,
    Algorithm,
    Array,
    Predictor,
    Reply,
    S,
    Site,
    Split,
    State,
    Task,
)
from raysim.core.results import CaseScores
from raysim.data.mask_values import IGNORED
from raysim.federation.evaluation import as_prediction_set
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.storage.picture_files import CasePicture, Chosen, SplitSummary, write_pictures
from raysim.tasks.prediction import CaseImages, predict_cases

PICTURES_PHASE = "pictures"
LARGEST = 512  # pixels of a picture along each axis


def save_pictures(plan: Plan, fleet: BaseFleet, state: State, cases: Sequence[CaseScores]) -> None:
    """Write pictures/ of a run: pictures of cases, and the summary of the data.

    cases: the values of the cases in one round. The best, the median and the worst case of each site are shown.
    state: the state of the same round; the client states of the fleet must be of this round too.
    """
    task = plan.task
    has_pictures = plan.config.pictures and len(task.shape) > 2
    chosen = choose_cases(task, plan.metric, cases) if has_pictures else {}
    shown = {site: (chosen[site].split, chosen[site].cases) if site in chosen else None for site in plan.sites}
    replies = fleet.evaluate(_describe_site, (plan.config.algorithm, state), PICTURES_PHASE, per_site=shown)
    found = ((site, *replies[site].payload) for site in replies)
    write_pictures(plan.directory, task, found, chosen, anonymous=plan.config.anonymous_cases)


def choose_cases(task: Task, metric: str, cases: Iterable[CaseScores]) -> dict[str, Chosen]:
    """The cases of each site to show, ranked by the metric in `metric` (role/split/metric).

    They are test cases, or val cases if the site has no test cases. A site without a value of the metric is left out.
    """
    name = metric.split("/", 2)[-1]
    found: dict[str, Chosen] = {}
    for each in sorted(cases, key=lambda each: EVALUATED_SPLITS.index(each.split)):  # test replaces val
        if name not in each.metrics:
            continue
        values = each.values[each.metrics.index(name)]
        known = np.flatnonzero(~np.isnan(values))
        if len(known):
            best_first = known[np.argsort(values[known], kind="stable")]
            if task.score.better[name] == "higher":
                best_first = best_first[::-1]
            at = {"median": len(known) // 2, "worst": len(known) - 1, "best": 0}
            ranks = {place: rank for rank, place in at.items()}  # a case is shown once, with its last rank
            indices = {ranks[place]: best_first[place] for place in sorted(ranks)}
            shown = {rank: (int(each.cases[index]), float(values[index])) for rank, index in indices.items()}
            found[each.site] = Chosen(each.split, name, shown)
    return found


def _describe_site(
    site: Site[Any], broadcast: tuple[Algorithm[S], S], shown: tuple[str, Sequence[int]] | None
) -> Reply[tuple[tuple[CasePicture, ...], dict[str, SplitSummary]]]:
    algorithm, state = broadcast
    summaries = {split: _summarize(site.data[split], site.task) for split in SPLITS if len(site.data[split])}
    pictures: tuple[CasePicture, ...] = ()
    labels = None if shown is None else site.data[shown[0]].labels
    if shown is not None and labels is not None and labels.ndim > 2:  # masks
        predictions = as_prediction_set(algorithm.predictor(site, state))
        if predictions is not None:
            pictures = tuple(_pictures(site, predictions.main, *shown))
    return Reply((pictures, summaries))


@torch.no_grad()
def _pictures(site: Site[Any], predict: Predictor, split: str, cases: Sequence[int]) -> Iterable[CasePicture]:
    """The picture of each case.

    A predictor may adapt to the batches that it predicts, so the evaluation is repeated up to this split.
    """
    found = dict[int, CaseImages]()
    for each in EVALUATED_SPLITS[: EVALUATED_SPLITS.index(split) + 1]:
        data = site.data[each]
        if len(data) and data.labels is not None:
            predicted = predict_cases(predict, data, site.task.batch_size, site.task.classes, site.device)
            found = {number: images for number, images in predicted if number in cases}
    for case in cases:
        yield _picture(found[case])


def _picture(case: CaseImages) -> CasePicture:
    """The slice of the case with the most labelled pixels."""
    labels = np.where(case.labels == IGNORED, 0, case.labels)
    guesses = np.where(case.labels == IGNORED, 0, case.predicted)
    is_volume = labels.ndim == 4
    axes = (1, 2) if is_volume else (1, 2, 3)[: labels.ndim - 1]
    amounts = np.count_nonzero(labels, axis=axes)
    row, *depth = np.unravel_index(int(amounts.argmax()), amounts.shape)
    at: Any = (..., *(int(index) for index in depth))
    inputs: Array = case.inputs[int(row)]
    image = _as_gray_or_rgb(inputs[at])
    # The first two axes of a volume are right to left and posterior to anterior; a picture begins at its upper left.
    turns = int(len(case.spacing) == 3)
    parts = [np.rot90(part, turns) for part in (image, labels[row][at], guesses[row][at])]
    height, width = (float(mm) for mm in case.spacing[:2])
    step = max(1, -(-max(parts[0].shape[:2]) // LARGEST))
    shown, label, guess = (np.ascontiguousarray(part[::step, ::step]).astype(np.uint8) for part in parts)
    return CasePicture(shown, label, guess, width / height if turns else height / width)


def _as_gray_or_rgb(image: Array) -> Array:
    """(C, H, W) -> (H, W) of the first channel, or (H, W, 3); 0 to 255 between the 1st and the 99th percentile."""
    low, high = np.percentile(image, (1, 99))
    scaled = np.clip((image - low) / max(float(high - low), 1e-12), 0, 1) * 255
    shown: Array = np.moveaxis(scaled, 0, -1) if len(image) == 3 else scaled[0]
    return shown


def _summarize(split: Split, task: Task) -> SplitSummary:
    """The summary of a split. Computed example by example, so that the memory does not depend on the split."""
    images, labels = (split.images.images, split.images.labels) if split.images else (split.inputs, split.labels)
    moments = np.array([(float(each.mean()), float(np.square(each, dtype=np.float64).mean())) for each in images])
    mean, square = moments.mean(0)
    shares = () if labels is None else _class_shares(labels, task.classes)
    deviation = float(np.sqrt(max(0.0, square - mean**2)))
    return SplitSummary(len(np.unique(split.cases)), len(images), float(mean), deviation, shares)


def _class_shares(labels: Iterable[Array], classes: int) -> tuple[float, ...]:
    """The share of each class in the labels that are not ignored; none for labels that are not classes."""
    counts = np.zeros(classes, np.int64)
    for label in labels:
        known = label[label != IGNORED] if label.ndim > 1 else label
        if known.dtype.kind not in "iu" or (known.size and known.max() >= classes):
            return ()
        counts += np.bincount(known.ravel(), minlength=classes)
    return tuple(float(share) for share in counts / max(1, counts.sum()))
