"""Summarises a table and the files that it lists, and finds their problems (`raysim data describe`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import pandas as pd

from raysim.core.contracts import ProgressCallback
from raysim.data.column_types import to_numbers
from raysim.data.data_errors import channels_cure, summarize_notes
from raysim.data.dataset_summary import DatasetKind, DatasetSummary
from raysim.data.file_inspection import MAX_LABEL_VALUES, CaseInspection, ImageStatistics
from raysim.data.inspection_cache import inspect_cases
from raysim.data.label_classes import class_column_warning, class_names
from raysim.data.mask_colours import palette_conflicts
from raysim.data.near_equal import near_equal_names, near_equal_sites_warning
from raysim.data.patient_warnings import patient_warnings
from raysim.data.summary_tables import format_value
from raysim.data.table import labels_are_files, sort_rows
from raysim.data.tabular_features import FeatureSelection, reserved_columns
from raysim.data.tabular_sites import is_training_row

if TYPE_CHECKING:  # it imports torch, which a description without keys does not need
    from raysim.data.case_preparation import CasePreparation


def summarize(
    table: pd.DataFrame,
    preparation: CasePreparation | None = None,
    selection: FeatureSelection | None = None,
    outside: tuple[str, ...] = (),
    target: tuple[DatasetKind, tuple[str, ...]] | None = None,
    progress: ProgressCallback = lambda done, total: None,
) -> DatasetSummary:
    """The summary of a table from `read_table`; every image and mask is read once.

    With the `preparation` of a run, files are read and checked as in that run. `selection` and `outside` are the
    features and the outside sites of a run on the rows of a table; by default those of a run without these keys.
    `target` is multilabel or regression, with the columns of 0 and 1 or of the number. `progress(done, total)` is
    called after each case.

    If `read_table` had `check_files`, `needs_label` and `needs_image` set to False, missing and damaged files become
    lines of `problems` and raise no error.
    """
    table = sort_rows(table)
    kind, names = target or (dataset_kind(table) if selection is None else "tabular", ())
    inspections = _inspect_cases(table, kind, preparation, progress)
    cases = table[[name for name in ("site", "split", "image", "label") if name in table]]
    if inspections:
        columns = {
            field.name: [getattr(inspection.statistics, field.name, None) for inspection in inspections]
            for field in fields(ImageStatistics)
        }
        cases = cases.join(pd.DataFrame(columns, cases.index))
    labels = _labels(table, kind, names, inspections)
    selection = selection or FeatureSelection(None, (), reserved_columns(table), indicators=False)
    rows = table[is_training_row(table, outside)]
    numeric = selection.numeric_columns(table, rows) if kind == "tabular" else names if kind == "regression" else ()
    features = _feature_statistics(table, [name for name in numeric if name in table])
    problems = (
        *_table_problems(cases),
        *patient_warnings(table),
        *filter(None, [near_equal_sites_warning(table["site"].unique())]),
        *(_class_problems(table) if kind in ("classification", "tabular") else ()),
        *(problem for inspection in inspections for problem in inspection.problems),
        *_palette_problems(table, inspections),
        *_foreground_problems(table, inspections),
        *summarize_notes(note for inspection in inspections for note in inspection.notes),
        *_site_problems(labels, features),
        *(_feature_problems(table, rows, selection, numeric) if kind == "tabular" else ()),
    )
    return DatasetSummary(kind, cases, labels, features, problems)


def dataset_kind(table: pd.DataFrame) -> DatasetKind:
    """The kind of data that the table describes, from its columns and labels."""
    if "image" not in table:
        return "tabular"
    if table["label"].isna().all():
        return "unlabelled"
    return "segmentation" if labels_are_files(table) else "classification"


def _inspect_cases(
    table: pd.DataFrame, kind: DatasetKind, preparation: CasePreparation | None, progress: ProgressCallback
) -> list[CaseInspection]:
    """The inspection of each case, in the order of the table; empty without images."""
    if kind == "tabular":
        return []
    images = [None if pd.isna(path) else str(path) for path in table["image"]]
    masks = [None if pd.isna(path) or kind != "segmentation" else str(path) for path in table["label"]]
    return inspect_cases(list(zip(images, masks, strict=True)), preparation, progress)


def _palette_problems(table: pd.DataFrame, inspections: list[CaseInspection]) -> Iterator[str]:
    """A line for the first mask whose palette contradicts that of another mask, as in a run."""
    pairs = zip(table["label"], inspections, strict=True) if inspections else ()
    return palette_conflicts(
        {str(label): inspection.entries for label, inspection in pairs if inspection.entries is not None}
    )


def _foreground_problems(table: pd.DataFrame, inspections: list[CaseInspection]) -> Iterator[str]:
    """A line if the class without a value has another value in some masks than in others, which a run refuses."""
    pairs = zip(inspections, table["label"], strict=True) if inspections else ()
    files = {inspection.foreground: str(label) for inspection, label in pairs if inspection.foreground}
    if len(files) > 1:
        found = ", ".join(f"{value} in {files[value]}" for value in sorted(files))
        yield f"masks differ in the value of the foreground: {found}; give each value a class name in task.data.classes"


def _mask_value_counts(table: pd.DataFrame, inspections: list[CaseInspection]) -> pd.DataFrame:
    """The number of pixels of each mask value at each site."""
    found = [
        (site, value, count)
        for site, inspection in zip(table["site"], inspections, strict=True)
        for value, count in inspection.counts.items()
    ]
    pixels = pd.DataFrame(found, columns=["site", "value", "count"])
    return pixels.groupby(["site", "value"], as_index=False).sum()


def _labels(
    table: pd.DataFrame, kind: DatasetKind, columns: Sequence[str], inspections: list[CaseInspection]
) -> pd.DataFrame:
    """`DatasetSummary.labels` of this kind of data; empty for numbers."""
    if kind == "segmentation":
        return _mask_value_counts(table, inspections)
    if kind == "multilabel":
        found = [
            (site, name, int(cell in ("1", "1.0")))
            for name in columns
            for site, cell in zip(table["site"], table[name].str.strip().fillna(""), strict=True)
        ]
        return pd.DataFrame(found, columns=["site", "value", "count"]).groupby(["site", "value"], as_index=False).sum()
    return _class_counts(table[:0] if kind == "regression" else table)


def _class_counts(table: pd.DataFrame) -> pd.DataFrame:
    """The number of cases of each class at each site; empty if labels are measurements."""
    labels = table["label"].dropna()
    sizes = pd.to_numeric(labels, errors="coerce")
    values = labels.astype(str) if sizes.isna().any() else sizes.astype(float)
    values = class_names(table, values)
    if values.nunique() > MAX_LABEL_VALUES:
        values = values[:0]
    cases = pd.DataFrame({"site": table["site"][values.index], "value": values, "count": 1})
    return cases.groupby(["site", "value"], as_index=False).sum()


def _feature_statistics(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """For each site and each of these columns, the number of missing cells and the mean of the other cells."""
    found = [
        (site, name, len(part), int(part.isna().sum()), part.mean())
        for name in columns
        for site, part in to_numbers(table[name]).groupby(table["site"])
    ]
    return pd.DataFrame(found, columns=["site", "feature", "rows", "missing", "mean"])


def _feature_problems(
    table: pd.DataFrame, rows: pd.DataFrame, selection: FeatureSelection, numeric: Sequence[str]
) -> Iterator[str]:
    """The error of a run with these features; without an error, the warnings of the run."""
    refused = next(selection.problems(table, rows, numeric), None)
    yield from selection.notes(table, rows, numeric) if refused is None else [refused]


def _table_problems(cases: pd.DataFrame) -> Iterator[str]:
    labelled = cases[cases["split"] != "unlabelled"]
    if len(labelled) and labelled["label"].isna().all():
        yield "the label column is empty"
    else:
        for site, number in labelled["label"].isna().groupby(labelled["site"]).sum().items():
            if number:
                yield f"site {site}: rows of train, val or test without a label: {number}"
    if "channels" in cases:
        firsts = cases.dropna(subset="channels").groupby("channels")["image"].first()
        if len(firsts) > 1:
            found = ", ".join(f"{channels:.0f} in {image}" for channels, image in firsts.items())
            yield f"images differ in their number of channels: {found}; {channels_cure(map(int, firsts.index))}"


def _class_problems(table: pd.DataFrame) -> Iterator[str]:
    if warning := class_column_warning(table):
        yield warning
    for group in near_equal_names(map(str, table["label"].dropna().unique())):
        yield f"labels that seem to be one class: {' and '.join(map(repr, group))}; use one spelling for each class"


def _site_problems(labels: pd.DataFrame, features: pd.DataFrame) -> Iterator[str]:
    values = sorted(labels["value"].unique())
    for site, found in labels.groupby("site"):
        absent = [format_value(value) for value in values if value not in set(found["value"])]
        if absent:
            yield f"site {site}: label values that do not occur: {', '.join(absent[:MAX_LABEL_VALUES])}"
    empty = features[features["missing"] == features["rows"]]
    for site, found in empty.groupby("site"):
        yield f"site {site}: empty columns: {', '.join(found['feature'])}"
