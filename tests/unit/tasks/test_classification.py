"""The classification task on pictures, volumes and slices, valid and invalid."""

from __future__ import annotations

import pickle
import shutil
import warnings

import fsspec
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from pydantic import TypeAdapter, ValidationError

from raysim import LocalFleet, federate
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithm_class
from raysim.data.scan import write_scan
from raysim.federation.validation import check_last_batch
from raysim.tasks.classification import Classification, ClassificationData
from tests.support.paths import DATA

SMALL = {"name": "classifier", "channels": [4, 4]}


def task(folder, data=None, **keys):
    """The task of `folder/table.csv`, from keys as a user writes them, with its cache in the same folder."""
    data = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), "size": [8, 8], **(data or {})}
    return TypeAdapter(Classification).validate_python({"network": SMALL, **keys, "data": data}).build()


def refused(folder, data=None, **keys):
    with pytest.raises(ConfigError) as error, warnings.catch_warnings():
        task(folder, data, **keys)
    return str(error.value)


def write_table(folder, rows, header="site,split,image,label"):
    (folder / "table.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))


def picture(path, brightness, size=(8, 8)):
    """A picture whose upper half has this brightness, on black."""
    array = np.zeros(size, np.uint8)
    array[: size[0] // 2] = brightness
    Pillow.fromarray(array).save(path)


ROWS = [("train", "dark"), ("train", "bright"), ("train", "dark"), ("val", "dark"), ("test", "bright")]


@pytest.fixture
def pictures(tmp_path):
    """Five pictures at each of two sites, 12 x 10 at `a` and 16 x 8 at `b`; dark is 50 to 54, bright 200 to 204."""
    rows = []
    for site, size in {"a": (12, 10), "b": (16, 8)}.items():
        for number, (split, label) in enumerate(ROWS):
            picture(tmp_path / f"{site}{number}.png", {"dark": 50, "bright": 200}[label] + number, size)
            rows.append([site, split, f"{site}{number}.png", label])
    write_table(tmp_path, rows)
    return tmp_path


def test_images_of_all_sites_have_one_size_and_a_class_index(pictures):
    built = task(pictures, {"intensity": "none", "outside": ["b"]})
    assert (built.inside, built.outside, built.shape, built.classes) == (("a",), ("b",), (1, 8, 8), 2)
    assert built.sizes["a"] == {"train": 3, "val": 1, "test": 1, "unlabelled": 0}
    for site in "ab":
        train = built.open(site).train
        assert (train.inputs.shape, train.inputs.dtype) == ((3, 1, 8, 8), np.float32)
        assert train.inputs[:, 0, 0, 0].tolist() == [50, 201, 52]
        assert train.inputs[:, 0, 7, 7].tolist() == [0, 0, 0]
        assert (train.labels.dtype, train.labels.tolist()) == (np.uint8, [[1], [0], [1]])  # bright is before dark
        assert built.open(site).unlabelled.labels.shape == (0, 1)
        assert train.cases.tolist() == [0, 1, 2]


def test_classes_keep_their_order(pictures):
    assert task(pictures, {"classes": ["dark", "bright"]}).open("a").train.labels.tolist() == [[0], [1], [0]]
    given = task(pictures, {"classes": {"night": "dark", "dusk": "dusk", "day": "bright"}})
    assert given.classes == 3
    assert given.open("b").test.labels.tolist() == [[2]]


def test_the_table_of_a_scanned_folder_of_classes_is_a_task(tmp_path):
    for name in ("s/dog/1.png", "s/dog/2.png", "s/cat/3.png", "s/cat/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name, 9)
    write_scan(str(tmp_path), str(tmp_path / "table.csv"), (0.5, 0.0, 0.5))
    built = task(tmp_path)
    assert (built.inside, built.sizes["s"]["train"], built.classes) == (("s",), 2, 2)
    data = ClassificationData(table=str(tmp_path / "table.csv"))
    assert data.read()[1] == {"cat": "0", "dog": "1"}


def test_a_site_may_have_no_case_of_a_class(pictures):
    rows = [["a", split, f"a{n}.png", label] for n, (split, label) in enumerate(ROWS)]
    write_table(pictures, [*rows, ["b", "train", "b0.png", "dark"], ["b", "test", "b3.png", "dark"]])
    built = task(pictures)
    assert built.open("b").train.labels.tolist() == [[1]]
    metrics = built.score(lambda x: torch.tensor([[0.0, 1]]), built.open("b").test, torch.device("cpu"))
    assert metrics == {"accuracy": 1, "balanced_accuracy": 1, "f1": 1}  # and no area under a curve


def test_sampling_by_class_is_a_key_of_this_task(pictures):
    assert task(pictures).sampling == "uniform"
    assert task(pictures, {"sampling": "balanced"}).sampling == "balanced"
    with pytest.raises(ConfigError, match=r"task\.data\.sampling='even': expected 'uniform', 'balanced' or 'sqrt'"):
        resolve(parse_pairs(["task=classification", "task.data.sampling=even"]))
    with pytest.raises(ConfigError, match=r"unknown key 'task\.data\.sampling'"):
        resolve(parse_pairs(["task=segmentation", "task.data.sampling=balanced"]))


def test_a_class_without_remaining_labels_is_still_a_class(pictures):
    built = task(pictures, {"labelled": 1})
    assert built.classes == 2
    assert built.sizes["a"] == {"train": 1, "val": 1, "test": 1, "unlabelled": 2}
    assert built.open("a").unlabelled.labels is None


def test_partition_by_class_and_shift(pictures):
    built = task(pictures, {"partition": {"name": "dirichlet", "by": "label", "sites": 2, "alpha": 0.3}})
    assert built.inside == ("site-01", "site-02")
    assert sum(sizes["train"] for sizes in built.sizes.values()) == 6
    plain, shifted = (
        task(pictures, {"shift": {"severity": severity}}).open("a").train.inputs for severity in (0.0, 0.8)
    )
    assert not np.array_equal(plain, shifted)


def test_volumes_whole_and_as_slices(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number, (split, depth) in enumerate([("train", 3), ("train", 5), ("test", 4)]):
        nib.save(nib.Nifti1Image(rng.random((4, 6, depth)), np.diag([1, 1, 2.5, 1])), tmp_path / f"x{number}.nii.gz")
        rows.append(["a", split, f"x{number}.nii.gz", number % 2])
    write_table(tmp_path, rows)
    whole = task(tmp_path, {"size": [4, 4, 4]}, network={"name": "resnet"})
    assert (whole.shape, whole.open("a").train.labels.tolist()) == ((1, 4, 4, 4), [[0], [1]])
    sliced = task(tmp_path, {"size": [8, 8], "slices": True}).open("a").train
    assert sliced.inputs.shape == (8, 1, 8, 8)
    assert sliced.cases.tolist() == [0] * 3 + [1] * 5
    assert sliced.labels[:, 0].tolist() == [0] * 3 + [1] * 5


def test_urls(pictures):
    store = fsspec.filesystem("memory")
    store.put(str(pictures), "/classes", recursive=True)
    local, remote = (task(pictures, {"table": t}) for t in (str(pictures / "table.csv"), "memory://classes/table.csv"))
    assert np.array_equal(remote.open("a").train.inputs, local.open("a").train.inputs)
    assert remote.open.paths() == (["memory://classes/"], [str(pictures / "cache")])


def test_a_task_opens_in_another_process_and_without_the_cache(pictures):
    built = task(pictures)
    expected = built.open("a").train
    arrays = np.array(expected.inputs), np.array(expected.labels)
    sent = pickle.dumps(built)
    assert len(sent) < 10_000
    shutil.rmtree(pictures / "cache")
    again = pickle.loads(sent).open("a").train
    assert np.array_equal(again.inputs, arrays[0])
    assert np.array_equal(again.labels, arrays[1])


def test_only_a_site_whose_labels_change_is_prepared_again(pictures):
    task(pictures)
    text = (pictures / "table.csv").read_text()
    (pictures / "table.csv").write_text(text.replace("b0.png,dark", "b0.png,bright"))
    assert task(pictures).open("b").train.labels.tolist() == [[0], [0], [1]]
    assert len(list((pictures / "cache").iterdir())) == 3


def test_a_federation_learns_the_classes(pictures):
    built = task(pictures, {"intensity": "unit"}, batch_size=3)
    algorithm = algorithm_class("fedavg")(lr=1e-2, epochs=5)
    *_, last = federate(algorithm, built, LocalFleet(built, rounds=4), rounds=4)
    assert last.loss < 0.1
    found = {(score.site, score.metric): score.value for score in last.scores if score.split == "test"}
    assert found["a", "accuracy"] == found["b", "accuracy"] == 1


@pytest.mark.parametrize("name", ["resnet", "resnet18", "densenet121", "seresnet50", "efficientnetbn", "classifier"])
def test_networks_work_by_name_alone(pictures, name):
    built = task(pictures, {"size": [32, 32]}, network={"name": name})
    logits = built.start(0).eval()(torch.zeros(3, 1, 32, 32))
    assert logits.shape == (3, 2)


def test_a_vision_transformer_returns_logits_without_activation(pictures):
    keys = {"name": "vit", "patch_size": [8, 8], "hidden_size": 8, "mlp_dim": 8, "num_heads": 2, "num_layers": 1}
    built = task(pictures, network=keys)
    (head,) = (layer for name, layer in built.start(0).named_modules() if name == "classification_head")
    assert isinstance(head, torch.nn.Linear)  # by default, MONAI adds a tanh
    logits = torch.tensor([[2.0, 0.0]])
    assert built.loss((logits, []), torch.tensor([[0]])).item() == pytest.approx(np.log1p(np.exp(-2)))


def test_the_default_network_is_small_and_uses_batch_norm(pictures):
    assert Classification().network == {"name": "resnet"}
    net = task(pictures, network={"name": "resnet"}).start(0)
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in net.modules()) == 12
    assert sum(p.numel() for p in net.parameters()) < 350_000


def test_a_last_batch_of_one_example_is_refused(pictures):
    with pytest.raises(ConfigError, match=r"task\.batch_size=2: the last batch at 'a' \(.* has one example"):
        check_last_batch(task(pictures, batch_size=2, network={"name": "resnet"}))


def test_losses_by_hand(pictures):
    logits, labels = torch.tensor([[1.0, 3], [1, 3]]).log(), torch.tensor([[0], [1]])
    # Probabilities 1/4 and 3/4: -log 1/4 and -log 3/4.
    plain = task(pictures).loss(logits, labels)
    assert plain.item() == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)
    weighted = task(pictures, loss={"name": "cross_entropy", "weight": [3, 1]}).loss(logits, labels)
    assert weighted.item() == pytest.approx((3 * np.log(4) + np.log(4 / 3)) / 4)
    smooth = task(pictures, loss={"name": "cross_entropy", "label_smoothing": 0.5}).loss(logits[:1], labels[:1])
    assert smooth.item() == pytest.approx(0.75 * np.log(4) + 0.25 * np.log(4 / 3))
    # Focal: (3/4)^2 log 4, averaged over the two classes.
    focal = task(pictures, loss={"name": "focal"}).loss(logits[:1], labels[:1])
    assert focal.item() == pytest.approx(0.75**2 * np.log(4) / 2)


def test_augmentation_changes_images_and_never_labels(pictures):
    specs = [{"name": "RandFlip", "prob": 0.5, "spatial_axis": 0}, {"name": "rand_gaussian_noise", "prob": 1}]
    built = pickle.loads(pickle.dumps(task(pictures, augment=specs)))
    train = built.open("a").train
    inputs, labels = torch.from_numpy(np.array(train.inputs)), torch.from_numpy(np.array(train.labels))
    first, again, other = (built.augment(inputs, labels, np.random.RandomState(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], labels)
    assert first[1].dtype == labels.dtype
    keys = [{"name": "RandShiftIntensity", "offsets": 5, "prob": 1, "keys": ["image", "label"]}]
    assert "remove keys; in this task only the image may change" in refused(pictures, augment=keys)


def test_wrong_settings_are_refused_with_the_cure(pictures):
    assert "task.data.table=FILE" in refused(pictures, {"table": ""})
    assert "did you mean 'b'" in refused(pictures, {"outside": ["B"]})
    assert "all sites are outside sites, so no site trains" in refused(pictures, {"outside": ["a", "b"]})
    assert "'dark' in 6 rows" in refused(pictures, {"classes": ["bright", "black"]})
    assert "set one size with task.data.size" in refused(pictures, {"size": None})
    assert "did you mean 'ResNet'" in refused(pictures, network={"name": "resnett"})
    assert "it is not a classifier; use a network with one output per image" in refused(
        pictures, network={"name": "unet", "channels": [4, 8]}
    )
    assert "remove num_classes from task.network" in refused(pictures, network={"name": "resnet", "num_classes": 3})
    assert "valid: CrossEntropy, Focal" in refused(pictures, loss={"name": "dice"})
    assert "unknown argument of loss" in refused(pictures, loss={"name": "cross_entropy", "wieght": [1, 2]})
    assert "the loss fails on 2 classes" in refused(pictures, loss={"name": "cross_entropy", "weight": [1, 2, 3]})


def test_yes_and_no_in_yaml_are_not_read_as_numbers():
    with pytest.raises(ConfigError, match=r"task\.data\.classes"):
        resolve(parse_pairs(["task=classification", "task.data.classes=[no, yes]"]))
    with pytest.raises(ValidationError):
        TypeAdapter(Classification).validate_python({"data": {"classes": [False, True]}})


def test_masks_are_not_classes(pictures):
    write_table(pictures, [["a", "train", f"a{n}.png", f"m{n}.png"] for n in range(2)])
    assert "its labels look like files, such as 'm0.png'" in refused(pictures)
    assert task(pictures, {"classes": ["m0.png", "m1.png"]}).classes == 2


def test_every_image_that_cannot_be_read_is_named(pictures):
    (pictures / "a1.png").write_text("not a picture")
    (pictures / "b2.png").write_bytes((pictures / "b2.png").read_bytes()[:40])
    message = refused(pictures)
    assert "a1.png: cannot be read: expected a picture in a supported format" in message
    assert "b2.png: cannot be read" in message
    (pictures / "a1.png").unlink()
    assert "files that do not exist" in refused(pictures)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("site,split,picture,label", "it has no column 'image'; its columns are 'site', 'split', 'picture', 'label'"),
        ("site,split,image,diagnosis", "it has no column 'label'"),
        ("hospital,split,image,label", "it has no column 'site'"),
    ],
)
def test_a_missing_column_is_named(pictures, header, message):
    write_table(pictures, [["a", "train", "a0.png", "dark"]], header)
    assert message in refused(pictures)


def test_an_image_without_a_label_is_refused_unless_unlabelled(pictures):
    rows = [["a", "train", "a0.png", "dark"], ["a", "train", "a1.png", "bright"]]
    write_table(pictures, [*rows, ["a", "val", "a2.png", ""]])
    assert "empty label cells in row 4" in refused(pictures)
    write_table(pictures, [*rows, ["a", "unlabelled", "a2.png", ""]])
    assert task(pictures).sizes["a"]["unlabelled"] == 1


@pytest.mark.slow  # reads 751 pictures
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")
def test_real_cells_of_three_laboratories(tmp_path):
    names = ["neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil"]
    data = {"table": str(DATA / "wbc_classification" / "table.csv"), "cache": str(tmp_path), "size": [32, 32]}
    built = TypeAdapter(Classification).validate_python({"data": {**data, "classes": names}, "network": SMALL}).build()
    assert (built.shape, built.classes) == ((3, 32, 32), 5)
    counts = {site: np.bincount(built.open(site).train.labels[:, 0], minlength=5).tolist() for site in built.inside}
    assert counts == {
        "bccd": [124, 20, 12, 53, 2],
        "cellavision_blog": [20, 22, 9, 7, 2],
        "jiangxi_tecom": [106, 32, 29, 13, 1],
    }
