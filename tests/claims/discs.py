"""Segmentation of discs in noise at sites that differ in brightness and contrast of the images, and in their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from raysim import Data, Split, Task
from raysim.tasks.segmentation_metrics import SegmentationScore
from tests.claims.federations import as_split, build_task

SIDE, BATCH = 24, 8


@dataclass(frozen=True)
class Source:
    """How a site's images and labels are made: intensity is `brightness + contrast * disc`, plus noise.

    Several values of the brightness alternate from image to image. The radius of the label is that of the disc plus
    `margin` pixels.
    """

    brightness: float | tuple[float, ...] = 0.0
    contrast: float = 1.0
    margin: float = 0.0
    train: int = 24


def discs(count: int, source: Source, rng: np.random.Generator) -> Split:
    """Images (N, 1, 24, 24) and labels (N, 1, 24, 24), 1 in the disc."""
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, radius = rng.uniform(8, SIDE - 9, (2, count, 1, 1)), rng.uniform(4, 6, (count, 1, 1))
    distance = np.hypot(y - centre[0], x - centre[1])
    brightness = np.resize(source.brightness, (count, 1, 1))
    images = brightness + source.contrast * (distance < radius) + rng.normal(0, 0.15, (count, SIDE, SIDE))
    labels = distance < radius + source.margin
    return as_split(images[:, None].astype(np.float32), labels[:, None].astype(np.uint8))


def convolutions(channels: int = 8, layers: int = 3, normalize: bool = True) -> nn.Module:
    """Convolutions with instance normalisation, which removes differences of brightness and contrast, or without."""
    parts: list[nn.Module] = []
    for number in range(layers):
        parts.append(nn.Conv2d(1 if number == 0 else channels, channels, 3, padding=1))
        parts += [nn.InstanceNorm2d(channels, affine=True)] if normalize else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.Conv2d(channels, 2, 1))


def disc_task(sources: Mapping[str, Source], outside: Sequence[str], seed: int, normalize: bool = True) -> Task:
    """A task with 24 training, 8 validation and 24 test images at each site; sites in `outside` only have the last."""
    rng = np.random.default_rng(seed)
    sites = {}
    for name, source in sources.items():
        counts = (0, 0, 24) if name in outside else (source.train, 8, 24)
        train, val, test = (discs(count, source, rng) for count in counts)
        sites[name] = Data(train=train, val=val, test=test, unlabelled=discs(0, source, rng))
    score = SegmentationScore(("background", "disc"), batch_size=BATCH)
    network = partial(convolutions, normalize=normalize)
    return build_task(sites, network, classes=2, batch_size=BATCH, outside=outside, score=score)
