"""Writes pictures/: pictures of cases with the outlines of label and prediction, and a summary of the data by site."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from raysim.core.atomic_io import replacing, write_json
from raysim.core.contracts import Array, Task
from raysim.core.results import role_of
from raysim.storage.case_table import case_names

PICTURES, PICTURES_FILE = "pictures", "pictures.json"
SIDE, WIDTH = 320, 2  # pixels of the longer side of a picture, and of an outline
LABEL, PREDICTION, BOTH = (60, 190, 255), (255, 140, 0), (255, 255, 255)  # colours of the outlines
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Chosen:
    """The cases of a site that are shown: by rank (best, median, worst) the number and the value of `metric`."""

    split: str
    metric: str
    ranks: Mapping[str, tuple[int, float]]

    @property
    def cases(self) -> list[int]:
        """The numbers of the cases."""
        return [case for case, _ in self.ranks.values()]


@dataclass(frozen=True)
class CasePicture:
    """A slice of a case. image: (H, W) or (H, W, 3), 0 to 255. label, prediction: (H, W) class indices; all uint8.

    aspect: height of a pixel / its width.
    """

    image: Array
    label: Array
    prediction: Array
    aspect: float = 1.0


@dataclass(frozen=True)
class SplitSummary:
    """Numbers of cases and examples, mean and standard deviation of the prepared inputs, and shares of the classes.

    shares: of the pixels of masks, otherwise of the examples; empty without labels.
    """

    cases: int
    examples: int
    mean: float
    deviation: float
    shares: tuple[float, ...] = ()


def write_pictures(
    directory: Path,
    task: Task,
    sites: Iterable[tuple[str, tuple[CasePicture, ...], Mapping[str, SplitSummary]]],
    chosen: Mapping[str, Chosen],
    *,
    anonymous: bool = False,
) -> None:
    """Replace pictures/ of the run in `directory`: a JPEG file for each picture, and pictures.json.

    sites: each site with its pictures, in the order of `chosen`, and the summaries of its splits.
    anonymous: replace the names of cases as in cases.parquet. The pictures still show the images.
    """
    folder = directory / PICTURES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries, data = list[dict[str, object]](), dict[str, dict[str, object]]()
    for site, pictures, summaries in sites:
        role = role_of(site, task.inside)
        data[site] = {"role": role, "splits": {split: asdict(summary) for split, summary in summaries.items()}}
        if not pictures:
            continue
        of = chosen[site]
        names = case_names(task, site, of.split, of.cases, anonymous=anonymous)
        for picture, name, (rank, (case, value)) in zip(pictures, names, of.ranks.items(), strict=True):
            file = f"{site}_{rank}.jpg"
            with replacing(folder / file) as partial:
                draw(picture).save(partial, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            about = {"site": site, "role": role, "split": of.split, "rank": rank, "case": case, "image": name.image}
            entries.append(about | {"metric": of.metric, "value": value, "file": file})
    write_json(folder / PICTURES_FILE, {"pictures": entries, "data": data, "classes": list(task.class_values)})


def draw(picture: CasePicture) -> Image.Image:
    """The image with the outlines of label and prediction, its longer side SIDE pixels."""
    height, width = picture.image.shape[0] * picture.aspect, float(picture.image.shape[1])
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture.image).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    label, prediction = (
        _outline(np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)))
        for mask in (picture.label, picture.prediction)
    )
    pixels = np.array(image)
    pixels[label], pixels[prediction], pixels[label & prediction] = LABEL, PREDICTION, BOTH
    return Image.fromarray(pixels)


def _outline(classes: Array) -> Array:
    """The pixels of classes other than 0 that are at most WIDTH pixels from another class, as booleans."""
    from scipy.ndimage import binary_dilation  # here, because the server imports this module at the start of a run

    padded = np.pad(classes, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (classes > 0) & np.any([classes != each for each in neighbours], axis=0)
    outline: Array = binary_dilation(edge, iterations=WIDTH - 1) & (classes > 0)
    return outline
