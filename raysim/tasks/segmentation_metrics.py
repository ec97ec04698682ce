"""Segmentation metrics per case: overlap, volume error, surface Dice, and surface distances in mm.

Imports torch and MONAI where they are used, so that names of metrics are checked without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from raysim.core.contracts import CaseValues, Metrics, Predictor, Split
from raysim.data.mask_values import IGNORED
from raysim.tasks.metric_lookup import Direction, Metric, find_metrics

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
# MONAI warns about an argument that its own code passes.
warnings.filterwarnings("ignore", "(.|\n)*always_return_as_numpy", FutureWarning)


def dice(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """Dice overlap of two masks (*space), 0 to 1; `label` must not be empty."""
    both, total = np.count_nonzero(predicted & label), np.count_nonzero(predicted) + np.count_nonzero(label)
    return float(np.float32(2 * both) / np.float32(total))  # the bits of MONAI's compute_dice, which takes much longer


def iou(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """Intersection over union (Jaccard index) of two masks, 0 to 1; `label` must not be empty."""
    return float((predicted & label).sum() / (predicted | label).sum())


def sensitivity(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """Recall, TP / (TP + FN): the fraction of the label that is predicted; `label` must not be empty."""
    return float((predicted & label).sum() / label.sum())


def precision(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """TP / (TP + FP): the fraction of the prediction that is in the label; 0 if nothing is predicted."""
    return float((predicted & label).sum() / max(1, predicted.sum()))


def volume_error(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """|V - L| / L with the volumes V of the prediction and L of the label; 1 if nothing is predicted."""
    return float(abs(int(predicted.sum()) - int(label.sum())) / label.sum())


def surface_dice(predicted: Array, label: Array, spacing: tuple[float, ...], tolerance_mm: float = 1.0) -> float:
    """The fraction of both surfaces within task.surface_tolerance_mm of the other surface; 0 if nothing is predicted.

    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
    radiotherapy", 2018, https://arxiv.org/abs/1809.04430. MONAI's version counts the voxels of each surface.
    """
    if not predicted.any():
        return 0.0
    from monai.metrics.surface_dice import compute_surface_dice

    fraction = compute_surface_dice(
        _to_batch(predicted), _to_batch(label), [tolerance_mm], include_background=True, spacing=list(spacing)
    )
    return float(fraction)


def hd95(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """95th percentile of the distances between two surfaces, in mm; the image's diagonal if nothing is predicted.

    The diagonal is a penalty with a bound, so that a mean over cases stays finite. `label` must not be empty.
    """
    if not predicted.any():
        return _diagonal(label, spacing)
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    distance = compute_hausdorff_distance(
        _to_batch(predicted), _to_batch(label), include_background=True, percentile=95, spacing=list(spacing)
    )
    return float(distance)


def asd(predicted: Array, label: Array, spacing: tuple[float, ...]) -> float:
    """Mean distance between two surfaces, in both directions, in mm; the image's diagonal if nothing is predicted."""
    if not predicted.any():
        return _diagonal(label, spacing)
    from monai.metrics.surface_distance import compute_average_surface_distance

    distance = compute_average_surface_distance(
        _to_batch(predicted), _to_batch(label), include_background=True, symmetric=True, spacing=list(spacing)
    )
    return float(distance)


FRACTION, NOT_NEGATIVE = (0.0, 1.0), (0.0, float("inf"))
METRICS = {
    "dice": Metric("dice", "higher", dice, FRACTION),
    "iou": Metric("iou", "higher", iou, FRACTION),
    "sensitivity": Metric("sensitivity", "higher", sensitivity, FRACTION),
    "precision": Metric("precision", "higher", precision, FRACTION),
    "surface_dice": Metric("surface_dice", "higher", surface_dice, FRACTION),
    "hd95": Metric("hd95", "lower", hd95, NOT_NEGATIVE),
    "asd": Metric("asd", "lower", asd, NOT_NEGATIVE),
    "volume_error": Metric("volume_error", "lower", volume_error, NOT_NEGATIVE),
}


@dataclass
class SegmentationScore:
    """Scorer: `dice` is the mean over foreground classes, then over cases; `dice_<class>` is the mean of one class.

    The same holds for the other metrics. `classes` starts with the background. A class that is not in the label
    of a case is not evaluated for that case, and a metric without any value is left out. Slices of one case are
    evaluated together, as one volume. Voxels with the label IGNORED count as background in label and prediction.
    """

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("dice",)
    batch_size: int = 8
    dims: int = 2  # of a case
    ignored: bool = False  # whether labels have voxels that are left out
    surface_tolerance_mm: float = 1.0
    better: Mapping[str, Direction] = field(init=False)

    def __post_init__(self) -> None:
        example = np.zeros((8,) * self.dims, bool)
        example[2:5, 2:6] = True
        with_tolerance = partial(surface_dice, tolerance_mm=self.surface_tolerance_mm)
        shipped = METRICS | {"surface_dice": replace(METRICS["surface_dice"], function=with_tolerance)}
        self._metrics = find_metrics(self.metrics, shipped, (example, example, (1.0,) * self.dims))
        suffixes = ["", *(f"_{name}" for name in self.classes[1:] if len(self.classes) > 2)]
        self.better = {f"{metric.name}{suffix}": metric.better for metric in self._metrics for suffix in suffixes}

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        """The value of each metric that can be computed; empty for a split without examples or labels."""
        return self.score_cases(predict, split, device)[0]

    def score_cases(self, predict: Predictor, split: Split, device: torch.device) -> tuple[Metrics, CaseValues]:
        """The value of each metric that can be computed, and its values by case, NaN where it is not defined."""
        if not len(split) or split.labels is None:
            return {}, {}
        found = [
            dict(self._score_case(predicted, label, spacing))
            for predicted, label, spacing in self._volumes(predict, split, device)
        ]
        values = {
            name: np.array([case.get(name, np.nan) for case in found])
            for name in self.better
            if any(name in case for case in found)
        }
        return {name: float(np.mean(each[~np.isnan(each)])) for name, each in values.items()}, values

    def _score_case(self, predicted: Array, label: Array, spacing: tuple[float, ...]) -> Iterator[tuple[str, float]]:
        """The values of one case, with the names in `better`."""
        present = [(number, name) for number, name in enumerate(self.classes) if number and (label == number).any()]
        for metric in self._metrics:
            each = {name: metric(predicted == number, label == number, spacing) for number, name in present}
            defined = {name: value for name, value in each.items() if value is not None}
            if defined:
                yield metric.name, float(np.mean(list(defined.values())))
            if len(self.classes) > 2:
                yield from ((f"{metric.name}_{name}", value) for name, value in defined.items())

    def _volumes(
        self, predict: Predictor, split: Split, device: torch.device
    ) -> Iterator[tuple[Array, Array, tuple[float, ...]]]:
        """Prediction, label (both *space, slices stacked on the last axis) and spacing of each case."""
        from raysim.tasks.prediction import predict_cases

        for _, case in predict_cases(predict, split, self.batch_size, len(self.classes), device):
            predicted, label, spacing = case.predicted, case.labels, tuple(float(mm) for mm in case.spacing)
            if self.ignored:
                is_ignored = label == IGNORED
                predicted, label = np.where(is_ignored, 0, predicted), np.where(is_ignored, 0, label)
            if len(predicted) == 1:
                yield predicted[0], label[0], spacing[: label.ndim - 1]
            else:
                yield np.moveaxis(predicted, 0, -1), np.moveaxis(label, 0, -1), spacing


def _to_batch(mask: Array) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


def _diagonal(label: Array, spacing: tuple[float, ...]) -> float:
    return float(np.linalg.norm(np.array(label.shape) * np.array(spacing)))
