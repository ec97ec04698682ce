"""The `raysim run` command that fits a table of images: the sizes of the images and the values of the masks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import format_argument
from raysim.data.file_inspection import MAX_LABEL_VALUES
from raysim.data.image_formats import is_nifti
from raysim.data.image_reader import read_image
from raysim.data.mask_values import fitting_classes, format_classes
from raysim.data.nifti_format import check_header
from raysim.data.picture_formats import FORMATS
from raysim.data.table import read_table
from raysim.data.volume_formats import decoder

MAX_FILES = 1000  # images, and masks, that are opened
STEP = 16  # sizes are multiples of it, because the default networks halve images several times
SMALLEST = 32
READER_THREADS = 8
IGNORE = "ignore"  # name of nnU-Net for the value of voxels without a label


def run_command(
    path: str, task: str, names: Mapping[str, int], columns: Sequence[str] = ("image",), labels: Sequence[str] = ()
) -> str:
    """The command that trains on the table at `path`, quoted for a shell; `names` are known names of mask values,
    `columns` those of the images of a case, and `labels` those of several labels.

    Raises ConfigError for a table or a file that cannot be used, and for masks that have no classes.
    """
    table = read_table(path, needs_label=not labels, label_files=task == "segmentation")
    command = ["raysim", "run", f"task={task}", f"task.data.table={path}"]
    arguments = [*_class_arguments(table["label"].dropna().tolist(), names)] if task == "segmentation" else []
    with ThreadPoolExecutor(READER_THREADS) as pool:
        shapes = list(pool.map(_shape, table["image"].tolist()[:MAX_FILES]))
    arguments += [format_argument("task.data.labels", list(labels))] if labels else []
    if len(columns) > 1:
        arguments.append(shlex.quote(f"task.data.image_columns=[{','.join(columns)}]"))
    size = _common_size(shapes)
    arguments += [] if size is None else [shlex.quote(f"task.data.size=[{','.join(map(str, size))}]")]
    return " ".join([shlex.join(command), *arguments])


def _class_arguments(masks: Sequence[str], names: Mapping[str, int]) -> Iterator[str]:
    """`task.data.classes=...` if the masks have other values than 0 and one more, or if their values have `names`."""

    def values(mask: str) -> set[float]:
        found = np.unique(read_image(mask, mask=True).array)
        if len(found) > MAX_LABEL_VALUES or (found % 1).any():
            raise ConfigError(
                f"{mask}: has {len(found)} values, such as {found[1]:g}; masks need at most {MAX_LABEL_VALUES} "
                "values, all whole numbers; JPEG compression and interpolation add others"
            )
        return set(found.tolist())

    with ThreadPoolExecutor(READER_THREADS) as pool:
        found = set[float]().union(*pool.map(values, masks[:MAX_FILES]))
    named = {name: value for name, value in names.items() if value in found | {0.0} and name != IGNORE}
    ignored = {float(value) for name, value in names.items() if name == IGNORE} & found
    if 0 in named.values() and len(named) > 1 and found <= {*named.values()} | ignored:
        yield format_argument("task.data.classes", dict(sorted(named.items(), key=lambda pair: pair[1])))
        yield from (f"task.data.ignore={value:.0f}" for value in ignored)
    elif len(found | {0.0}) > 2 or min(found, default=0) < 0:
        yield format_classes(fitting_classes({"background": 0, "foreground": None}, found))


def _shape(path: str) -> tuple[int, ...]:
    """The number of pixels or voxels along each axis, from the header of the file."""
    try:
        if is_nifti(path):
            return _volume_shape(path)
        return read_image(path).space if decoder(path) else _picture_shape(path)
    except Exception as reason:  # a damaged file may raise any error
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(reason).split())}") from reason


def _picture_shape(path: str) -> tuple[int, ...]:
    from PIL import Image

    with Image.open(path, formats=FORMATS) as picture:
        turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return picture.size if turned else picture.size[::-1]


def _volume_shape(path: str) -> tuple[int, ...]:
    import nibabel

    check_header(path)
    volume: Any = nibabel.load(path)
    axes = nibabel.io_orientation(volume.affine)[:, 0].astype(int)
    return tuple(int(volume.shape[list(axes).index(axis)]) for axis in range(3))


def _common_size(shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    """The median shape in multiples of STEP; None if all images have that shape."""
    if len({len(shape) for shape in shapes}) > 1:
        raise ConfigError("some images are pictures and others are volumes; write a table for each kind")
    median = np.median(np.array(shapes), axis=0)
    size = [max(SMALLEST, STEP * round(float(length) / STEP)) for length in median]
    return None if set(shapes) == {tuple(size)} else size
