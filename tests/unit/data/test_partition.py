"""Partitions: sizes, patients kept together, and independence of the order of the rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from raysim.core.errors import ConfigError
from raysim.data.partition import Partition, add_validation_rows, assign_splits, keep_labelled, partition


def cases(train: int, test: int = 0, unlabelled: int = 0, **columns: list[str]) -> pd.DataFrame:
    splits = ["train"] * train + ["test"] * test + ["unlabelled"] * unlabelled
    table = pd.DataFrame({"site": "one", "split": splits, "image": [f"{i:03}.png" for i in range(len(splits))]})
    labels = [str(i % 2) for i in range(len(splits))]
    return table.assign(label=pd.Series(labels).mask(table["split"] == "unlabelled"), **columns)


def counted(table: pd.DataFrame, split: str) -> list[int]:
    return table[table["split"] == split].groupby("site").size().tolist()


def shuffled(table: pd.DataFrame) -> pd.DataFrame:
    return table.sample(frac=1, random_state=7)[sorted(table.columns)]


def test_iid_divides_each_split_evenly() -> None:
    made = partition(cases(train=10, test=4, unlabelled=3), Partition(sites=3), seed=0)
    assert sorted(counted(made, "train")) == [3, 3, 4]
    assert sorted(counted(made, "test")) == [1, 1, 2]
    assert counted(made, "unlabelled") == [1, 1, 1]
    # 17 rows at 3 sites: a site with one more row of a split does not get one more of the next split.
    assert sorted(made.groupby("site").size()) == [5, 6, 6]
    assert made["site"].unique().tolist() == ["site-01", "site-02", "site-03"]
    assert sorted(made["image"]) == [f"{i:03}.png" for i in range(17)]


def test_iid_assigns_the_largest_patients_first() -> None:
    # Patients with 4, 2, 1 and 1 rows at two sites: 4 rows at one, 2 + 1 + 1 at the other.
    table = cases(train=8, patient=list("aaaabbcd"))
    made = partition(table, Partition(sites=2), seed=0)
    assert counted(made, "train") == [4, 4]
    assert (made.groupby("patient")["site"].nunique() == 1).all()


@pytest.mark.parametrize(
    "spec", [Partition(sites=3), Partition(name="dirichlet", sites=3), Partition(name="dirichlet", by="label", sites=3)]
)
@pytest.mark.parametrize("column", ["patient", "subject", "case", "group"])
def test_patients_stay_together_even_across_splits(spec: Partition, column: str) -> None:
    # Each patient has several rows, in train and in test.
    table = cases(train=16, test=16, **{column: [str(i % 11) for i in range(32)]})
    made = partition(table, spec, seed=3)
    assert (made.groupby(column)["site"].nunique() == 1).all()


def test_a_row_without_a_patient_is_a_separate_group() -> None:
    table = cases(train=6, patient=["a", "a", "a", "", "", ""]).replace({"patient": {"": None}})
    assert counted(partition(table, Partition(sites=2), seed=0), "train") == [3, 3]


@pytest.mark.parametrize(
    "spec", [Partition(sites=4), Partition(name="dirichlet", by="label", alpha=0.3), Partition(by="p")]
)
def test_the_order_of_rows_and_columns_changes_nothing(spec: Partition) -> None:
    table = cases(train=30, test=9, p=[str(i % 5) for i in range(39)])
    made = partition(table, spec, seed=5)
    pd.testing.assert_frame_equal(made, partition(shuffled(table), spec, seed=5)[made.columns])


def test_rows_without_images_are_distinguished_by_their_cells() -> None:
    table = cases(train=20, age=[str(i) for i in range(20)]).drop(columns="image")
    made = partition(table, Partition(sites=3), seed=5)
    pd.testing.assert_frame_equal(made, partition(shuffled(table), Partition(sites=3), seed=5)[made.columns])


def test_the_partition_depends_on_the_seed() -> None:
    made = [partition(cases(train=40), Partition(sites=4), seed)["site"].tolist() for seed in (0, 0, 1)]
    images = [partition(cases(train=40), Partition(sites=4), seed)["image"].tolist() for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert images[0] == images[1] != images[2]


def test_dirichlet_without_a_class_gives_every_split_the_same_skewed_sizes() -> None:
    made = partition(cases(train=400, test=200), Partition(name="dirichlet", sites=4, alpha=0.5), seed=1)
    train, test = (
        made[made["split"] == split].groupby("site").size() / count for split, count in (("train", 400), ("test", 200))
    )
    assert np.abs(train - test.reindex(train.index, fill_value=0)).max() < 0.01
    assert train.max() > 2 * train.min()


def test_a_smaller_alpha_of_dirichlet_skews_classes_more() -> None:
    def spread(alpha: float) -> float:
        made = partition(cases(train=1000), Partition(name="dirichlet", by="label", sites=5, alpha=alpha), seed=2)
        return float(made["label"].astype(int).groupby(made["site"]).mean().std())

    assert spread(1000.0) < 0.05 < 0.2 < spread(0.2)


def test_dirichlet_leaves_no_site_without_training_rows() -> None:
    for seed in range(20):
        made = partition(cases(train=6, test=3), Partition(name="dirichlet", sites=6, alpha=0.01), seed)
        assert counted(made, "train") == [1] * 6


def test_unlabelled_rows_may_have_no_class() -> None:
    made = partition(cases(20, unlabelled=20), Partition(name="dirichlet", by="label", sites=2, alpha=100.0), seed=0)
    assert len(counted(made, "unlabelled")) == 2


def test_names_are_as_wide_as_the_number_of_sites() -> None:
    sites = partition(cases(train=120), Partition(sites=100), seed=0)["site"]
    assert (sites.min(), sites.max()) == ("site-001", "site-100")


def test_by_creates_a_site_for_each_value() -> None:
    made = partition(cases(train=4, scanner=["B", "A", "B", "A"]), Partition(by="scanner"), seed=0)
    assert made["site"].tolist() == ["A", "A", "B", "B"]
    assert made["image"].tolist() == ["001.png", "003.png", "000.png", "002.png"]


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (Partition(by="scaner"), "no column 'scaner' (did you mean 'scanner'?)"),
        (Partition(name="by"), "needs a column"),
        (Partition(name="iid", by="scanner"), "by=scanner has no effect with name=iid"),
        (Partition(by="scanner"), "column 'scanner' is empty in 1 of 4 rows"),
        (Partition(by="bad"), "'a/b'"),
        (Partition(name="dirichlet", by="image", sites=2), "different value in each of its 4 rows"),
        (Partition(sites=5), "at most 4"),
        (Partition(name="dirichlet", sites=5), "at most 4"),
    ],
)
def test_partitions_that_do_not_fit_the_table_are_refused(spec: Partition, part: str) -> None:
    table = cases(train=4, scanner=["A", "B", "", "A"], bad=["a/b"] * 4).replace({"scanner": {"": None}})
    with pytest.raises(ConfigError) as refusal:
        partition(table, spec, seed=0)
    assert part in str(refusal.value)


def test_the_configuration_is_checked_by_its_annotations() -> None:
    check = TypeAdapter(Partition)
    assert check.validate_python({"name": "iid", "sites": 3}) == Partition(name="iid", sites=3)
    for wrong in ({"sites": 0}, {"alpha": 0.0}, {"name": "equal"}):
        with pytest.raises(ValueError, match="1 validation error"):
            check.validate_python(wrong)
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(Partition))


def test_each_site_keeps_the_given_number_of_labelled_training_rows() -> None:
    table = pd.concat([cases(10, test=3), cases(2).assign(site="two")])
    kept = keep_labelled(table, 4, seed=0)
    assert counted(kept, "train") == [4, 2]  # site two has only two
    assert counted(kept, "unlabelled") == [6]
    assert counted(kept, "test") == [3]
    assert kept.loc[kept["split"] == "unlabelled", "label"].isna().all()
    assert kept.loc[kept["split"] != "unlabelled", "label"].notna().all()
    pd.testing.assert_frame_equal(kept, keep_labelled(shuffled(table), 4, seed=0)[kept.columns])


def test_a_larger_number_of_labels_includes_the_rows_of_a_smaller_number() -> None:
    def images(table: pd.DataFrame, count: int) -> set[str]:
        kept = keep_labelled(table, count, seed=1).query("split == 'train' and site == 'one'")
        return set(kept["image"])

    assert images(cases(10), 3) < images(cases(10), 5)
    assert images(cases(10), 3) == images(pd.concat([cases(10), cases(5).assign(site="a")]), 3)


def test_only_the_last_patient_with_labels_is_divided() -> None:
    table = cases(9, patient=list("aaabbbccc"))
    kept = keep_labelled(table, 4, seed=0).query("split == 'train'")
    assert sorted(kept.groupby("patient").size()) == [1, 3]


def test_a_site_without_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="labelled=0"):
        keep_labelled(cases(3), 0, seed=0)


def test_each_site_has_the_fractions() -> None:
    table = pd.concat([cases(10), cases(20).assign(site="two")]).drop(columns="split")
    made = assign_splits(table, {"test": 0.2, "train": 0.7, "val": 0.1}, seed=0)
    assert counted(made, "train") == [7, 14]
    assert counted(made, "val") == [1, 2]
    assert counted(made, "test") == [2, 4]
    pd.testing.assert_frame_equal(
        made, assign_splits(shuffled(table), {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0)[made.columns]
    )


def test_val_rows_are_a_share_of_the_training_rows() -> None:
    validated = cases(10, test=2).assign(site="two")
    validated.loc[[0, 1], "split"] = "val"
    table = pd.concat([cases(10, test=2), validated, cases(2).assign(site="few"), cases(1).assign(site="last")])
    made = add_validation_rows(table, 0.2, seed=0)
    found = made.groupby(["site", "split"]).size().to_dict()
    assert {site: count for (site, split), count in found.items() if split == "val"} == {"one": 2, "two": 2, "few": 1}
    assert (made["split"] == "test").sum() == (table["split"] == "test").sum()
    pd.testing.assert_frame_equal(made, add_validation_rows(shuffled(table), 0.2, seed=0)[made.columns])


def test_val_rows_are_those_of_whole_patients() -> None:
    made = add_validation_rows(cases(30, patient=[str(i // 3) for i in range(30)]), 0.3, seed=1)
    assert (made.groupby("patient")["split"].nunique() == 1).all()
    assert counted(made, "val") == [9]


def test_the_rows_of_a_patient_have_the_same_split() -> None:
    table = cases(30, patient=[str(i // 3) for i in range(30)])
    made = assign_splits(table, {"train": 0.5, "test": 0.5}, seed=0)
    assert (made.groupby("patient")["split"].nunique() == 1).all()
    assert (counted(made, "train"), counted(made, "test")) == ([15], [15])


@pytest.mark.parametrize(
    ("fractions", "part"),
    [({"train": 0.9}, "add up to 0.9"), ({"trian": 1.0}, "'train'"), ({"train": 1.5, "val": -0.5}, "is -0.5")],
)
def test_wrong_fractions_are_refused(fractions: dict[str, float], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        assign_splits(cases(3), fractions, seed=0)
