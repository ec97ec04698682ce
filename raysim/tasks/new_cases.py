"""Prepares new cases for a trained network as in the run: images of a folder, or rows of a table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.contracts import ProgressCallback, Task
from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.targets import Target
from raysim.data.file_paths import join_path
from raysim.data.file_roles import masks_beside_images
from raysim.data.image_files import is_image
from raysim.data.image_formats import IMAGE_SUFFIX, is_nifti, is_volume
from raysim.data.label_classes import encode_labels, resolve_classes
from raysim.data.label_columns import Label, case_label, decode_labels, number_label, several_labels
from raysim.data.scanner_shift import ScannerShift
from raysim.data.table import read_table
from raysim.tasks.classification import Classification
from raysim.tasks.image_config import ImageData
from raysim.tasks.multilabel import MultiLabel
from raysim.tasks.regression import Regression
from raysim.tasks.segmentation import Segmentation
from raysim.tasks.table_config import ANOTHER_TABLE
from raysim.tasks.tabular import Tabular

Classes = Mapping[str, int | str]  # the value of each class, as in Task.class_values


@dataclass(frozen=True)
class TrainedTask:
    """The task of a finished run: its configuration, the shape of an example, and the value of each class."""

    config: Any
    shape: tuple[int, ...]
    classes: Classes


@dataclass(frozen=True)
class NewCases:
    """Cases in the order of their prepared examples.

    task: has one site, with all cases in its split `test`; cases may have labels.
    images: the file of each case; None for rows of a table.
    names: for each case the path of its image relative to the common folder, or the number of its row.
    labels: for each case the mask, its label, or None.
    """

    task: Task
    images: Sequence[str | None]
    names: Sequence[str]
    labels: Sequence[str | Label | None]


def prepare_new_cases(
    trained: TrainedTask, source: str, site: str, *, scanner: bool, progress: ProgressCallback | None = None
) -> NewCases:
    """The cases in `source`, a folder of images or a table, as cases of `site`.

    With `scanner`, the simulated scanner of the site is applied, if the run has simulated scanners. Raises ConfigError
    for cases that cannot be prepared as in the run, and for a task without images or rows.
    """
    config = trained.config
    if isinstance(config, Tabular):
        return _tabular_cases(trained, config, source, site)
    if not isinstance(config, Segmentation | Classification | MultiLabel | Regression):
        name = getattr(config, "name", type(config).__name__)
        raise ConfigError(
            f"the task of the run, {name}, has no images; prediction needs a run with task=segmentation, "
            "classification, multilabel, regression or tabular"
        )
    of_masks = isinstance(config, Segmentation)
    classes = {name: str(value) for name, value in trained.classes.items()}
    table = _image_rows(source, of_masks, classes, config.data)
    labels = _labels(config, table, classes, source)
    _check_dimensions(table["image"].iloc[0], trained, slices=config.data.slices)
    changed: dict[str, Any] = {"outside": (), "shift": config.data.shift if scanner else ScannerShift()}
    changed |= {"classes": classes} if isinstance(config, Classification) else {}
    # Masks are read with their images, so that a wrong one is reported before anything is predicted.
    rows = table.assign(site=site, split="test", label=table["label"] if of_masks else _no_labels(table))
    data: Any = replace(config.data, **changed)
    task = replace(config, data=data).build(progress, rows)
    _check_shape(task, trained, table["image"].iloc[0])
    images = [str(image) for image in table["image"]]
    return NewCases(task, images, relative_names(images), [case_label(each) for each in labels])


def _labels(config: Any, table: pd.DataFrame, classes: Mapping[str, str], source: str) -> pd.Series:
    """The masks of the cases, or their labels; all NA for a table without the columns of the labels."""
    if isinstance(config, Classification):
        return _class_indices(table, classes, source)
    if isinstance(config, MultiLabel) and not set(table.columns).isdisjoint(config.data.labels):
        return decode_labels(several_labels(table, config.data.labels, source, needed=False), Target.LABELS)["label"]
    if isinstance(config, Regression) and config.data.target in table:
        return decode_labels(number_label(table, config.data.target, source, needed=False), Target.NUMBER)["label"]
    return table["label"] if isinstance(config, Segmentation) else _no_labels(table)


def _image_rows(source: str, of_masks: bool, classes: Mapping[str, str], data: ImageData) -> pd.DataFrame:
    """The cases of a folder or a table, sorted by image, with absolute paths."""
    if "://" not in source and Path(source).expanduser().is_dir():
        if len(data.image_columns) > 1:
            raise ConfigError(
                f"--images {source}: a case of the run has {len(data.image_columns)} images, which a folder does not "
                f"assign to cases; give a table with the columns {', '.join(data.image_columns)}"
            )
        folder = Path(source).expanduser().absolute()
        if is_image(str(folder)):  # the slices of a DICOM series
            return pd.DataFrame({"image": [str(folder)], "label": pd.NA}, dtype="string")
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and is_image(str(path)))
        if masks := masks_beside_images(names):
            left_out = f"{pluralize(len(masks), 'file')} that seem to be masks of other files, such as {masks[0]}"
            warnings.warn(f"left out: {left_out}; to predict them, name them in a table", stacklevel=2)
        files = [str(folder / name) for name in names if name not in masks]
        if not files:
            raise ConfigError(
                f"--images {source}: the folder has no image; give a table, or a folder that contains images (NIfTI, "
                "PNG, JPEG, TIFF, ...) or folders of DICOM series; other subfolders are not read"
            )
        return pd.DataFrame({"image": files, "label": pd.NA}, dtype="string")
    names = [*classes, *classes.values()]
    options = data.image_options()
    table = read_table(
        source, needs_label=False, label_files=of_masks, classes=names, absent=_absent(), in_order=True, **options
    )
    return table.sort_values("image")


def _absent() -> dict[str, str]:
    """The columns that may be absent from a table of new cases."""
    return {"site": "new", "split": "test"}


def _no_labels(table: pd.DataFrame) -> pd.Series:
    return pd.Series(pd.NA, table.index, dtype="string")


def _class_indices(table: pd.DataFrame, classes: Mapping[str, str], source: str) -> pd.Series:
    return encode_labels(table, resolve_classes(table, dict(classes), source))["label"].astype("object")


def _check_dimensions(image: str, trained: TrainedTask, *, slices: bool) -> None:
    """Raises ConfigError for a picture and a run on volumes, or the reverse."""
    volumes = len(trained.shape) == 4 or slices
    if is_volume(image) != volumes:
        found, expected = ("a volume", "pictures") if is_volume(image) else ("a picture", "volumes")
        raise ConfigError(f"{image} is {found}, but the run was trained on {expected}; give {expected}")


def _check_shape(task: Task, trained: TrainedTask, image: str) -> None:
    if task.shape != trained.shape:
        raise ConfigError(
            f"{image}: the prepared image has the shape {task.shape}, but the network was trained on {trained.shape} "
            "(channels and size); give images with the same channels and size as in the run"
        )


def _tabular_cases(trained: TrainedTask, config: Tabular, source: str, site: str) -> NewCases:
    if Path(source).expanduser().is_dir():
        raise ConfigError(f"--images {source} is a folder, but the run was trained on rows of a table; give a table")
    classes = {name: str(value) for name, value in trained.classes.items()}
    table = read_table(
        source,
        needs_label=False,
        needs_image=False,
        check_files=False,
        label_files=False,
        classes=[*classes, *classes.values()],
        absent=_absent(),
        in_order=True,
    )
    labels = _class_indices(table, classes, source)
    rows = table.assign(site=site, split="test", label=_no_labels(table))
    path = join_path(os.getcwd(), os.path.expanduser(source))
    data = replace(config.data, table=path, **ANOTHER_TABLE)
    task = replace(config, data=data).build(rows=rows, reference=config.data)
    return NewCases(
        task,
        [None] * len(table),
        [str(line) for line in table.index],
        [None if pd.isna(label) else label for label in labels],
    )


def relative_names(images: Sequence[str]) -> list[str]:
    """Each path or URL relative to the folder that contains all of them."""
    paths = [path.partition("::")[0].rpartition("://")[2] for path in images]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [path.removeprefix(shared).lstrip("/") for path in paths]


def target_files(cases: NewCases) -> list[str]:
    """The file of each predicted mask, relative to the output folder. Raises ConfigError if two are the same."""
    targets = [_target(name, str(image)) for name, image in zip(cases.names, cases.images, strict=True)]
    for problem in _target_problems(cases.names, targets):
        raise ConfigError(problem)
    return targets


def _target(name: str, image: str) -> str:
    """A NIfTI file for a volume, with the name of the image if it is NIfTI too; else a PNG file."""
    if is_nifti(name):
        return name
    return f"{IMAGE_SUFFIX.sub('', name.rstrip('/'))}{'.nii.gz' if is_volume(image) else '.png'}"


def _target_problems(names: Sequence[str], targets: Sequence[str]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, target in zip(names, targets, strict=True):
        if ".." in target.split("/"):
            yield f"{name}: its mask would be outside the output folder; use paths without '..'"
        if first.setdefault(target, name) != name:
            yield f"the masks of {join_names([first[target], name])} would both be {target}; rename one of the images"
