"""Segmentation of random synthetic organs, with any number of sites and no download.

Every site has a different scanner. The organ is a textured blob among smooth blobs, darker and brighter ones, so
brightness does not identify it. Torch and MONAI are imported when the task is built, so that `check` is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len

from raysim.core.contracts import SPLITS, Data, ProgressCallback, Split, Task
from raysim.core.errors import ConfigError
from raysim.core.seeding import numpy_generator
from raysim.data.scanner_shift import ScannerShift, make_scanner
from raysim.data.site_names import site_name_problems
from raysim.tasks.library_names import SEGMENTATION_LOSSES, check_loss_name, check_network_name
from raysim.tasks.network_keys import NetworkOption
from raysim.tasks.segmentation_metrics import SegmentationScore
from raysim.tasks.shared_keys import Augmentation, BatchSize, MetricNames

Array = np.ndarray[Any, np.dtype[Any]]
Side = Annotated[int, Ge(8)]
CLASSES = ("background", "organ")


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """The number of sites and cases, and how much the scanners differ."""

    sites: Annotated[int, Gt(0), "number of inside sites"] = 6
    outside: Annotated[tuple[str, ...], "names of the outside sites, which are only evaluated"] = ("outside-1",)
    cases: Annotated[int, Gt(0), "training cases of each inside site"] = 24
    val: Annotated[int, Ge(0), "validation cases of each site"] = 4
    test: Annotated[int, Ge(0), "test cases of each site"] = 8
    unlabelled: Annotated[int, Ge(0), "cases without a label at each inside site"] = 0
    size: Annotated[tuple[Side, ...], Len(2, 3), "voxels along each axis; two or three axes"] = (48, 48)
    channels: Annotated[int, Gt(0), "channels of an image"] = 1
    severity: Annotated[float, Ge(0), Le(1), "how much the scanners of the sites differ"] = 0.6
    seed: Annotated[int, Ge(0), "seed of the data, separate from the run's seed"] = 0

    @property
    def inside(self) -> tuple[str, ...]:
        """The names of the inside sites, sorted."""
        width = max(2, len(str(self.sites)))
        return tuple(f"site-{number:0{width}}" for number in range(1, self.sites + 1))

    def counts(self, site: str) -> dict[str, int]:
        """The number of cases of the site in each split."""
        trains = site not in self.outside
        return dict(zip(SPLITS, (self.cases * trains, self.val, self.test, self.unlabelled * trains), strict=True))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """The keys under `task` of the synthetic segmentation."""

    name: Literal["synthetic"] = "synthetic"
    data: Annotated[SyntheticData, "sites and cases"] = SyntheticData()
    network: NetworkOption = field(
        default_factory=lambda: {"name": "unet", "channels": (12, 24, 48), "num_res_units": 1}
    )
    loss: Annotated[dict[str, Any], "name of `raysim list losses` or module:Name, and its arguments"] = field(
        default_factory=lambda: {"name": "dice_ce"}
    )
    metrics: MetricNames = ("dice",)
    surface_tolerance_mm: Annotated[
        float, Ge(0), "mm: surface_dice counts the surface within this distance of the other surface"
    ] = 1.0
    batch_size: BatchSize = 4
    augment: Augmentation = ()

    def check(self) -> None:
        """Raises ConfigError for wrong names of outside sites and of metrics."""
        data = self.data
        clash = set(data.inside) & set(data.outside)
        if clash or len(set(data.outside)) < len(data.outside) or any(site_name_problems(data.outside)):
            raise ConfigError(
                f"task.data.outside={list(data.outside)}: expected a distinct name for each outside site, "
                f"of letters, digits, '_' and '-', and different from {data.inside[0]} to {data.inside[-1]}"
            )
        check_network_name(self.network)
        check_loss_name(self.loss, SEGMENTATION_LOSSES)
        self._score()

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task; the cases of a site are generated when it is opened."""
        from raysim.tasks.augmentation import make_augmentation
        from raysim.tasks.build_task import build_task
        from raysim.tasks.losses import make_segmentation_loss

        self.check()
        data = self.data
        return build_task(
            self,
            open=partial(draw_site, data),
            sizes={site: data.counts(site) for site in (*data.inside, *sorted(data.outside))},
            outside=data.outside,
            shape=(data.channels, *data.size),
            classes=len(CLASSES),
            loss=make_segmentation_loss(self.loss),
            score=self._score(),
            augment=make_augmentation(self.augment, data.channels, data.size),
            per_voxel=True,
            class_values={name: index for index, name in enumerate(CLASSES)},
        )

    def _score(self) -> SegmentationScore:
        return SegmentationScore(
            CLASSES,
            self.metrics,
            self.batch_size,
            dims=len(self.data.size),
            surface_tolerance_mm=self.surface_tolerance_mm,
        )


def draw_site(data: SyntheticData, site: str) -> Data:
    """The cases of one site; they do not depend on the number of sites or of cases in other splits."""
    # The key has the number of the site, because the leading zeros of its name depend on the number of sites.
    key = site if site in data.outside else f"site-{int(site.rpartition('-')[2])}"
    scanner = make_scanner(key, ScannerShift(severity=data.severity), data.seed, data.channels)
    splits = {}
    for split, count in data.counts(site).items():
        inputs, labels = phantoms(numpy_generator(data.seed, "synthetic", key, split), count, data)
        splits[split] = Split(
            inputs=scanner(inputs, [f"{split}-{case}" for case in range(count)]),
            labels=None if split == "unlabelled" else labels,
            cases=np.arange(count),
            spacing=np.ones((count, len(data.size))),
            levels=organ_levels(labels),
        )
    return Data(**splits)


def organ_levels(labels: Array) -> Array:
    """The level, 1 to 4, of each mask (N, 1, *space): the position of the organ's centre along the first axis."""
    mass = labels.sum(axis=tuple(range(3, labels.ndim)))[:, 0].astype(float)
    coordinates = (np.arange(mass.shape[1]) + 0.5) / mass.shape[1]
    centre = (mass * coordinates).sum(1) / np.maximum(mass.sum(1), 1)
    height: Array = np.digitize(centre, (0.4, 0.5, 0.6)).astype(np.int32) + 1
    return height


def phantoms(rng: np.random.Generator, count: int, data: SyntheticData) -> tuple[Array, Array]:
    """Images (N, C, *space) from about 0 to 1 and labels (N, 1, *space), 1 in the organ."""
    dims = len(data.size)
    grid = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in data.size), indexing="ij", sparse=True)
    centre = rng.uniform(-0.45, 0.45, (count, dims))
    lobe = centre + rng.normal(0, 0.15, (count, dims))
    organ = _ellipsoids(rng, grid, centre, 0.34) | _ellipsoids(rng, grid, lobe, 0.25)
    image = 0.3 + _project(rng.normal(0, 0.1, (count, dims)), grid)
    for brightness in (0.45, 0.5, 1.0):
        other = _ellipsoids(rng, grid, rng.uniform(-0.8, 0.8, (count, dims)), 0.25)
        image[other] = brightness
    direction = rng.standard_normal((count, dims))
    direction *= rng.uniform(20, 28, (count, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    texture = np.sin(_project(direction, grid))
    image = np.where(organ, np.float32(0.72) + np.float32(0.12) * texture, image)
    fade = rng.uniform(0.7, 1, (count, data.channels, *[1] * dims)).astype(np.float32)
    return image[:, None] * fade, organ[:, None].astype(np.uint8)


def _ellipsoids(rng: np.random.Generator, grid: Sequence[Array], centre: Array, radius: float) -> Array:
    """Masks (N, *space) of one ellipsoid each, randomly rotated and stretched.

    `radius` is the radius of a disc in 2-D, as a fraction of half the image. In 3-D the ellipsoid covers about the
    same fraction of the image as the disc.
    """
    count, dims = centre.shape
    rotations, _ = np.linalg.qr(rng.standard_normal((count, dims, dims)))
    radii = radius ** (2 / dims) * rng.uniform(0.7, 1.4, (count, dims))
    distance = np.zeros((count, *np.broadcast_shapes(*(axis.shape for axis in grid))), np.float32)
    for axis in range(dims):
        along = rotations[:, axis] / radii[:, axis, None]
        distance += _project(along, grid, -(along * centre).sum(1)) ** 2
    return distance < 1


def _project(directions: Array, grid: Sequence[Array], start: Array | float = 0.0) -> Array:
    """The coordinate of each voxel along each direction (N, D), plus `start`: (N, *space).

    The sum is computed axis by axis, because the rounding of a matrix product may depend on the number of threads.
    """
    shape = (len(directions), *[1] * len(grid))
    total = np.broadcast_to(np.asarray(start, np.float32).reshape(-1, *shape[1:]), shape)
    for axis, coordinates in enumerate(grid):
        total = total + directions[:, axis].astype(np.float32).reshape(shape) * coordinates
    return total
