"""Folds: each row is tested once, patients stay together, validation is kept, and the folds depend on the seed."""

from __future__ import annotations

import pandas as pd
import pytest

from raysim.core.errors import ConfigError
from raysim.data.folds import use_fold
from raysim.tasks.tabular import TabularData

SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2 + ["unlabelled"]


def cases(*sites: str, **columns: list[str]) -> pd.DataFrame:
    tables = [
        pd.DataFrame({"site": site, "split": SPLITS, "image": [f"{site}-{i:02}.png" for i in range(len(SPLITS))]})
        for site in sites
    ]
    return pd.concat(tables, ignore_index=True).assign(label="x", **columns)


def fold_images(table: pd.DataFrame, folds: int, seed: int = 0, outside: tuple[str, ...] = ()) -> list[set[str]]:
    """The images of the test rows in each fold."""
    each = [use_fold(table, folds, fold, outside, seed) for fold in range(folds)]
    return [set(of_fold["image"][of_fold["split"] == "test"]) for of_fold in each]


def test_every_labelled_row_is_tested_once() -> None:
    table = cases("a", "b")
    folds = fold_images(table, 3)
    for site in ("a", "b"):
        sizes = [sum(image.startswith(site) for image in fold) for fold in folds]
        assert sorted(sizes) == [3, 3, 4]
    assert set.union(*folds) == set(table["image"][table["split"] != "unlabelled"])
    assert sum(map(len, folds)) == 20


def test_validation_rows_outside_the_fold_are_kept() -> None:
    table = cases("a")
    for fold in range(2):
        made = use_fold(table, 2, fold, (), 0).set_index("image")["split"]
        before = table.set_index("image")["split"]
        rest = made[made != "test"]
        assert (rest == before[rest.index].replace("test", "train")).all()
        assert (made == "unlabelled").sum() == 1


def test_patients_stay_together() -> None:
    patients = list("aabbccddeef")  # of two images each, in train, val and test
    table = cases("a", patient=patients)
    for fold in range(5):
        made = use_fold(table, 5, fold, (), 0)
        labelled = made[made["split"] != "unlabelled"]
        assert ((labelled["split"] == "test").groupby(labelled["patient"]).nunique() == 1).all()
        assert (made["split"] == "test").sum() == 2


def test_folds_are_seeded_and_independent_of_the_order_of_the_rows() -> None:
    table = cases("a")
    assert fold_images(table, 3) == fold_images(table.sample(frac=1, random_state=1), 3)
    assert fold_images(table, 3) != fold_images(table, 3, seed=1)


def test_outside_sites_do_not_change() -> None:
    table = cases("a", "x")
    folds = fold_images(table, 3, outside=("x",))
    assert all({image for image in fold if image.startswith("x")} == {"x-08.png", "x-09.png"} for fold in folds)


def test_a_site_with_few_patients_is_refused() -> None:
    table = cases("a", patient=list("aaaaaabbbbb"))
    with pytest.raises(ConfigError, match=r"folds=3: site 'a' has 2 cases \(all rows of a patient count as one\); set"):
        use_fold(table, 3, 0, (), 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"folds": 3}, r"task.data.folds needs task.data.fold; set both"),
        ({"fold": 0}, r"task.data.fold needs task.data.folds; set both"),
        ({"folds": 3, "fold": 3}, r"task.data.fold=3: expected 0 to 2"),
    ],
)
def test_keys_that_do_not_fit(keys: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TabularData(**keys).select_rows(cases("a"))


def test_the_fold_of_a_task() -> None:
    rows = TabularData(folds=2, fold=1).select_rows(cases("a", "b"))
    assert rows[rows["split"] == "test"].groupby("site").size().tolist() == [5, 5]


def test_folds_in_a_column_of_the_table() -> None:
    table = cases("a").assign(fold=[str(n % 3) for n in range(10)] + [None])
    folds = fold_images(table, 3)
    assert folds[1] == {"a-01.png", "a-04.png", "a-07.png"}
    assert use_fold(table, 3, 1, (), 0).set_index("image")["split"]["a-06.png"] == "val"
    with pytest.raises(
        ConfigError, match=r"task.data.folds=5: the column fold of the table has 0, 1, 2; expected 0 to"
    ):
        use_fold(table, 5, 0, (), 0)
