"""Reads all that a table names and says what is there and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pandas as pd

from raysim.data.column_types import no_numbers, numbers
from raysim.data.console_tables import shown
from raysim.data.dataset_summary import DatasetSummary, Kind
from raysim.data.file_inspection import FEW, FileFacts, Inspection, inspect_case
from raysim.data.label_classes import class_names
from raysim.data.partition import apply_partition
from raysim.data.table import GROUPS, in_order, labels_are_files

THREADS = 8


def summarize(table: pd.DataFrame) -> DatasetSummary:
    """What `table` holds; every image and mask is read once.

    Takes what `read_table` gives, best with `check_files`, `needs_label` and `needs_image` off: what is missing
    or damaged becomes a line of `problems` and stops nothing.
    """
    table = in_order(table)
    kind = _kind(table)
    looks = _looks(table, kind)
    cases = table[[name for name in ("site", "split", "image", "label") if name in table]]
    if looks:
        facts = {field.name: [getattr(seen.facts, field.name, None) for seen in looks] for field in fields(FileFacts)}
        cases = cases.join(pd.DataFrame(facts, cases.index))
    labels = _masks(table, looks) if kind == "segmentation" else _classes(table)
    features = _features(table if kind == "tabular" else table[["site"]])
    problems = (
        *_table_problems(cases),
        *filter(None, [apply_partition(table)]),
        *(problem for seen in looks for problem in seen.problems),
        *_site_problems(labels, features),
    )
    return DatasetSummary(kind, cases, labels, features, problems)


def _kind(table: pd.DataFrame) -> Kind:
    if "image" not in table:
        return "tabular"
    if table["label"].isna().all():
        return "unlabelled"
    return "segmentation" if labels_are_files(table) else "classification"


def _looks(table: pd.DataFrame, kind: Kind) -> list[Inspection]:
    """What reading each case gave, in the order of the table."""
    if kind == "tabular":
        return []
    images = [None if pd.isna(path) else str(path) for path in table["image"]]
    masks = [None if pd.isna(path) or kind != "segmentation" else str(path) for path in table["label"]]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(inspect_case, images, masks))


def _masks(table: pd.DataFrame, looks: list[Inspection]) -> pd.DataFrame:
    """The pixels of each value at each site."""
    found = [
        (site, value, count)
        for site, seen in zip(table["site"], looks, strict=True)
        for value, count in seen.counts.items()
    ]
    pixels = pd.DataFrame(found, columns=["site", "value", "count"])
    return pixels.groupby(["site", "value"], as_index=False).sum()


def _classes(table: pd.DataFrame) -> pd.DataFrame:
    """The cases of each class at each site; none where labels are measurements."""
    labels = table["label"].dropna()
    sizes = pd.to_numeric(labels, errors="coerce")
    values = labels.astype(str) if sizes.isna().any() else sizes.astype(float)
    values = class_names(table, values)
    if values.nunique() > FEW:
        values = values[:0]
    cases = pd.DataFrame({"site": table["site"][values.index], "value": values, "count": 1})
    return cases.groupby(["site", "value"], as_index=False).sum()


def _features(table: pd.DataFrame) -> pd.DataFrame:
    """How many cells of each column of numbers are missing at each site, and the mean of the others."""
    found = []
    for name in table.columns.difference(["site", "split", "label", *GROUPS], sort=False):
        values = numbers(table[name])
        if values.notna().any() and not no_numbers(table[name]):
            found += [
                (site, str(name), len(part), int(part.isna().sum()), part.mean())
                for site, part in values.groupby(table["site"])
            ]
    return pd.DataFrame(found, columns=["site", "feature", "rows", "missing", "mean"])


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
            yield f"images differ in channels: {', '.join(f'{c:.0f} in {image}' for c, image in firsts.items())}"


def _site_problems(labels: pd.DataFrame, features: pd.DataFrame) -> Iterator[str]:
    values = sorted(labels["value"].unique())
    for site, found in labels.groupby("site"):
        absent = [shown(value) for value in values if value not in set(found["value"])]
        if absent:
            yield f"site {site}: no label is {', '.join(absent[:FEW])}"
    empty = features[features["missing"] == features["rows"]]
    for site, found in empty.groupby("site"):
        yield f"site {site}: nothing in {', '.join(found['feature'])}"
