"""Segmentation of pictures, of volumes, or of a volume's slices, listed in a table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Len

from raysim.data.sites import Sites, prepare, refuse, unlike
from raysim.data.wording import counted
from raysim.tasks.augment import augmentation
from raysim.tasks.metrics import Metric, SegmentationScore
from raysim.tasks.names import NetworkFactory, check_loss, check_network, loss, network
from raysim.tasks.segmentation_data import SegmentationData
from raysim.types import SPLITS, Progress, Task

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Segmentation of the images in a table."""

    name: Literal["segmentation"] = "segmentation"
    data: Annotated[SegmentationData, "images, sites and preparation"] = field(default_factory=SegmentationData)
    network: Annotated[dict[str, Any], "a MONAI network by name, with its arguments"] = field(
        default_factory=lambda: {"name": "unet"}
    )
    loss: Annotated[dict[str, Any], "a MONAI loss by name, with its arguments"] = field(
        default_factory=lambda: {"name": "dice_ce"}
    )
    metrics: Annotated[tuple[Metric, ...], Len(1), "what is judged, the main one first"] = ("dice",)
    batch_size: Annotated[int, Gt(0), "examples in a batch"] = 8
    augment: Annotated[tuple[dict[str, Any], ...], "random MONAI transforms by name, with their arguments"] = ()

    def build(self, progress: Progress | None = None) -> Task:
        """The task, with every site's data prepared; `progress(done, total)` is called after each case.

        Raises ConfigError for anything wrong in the configuration, the table or the images.
        """
        names = tuple(self.data.values())
        table = self.data.read()
        dims = self.data.dimensions(table)
        criterion, score = loss(self.loss), SegmentationScore(names, self.metrics, self.batch_size)
        self._factory(dims, 1, self.data.size or (1,) * dims)  # a wrong name must show before images are read
        opener = self.data.sites(table)
        arrays = prepare(opener, progress)
        _warn_of_cropping(opener, arrays)
        channels, *size = _common_shape(arrays)
        factory = self._factory(dims, channels, size)
        check_network(factory, channels, size, len(names))
        check_loss(criterion, len(names), size)
        return Task(
            name=self.name,
            inside=tuple(site for site in arrays if site not in self.data.outside),
            outside=tuple(site for site in arrays if site in self.data.outside),
            sizes={site: {split: len(of[f"{split}.inputs"]) for split in SPLITS} for site, of in arrays.items()},
            shape=(channels, *size),
            classes=len(names),
            open=opener,
            network=factory,
            loss=criterion,
            score=score,
            batch_size=self.batch_size,
            augment=augmentation(self.augment, channels, size),
        )

    def _factory(self, dims: int, channels: int, size: Sequence[int]) -> NetworkFactory:
        classes = len(self.data.classes)
        return network(self.network, spatial_dims=dims, in_channels=channels, out_channels=classes, size=size)


def _common_shape(arrays: Mapping[str, Mapping[str, Array]]) -> tuple[int, ...]:
    """(C, *space) of the examples of all sites."""
    shapes = {site: tuple(of["train.inputs"].shape[1:]) for site, of in arrays.items()}
    first, shape = next(iter(shapes.items()))
    refuse([unlike(f"site '{site}'", s, f"site '{first}'", shape) for site, s in shapes.items() if s != shape])
    return shape


def _warn_of_cropping(opener: Sites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    lost = {
        row.image: of for site in arrays for row, of in zip(opener.rows[site], arrays[site]["lost"], strict=True) if of
    }
    if lost:
        worst = max(lost, key=lambda image: lost[image])
        warnings.warn(
            f"task.data.size cuts labelled voxels off {counted(len(lost), 'image')}, at most {lost[worst]:.1%} "
            f"of {worst}; a larger task.data.size keeps them",
            stacklevel=3,
        )
