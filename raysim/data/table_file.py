"""Reads the file of a table, CSV or Parquet, as text cells."""

from __future__ import annotations

import csv
import os
import shlex
from collections import Counter
from collections.abc import Iterable
from io import BytesIO, StringIO
from typing import IO

import fsspec
import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import quote_path
from raysim.data.file_paths import check_url, stored_bytes
from raysim.data.memory_limit import MAX_TABLE_BYTES, check_table_memory, check_table_size
from raysim.data.parquet_file import read_parquet


def load_table(path: str) -> pd.DataFrame:
    """The cells of the file as text, without blank rows; the index has the line numbers that an editor shows.

    Raises ConfigError for a file that is not a table.
    """
    check_url(path)
    try:
        with fsspec.open(path, "rb") as file:
            table = _parse_table(file, path)
    except ConfigError as reason:
        raise ConfigError(f"table {path} {reason}") from reason
    except FileNotFoundError:
        raise ConfigError(f"table {path} does not exist (working directory: {os.getcwd()}); check its path") from None
    except IsADirectoryError:
        table_inside = os.path.join(path, "table.csv")
        cure = f"create its table with `raysim data scan {quote_path(path)}`"
        if os.path.isfile(table_inside):
            cure = f"it has a table: task.data.table={quote_path(table_inside)}"
        raise ConfigError(f"table {path} is a folder; {cure}") from None
    except Exception as reason:
        problem = " ".join(str(reason).split())
        raise ConfigError(f"table {path} cannot be read as a table in CSV or Parquet: {problem}") from reason
    # Blank rows are dropped only after numbering: the header is row 1, as in an editor.
    table = table.set_axis(range(2, len(table) + 2)).dropna(how="all")
    if table.empty:
        raise ConfigError(f"table {path} has no rows; expected one row per case")
    return table


def _parse_table(file: IO[bytes], path: str) -> pd.DataFrame:
    name = path.partition("::")[0].lower()
    if name.endswith((".parquet", ".pq")):
        content = file.read(MAX_TABLE_BYTES + 1)
        check_table_size(len(content))
        table: pd.DataFrame = read_parquet(content, stored_bytes(path)).to_pandas()
        named = [name for name in table.index.names if name is not None]  # columns that pandas stored as the index
        table = table.reset_index(named).rename(columns=lambda column: str(column).strip())
        _check_duplicate_columns(table.columns)
        return table.reset_index(drop=True).apply(_to_text)
    if not name.endswith(".csv"):
        raise ValueError("its name must end in .csv, .parquet or .pq")
    content = file.read(MAX_TABLE_BYTES + 1)
    check_table_size(len(content))
    rows = content.count(b"\n")
    check_table_memory(len(content), content.count(b",") + rows, rows, stored_bytes(path))
    _check_encoding(content, path)
    _check_duplicate_columns(_csv_header(content))
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
        cure = "; separate cells by commas, with decimal points" if ";" in _csv_header(content)[0] else ""
        raise ValueError(f"its rows have more cells than its header has names{cure}")
    return table.rename(columns=str.strip)


def _check_encoding(content: bytes, path: str) -> None:
    """Raises ValueError, with a command that converts the file, for text that is not UTF-8."""
    try:
        content.decode("utf-8-sig")
        is_utf8 = b"\0" not in content
    except UnicodeDecodeError:
        is_utf8 = False
    if not is_utf8:
        encoding = "UTF-16" if b"\0" in content else "WINDOWS-1252"
        converted = f"{path.removesuffix('.csv')}-utf8.csv"
        raise ValueError(
            f"its text is not UTF-8, but probably {encoding}; save it as 'CSV UTF-8', or convert it: "
            f"iconv -f {encoding} -t UTF-8 {shlex.quote(path)} > {shlex.quote(converted)}"
        )


def _csv_header(content: bytes) -> list[str]:
    """The column names as written: pandas renames a second `image` to `image.1`."""
    lines = csv.reader(StringIO(content.decode("utf-8-sig"), newline=None), skipinitialspace=True)
    return [name.strip() for name in next(lines, [])]


def _check_duplicate_columns(names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(f"its header has '{name}' {count} times; keep one column of that name")


def _to_text(column: pd.Series) -> pd.Series:
    # Many Parquet writers store integers with missing values as floats: 1.0 was the integer 1.
    if pd.api.types.is_float_dtype(column) and bool((column.dropna() % 1 == 0).all()):
        column = column.astype("Int64")
    return column.astype("string")
