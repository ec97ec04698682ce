"""A CSV file of a challenge with the class of each image, and a folder with the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.data.bids_layout import SITE_COLUMNS
from raysim.data.folder_layouts import ScannedCase
from raysim.data.image_files import is_image
from raysim.data.image_formats import IMAGE_SUFFIX
from raysim.data.label_columns import YES_NO
from raysim.data.patient_columns import patient_columns
from raysim.data.table_file import load_table

CLASS_COLUMNS = ("label", "class", "target", "diagnosis", "dx", "level", "grade", "category")
MIN_FOUND = 0.5  # of the cells of a column of images that name a file


def find_challenge_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The rows of a CSV file in `root` whose cells name images in `root` or below; none without such a file.

    Their labels are a column of classes, or several columns of 0 and 1. If each row has exactly one 1 in these columns,
    they are classes. Raises ConfigError for several such files, and if no columns are labels.
    """
    files = [path for path in sorted(root.glob("*.csv")) if path.name != "table.csv"]
    if not files:
        return []
    images: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if not path.name.startswith(".") and not path.is_dir() and is_image(str(path)):
            images |= {path.name: path, IMAGE_SUFFIX.sub("", path.name): path}
    tables = {path: table for path in files if (table := _read(path)) is not None}
    named = {path: column for path, table in tables.items() if (column := _image_column(table, images))}
    if not named:
        return []
    if len(named) > 1:
        raise ConfigError(f"{root} has several tables of images: {join_names([path.name for path in named])}; keep one")
    ((path, column),) = named.items()
    return _cases(root, path, tables[path], column, images, notes)


def _read(path: Path) -> pd.DataFrame | None:
    try:
        return load_table(str(path))
    except ConfigError:  # not a table of images
        return None


def _image_column(table: pd.DataFrame, images: Mapping[str, Path]) -> str | None:
    """The first column of which most cells name an image."""
    for name in table:
        cells = table[name].dropna().map(_file_name)
        if len(cells) and cells.isin(list(images)).mean() >= MIN_FOUND:
            return str(name)
    return None


def _file_name(cell: object) -> str:
    return str(cell).strip().rpartition("/")[2]


def _cases(
    root: Path, path: Path, table: pd.DataFrame, column: str, images: Mapping[str, Path], notes: list[str]
) -> list[ScannedCase]:
    patients = [name for name in patient_columns(map(str, table.columns)) if name != column]
    site = next((name for name in table if str(name).lower() in SITE_COLUMNS), None)
    files = table[column].map(lambda cell: images.get(_file_name(cell)), na_action="ignore")
    rows = table.assign(file=files, site_name=table[site] if site else root.name).dropna(subset=["file"])
    if absent := len(table) - len(rows):
        notes.append(f"rows of {path.name} without an image, left out: {absent}")
    names = _label_columns(path, rows, {column, site, "file", "site_name", *patients})
    labels = rows[names].dropna().apply(lambda cells: cells.str.strip())
    if unlabelled := len(rows) - len(labels):
        notes.append(f"rows of {path.name} without a label, left out: {unlabelled}")
    kind = "classes" if len(names) == 1 else "labels"
    if len(names) > 1 and ((values := labels.map(YES_NO.get).astype(int)).sum(axis=1) == 1).all():
        labels, kind = values.idxmax(axis=1).to_frame(), "classes, one in each row,"
    notes.append(
        f"images are those of column {column} of {path.name}, and {kind} those of column{'s' * (len(names) > 1)} "
        f"{', '.join(names)}"
    )
    return [
        ScannedCase(
            str(row["site_name"]).strip(),
            row["file"],
            patient=str(row[patients[0]]) if patients and pd.notna(row[patients[0]]) else None,
            **{"label": None, **label},
        )
        for row, label in zip(rows.loc[labels.index].to_dict("records"), _labels(labels), strict=True)
    ]


def _labels(labels: pd.DataFrame) -> list[dict[str, Any]]:
    """The fields of each ScannedCase with its class, or with its several labels."""
    if labels.shape[1] > 1:
        return [{"labels": row} for row in labels.map(YES_NO.get).astype(int).to_dict("records")]
    cells = labels.iloc[:, 0].astype(str)
    classes = sorted(cells.unique())
    return [{"label": classes.index(cell), "class_name": cell} for cell in cells]


def _label_columns(path: Path, table: pd.DataFrame, others: set[object]) -> list[str]:
    """The column of classes, by its name or because there is no other, or several columns that have only 0 and 1."""
    names = [str(name) for name in table if name not in others]
    known = [name for name in names if name.lower() in CLASS_COLUMNS]
    found = known or names
    if len(found) == 1:
        return found
    cells = {name: table[name].dropna().str.strip() for name in names}
    binary = [name for name in names if len(cells[name]) and cells[name].isin(list(YES_NO)).all()]
    if known or len(binary) < 2:
        raise ConfigError(
            f"{path} has no column that is certainly the class of an image; its columns are {join_names(names)}. "
            "Rename the column of the classes to label; several labels need a column of 0 and 1 each"
        )
    return binary
