"""Warnings about the patients of a table: in several splits, at several sites, or with nearly equal identifiers."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from raysim.core.formatting import join_names
from raysim.data.near_equal import near_equal_names
from raysim.data.patient_columns import patient_columns
from raysim.data.table import SPLITS


def patient_warnings(table: pd.DataFrame) -> Iterator[str]:
    """A warning for each kind of problem with the patients; none without a column of patients."""
    column = next(iter(patient_columns(map(str, table.columns))), None)
    if column is None:
        return
    rows = table[["site", "split"]].assign(patient=table[column].astype("string")).dropna(subset="patient")
    yield from _several_splits(rows, column)
    yield from _several_sites(rows, column)
    yield from _near_equal_patients(rows, column)


def _several_splits(rows: pd.DataFrame, column: str) -> Iterator[str]:
    """A warning about patients of one site in more than one of train, val and test."""
    splits = rows[rows["split"] != "unlabelled"].groupby(["site", "patient"])["split"].unique()
    leaking = splits[splits.map(len) > 1].reset_index().itertuples(index=False)
    leaks = [f"{patient} of {site} ({', '.join(sorted(found, key=SPLITS.index))})" for site, patient, found in leaking]
    if leaks:
        yield (
            f"patients (column '{column}') in more than one of train, val and test: {len(leaks)}, {join_names(leaks)}; "
            "keep each patient in one split, otherwise the scores are too high"
        )


def _several_sites(rows: pd.DataFrame, column: str) -> Iterator[str]:
    sites = rows.groupby("patient")["site"].unique()
    shared = [f"{patient} ({', '.join(sorted(found))})" for patient, found in sites[sites.map(len) > 1].items()]
    if shared:
        yield (
            f"patients (column '{column}') at more than one site: {len(shared)}, {join_names(shared)}; keep each "
            "patient at one site, otherwise the scores are too high. If each site has its own numbers, add the site "
            "to the identifiers"
        )


def _near_equal_patients(rows: pd.DataFrame, column: str) -> Iterator[str]:
    groups = [" and ".join(map(repr, group)) for group in near_equal_names(rows["patient"].unique())]
    if groups:
        yield (
            f"patients (column '{column}') with nearly equal identifiers, each used as a separate patient: "
            f"{join_names(groups)}; if they are one patient, use one spelling of its identifier"
        )
