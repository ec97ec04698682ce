"""The frames of a description as tables for a terminal of 100 columns."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

WIDE = 8  # columns of values that fit beside the first
FEW_SITES = 6  # sites that fit beside one another
ALL = "all"  # the row over all sites
Line = dict[str, str]  # cells by column


def shown(value: object) -> str:
    """A label's value as people write it: `1` for 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def case_table(counts: pd.DataFrame) -> Table:
    """How many cases each site has in each split."""
    return _table(
        [
            {"site": str(site), **{str(split): str(count) for split, count in row.items()}}
            for site, row in counts.iterrows()
        ]
    )


def image_table(images: pd.DataFrame) -> Table:
    """How large the images of each site are."""
    lines = [
        {
            "site": str(site),
            "images": str(row["images"]),
            "shape": _span(row["shape_min"], row["shape_max"]),
            "spacing in mm": _span(row["spacing_min"], row["spacing_max"]),
            "channels": ", ".join(map(str, row["channels"])),
        }
        for site, row in images.iterrows()
    ]
    if not any(line["spacing in mm"] for line in lines):
        lines = [{name: cell for name, cell in line.items() if name != "spacing in mm"} for line in lines]
    return _table(lines)


def intensity_table(images: pd.DataFrame) -> Table:
    """How bright the images of each site are."""
    titles = {"low": "lowest", "p1": "1 %", "mean": "mean", "p99": "99 %", "high": "highest"}
    return _table(
        [
            {"site": str(site), **{title: f"{row[name]:.4g}" for name, title in titles.items()}}
            for site, row in images.iterrows()
        ]
    )


def label_table(values: pd.DataFrame, form: str) -> Table:
    """What each label value has at each site, each number in the given form."""
    lines = []
    for site, row in values.iterrows():
        line = {"site": str(site), **{shown(value): f"{cell:{form}}" for value, cell in row.iloc[:WIDE].items()}}
        lines.append(line | ({"others": f"{row.iloc[WIDE:].sum():{form}}"} if len(row) > WIDE else {}))
    return _table(lines)


def feature_table(features: pd.DataFrame) -> Table:
    """The mean of each feature and the part of its cells that is missing, at each site or over many."""
    of = _by_site if features["site"].nunique() <= FEW_SITES else _over_sites
    return _table([{"feature": str(name), **of(feature)} for name, feature in features.groupby("feature", sort=False)])


def _by_site(feature: pd.DataFrame) -> Line:
    return {
        row["site"]: "-" if pd.isna(row["mean"]) else f"{row['mean']:.4g}{_missing(row['missing'], row['rows'])}"
        for _, row in feature.iterrows()
    }


def _over_sites(feature: pd.DataFrame) -> Line:
    means = feature.set_index("site")["mean"].dropna()
    return {
        "lowest mean": f"{means.min():.4g} ({means.idxmin()})",
        "median": f"{means.median():.4g}",
        "highest mean": f"{means.max():.4g} ({means.idxmax()})",
        "missing": _missing(int(feature["missing"].sum()), int(feature["rows"].sum())).strip(" ()"),
    }


def _missing(missing: int, rows: int) -> str:
    """` (28%)`, never rounded to nothing; empty where all is there."""
    if not missing:
        return ""
    return f" ({missing / rows:.0%})" if missing / rows >= 0.01 else " (<1%)"


def _span(low: tuple[float, ...], high: tuple[float, ...]) -> str:
    """`35..43 x 40..59`."""
    ends = zip(map(_short, low), map(_short, high), strict=True)
    return " x ".join(a if a == b else f"{a}..{b}" for a, b in ends)


def _short(length: float) -> str:
    """Voxels whole, millimetres to three digits."""
    return f"{length:.0f}" if length >= 100 else f"{length:.3g}"


def _table(lines: list[Line]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for place, name in enumerate(lines[0]):
        table.add_column(Text(name), justify="right" if place else "left")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line.values()), style="bold" if line.get("site") == ALL else "")
    return table
