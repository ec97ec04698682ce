"""The classes of a table: from its labels or the configuration; labels that are not a class are refused."""

from __future__ import annotations

import re
import shlex
import warnings
from typing import Any

import pandas as pd
import pytest

from raysim.config.merge import parse_pairs
from raysim.core.errors import ConfigError
from raysim.data.label_classes import class_counts, encode_labels, resolve_classes
from raysim.data.summarize import summarize


def table(*labels: str | None, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, **columns}, dtype="string")


def refused(given: Any, *labels: str | None) -> str:
    with pytest.raises(ConfigError) as error:
        resolve_classes(table(*labels), given, "t.csv")
    return str(error.value)


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (("10", "9", "2"), None, {"2": "2", "9": "9", "10": "10"}),  # sorted as numbers, not as text
        (("wolf", "dog", None, "dog"), None, {"dog": "dog", "wolf": "wolf"}),
        (("1", "cat"), None, {"1": "1", "cat": "cat"}),
        (("1", "0"), ("healthy", "ill"), {"0": "healthy", "1": "ill"}),
        (("ill", "healthy"), ("healthy", "ill"), {"healthy": "healthy", "ill": "ill"}),
        (("1", "0"), (1, 0), {"1": "1", "0": "0"}),  # the labels themselves, in this order
        (("2", "4"), {"benign": 2, "malignant": 4}, {"2": "benign", "4": "malignant"}),
        (("no", "yes"), {"ill": "yes", "healthy": "no"}, {"yes": "ill", "no": "healthy"}),
        (("0", "1"), ("a", "b", "c"), {"0": "a", "1": "b", "2": "c"}),  # no row has 2
    ],
)
def test_classes(labels: tuple[str, ...], given: Any, expected: dict[str, str]) -> None:
    found = resolve_classes(table(*labels), given, "t.csv")
    assert list(found.items()) == list(expected.items())


def test_the_names_of_classes_are_in_the_column_class() -> None:
    rows = {"class": ["wolf", "dog", "wolf"]}
    assert resolve_classes(table("1", "0", "1", **rows), None, "t.csv") == {"0": "dog", "1": "wolf"}
    assert resolve_classes(table("1", "0", "0", **rows), None, "t.csv") == {"0": "0", "1": "1"}  # 0 has two names


def test_labels_become_indices() -> None:
    given = table("b", None, "a")
    found = encode_labels(given, resolve_classes(given, ("b", "a"), "t.csv"))["label"]
    assert found.dropna().tolist() == [0, 1]
    assert found.isna().tolist() == [False, True, False]


def test_a_label_that_is_not_a_class_is_refused_with_the_classes() -> None:
    message = refused(("healthy", "ill"), "0", "2", "2", "7")
    assert message.startswith("table t.csv: labels that are not a class: '2' in 2 rows, '7' in 1 row")
    assert "the classes are 0 (healthy), 1 (ill)" in message
    assert "did you mean 'ill'" in refused(("healthy", "ill"), "healthy", "il")
    assert "'2' in 1 row" in refused({"a": 0, "b": 1}, "0", "1", "2")


def test_labels_that_cannot_be_classes_are_refused() -> None:
    assert "all its labels are '1'; expected two or more classes" in refused(None, "1", "1")
    assert "it has no label; expected two or more classes" in refused(None, None)
    assert "40 different values (0, 1, 2, 3, 4 and 35 more), so they seem to be measurements" in refused(
        None, *map(str, range(40))
    )
    for given in (("a", "a"), {"a": 0, "b": "0"}):
        assert "every class needs a distinct name and a distinct value" in refused(given, "0")


@pytest.mark.parametrize(
    "labels",
    [("0", "1", "01"), ("Yes", "no", "yes"), ("1", "1.50", "1.5"), ("a b", "a_b"), ("\u0422umor", "Tumor")],
)
def test_labels_that_seem_to_be_one_class_are_refused_and_the_cure_makes_them_classes(labels: tuple[str, ...]) -> None:
    message = refused(None, *labels)
    assert "labels that seem to be one class: " in message
    (cure,) = shlex.split(re.search(r"list them: (.*)$", message)[1])
    classes = parse_pairs([cure])["task"]["data"]["classes"]
    assert set(resolve_classes(table(*labels), tuple(classes), "t.csv")) == set(labels)


def test_labels_that_differ_are_classes() -> None:
    labels = ("1", "10", "1.05", "1.5", "wolf", "Wolfe", "0")
    assert len(resolve_classes(table(*labels), None, "t.csv")) == 7


def test_the_counts_of_classes_in_one_line() -> None:
    given = encode_labels(table("b", None, "a", "b"), {"a": "ill", "b": "healthy", "c": "other"})
    assert class_counts(given, ("ill", "healthy", "other")) == "classes: ill 1, healthy 2, other 0 (labelled cases)"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat", "dog", "dog"], "cat for label 0 and dog for label 0"),
        (["cat", "cat", "cat"], "cat for label 0 and cat for label 1"),
        (["cat", "cat", None], "empty for label 1"),
    ],
)
def test_a_column_of_classes_that_contradicts_the_labels_is_noted(names: list[Any], found: str) -> None:
    given = table("0", "0", "1", **{"class": names})
    with pytest.warns(
        UserWarning,
        match=re.escape(f"column 'class' is not used: it does not have a distinct name for each label ({found})"),
    ):
        assert resolve_classes(given, None, "t.csv") == {"0": "0", "1": "1"}
    problems = summarize(given.assign(site="a", split="train", x="5")).problems
    assert any(found in problem for problem in problems)


def test_a_column_of_classes_names_the_labels() -> None:
    given = table("0", "0", "1", **{"class": ["cat", "cat", "dog"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_classes(given, None, "t.csv") == {"0": "cat", "1": "dog"}
