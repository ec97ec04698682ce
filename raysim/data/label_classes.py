"""The classes of a table's labels: given in the configuration, or taken from the label column."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated

import pandas as pd
from annotated_types import Len
from pydantic import StrictInt

from raysim.core.errors import ConfigError
from raysim.core.formatting import MAX_NAMED, join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.data.column_types import sort_naturally
from raysim.data.file_inspection import MAX_LABEL_VALUES
from raysim.data.near_equal import near_equal_names

ClassName = StrictInt | str  # strict: YAML's yes and no are booleans, which would be converted to 1 and 0
ClassSpec = dict[str, ClassName] | tuple[ClassName, ...]
ClassesOption = Annotated[
    ClassSpec | None,
    Len(2, 256),
    "classes: a list of names for the labels 0, 1, ..., a list of the labels, or a mapping of each name to its label; "
    "by default all labels of the table",
]


def resolve_classes(table: pd.DataFrame, spec: ClassSpec | None, path: str) -> dict[str, str]:
    """The name of each class by its value in the column `label`, in the order of the class indices.

    `spec` is a mapping of names to values, a list of the values, or a list of names for the values 0, 1, ...
    Without it, the classes are the values of all rows, sorted as numbers or as text; their names are those in the
    column `class` if it has a distinct name for each. Raises ConfigError, naming the table at `path`, for a label that
    is not a class, and for fewer than two classes.
    """
    labels = table["label"].dropna().astype("string")
    names = _classes_from_labels(table, labels, path) if spec is None else _classes_from_spec(spec, labels)
    if len(names) < 2:
        found = f"all its labels are {next(iter(names))!r}" if names else "it has no label"
        raise ConfigError(f"table {path}: {found}; expected two or more classes. List all in task.data.classes")
    unknown = labels[~labels.isin(list(names))]
    if len(unknown):
        raise ConfigError(f"table {path}: {_unknown_labels_message(unknown, names)}")
    return names


def label_values(spec: ClassSpec | None) -> list[str]:
    """All names and values of the classes in `spec`."""
    if isinstance(spec, Mapping):
        return [str(part) for pair in spec.items() for part in pair]
    return [str(name) for name in spec or ()]


def encode_labels(table: pd.DataFrame, classes: Mapping[str, str]) -> pd.DataFrame:
    """The table with the class index as `label`, NA for a missing label; `classes` as from `resolve_classes`."""
    index = {value: number for number, value in enumerate(classes)}
    return table.assign(label=table["label"].map(index, na_action="ignore").astype("Int64"))


def class_counts(table: pd.DataFrame, names: Sequence[str]) -> str:
    """`classes: healthy 12, ill 3`: the labelled rows of each class; `table` as from `encode_labels`."""
    counts = table["label"].value_counts()
    shown = [f"{name} {int(counts.get(index, 0))}" for index, name in enumerate(names)]
    more = f" and {len(shown) - MAX_LABEL_VALUES} more" if len(shown) > MAX_LABEL_VALUES else ""
    return f"classes: {', '.join(shown[:MAX_LABEL_VALUES])}{more} (labelled cases)"


def class_names(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The name of each label value from the column `class`; the values if that column has no distinct name for each."""
    names = table["class"][values.index] if "class" in table else pd.Series(pd.NA, values.index)
    pairs = pd.DataFrame({"value": values, "name": names}).drop_duplicates()
    unique = names.notna().all() and pairs["value"].is_unique and pairs["name"].is_unique
    return names.astype(str) if unique else values


def class_column_warning(table: pd.DataFrame) -> str | None:
    """A warning if the column `class` is not used because it has no distinct name for each label; else None."""
    labels = table["label"].dropna()
    if "class" not in table or class_names(table, labels) is not labels:
        return None
    pairs = pd.DataFrame({"label": labels, "name": table["class"][labels.index].fillna("empty")}).drop_duplicates()
    wrong = [pairs[pairs[key].duplicated(keep=False)] for key in ("label", "name")] + [pairs[pairs["name"] == "empty"]]
    first = next(each for each in wrong if len(each)).head(2)
    found = " and ".join(f"{name} for label {label}" for label, name in zip(first["label"], first["name"], strict=True))
    return (
        f"column 'class' is not used: it does not have a distinct name for each label ({found}). Correct it; if it is "
        "a feature, rename it"
    )


def _classes_from_labels(table: pd.DataFrame, labels: pd.Series, path: str) -> dict[str, str]:
    values = sort_naturally(labels)
    if len(values) > MAX_LABEL_VALUES:
        raise ConfigError(
            f"table {path}: its labels have {len(values)} different values ({join_names(values)}), so they seem to be "
            "measurements or files, not classes; if they are classes, list all of them in task.data.classes"
        )
    _check_near_equal(labels, path)
    if warning := class_column_warning(table):
        warnings.warn(warning, stacklevel=4)
    names = dict(zip(labels, class_names(table, labels), strict=True))
    return {value: str(names[value]) for value in values}


def _check_near_equal(labels: pd.Series, path: str) -> None:
    """Raises ConfigError for labels that are probably one class in two spellings, such as `1` and `01`."""
    counts, values = labels.value_counts(), sort_naturally(labels)
    for group in near_equal_names(values):
        found = " and ".join(f"{value!r} in {pluralize(int(counts[value]), 'row')}" for value in group)
        listed = shlex.quote(f"task.data.classes={json.dumps(values, ensure_ascii=False)}")
        raise ConfigError(
            f"table {path}: labels that seem to be one class: {found}; use one spelling for each class. "
            f"If all of them are classes, list them: {listed}"
        )


def _classes_from_spec(spec: ClassSpec, labels: pd.Series) -> dict[str, str]:
    if isinstance(spec, Mapping):
        pairs = [(str(value), str(name)) for name, value in spec.items()]
    else:
        names = [str(name) for name in spec]
        numbered = not set(labels) & set(names) and bool(labels.str.fullmatch(r"\d+").all())
        pairs = [(str(number) if numbered else name, name) for number, name in enumerate(names)]
    classes = dict(pairs)
    if len(classes) < len(pairs) or len(set(classes.values())) < len(pairs):
        shown = spec if isinstance(spec, Mapping) else list(spec)
        raise ConfigError(f"task.data.classes={shown}: every class needs a distinct name and a distinct value")
    return classes


def _unknown_labels_message(labels: pd.Series, classes: Mapping[str, str]) -> str:
    """The message for labels that are not a class."""
    counts, values = labels.value_counts(), sort_naturally(labels)
    found = [f"'{value}' in {pluralize(int(counts[value]), 'row')}" for value in values]
    valid = [value if value == name else f"{value} ({name})" for value, name in list(classes.items())[:MAX_NAMED]]
    more = f" and {len(classes) - MAX_NAMED} more" if len(classes) > MAX_NAMED else ""
    return (
        f"labels that are not a class: {join_names(found)}{did_you_mean(values[0], classes)}; the classes are "
        f"{', '.join(valid)}{more}. Correct the labels, or list every class in task.data.classes"
    )
