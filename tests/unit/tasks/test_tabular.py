"""The tabular task: features, missing cells, standardisation and networks by hand, and refused tables."""

from __future__ import annotations

import pickle
import shutil
import warnings
from math import sqrt

import fsspec
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from raysim import LocalFleet, federate
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithm_class
from raysim.federation.validation import check_last_batch
from raysim.tasks.tabular import Tabular
from tests.support.paths import DATA

HEADER = "site,split,label,x,colour,code"
ROWS = """\
a,train,0,1,red,2.0
a,train,1,2,blue,10
a,train,0,6,red,2
a,train,1,?,,10
a,test,0,1000,green,2
b,train,0,10,blue,10
b,train,1,20,red,
b,val,1,,red,7
c,test,1,0,red,2"""


def write_table(folder, rows=ROWS, header=HEADER):
    (folder / "table.csv").write_text(f"{header}\n{rows}")


def task(folder, data=None, **keys):
    """The task of `folder/table.csv`, from keys as a user writes them, with its cache in the same folder."""
    defaults = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), "outside": ["c"], "features": ["x"]}
    return TypeAdapter(Tabular).validate_python({**keys, "data": {**defaults, **(data or {})}}).build()


def refused(folder, data=None, **keys):
    with pytest.raises(ConfigError) as error, warnings.catch_warnings():
        task(folder, data, **keys)
    return str(error.value)


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path)
    return tmp_path


def inputs(built, site, split):
    return built.open(site)[split].inputs


def test_rows_become_features_with_a_class_index(table):
    built = task(table, {"classes": ["healthy", "ill"]})
    assert (built.inside, built.outside, built.shape, built.classes) == (("a", "b"), ("c",), (1,), 2)
    assert built.sizes["b"] == {"train": 2, "val": 1, "test": 0, "unlabelled": 0}
    train = built.open("a").train
    assert (train.inputs.shape, train.inputs.dtype) == ((4, 1), np.float32)
    assert (train.labels.tolist(), train.labels.dtype) == ([[1], [1], [0], [0]], np.uint8)  # in order of all cells
    assert (train.cases.tolist(), train.spacing.shape) == ([0, 1, 2, 3], (4, 0))
    assert built.open("b").test.inputs.shape == (0, 1)
    assert built.open("b").test.labels.shape == (0, 1)


def test_each_site_is_standardised_by_its_training_rows(table):
    built = task(table)
    # 1, 2 and 6 have the median 2, the mean 3 and the variance (4 + 1 + 9) / 3; 1000 is in a test row.
    deviation = sqrt(14 / 3)
    expected = np.array([1 - 3, 2 - 3, 6 - 3, 2 - 3]) / deviation
    assert sorted(inputs(built, "a", "train")[:, 0]) == pytest.approx(sorted(expected))
    assert inputs(built, "a", "test")[0, 0] == pytest.approx((1000 - 3) / deviation)
    # 10 and 20 have the mean 15 and the deviation 5; the missing cell of the val row becomes the median, 15.
    assert inputs(built, "b", "train")[:, 0].tolist() == [-1, 1]
    assert inputs(built, "b", "val")[0, 0] == 0


def test_global_standardisation_uses_the_training_rows_of_all_inside_sites(table):
    built = task(table, {"standardise": "global"})
    # 1, 2, 6, 10 and 20 have the median 6, the mean 7.8 and the variance 541 / 5 - 7.8^2.
    deviation = sqrt(541 / 5 - 7.8**2)
    assert inputs(built, "b", "train")[:, 0] == pytest.approx((np.array([10, 20]) - 7.8) / deviation)
    assert inputs(built, "b", "val")[0, 0] == pytest.approx((6 - 7.8) / deviation)


def test_a_site_without_training_rows_is_scaled_like_the_others(table):
    per_site, pooled = task(table), task(table, {"standardise": "global"})
    assert inputs(per_site, "c", "test")[0, 0] == inputs(pooled, "c", "test")[0, 0]


@pytest.mark.parametrize("cells", ["?,?", "3,3"])
def test_a_column_that_is_empty_or_constant_at_a_site_is_scaled_by_all_sites(table, cells):
    first, second = cells.split(",")
    write_table(table, ROWS.replace("10,blue", f"{first},blue").replace("20,red", f"{second},red"))
    built = task(table)
    known = np.array([1, 2, 6] if first == "?" else [1, 2, 6, 3, 3])  # in the training rows of all sites
    middle, mean = (np.median(known), known.mean()) if first == "?" else (3, 3)
    assert inputs(built, "b", "train")[:, 0] == pytest.approx(np.full(2, middle - mean) / known.std())


def test_rows_without_their_label_still_determine_the_scale(table):
    plain, few = task(table), task(table, {"labelled": 1})
    assert few.sizes["a"] == {"train": 1, "val": 0, "test": 1, "unlabelled": 3}
    assert np.array_equal(inputs(plain, "a", "test"), inputs(few, "a", "test"))
    assert few.open("a").unlabelled.labels is None


def test_the_categories_of_training_rows_are_encoded_one_hot(table):
    built = task(table, {"categorical": ["colour", "code"]})
    assert built.shape == (1 + 2 + 2,)  # x; blue and red; 2 and 10, sorted as numbers
    flags = {x: tuple(row) for x, *row in np.round(inputs(built, "b", "train"), 6).tolist()}
    assert flags == {-1: (1, 0, 0, 1), 1: (0, 1, 0, 0)}  # the second row has no code
    assert inputs(built, "a", "test")[0, 1:].tolist() == [0, 0, 1, 0]  # no training row is green
    assert inputs(built, "b", "val")[0, 1:].tolist() == [0, 1, 0, 0]  # and no training row has the code 7


def test_indicators_are_1_for_missing_cells(table):
    built = task(table, {"categorical": ["colour"], "indicators": True})
    assert built.shape == (1 + 2 + 2,)  # x; blue and red; x and colour are missing in some training row
    assert sorted(inputs(built, "a", "train")[:, 3:].tolist()) == [[0, 0], [0, 0], [0, 0], [1, 1]]
    assert inputs(built, "b", "val")[0, 3:].tolist() == [1, 0]
    assert task(table, {"categorical": ["colour"]}).shape == (3,)


def test_by_default_all_numeric_columns_are_features_and_others_give_a_warning(table):
    with pytest.warns(
        UserWarning, match=r"left out because they are not numeric: colour \('blue', 'green'\); list columns"
    ):
        built = task(table, {"features": None})
    assert built.shape == (2,)  # x and code


def test_reserved_columns_are_not_features(table):
    lines = ROWS.splitlines()
    numbered = "\n".join(f"{line},p{row},{row % 2},{row}" for row, line in enumerate(lines))
    write_table(table, numbered, f"{HEADER},patient,ward,id")
    data = {"features": None, "categorical": ["colour"]}
    with pytest.warns(
        UserWarning, match="column 'id' has a different whole number in each row; if it numbers the cases"
    ):
        assert task(table, {**data}).shape == (4 + 2,)  # x, code, ward, id; blue, red
    with pytest.warns(UserWarning, match="'id'"):
        made = task(table, {**data, "partition": {"by": "ward"}, "outside": []})
    assert (made.inside, made.shape) == (("0", "1"), (3 + 2,))  # ward is the site


def test_a_patient_column_is_not_a_feature_and_sites_with_nearly_equal_names_are_noted(table):
    numbered = "\n".join(f"{line},{row}.5" for row, line in enumerate(ROWS.splitlines()))
    write_table(table, numbered.replace("a,train", "A,train", 1), f"{HEADER},subject_id")
    data = {"features": None, "categorical": ["colour"], "outside": []}
    with pytest.warns(UserWarning, match="sites with nearly equal names, each used as a separate site: 'A' and 'a'"):
        made = task(table, data)
    assert made.shape == (4,)  # x, code; blue, red
    assert made.summary.startswith("classes: ")


def test_only_a_changed_table_is_prepared_again_not_a_reordered_one(table):
    built = task(table, {"categorical": ["colour"]})
    write_table(table, "\n".join(ROWS.splitlines()[::-1]))
    again = task(table, {"categorical": ["colour"]})
    assert again.open.cache_keys == built.open.cache_keys
    write_table(table, ROWS.replace("20,red", "21,red"))
    other = task(table, {"categorical": ["colour"]})
    assert not set(other.open.cache_keys.values()) & set(built.open.cache_keys.values())


def test_a_task_opens_in_another_process_and_without_the_cache(table):
    built = task(table, {"categorical": ["colour"]})
    expected = np.array(inputs(built, "a", "train"))
    sent = pickle.dumps(built)
    assert len(sent) < 5_000
    shutil.rmtree(table / "cache")
    assert np.array_equal(inputs(pickle.loads(sent), "a", "train"), expected)
    shutil.rmtree(table / "cache")
    write_table(table, ROWS.replace("20,red", "21,red"))
    with pytest.raises(ConfigError, match="has changed since the start of the run; start a new run"):
        pickle.loads(sent).open("a")


def test_urls(table):
    fsspec.filesystem("memory").put(str(table / "table.csv"), "/rows/table.csv")
    remote = task(table, {"table": "memory://rows/table.csv"})
    assert np.array_equal(inputs(remote, "a", "train"), inputs(task(table), "a", "train"))
    assert remote.open.paths() == (["memory://rows/table.csv"], [str(table / "cache")])


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        ({"name": "logistic"}, 3 * 2 + 2),
        ({"name": "mlp", "hidden": [5]}, (3 * 5 + 5) + (5 * 2 + 2)),
        ({"name": "mlp", "hidden": [5, 4], "norm": "batch"}, (3 * 5 + 5 + 2 * 5) + (5 * 4 + 4 + 2 * 4) + (4 * 2 + 2)),
        ({"name": "torch.nn:Linear", "bias": False}, 3 * 2),
        ({"name": "FullyConnectedNet", "hidden_channels": [4]}, (3 * 4 + 4 + 1) + (4 * 2 + 2)),  # MONAI's, with PReLU
    ],
)
def test_networks(table, network, parameters):
    net = task(table, {"categorical": ["colour"]}, network=network).start(0)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_dropout_is_after_the_activation():
    from raysim.tasks.tabular_networks import mlp

    kinds = [type(layer).__name__ for layer in mlp(3, 2, hidden=[4], norm="batch", dropout=0.5)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]


def test_a_federation_learns_a_sum(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        f"{s},{t},{int(x + y > 0)},{x},{y}"
        for s in "ab"
        for t in ("train", "test")
        for x, y in rng.normal(size=(60, 2))
    ]
    write_table(tmp_path, "\n".join(rows), "site,split,label,x,y")
    built = task(tmp_path, {"features": ["x", "y"], "outside": []})
    *_, last = federate(algorithm_class("fedavg")(lr=0.1, epochs=5), built, LocalFleet(built, rounds=5), rounds=5)
    found = [score.value for score in last.scores if score.metric == "auc"]
    assert len(found) == 2
    assert min(found) > 0.95


def test_a_last_batch_of_one_row_is_refused_with_batch_norm(table):
    keys = {"batch_size": 3, "network": {"name": "mlp", "norm": "batch"}}
    with pytest.raises(ConfigError, match=r"task\.batch_size=3: the last batch at 'a' \(.* has one example"):
        check_last_batch(task(table, **keys))
    check_last_batch(task(table, batch_size=3))


def test_wrong_columns_are_refused_with_the_cure(table):
    assert "it has no column 'kode' (did you mean 'code'?); its columns are 'site', 'split'" in refused(
        table, {"features": ["x", "kode"]}
    )
    assert "it has no column 'hue'" in refused(table, {"categorical": ["hue"]})
    assert "column 'label' is reserved and cannot be a feature" in refused(table, {"features": ["x", "label"]})
    assert "column 'site' is reserved and cannot be a feature" in refused(table, {"categorical": ["site"]})
    message = refused(table, {"features": ["x", "colour"]})
    assert "column 'colour' has 8 cells without a number: 'blue', 'green', 'red'; correct" in message
    assert "add the column to task.data.categorical" in message
    write_table(table, ROWS.replace("20,red", "inf,red"))
    assert "column 'x' has 1 cell without a number: 'inf'" in refused(table)


def test_columns_that_cannot_be_features_are_refused(table):
    write_table(
        table, "\n".join(f"{line},{'7' if 'test' in line else ''}" for line in ROWS.splitlines()), HEADER + ",z"
    )
    assert "column 'z' is empty in all training rows of inside sites" in refused(table, {"features": ["x", "z"]})
    write_table(table, "a,train,0,x\na,train,1,y", "site,split,label,text")
    message = refused(table, {"features": None, "outside": []})
    assert "it has no numeric column except site" in message
    assert "columns left out because they are not numeric: text ('x', 'y'); list columns of names" in message
    write_table(table, "\n".join(f"a,train,{n % 2},{n}" for n in range(300)), "site,split,label,zip")
    assert "column 'zip' has 300 different values; a categorical column has at most 256" in refused(
        table, {"features": ["zip"], "categorical": ["zip"], "outside": []}
    )


@pytest.mark.parametrize("cells", [["1,5", "2"], ["1.234,5", "-0,5"], ["1,234", "12,345,678.9"]])
def test_numbers_with_commas_are_refused(table, cells):
    rows = [
        f'{site},{split},{n % 2},{n},"{cells[n % 2]}"' for site in "abc" for split in ("train", "test") for n in (0, 1)
    ]
    write_table(table, "\n".join(rows), "site,split,label,x,bmi")
    invalid = [cell for cell in sorted(cells) if "," in cell]
    expected = f"column 'bmi' has numbers with commas, such as '{invalid[0]}'; write decimal points and no separators"
    assert expected in refused(table, {"features": None})
    assert expected in refused(table, {"features": ["x", "bmi"]})
    assert expected in refused(table, {"features": ["x"], "categorical": ["bmi"]})


def test_a_column_without_a_name_is_no_feature(table):
    write_table(table, "\n".join(f"{n % 3},{line}" for n, line in enumerate(ROWS.splitlines())), f",{HEADER}")
    with pytest.warns(UserWarning, match="columns without a name are not used: Unnamed: 0; name those"):
        built = task(table, {"features": None})
    assert built.shape == (2,)  # x and code
    write_table(table, "\n".join(f"{line}," for line in ROWS.splitlines()), f"{HEADER},")  # a comma at each end
    with pytest.warns(UserWarning, match="left out") as found:
        task(table, {"features": None})
    assert not any("without a name" in str(warning.message) for warning in found)


def test_a_copy_of_the_label_is_noted(table):
    rows = [f"{site},train,{n % 2},{n % 3},{7 - n % 2}" for site in "abc" for n in range(10)]
    write_table(table, "\n".join(rows), "site,split,label,x,target")
    with pytest.warns(UserWarning, match="column 'target' has exactly one value for each label") as found:
        task(table, {"features": None})
    assert not any("column 'x'" in str(warning.message) for warning in found)
    write_table(table, "\n".join(rows[:5]), "site,split,label,x,target")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task(table, {"features": ["x", "target"], "outside": []})


def test_texts_with_commas_are_categories(table):
    rows = [f'{site},train,{n % 2},{n},"{("1,2 mg", "3")[n % 2]}"' for site in "abc" for n in (0, 1)]
    write_table(table, "\n".join(rows), "site,split,label,x,dose")
    built = task(table, {"features": ["x"], "categorical": ["dose"], "outside": []})
    assert built.shape == (3,)


def test_wrong_settings_are_refused_with_the_cure(table):
    assert "task.data.table=FILE" in refused(table, {"table": ""})
    assert "did you mean 'c'" in refused(table, {"outside": ["C"]})
    assert "'0' in 4 rows" in refused(table, {"classes": ["healthy", "ill"], "table": with_text_labels(table)})
    assert "it has no column 'label'" in refused(
        table, {"table": with_header(table, HEADER.replace("label", "target"))}
    )
    assert "did you mean 'logistic'" in refused(table, network={"name": "logistics"})
    assert "norm is 'batsch', expected none or batch" in refused(table, network={"name": "mlp", "norm": "batsch"})
    assert "fails on 1 features" in refused(table, network={"name": "unet", "spatial_dims": 2})


def with_text_labels(folder):
    """The same table with a label that is text."""
    (folder / "text_labels.csv").write_text(
        f"{HEADER}\n{ROWS.replace('train,1', 'train,ill').replace('test,1', 'test,ill')}"
    )
    return str(folder / "text_labels.csv")


def with_header(folder, header):
    (folder / "headed.csv").write_text(f"{header}\n{ROWS}")
    return str(folder / "headed.csv")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")
def test_real_patients_of_four_hospitals(tmp_path):
    data = {"table": str(DATA / "heart_disease" / "table.csv"), "cache": str(tmp_path), "categorical": ["thal"]}
    built = TypeAdapter(Tabular).validate_python({"data": {**data, "indicators": True}}).build()
    assert {site: sum(sizes.values()) for site, sizes in built.sizes.items()} == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    assert built.classes == 2
    for site in built.inside:
        assert np.isfinite(inputs(built, site, "train")).all()
        assert np.abs(inputs(built, site, "test")).max() < 10


def test_the_loss_gets_labels_as_a_column(table):
    built = task(table)
    train = built.open("a").train
    net = built.start(0)
    value = built.loss(net(torch.from_numpy(np.array(train.inputs))), torch.from_numpy(np.array(train.labels)))
    assert value.ndim == 0
