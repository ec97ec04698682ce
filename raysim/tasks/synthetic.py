"""A segmentation task with any number of sites and nothing to download: organs drawn at random.

Every site has a scanner of its own. The organ is a textured blob among smooth ones, darker and brighter, so
brightness alone does not give it away.
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
from raysim.data.scanner_shift import ScannerShift, scanner
from raysim.data.table import site_faults
from raysim.tasks.augmentation import augmentation
from raysim.tasks.build_task import build_task
from raysim.tasks.losses import segmentation_loss
from raysim.tasks.segmentation_metrics import Metric, SegmentationScore

Array = np.ndarray[Any, np.dtype[Any]]
Side = Annotated[int, Ge(8)]
CLASSES = ("background", "organ")


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """How many sites and cases there are, and how much the scanners differ."""

    sites: Annotated[int, Gt(0), "number of inside sites"] = 6
    outside: Annotated[tuple[str, ...], "names of further sites, which are only judged"] = ("outside-1",)
    cases: Annotated[int, Gt(0), "training cases of each inside site"] = 24
    val: Annotated[int, Ge(0), "validation cases of each site"] = 4
    test: Annotated[int, Ge(0), "test cases of each site"] = 8
    unlabelled: Annotated[int, Ge(0), "cases without a label, of each inside site"] = 0
    size: Annotated[tuple[Side, ...], Len(2, 3), "voxels along each axis; two or three axes"] = (48, 48)
    channels: Annotated[int, Gt(0), "channels of an image"] = 1
    severity: Annotated[float, Ge(0), Le(1), "how much the scanners of the sites differ"] = 0.6
    seed: Annotated[int, Ge(0), "draws the data, apart from the run's seed"] = 0

    @property
    def inside(self) -> tuple[str, ...]:
        """The names of the inside sites, sorted."""
        width = max(2, len(str(self.sites)))
        return tuple(f"site-{number:0{width}}" for number in range(1, self.sites + 1))

    def counts(self, site: str) -> dict[str, int]:
        """How many cases the site has in each split."""
        trains = site not in self.outside
        return dict(zip(SPLITS, (self.cases * trains, self.val, self.test, self.unlabelled * trains), strict=True))


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Segmentation of a synthetic organ."""

    name: Literal["synthetic"] = "synthetic"
    data: Annotated[SyntheticData, "sites and cases"] = SyntheticData()
    network: Annotated[dict[str, Any], "a MONAI network by name, with its arguments"] = field(
        default_factory=lambda: {"name": "unet", "channels": (12, 24, 48), "num_res_units": 1}
    )
    loss: Annotated[dict[str, Any], "a MONAI loss by name, with its arguments"] = field(
        default_factory=lambda: {"name": "dice_ce"}
    )
    metrics: Annotated[tuple[Metric, ...], Len(1), "what is judged, the main one first"] = ("dice",)
    batch_size: Annotated[int, Gt(0), "examples in a batch"] = 4
    augment: Annotated[tuple[dict[str, Any], ...], "random MONAI transforms by name, with their arguments"] = ()

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task; the cases are drawn at the sites, when they are opened."""
        data, classes = self.data, len(CLASSES)
        clash = set(data.inside) & set(data.outside)
        if clash or len(set(data.outside)) < len(data.outside) or any(site_faults(data.outside)):
            raise ConfigError(
                f"task.data.outside is {list(data.outside)}: each outside site needs a name of its own, "
                f"of letters, digits, '_' and '-', other than {data.inside[0]} to {data.inside[-1]}"
            )
        return build_task(
            self,
            open=partial(draw, data),
            sizes={site: data.counts(site) for site in (*data.inside, *sorted(data.outside))},
            outside=data.outside,
            shape=(data.channels, *data.size),
            classes=classes,
            loss=segmentation_loss(self.loss),
            score=SegmentationScore(CLASSES, self.metrics, self.batch_size),
            augment=augmentation(self.augment, data.channels, data.size),
            per_voxel=True,
        )


def draw(data: SyntheticData, site: str) -> Data:
    """The cases of one site: the same whatever the number of sites and of cases in other splits."""
    # By number: the zeros in front of it depend on how many sites there are.
    key = site if site in data.outside else f"site-{int(site.rpartition('-')[2])}"
    machine = scanner(key, ScannerShift(severity=data.severity), data.seed, data.channels)
    splits = {}
    for split, count in data.counts(site).items():
        inputs, labels = phantoms(numpy_generator(data.seed, "synthetic", key, split), count, data)
        splits[split] = Split(
            inputs=machine(inputs, [f"{split}-{case}" for case in range(count)]),
            labels=None if split == "unlabelled" else labels,
            cases=np.arange(count),
            spacing=np.ones((count, len(data.size))),
            levels=heights(labels),
        )
    return Data(**splits)


def heights(labels: Array) -> Array:
    """1 to 4 for each of the masks (N, 1, *space): how high the organ lies, as if that were where a slice was taken."""
    mass = labels.sum(axis=tuple(range(3, labels.ndim)))[:, 0].astype(float)
    places = (np.arange(mass.shape[1]) + 0.5) / mass.shape[1]
    centre = (mass * places).sum(1) / np.maximum(mass.sum(1), 1)
    height: Array = np.digitize(centre, (0.4, 0.5, 0.6)).astype(np.int32) + 1
    return height


def phantoms(rng: np.random.Generator, count: int, data: SyntheticData) -> tuple[Array, Array]:
    """Images (N, C, *space) from about 0 to 1 and labels (N, 1, *space), 1 in the organ."""
    dims = len(data.size)
    grid = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in data.size), indexing="ij", sparse=True)
    centre = rng.uniform(-0.45, 0.45, (count, dims))
    lobe = centre + rng.normal(0, 0.15, (count, dims))
    organ = _ellipsoids(rng, grid, centre, 0.34) | _ellipsoids(rng, grid, lobe, 0.25)
    image = 0.3 + _along(rng.normal(0, 0.1, (count, dims)), grid)
    for brightness in (0.45, 0.5, 1.0):
        other = _ellipsoids(rng, grid, rng.uniform(-0.8, 0.8, (count, dims)), 0.25)
        image[other] = brightness
    direction = rng.standard_normal((count, dims))
    direction *= rng.uniform(20, 28, (count, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
    texture = np.sin(_along(direction, grid))
    image = np.where(organ, np.float32(0.72) + np.float32(0.12) * texture, image)
    fade = rng.uniform(0.7, 1, (count, data.channels, *[1] * dims)).astype(np.float32)
    return image[:, None] * fade, organ[:, None].astype(np.uint8)


def _ellipsoids(rng: np.random.Generator, grid: Sequence[Array], centre: Array, radius: float) -> Array:
    """Masks (N, *space) of one ellipsoid each, turned and stretched at random.

    `radius` is that of a disc, 1 being half the image; in 3-D it takes up about as much of the image.
    """
    count, dims = centre.shape
    turns, _ = np.linalg.qr(rng.standard_normal((count, dims, dims)))
    radii = radius ** (2 / dims) * rng.uniform(0.7, 1.4, (count, dims))
    away = np.zeros((count, *np.broadcast_shapes(*(axis.shape for axis in grid))), np.float32)
    for axis in range(dims):
        along = turns[:, axis] / radii[:, axis, None]
        away += _along(along, grid, -(along * centre).sum(1)) ** 2
    return away < 1


def _along(directions: Array, grid: Sequence[Array], start: Array | float = 0.0) -> Array:
    """How far each voxel lies along each direction (N, D), from `start`: (N, *space).

    Added up axis by axis, for the bits of a matrix product may depend on the number of threads.
    """
    each = (len(directions), *[1] * len(grid))
    total = np.broadcast_to(np.asarray(start, np.float32).reshape(-1, *each[1:]), each)
    for axis, places in enumerate(grid):
        total = total + directions[:, axis].astype(np.float32).reshape(each) * places
    return total
