"""Writes the table of a public data set from the files of its owners (`raysim data make`)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.atomic_io import write_json
from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.partition import assign_splits
from raysim.data.scan import check_formulas, relative_path
from raysim.data.table import sort_rows

Cases = Iterable[Mapping[str, Any]]  # a row of the table each; paths are absolute


@dataclass(frozen=True)
class Recipe:
    """How the table of a public data set is made. The data belong to their owners and are not part of raysim.

    `cases(source, out)` yields the rows: `site`, `label`, `patient`, and `image` or features; a row with `split` keeps
    it. Files that have to be converted are written to the folder `out`. `sites` has the number of rows of each site
    in the complete data set, as published; a site that is not in it is not checked. `checksums` maps the name of a file
    to `md5:...` or `sha256:...`.
    """

    title: str
    task: str
    layout: str
    url: str
    licence: str
    citation: str
    cases: Callable[[Path, Path], Cases]
    classes: Mapping[str, int] = field(default_factory=dict)
    sites: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)


def make_dataset(
    name: str, recipe: Recipe, source: Path, out: Path, fractions: Sequence[float], seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The table, and notes about files that are missing. Writes the new folder `out`: table.csv, dataset.json and
    converted files. Images that need no conversion stay where they are; the table has their paths relative to `out`.

    `fractions` are those of train, val and test at each site, by patient. Where the owners have published test cases,
    these stay the test split, and the others are divided into train and val. Raises ConfigError, and writes nothing, if
    `out` exists, if `source` does not have the layout, or if a file has another checksum.
    """
    source, out = (Path(os.path.abspath(os.path.expanduser(path))) for path in (source, out))
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder; it must contain {recipe.layout}. Download: {recipe.url}")
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists and is never overwritten; remove it, or choose another --out")
    if not out.parent.is_dir():
        raise ConfigError(f"{out} cannot be created, because {out.parent} is not a folder; choose another --out")
    checked = _check_files(source, recipe.checksums)
    build = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))  # beside `out`: relative paths are the same
    try:
        table = _table(recipe, source, build, fractions, seed)
        table.to_csv(build / "table.csv", index=False)
        write_json(build / "dataset.json", _description(name, recipe, table, checked))
        build.chmod(0o755)
        os.rename(build, out)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    return table, [*_count_notes(recipe, table)]


def matching_files(source: Path, pattern: str) -> Iterator[tuple[Path, re.Match[str]]]:
    """The files below `source` whose last names `pattern` matches, sorted by path; each with its match."""
    expression = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)
    for path in sorted(source.rglob("*")):
        if not path.name.startswith(".") and (match := expression.search(path.relative_to(source).as_posix())):
            yield path, match


def _table(recipe: Recipe, source: Path, build: Path, fractions: Sequence[float], seed: int) -> pd.DataFrame:
    rows = _read_cases(recipe, source, build)
    if rows.empty:
        raise ConfigError(f"{source} has no files of this data set; it must contain {recipe.layout}")
    for name in {"image", "label"} & set(rows):
        rows[name] = [relative_path(cell, build) if isinstance(cell, Path) else cell for cell in rows[name]]
    table = _draw_splits(rows, fractions, seed)
    check_formulas(table)
    leading = [name for name in ("site", "split", "image", "label", "patient") if name in table]
    return table[[*leading, *(name for name in table if name not in leading)]]


def _read_cases(recipe: Recipe, source: Path, build: Path) -> pd.DataFrame:
    try:
        return pd.DataFrame([*recipe.cases(source, build)])
    except ConfigError:
        raise
    except Exception as error:  # a missing or damaged file: the readers raise errors of many types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"the files in {source} cannot be read ({reason:.300}); it must contain {recipe.layout}. Download "
            f"the files again: {recipe.url}"
        ) from error


def _draw_splits(rows: pd.DataFrame, fractions: Sequence[float], seed: int) -> pd.DataFrame:
    train, val, test = fractions
    if "split" not in rows:
        return assign_splits(rows, {"train": train, "val": val, "test": test}, seed)
    held = rows["split"] == "test"
    if train + val <= 0:
        raise ConfigError(f"--fractions {train:g},{val:g},{test:g}: expected training or validation cases too")
    shares = {"train": train / (train + val), "val": val / (train + val)}
    return sort_rows(pd.concat([assign_splits(rows[~held], shares, seed), rows[held]]))


def _check_files(source: Path, checksums: Mapping[str, str]) -> dict[str, str]:
    """The checksums of the named files in `source` or beside it. Raises ConfigError for one that differs."""
    found = {}
    for name, expected in checksums.items():
        kind, _, digest = expected.partition(":")
        for path in (source.parent / name, *sorted(source.rglob(name))):
            if not path.is_file():
                continue
            with path.open("rb") as stream:
                value = hashlib.file_digest(stream, kind).hexdigest()
            if value != digest:
                raise ConfigError(f"{path}: {kind} {value}; expected {digest}. Download the file again")
            found[name] = expected
    return found


def _count_notes(recipe: Recipe, table: pd.DataFrame) -> Iterator[str]:
    counts = table["site"].value_counts()
    for site, expected in recipe.sites.items():
        if (count := int(counts.get(site, 0))) != expected:
            yield f"{site}: {pluralize(count, 'row')}; the complete data set has {expected}"


def _description(name: str, recipe: Recipe, table: pd.DataFrame, checked: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "title": recipe.title,
        "task": recipe.task,
        "classes": dict(recipe.classes),
        "url": recipe.url,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "checksums": dict(checked),
        "rows": {site: int(count) for site, count in table["site"].value_counts(sort=False).items()},
    }
