"""Reads and checks the table of cases (CSV or Parquet, one row per case), before any image is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import MAX_NAMED, join_names
from raysim.core.suggestions import did_you_mean
from raysim.data.column_types import is_missing_marker
from raysim.data.file_paths import check_url, join_path, missing_files, parent_folder
from raysim.data.file_roles import file_identity, role_problems
from raysim.data.patient_columns import patient_columns
from raysim.data.site_names import site_name_problems
from raysim.data.table_file import load_table

COLUMNS = ("site", "split", "image", "label")
SPLITS = (
    "train",
    "val",
    "test",
    "unlabelled",
)  # as in raysim.core.contracts, which is not imported because it loads torch
PATH_PATTERN = re.compile(r"/|\.\w+$")  # with a folder or a file extension


def read_table(
    path: str,
    root: str | None = None,
    *,
    needs_label: bool = True,
    needs_image: bool = True,
    check_files: bool = True,
    label_files: bool | None = None,
    classes: Collection[str] = (),
    absent: Mapping[str, str] | None = None,
    in_order: bool = False,
    image_columns: Sequence[str] = ("image",),
    needs_all_images: bool = True,
) -> pd.DataFrame:
    """The rows of a CSV or Parquet table, sorted by (site, split, image) whatever their order in the file.

    Every cell is a string or NA, so that site `007` stays `007`. Images, and labels that are files, become absolute
    paths or full URLs; relative ones start at `root`, or at the table's folder. `label_files`: whether labels are
    files; with None, their spelling decides. A label that is a class is unchanged, and an unlabelled row has no label.
    A label or a patient such as `NA` is a missing value, except for the labels in `classes`.
    A column that is not needed may be absent or have empty cells; an absent label column is added. `absent` has values
    for columns that may be absent from the table. With `in_order`, the rows are in the order of the file, with their
    line numbers as index. The images of a case are in `image_columns`; the first becomes the column `image`, and with
    `needs_all_images=False` cells of the others may be empty.
    Raises ConfigError, naming the table, for anything invalid.
    """
    if not path:
        raise ConfigError(
            "task.data.table is not set; use task.data.table=FILE, a CSV or Parquet table with a row for each case"
        )
    path = os.path.expanduser(path)
    table = load_table(path)
    table = table.assign(**{name: value for name, value in (absent or {}).items() if name not in table})
    first, *further = image_columns
    needed = ["site", "split", *["image"] * needs_image, *["label"] * needs_label]
    _raise_first(path, _column_problems(table, [first if name == "image" else name for name in (*needed, *further)]))
    table = table.rename(columns={first: "image"})
    needed += further if needs_all_images else []
    _raise_first(path, _root_problems(root))
    base = os.path.expanduser(root) if root else parent_folder(path)
    written = table.get("label", pd.Series(dtype="string"))
    table = _normalize_cells(table, classes, further)
    columns = ["image", *further, *["label"] * (labels_are_files(table) if label_files is None else label_files)]
    files = [name for name in columns if name in table]
    _raise_first(path, _url_problems(table, files))
    table = _resolve_paths(table, files, base)
    _raise_first(path, _row_problems(table, needed, written))
    _raise_first(path, (problem for name in further for problem in _duplicate_image_problems(table[name])))
    if check_files:
        _raise_first(path, _file_problems(table, files, base))
    if "label" in files:
        _raise_first(path, role_problems(_file_pairs(table)))
    return table if in_order else sort_rows(table)


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by (site, split, image) and then by all other columns, with a new index."""
    leading = [name for name in ("site", "split", "image") if name in table]
    others = sorted(set(table.columns) - set(leading))
    return table.sort_values([*leading, *others], ignore_index=True)


def labels_are_files(table: pd.DataFrame) -> bool:
    """Whether labels are files, as in segmentation, and not classes: at least one is spelled like a path."""
    if "image" not in table:
        return False
    labels = table["label"].dropna().astype("string")
    non_numeric = labels[pd.to_numeric(labels, errors="coerce").isna()]
    return bool(non_numeric.str.contains(PATH_PATTERN).any())


def _raise_first(path: str, problems: Iterator[str]) -> None:
    for problem in problems:
        raise ConfigError(f"table {path}: {problem}")


def _column_problems(table: pd.DataFrame, needed: Iterable[str]) -> Iterator[str]:
    names = [str(name) for name in table.columns]
    absent = [name for name in needed if name not in names]
    if len(names) == 1 and re.search("[;\t]", names[0]):
        yield f"its cells must be separated by commas; the header is {names[0]!r}"
    # Such columns would be ignored: labels would be missing.
    miscased = [n for n in names if n not in COLUMNS and n.lower() in COLUMNS and n.lower() not in names]
    if miscased:
        suggestions = _quote_names(name.lower() for name in miscased)
        yield f"its columns {_quote_names(miscased)} are not read (did you mean {suggestions}?); rename them"
    if absent:
        yield (
            f"it has no column {_quote_names(absent)}; its columns are {_quote_names(names)}. "
            "Add the missing columns, or rename others"
        )


def _normalize_cells(table: pd.DataFrame, classes: Collection[str], further: Collection[str]) -> pd.DataFrame:
    """The table with a label column, cells without surrounding blanks, and unlabelled rows without a label."""
    table = table if "label" in table else table.assign(label=pd.Series(pd.NA, table.index, dtype="string"))
    patients = patient_columns(map(str, table.columns))
    for name in {*COLUMNS, *patients, *further} & set(table.columns):
        cells = table[name].str.strip()
        is_missing = is_missing_marker(cells) & ~cells.isin(classes) if name in ("label", *patients) else cells == ""
        table = table.assign(**{name: cells.mask(is_missing.fillna(False))})
    labels = table["label"].str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return table.assign(label=labels.mask((table["split"] == "unlabelled").fillna(False)))


def _file_pairs(table: pd.DataFrame) -> list[tuple[str, str | None]]:
    pairs = table[["image", "label"]].dropna(subset="image").itertuples(index=False)
    return [(str(image), None if pd.isna(label) else str(label)) for image, label in pairs]


def _row_problems(table: pd.DataFrame, needed: Iterable[str], written: pd.Series) -> Iterator[str]:
    """`written` are the labels as in the file."""
    empty = table.isna()
    empty["label"] &= table["split"] != "unlabelled"
    for name in needed:
        if empty[name].any():
            exception = " unless its split is 'unlabelled'" if name == "label" else ""
            advice = _marker_advice(written[empty[name]]) if name == "label" else ""
            advice += "" if name in COLUMNS else ", or set task.data.missing=zeros"
            yield (
                f"empty {name} cells in {_format_rows(empty[name])}; "
                f"every row needs a value for {name}{exception}{advice}"
            )
    for split in table["split"][~table["split"].isin(SPLITS)]:
        rows = _format_rows(table["split"] == split)
        suggestion = did_you_mean(split, SPLITS)
        yield f"unknown split '{split}'{suggestion} in {rows}; use one of {_quote_names(SPLITS)}"
    yield from site_name_problems(table["site"].unique())
    if "image" in table:
        yield from _duplicate_image_problems(table["image"])


def _marker_advice(labels: pd.Series) -> str:
    """The end of the message for empty labels if some are written as a marker for a missing value."""
    markers = sorted({str(label).strip() for label in labels.dropna()} - {""})
    if not markers:
        return ""
    return f". {_quote_names(markers)} marks a missing value; if it is a class, list all classes in task.data.classes"


def _duplicate_image_problems(images: pd.Series) -> Iterator[str]:
    """An image in several rows might be used for both training and evaluation, or be counted twice."""
    files = images.map(file_identity, na_action="ignore")
    duplicates = files[files.duplicated() & files.notna()].drop_duplicates()
    if len(duplicates):
        listed = "; ".join(
            f"{' and '.join(images[files == file].unique())} in {_format_rows(files == file)}"
            for file in duplicates.head(MAX_NAMED)
        )
        more = f"; and {len(duplicates) - MAX_NAMED} more" if len(duplicates) > MAX_NAMED else ""
        yield f"images in more than one row (of any site or split): {listed}{more}. Keep one row for each image"


def _format_rows(selected: pd.Series) -> str:
    """`rows 2, 5, 6 and 40 more`: the line numbers that an editor shows."""
    rows = selected.index[selected.fillna(False).astype(bool)]
    return f"row{'s' * (len(rows) > 1)} {join_names(list(rows))}"


def _resolve_paths(table: pd.DataFrame, files: Iterable[str], base: str) -> pd.DataFrame:
    return table.assign(
        **{name: table[name].map(lambda cell: join_path(base, cell), na_action="ignore") for name in files}
    )


def _url_problems(table: pd.DataFrame, files: Iterable[str]) -> Iterator[str]:
    """URLs with a secret, or of an unsupported protocol."""
    for name in files:
        for row, cell in table[name].dropna().items():
            if "::" in cell or "://" in cell:
                try:
                    check_url(cell)
                except ConfigError as error:
                    yield f"row {row}, column {name}: {error}"


def _root_problems(root: str | None) -> Iterator[str]:
    if root and "://" not in root and not os.path.isdir(os.path.expanduser(root)):
        yield (
            f"task.data.root={root} is not a folder (working directory: {os.getcwd()}); "
            "set it to the folder at which relative paths start"
        )


def _file_problems(table: pd.DataFrame, files: Iterable[str], base: str) -> Iterator[str]:
    absent = missing_files(path for name in files for path in table[name].dropna())
    labels = set(table["label"])
    classes = [os.path.basename(path) for path in absent if path in labels and not _extension(path)]
    if classes:
        yield (
            f"labels that are not files: {join_names(classes)}. In segmentation a label is the path of a mask; "
            "if the labels are classes, use task=classification"
        )
    if backslashes := [path for path in absent if "\\" in path]:
        yield (
            f"files that do not exist: {join_names(backslashes)}. Their names have backslashes: use / between "
            "folders, as in images/a.png"
        )
    if absent:
        yield (
            f"files that do not exist: {join_names(absent)}. "
            f"Relative paths start at {base}; set task.data.root to use another folder"
        )


def _extension(path: str) -> str:
    return os.path.splitext(path.partition("::")[0])[1]


def _quote_names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
