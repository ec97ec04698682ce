"""The table that describes data: one row per case, checked before any image is opened."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO, StringIO
from typing import IO

import fsspec
import pandas as pd
import pyarrow.parquet as pq

from raysim.core.errors import ConfigError
from raysim.core.formatting import MAX_NAMED, join_names
from raysim.core.suggestions import did_you_mean
from raysim.data.file_paths import folder_of, joined, missing_files

COLUMNS = ("site", "split", "image", "label")
SPLITS = ("train", "val", "test", "unlabelled")  # those of raysim.core.contracts, which cannot be had without torch
GROUPS = ("patient", "subject", "case", "group")  # the first of these columns holds the rows of a patient together
READ = (*COLUMNS, *GROUPS)
PATH = re.compile(r"/|\.\w+$")  # in a folder, or with an ending
LARGEST = 1_000_000_000  # bytes of a table, unfolded: what is packed small may unfold to more than memory
SITE = re.compile(r"\w[\w. -]*")  # a site is a file name and a part of a dotted key


def read_table(
    path: str,
    root: str | None = None,
    *,
    needs_label: bool = True,
    needs_image: bool = True,
    check_files: bool = True,
    label_files: bool | None = None,
) -> pd.DataFrame:
    """The rows of a CSV or Parquet table, sorted by (site, split, image) whatever their order in the file.

    Every cell is a string or NA, so that site `007` stays `007`. Images, and labels that are files, are
    absolute paths or full URLs, relative to `root` or else to the table's folder; a label that is a class
    stays as it is. Whether labels are files, `label_files` says, else how they are written. An unlabelled row has
    no label. A column that is not needed may be absent or have empty cells; an absent label column is added.
    Raises ConfigError for anything else, naming the table.
    """
    if not path:
        raise ConfigError(
            "there are no data yet: task.data.table=FILE, a CSV or Parquet table with a row for each case"
        )
    path = os.path.expanduser(path)
    table = _cells(path)
    needed = ["site", "split", *["image"] * needs_image, *["label"] * needs_label]
    _refuse(path, _column_faults(table, needed))
    _refuse(path, _root_faults(root))
    base = os.path.expanduser(root) if root else folder_of(path)
    table = _tidied(table)
    columns = ["image", *["label"] * (labels_are_files(table) if label_files is None else label_files)]
    files = [name for name in columns if name in table]
    table = _located(table, files, base)
    _refuse(path, _row_faults(table, needed))
    if check_files:
        _refuse(path, _file_faults(table, files, base))
    return in_order(table)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by (site, split, image), with a fresh index; ties, as without images, by all other columns."""
    first = [name for name in ("site", "split", "image") if name in table]
    rest = sorted(set(table.columns) - set(first))
    return table.sort_values([*first, *rest], ignore_index=True)


def labels_are_files(table: pd.DataFrame) -> bool:
    """Whether labels are files, as in segmentation, rather than classes: some are written as paths are."""
    if "image" not in table:
        return False
    labels = table["label"].dropna().astype("string")
    words = labels[pd.to_numeric(labels, errors="coerce").isna()]
    return bool(words.str.contains(PATH).any())


def site_faults(sites: Iterable[str]) -> Iterator[str]:
    """What is wrong with each name that cannot be a site's."""
    for site in sites:
        if not SITE.fullmatch(site):
            yield (
                f"site {site!r} cannot be a file name: use letters, digits, '_', '-', '.' and spaces, "
                "and begin with a letter, a digit or '_'"
            )


def _refuse(path: str, faults: Iterator[str]) -> None:
    for fault in faults:
        raise ConfigError(f"table {path}: {fault}")


def _cells(path: str) -> pd.DataFrame:
    try:
        with fsspec.open(path, "rb") as file:
            table = _parsed(file, path)
    except FileNotFoundError:
        raise ConfigError(f"table {path} does not exist (seen from {os.getcwd()}); check its path") from None
    except IsADirectoryError:
        raise ConfigError(f"table {path} is a folder; `raysim data scan {path}` makes a table of it") from None
    except Exception as reason:
        raise ConfigError(f"table {path} cannot be read as a table in CSV or Parquet: {reason}") from reason
    # Blank lines went only now: rows are numbered as an editor shows them, the header being row 1.
    table = table.set_axis(range(2, len(table) + 2)).dropna(how="all")
    if table.empty:
        raise ConfigError(f"table {path} has no rows; it needs one per case")
    return table


def _parsed(file: IO[bytes], path: str) -> pd.DataFrame:
    name = path.partition("::")[0].lower()
    if name.endswith((".parquet", ".pq")):
        held = pq.ParquetFile(file).metadata
        if held.num_rows * held.num_columns > LARGEST // 10:
            raise ValueError(f"it holds {held.num_rows:,} rows of {held.num_columns} columns; a row is a case")
        table = pd.read_parquet(file).rename(columns=lambda column: str(column).strip())
        _refuse_twice(table.columns)
        return table.reset_index(drop=True).apply(_as_text)
    if not name.endswith(".csv"):
        raise ValueError("its name must end in .csv, .parquet or .pq")
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it holds more than {LARGEST:,} bytes; a table names files, one row a case")
    _refuse_twice(_header(content))
    table = pd.read_csv(
        BytesIO(content),
        dtype="string",
        keep_default_na=False,
        na_values=[""],
        encoding="utf-8-sig",
        skip_blank_lines=False,
        skipinitialspace=True,
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its rows have more cells than its header has names")
    return table.rename(columns=str.strip)


def _header(content: bytes) -> list[str]:
    """The names of the columns as written: of a second `image` pandas makes `image.1`."""
    lines = csv.reader(StringIO(content.decode("utf-8-sig")), skipinitialspace=True)
    return [name.strip() for name in next(lines, [])]


def _refuse_twice(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(f"its header has '{name}' {count} times; keep one column of that name")


def _as_text(column: pd.Series) -> pd.Series:
    # Parquet has no missing integers in many writers: 1.0 beside a missing label was once a 1.
    if pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 == 0).all()):
        column = column.astype("Int64")
    return column.astype("string")


def _column_faults(table: pd.DataFrame, needed: Iterable[str]) -> Iterator[str]:
    names = [str(name) for name in table.columns]
    absent = [name for name in needed if name not in names]
    if len(names) == 1 and re.search("[;\t]", names[0]):
        yield f"its cells must be separated by commas; the header is {names[0]!r}"
    # Columns that would be passed over: labels would be missing, and patients be split.
    cased = [name for name in names if name not in READ and name.lower() in READ and name.lower() not in names]
    if cased:
        meant = _quoted(name.lower() for name in cased)
        yield f"its columns {_quoted(cased)} are not read (did you mean {meant}?); rename them"
    if absent:
        yield f"it has no column {_quoted(absent)}; it has {_quoted(names)}. Add or rename what is needed"


def _tidied(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a label column, without blanks around cells, and without labels in unlabelled rows."""
    table = table if "label" in table else table.assign(label=pd.Series(pd.NA, table.index, dtype="string"))
    for name in set(READ) & set(table.columns):
        cells = table[name].str.strip()
        table = table.assign(**{name: cells.mask(cells == "")})
    labels = table["label"].str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return table.assign(label=labels.mask((table["split"] == "unlabelled").fillna(False)))


def _row_faults(table: pd.DataFrame, needed: Iterable[str]) -> Iterator[str]:
    empty = table.isna()
    empty["label"] &= table["split"] != "unlabelled"
    for name in needed:
        if empty[name].any():
            unless = " unless its split is 'unlabelled'" if name == "label" else ""
            yield f"empty {name} cells in {_rows(empty[name])}; a row needs its {name}{unless}"
    for split in table["split"][~table["split"].isin(SPLITS)]:
        where = _rows(table["split"] == split)
        yield f"unknown split '{split}'{did_you_mean(split, SPLITS)} in {where}; a split is one of {_quoted(SPLITS)}"
    yield from site_faults(table["site"].unique())
    if "image" in table:
        yield from _image_faults(table["image"])


def _image_faults(images: pd.Series) -> Iterator[str]:
    """An image in two rows would be trained on and judged, or counted twice."""
    twice = images[images.duplicated() & images.notna()].drop_duplicates()
    if len(twice):
        where = "; ".join(f"{image} in {_rows(images == image)}" for image in twice.head(MAX_NAMED))
        more = f"; and {len(twice) - MAX_NAMED} more" if len(twice) > MAX_NAMED else ""
        yield f"images listed more than once, whatever the site and split: {where}{more}. Keep one row of each image"


def _rows(where: pd.Series) -> str:
    """`rows 2, 5, 6 and 40 more`, as an editor counts them."""
    rows = where.index[where.fillna(False).astype(bool)]
    return f"row{'s' * (len(rows) > 1)} {join_names(list(rows))}"


def _located(table: pd.DataFrame, files: Iterable[str], base: str) -> pd.DataFrame:
    return table.assign(
        **{name: table[name].map(lambda cell: joined(base, cell), na_action="ignore") for name in files}
    )


def _root_faults(root: str | None) -> Iterator[str]:
    if root and "://" not in root and not os.path.isdir(os.path.expanduser(root)):
        yield f"task.data.root is {root}, which is no folder (seen from {os.getcwd()}); give the one paths start from"


def _file_faults(table: pd.DataFrame, files: Iterable[str], base: str) -> Iterator[str]:
    absent = missing_files(path for name in files for path in table[name].dropna())
    labels = set(table["label"])
    words = [os.path.basename(path) for path in absent if path in labels and not _ending(path)]
    if words:
        yield (
            f"labels that are no files: {join_names(words)}. In segmentation a label is the path of a mask; "
            "where labels are classes, the task is classification"
        )
    if absent:
        yield (
            f"files that do not exist: {join_names(absent)}. Paths start from {base}; task.data.root sets another folder"
        )


def _ending(path: str) -> str:
    return os.path.splitext(path.partition("::")[0])[1]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
