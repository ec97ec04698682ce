"""Preparation, prediction and scores of a finished run, computed again from its saved model and the raw files.

Imports nothing of raysim or MONAI: numpy, scipy, nibabel, Pillow and torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.stats import rankdata

Array = np.ndarray[Any, np.dtype[Any]]


def load_network(net: torch.nn.Module, run: Path) -> torch.nn.Module:
    """The network with the weights of the last checkpoint of a run with one global model, in evaluation mode."""
    last = sorted((run / "checkpoints").glob("round_*"))[-1]
    net.load_state_dict(load_file(last / "state.safetensors"))
    return net.eval()


def read_volume(path: Path) -> tuple[Array, Array]:
    """A volume (right, anterior, superior) and its spacing in mm."""
    volume: Any = nibabel.as_closest_canonical(nibabel.load(path))
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    unit = {"meter": 1000.0, "micron": 0.001}.get(volume.header.get_xyzt_units()[0], 1.0)
    return np.asarray(volume.dataobj), spacing * unit


def read_picture(path: Path) -> tuple[Array, Array]:
    """A grey picture (height, width) and its spacing, 1 mm."""
    return np.asarray(Image.open(path)), np.ones(2)


def zscore(image: Array) -> Array:
    image = image.astype(np.float32).astype(np.float64)
    return (image - image.mean()) / image.std()


def resize(image: Array, size: Sequence[int]) -> Array:
    """Linear interpolation with a triangle as wide as the coarser grid, along one axis after another."""
    for axis, (old, new) in enumerate(zip(image.shape, size, strict=True)):
        centre = (np.arange(new) + 0.5) * old / new - 0.5
        weights = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(old)) / max(1, old / new))
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def resize_labels(labels: Array, size: Sequence[int]) -> Array:
    """The value of the voxel that contains the centre of each new one."""
    for axis, (old, new) in enumerate(zip(labels.shape, size, strict=True)):
        labels = labels.take(((np.arange(new) + 0.5) * old / new).astype(int), axis)
    return labels


def predict(net: torch.nn.Module, image: Array) -> Array:
    """The logits (K, *space) or (K,) of one image without channels."""
    with torch.no_grad():
        return net(torch.from_numpy(image.astype(np.float32))[None, None])[0].double().numpy()


def dice(predicted: Array, label: Array, spacing: Array) -> float:
    return 2 * np.sum(predicted & label) / (predicted.sum() + label.sum())


def surface_distances(one: Array, other: Array, spacing: Array) -> Array:
    """The distance in mm from each surface voxel of `one` to the surface of `other`."""
    surface, target = (mask & ~binary_erosion(mask) for mask in (one, other))
    return distance_transform_edt(~target, sampling=spacing)[surface]


def hd95(predicted: Array, label: Array, spacing: Array) -> float:
    if not predicted.any():
        return float(np.linalg.norm(np.array(label.shape) * spacing))
    pairs = ((predicted, label), (label, predicted))
    return max(float(np.percentile(surface_distances(*pair, spacing), 95)) for pair in pairs)


def surface_dice(predicted: Array, label: Array, spacing: Array, tolerance: float = 1.0) -> float:
    """The share of both surfaces that is at most `tolerance` mm from the other surface."""
    if not predicted.any():
        return 0.0
    both = np.concatenate([surface_distances(*pair, spacing) for pair in ((predicted, label), (label, predicted))])
    return float((both <= tolerance).mean())


OVERLAPS: dict[str, Callable[[Array, Array, Array], float]] = {"dice": dice, "hd95": hd95, "surface_dice": surface_dice}


def segmentation_scores(
    net: torch.nn.Module, cases: Sequence[tuple[Array, Array, Array]], classes: Sequence[str], metrics: Sequence[str]
) -> dict[str, float]:
    """`metric` and `metric_class` over cases (image, label, spacing); `classes` are those of the values 1, 2, ...."""
    values: dict[str, list[float]] = {}
    for image, label, spacing in cases:
        predicted = predict(net, image).argmax(0)
        for metric in metrics:
            each = {
                name: OVERLAPS[metric](predicted == value, label == value, spacing)
                for value, name in enumerate(classes, 1)
                if (label == value).any()
            }
            if each:
                values.setdefault(metric, []).append(float(np.mean(list(each.values()))))
            if len(classes) > 1:
                for name, value in each.items():
                    values.setdefault(f"{metric}_{name}", []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


def auc(logits: Array, labels: Array) -> float:
    """The mean over classes of the probability that a case of the class ranks above one of the other classes."""
    areas = []
    for k in np.unique(labels):
        others = np.delete(logits, k, axis=1)
        largest = others.max(1)
        odds = logits[:, k] - largest - np.log(np.exp(others - largest[:, None]).sum(1))
        positive = labels == k
        wins = rankdata(odds)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
        areas.append(wins / (positive.sum() * (~positive).sum()))
    return float(np.mean(areas))
