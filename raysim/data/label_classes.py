"""The classes of a table: those that a user names, or those that its labels have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import pandas as pd
from annotated_types import Len
from pydantic import StrictInt

from raysim.core.errors import ConfigError
from raysim.core.formatting import MAX_NAMED, join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.data.column_types import natural_order
from raysim.data.file_inspection import FEW

Name = StrictInt | str  # strict, or YAML's yes and no would be taken for 1 and 0
Given = dict[str, Name] | tuple[Name, ...]
CLASSES = Annotated[
    Given | None,
    Len(2, 256),
    "classes: names of 0, 1, ..., or the labels themselves, or each name with its label; by default all labels",
]


def classes(table: pd.DataFrame, given: Given | None, path: str) -> dict[str, str]:
    """The name of each class by its value in the column `label`, in the order of the class indices.

    `given` is a mapping of names to values, or a list: of the values themselves, or of names for 0, 1, ...
    Without it the classes are the values of all rows, numbers by size and words by name, called as the column
    `class` calls them where it has a name for each. Raises ConfigError, naming the table at `path`, for a label
    that is no class, and where there are fewer than two classes.
    """
    labels = table["label"].dropna().astype("string")
    found = _found(table, labels, path) if given is None else _named(given, labels)
    if len(found) < 2:
        raise ConfigError(
            f"table {path}: {_told(found)}; two classes are needed. Name all that there are with task.data.classes"
        )
    unknown = labels[~labels.isin(list(found))]
    if len(unknown):
        raise ConfigError(f"table {path}: {_unknown(unknown, found)}")
    return found


def indexed(table: pd.DataFrame, found: Mapping[str, str]) -> pd.DataFrame:
    """The table with the index of the class as `label`, NA where there is none; `found` as `classes` gives it."""
    index = {value: number for number, value in enumerate(found)}
    return table.assign(label=table["label"].map(index, na_action="ignore").astype("Int64"))


def class_names(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The values by their names in a column `class`, where it has one of its own for each."""
    names = table["class"][values.index] if "class" in table else pd.Series(pd.NA, values.index)
    pairs = pd.DataFrame({"value": values, "name": names}).drop_duplicates()
    clear = names.notna().all() and pairs["value"].is_unique and pairs["name"].is_unique
    return names.astype(str) if clear else values


def _found(table: pd.DataFrame, labels: pd.Series, path: str) -> dict[str, str]:
    values = natural_order(labels)
    if len(values) > FEW:
        raise ConfigError(
            f"table {path}: its labels have {len(values)} values ({join_names(values)}), which are measurements or files "
            "rather than classes; if they are classes, name them all with task.data.classes"
        )
    names = dict(zip(labels, class_names(table, labels), strict=True))
    return {value: str(names[value]) for value in values}


def _named(given: Given, labels: pd.Series) -> dict[str, str]:
    if isinstance(given, Mapping):
        pairs = [(str(value), str(name)) for name, value in given.items()]
    else:
        names = [str(name) for name in given]
        numbered = not set(labels) & set(names) and bool(labels.str.fullmatch(r"\d+").all())
        pairs = [(str(number) if numbered else name, name) for number, name in enumerate(names)]
    found = dict(pairs)
    if len(found) < len(pairs) or len(set(found.values())) < len(pairs):
        shown = given if isinstance(given, Mapping) else list(given)
        raise ConfigError(f"task.data.classes={shown}: every class needs a name and a value of its own")
    return found


def _told(found: Mapping[str, str]) -> str:
    return f"all its labels are {next(iter(found))!r}" if found else "it has no label"


def _unknown(labels: pd.Series, found: Mapping[str, str]) -> str:
    """What to say of labels that are no class."""
    counts = labels.value_counts()
    values = [f"'{value}' in {pluralize(int(counts[value]), 'row')}" for value in natural_order(labels)]
    classes = [value if value == name else f"{value} ({name})" for value, name in list(found.items())[:MAX_NAMED]]
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return (
        f"labels that are no class: {join_names(values)}{did_you_mean(natural_order(labels)[0], found)}; the classes are "
        f"{', '.join(classes)}{more}. Correct the labels, or name every class with task.data.classes"
    )
