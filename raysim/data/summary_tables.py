"""The tables of a data set's summary, for a terminal of 100 columns."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

MAX_VALUE_COLUMNS = 8  # label values with a separate column
MAX_SITE_COLUMNS = 6  # sites with a separate column
ALL_SITES = "all"  # title of the row for all sites
TableRow = dict[str, str]  # cells by column title


def format_value(value: object) -> str:
    """The text of a label value: `1` for 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def case_table(counts: pd.DataFrame) -> Table:
    """The number of cases of each site in each split."""
    return _make_table(
        [
            {"site": str(site), **{str(split): str(count) for split, count in row.items()}}
            for site, row in counts.iterrows()
        ]
    )


def image_table(images: pd.DataFrame) -> Table:
    """The size, spacing and channels of the images of each site."""
    rows = [
        {
            "site": str(site),
            "images": str(row["images"]),
            "shape": _format_range(row["shape_min"], row["shape_max"]),
            "spacing in mm": _format_range(row["spacing_min"], row["spacing_max"]),
            "channels": ", ".join(map(str, row["channels"])),
        }
        for site, row in images.iterrows()
    ]
    if not any(cells["spacing in mm"] for cells in rows):
        rows = [{name: cell for name, cell in cells.items() if name != "spacing in mm"} for cells in rows]
    return _make_table(rows)


def intensity_table(images: pd.DataFrame) -> Table:
    """The intensities of the images of each site."""
    titles = {"low": "lowest", "p1": "1 %", "mean": "mean", "p99": "99 %", "high": "highest"}
    return _make_table(
        [
            {"site": str(site), **{title: f"{row[name]:.4g}" for name, title in titles.items()}}
            for site, row in images.iterrows()
        ]
    )


def label_table(values: pd.DataFrame, form: str) -> Table:
    """The number or share of each label value at each site, in the format specification `form`."""
    rows = []
    for site, row in values.iterrows():
        cells = {
            "site": str(site),
            **{format_value(value): f"{cell:{form}}" for value, cell in row.iloc[:MAX_VALUE_COLUMNS].items()},
        }
        rows.append(
            cells | ({"others": f"{row.iloc[MAX_VALUE_COLUMNS:].sum():{form}}"} if len(row) > MAX_VALUE_COLUMNS else {})
        )
    return _make_table(rows)


def feature_table(features: pd.DataFrame) -> Table:
    """The mean of each feature and its fraction of missing cells: by site, or over all sites if there are many."""
    describe = _means_by_site if features["site"].nunique() <= MAX_SITE_COLUMNS else _summary_over_sites
    return _make_table(
        [{"feature": str(name), **describe(feature)} for name, feature in features.groupby("feature", sort=False)]
    )


def _means_by_site(feature: pd.DataFrame) -> TableRow:
    return {
        row["site"]: "-" if pd.isna(row["mean"]) else f"{row['mean']:.4g}{_format_missing(row['missing'], row['rows'])}"
        for _, row in feature.iterrows()
    }


def _summary_over_sites(feature: pd.DataFrame) -> TableRow:
    means = feature.set_index("site")["mean"].dropna()
    return {
        "lowest mean": f"{means.min():.4g} ({means.idxmin()})",
        "median": f"{means.median():.4g}",
        "highest mean": f"{means.max():.4g} ({means.idxmax()})",
        "missing": _format_missing(int(feature["missing"].sum()), int(feature["rows"].sum())).strip(" ()"),
    }


def _format_missing(missing: int, rows: int) -> str:
    """` (28%)`, at least `(<1%)`; empty if no cell is missing."""
    if not missing:
        return ""
    return f" ({missing / rows:.0%})" if missing / rows >= 0.01 else " (<1%)"


def _format_range(low: tuple[float, ...], high: tuple[float, ...]) -> str:
    """`35..43 x 40..59`."""
    ends = zip(map(_format_length, low), map(_format_length, high), strict=True)
    return " x ".join(a if a == b else f"{a}..{b}" for a, b in ends)


def _format_length(length: float) -> str:
    """A length with three significant digits; from 100 on, a whole number."""
    return f"{length:.0f}" if length >= 100 else f"{length:.3g}"


def _make_table(rows: list[TableRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for place, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="right" if place else "left")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells.values()), style="bold" if cells.get("site") == ALL_SITES else "")
    return table
