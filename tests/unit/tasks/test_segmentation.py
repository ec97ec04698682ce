"""The segmentation task on pictures, volumes and slices, valid and invalid."""

from __future__ import annotations

import pickle
import shlex
import shutil
import warnings

import fsspec
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.data.meta_obj import get_track_meta
from PIL import Image as Pillow
from pydantic import TypeAdapter

from raysim.config.merge import parse_pairs
from raysim.core.errors import ConfigError
from raysim.data.image_reader import read_image
from raysim.data.scanner_shift import ScannerShift
from raysim.tasks.augmentation import make_augmentation
from raysim.tasks.segmentation import Segmentation
from tests.support.paths import DATA

UNET = {"name": "unet", "channels": [4, 8], "num_res_units": 0}


def task(folder, network=None, **data):
    """The task of `folder/table.csv`, from keys as a user writes them, with its cache in the same folder."""
    data = {"table": str(folder / "table.csv"), "cache": str(folder / "cache"), **data}
    return TypeAdapter(Segmentation).validate_python({"data": data, "network": network or UNET}).build()


def write_table(folder, rows):
    lines = ["site,split,image,label", *(",".join(row) for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines))


def picture(path, array, mode=None):
    Pillow.fromarray(np.asarray(array, np.uint8), mode).save(path)


def volume(path, array, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)


@pytest.fixture
def pictures(tmp_path):
    """Two sites with pictures of 8 x 6. The label is the brightest corner: top right at `a`, bottom left at `b`."""
    rows = []
    for site, corner in {"a": (slice(0, 4), slice(4, 6)), "b": (slice(4, 8), slice(0, 2))}.items():
        for split, number in [("train", 0), ("train", 1), ("val", 2), ("test", 3)]:
            mask = np.zeros((8, 6))
            mask[corner] = 255
            name = f"{site}{number}"
            picture(tmp_path / f"{name}.png", mask // 2 + number)
            picture(tmp_path / f"{name}_mask.png", mask)
            rows.append([site, split, f"{name}.png", f"{name}_mask.png"])
    write_table(tmp_path, rows)
    return tmp_path


CLASSES = {"background": 0, "corner": 255}


def test_pictures_are_height_by_width_with_their_label(pictures):
    built = task(pictures, classes=CLASSES, intensity="none", outside=["b"])
    assert (built.inside, built.outside) == (("a",), ("b",))
    assert built.sizes["a"] == {"train": 2, "val": 1, "test": 1, "unlabelled": 0}
    train = built.open("a").train
    assert (train.inputs.shape, train.inputs.dtype) == ((2, 1, 8, 6), np.float32)
    assert train.inputs[1, 0, 0, 5] == 128  # 255 // 2 + 1 in the top right corner
    assert train.inputs[1, 0, 7, 0] == 1
    assert np.array_equal(train.labels, train.inputs > 100)
    assert train.spacing.tolist() == [[1, 1], [1, 1]]
    assert len(built.open("a").unlabelled) == 0


MODES = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "P": 3}


@pytest.mark.parametrize(
    ("mode", "suffix"), [*((m, s) for m in MODES for s in ("png", "tif")), ("L", "bmp"), ("P", "bmp")]
)
def test_modes_become_grey_or_colour_without_alpha(tmp_path, mode, suffix):
    Pillow.new("RGB", (6, 4), (40, 40, 40)).convert(mode, palette=Pillow.Palette.ADAPTIVE).save(
        tmp_path / f"x.{suffix}"
    )
    image = read_image(str(tmp_path / f"x.{suffix}"))
    assert image.array.shape == (MODES[mode], 4, 6)
    assert (image.array == 40).all()


def test_masks_keep_the_numbers_of_their_palette_and_must_be_grey(tmp_path):
    indexed = Pillow.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    indexed.putpalette([9, 9, 9, 250, 0, 0, 0, 250, 0])
    indexed.save(tmp_path / "mask.png")
    assert read_image(str(tmp_path / "mask.png"), mask=True).array.tolist() == [[[0, 1], [2, 1]]]
    picture(tmp_path / "red.png", np.array([[[255, 0, 0]]]))
    with pytest.raises(ConfigError, match=r"red\.png.*must be grey"):
        read_image(str(tmp_path / "red.png"), mask=True)


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        ("zscore", [[-1, -1], [1, 1]]),
        ("minmax", [[0, 0], [1, 1]]),
        ("unit", [[0, 0], [1, 1]]),
        ("none", [[0, 0], [255, 255]]),
        ("percentile", [[0, 0], [1, 1]]),
    ],
)
def test_intensities(tmp_path, intensity, expected):
    picture(tmp_path / "x.png", np.kron([[0, 0], [255, 255]], np.ones((4, 4))))
    shutil.copy(tmp_path / "x.png", tmp_path / "mask.png")
    write_table(tmp_path, [["a", "train", "x.png", "mask.png"]])
    built = task(tmp_path, classes=CLASSES, intensity=intensity)
    assert built.open("a").train.inputs[0, 0, ::4, ::4] == pytest.approx(np.array(expected))


def test_colours_of_masks_are_classes_and_other_colours_are_refused(pictures):
    for site, order in {"a": [0, 0, 0, 255, 0, 0], "b": [255, 0, 0, 0, 0, 0]}.items():
        for number in range(4):
            stored = np.asarray(Pillow.open(pictures / f"{site}{number}_mask.png")) > 0
            packed = Pillow.fromarray((stored if site == "a" else ~stored).astype(np.uint8), "P")
            packed.putpalette(order)
            packed.save(pictures / f"{site}{number}_mask.png")
    message = refused(pictures, classes=["x", "y"])
    assert "b0_mask.png: the order of its palette is ambiguous" in message
    cure = yaml.safe_load(message.splitlines()[-1].partition("colours=")[2].rstrip("'"))
    assert cure == {"background": [0, 0, 0], "NAME1": [255, 0, 0]}
    for site in "ab":
        labels = task(pictures, colours=cure).open(site).train.labels
        assert labels.mean() == 8 / 48  # 4 x 2 of 8 x 6 pixels
    with pytest.raises(ConfigError, match="every class needs a distinct colour"):
        task(pictures, colours={"a": [1, 1, 1], "b": [1, 1, 1]})
    with pytest.raises(ConfigError, match=r"remove task\.data\.classes"):
        task(pictures, colours=cure, classes=["x", "y"])


def test_masks_whose_palettes_differ_between_sites_are_refused(pictures):
    for site, colour in {"a": [255, 0, 0], "b": [0, 255, 0]}.items():
        for number in range(4):
            packed = Pillow.fromarray((np.arange(48).reshape(8, 6) % 2).astype(np.uint8), "P")
            packed.putpalette([0, 0, 0, *colour])
            packed.save(pictures / f"{site}{number}_mask.png")
    message = refused(pictures, classes=["x", "y"])
    assert "b3_mask.png: stores the colour [0, 255, 0] as 1, but" in message  # the first row of the sorted table
    assert refused(pictures, classes=["x", "y"]) == message  # also with the cache


def test_grey_and_colour_pictures_are_converted(pictures):
    grey = np.asarray(Pillow.open(pictures / "a0.png"))
    Pillow.fromarray(np.stack([grey, grey + 1, grey], -1)).save(pictures / "a0.png")
    assert "task.data.channels=3 repeats the channel of grey pictures" in refused(pictures, classes=CLASSES)
    three = task(pictures, classes=CLASSES, channels=3, intensity="none").open("a").train.inputs
    assert np.array_equal(three[1], np.repeat(three[1][:1], 3, 0))
    assert three[0, :, 7, 0].tolist() == [0, 1, 0]
    one = task(pictures, classes=CLASSES, channels=1, intensity="none").open("a").train.inputs
    assert one.shape == (2, 1, 8, 6)
    assert one[0, 0, 7, 0] == pytest.approx(0.587)
    assert one[1, 0, 0, 5] == 128


def test_equal_channels_keep_their_value_as_grey(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    picture(tmp_path / "x.png", np.stack([values] * 3, -1))
    picture(tmp_path / "y.png", values > 9)
    write_table(tmp_path, [["a", "train", "x.png", "y.png"]])
    built = task(tmp_path, channels=1, intensity="none")
    assert np.array_equal(built.open("a").train.inputs[0, 0], values)


def test_float_labels_near_a_whole_number_are_classes(tmp_path):
    volume(tmp_path / "x.nii", np.zeros((4, 4, 4), np.float32))
    volume(tmp_path / "y.nii", np.full((4, 4, 4), 0.99999994, np.float32))
    write_table(tmp_path, [["a", "train", "x.nii", "y.nii"]])
    assert (task(tmp_path).open("a").train.labels == 1).all()
    volume(tmp_path / "y.nii", np.full((4, 4, 4), 0.9876543, np.float32))
    assert "has the values 0.9876543, which are not a class" in refused(tmp_path)


def test_resizing_keeps_class_indices_and_scales_the_spacing(pictures):
    train = task(pictures, classes=CLASSES, size=[4, 12]).open("a").train
    assert train.inputs.shape == (2, 1, 4, 12)
    assert np.unique(train.labels).tolist() == [0, 1]
    assert train.labels[0, 0].sum() == 2 * 4  # rows halved, columns doubled
    assert train.spacing[0].tolist() == [2, 0.5]


def test_padding_uses_the_lowest_value_and_cropping_of_labels_warns(pictures):
    padded = task(pictures, classes=CLASSES, size=[10, 8], fit="pad", intensity="none").open("a").train
    assert padded.inputs[1, 0, 0].tolist() == [1] * 8
    assert padded.labels[1, 0].sum() == 8
    with pytest.warns(UserWarning, match=r"removes labelled voxels from 8 images, at most 75\.0%"):
        cut = task(pictures, classes=CLASSES, size=[4, 4], fit="pad").open("a").train
    assert cut.labels[1, 0].sum() == 2  # the lower rows and the left column of 4 x 2 voxels


def test_volumes_are_reoriented_to_ras_and_resampled(tmp_path):
    image = np.zeros((4, 6, 8), np.float32)
    image[0, 0, 0] = 1
    volume(
        tmp_path / "x.nii.gz", image, np.diag([-2.0, 1, 1, 1])
    )  # the first voxel is on the right, because x points to the left
    volume(tmp_path / "y.nii.gz", (image > 0).astype(np.uint8), np.diag([-2.0, 1, 1, 1]))
    write_table(tmp_path, [["a", "train", "x.nii.gz", "y.nii.gz"]])
    plain = task(tmp_path, intensity="none").open("a").train
    assert plain.inputs.shape == (1, 1, 4, 6, 8)
    assert np.argwhere(plain.labels[0, 0]).tolist() == [[3, 0, 0]] == np.argwhere(plain.inputs[0, 0]).tolist()
    assert plain.spacing.tolist() == [[2, 1, 1]]
    finer = task(tmp_path, spacing=[1, 1, 2], size=[8, 6, 4], fit="pad").open("a").train
    assert finer.inputs.shape == (1, 1, 8, 6, 4)
    assert finer.spacing.tolist() == [[1, 1, 2]]


def test_slices_of_a_volume_have_one_case_and_their_distance(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number, depth in enumerate([3, 5]):
        volume(tmp_path / f"x{number}.nii.gz", rng.random((4, 6, depth)), np.diag([1, 1, 2.5, 1]))
        volume(tmp_path / f"y{number}.nii.gz", np.ones((4, 6, depth), np.uint8), np.diag([1, 1, 2.5, 1]))
        rows.append(["a", "train", f"x{number}.nii.gz", f"y{number}.nii.gz"])
    write_table(tmp_path, rows)
    built = task(tmp_path, slices=True, intensity="none")
    train = built.open("a").train
    assert train.inputs.shape == (8, 1, 4, 6)
    assert train.cases.tolist() == [0] * 3 + [1] * 5
    assert train.spacing[0].tolist() == [1, 1, 2.5]
    stored = nib.load(tmp_path / "x1.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(train.inputs[3, 0], stored[:, :, 0])
    assert built.score(lambda x: torch.stack([0 * x[:, 0], 1 + x[:, 0]], 1), train, torch.device("cpu")) == {
        "dice": 1.0
    }


def test_partition_labelled_and_shift(pictures):
    built = task(pictures, classes=CLASSES, partition={"name": "iid", "sites": 2}, labelled=1, shift={"severity": 0.8})
    assert built.inside == ("site-01", "site-02")
    assert built.sizes["site-01"] == {"train": 1, "val": 1, "test": 1, "unlabelled": 1}
    assert built.open("site-01").unlabelled.labels is None
    kept = task(pictures, classes=CLASSES, partition={"name": "iid", "sites": 2}, outside=["b"])
    assert (kept.inside, kept.outside) == (("site-01", "site-02"), ("b",))
    assert kept.sizes["b"]["train"] == 2


def test_the_scanner_of_a_site_does_not_depend_on_the_folder(pictures, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "data"
    shutil.copytree(pictures, moved)
    both = [
        task(folder, classes=CLASSES, shift={"severity": 0.8}).open("a").train.inputs for folder in (pictures, moved)
    ]
    assert np.array_equal(*both)
    assert not np.array_equal(both[0], task(pictures, classes=CLASSES).open("a").train.inputs)


def test_only_a_changed_site_is_prepared_again(pictures):
    task(pictures, classes=CLASSES)
    before = {path: path.stat().st_ino for path in (pictures / "cache").iterdir()}
    picture(pictures / "b0.png", np.full((8, 6), 9))
    built = task(pictures, classes=CLASSES, intensity="zscore")
    after = {path: path.stat().st_ino for path in (pictures / "cache").iterdir()}
    assert len(before) == 2
    assert before.items() < after.items()  # an entry that is prepared again is a new folder
    assert len(after) == 3
    assert not built.open("b").train.inputs[0].any()  # constant


def test_a_task_opens_in_another_process_and_without_the_cache(pictures):
    built = task(pictures, classes=CLASSES)
    expected = np.array(built.open("a").train.inputs)
    sent = pickle.dumps(built)
    assert len(sent) < 10_000
    shutil.rmtree(pictures / "cache")
    assert np.array_equal(pickle.loads(sent).open("a").train.inputs, expected)


def test_progress_counts_cases_with_and_without_the_cache(pictures):
    given = TypeAdapter(Segmentation).validate_python(
        {"data": {"table": str(pictures / "table.csv"), "cache": str(pictures / "cache"), "classes": CLASSES}}
    )
    seen = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="fewer levels"):  # 8 x 6 is too small for the default network
            given.build(lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)] * 2


def test_urls(pictures):
    store = fsspec.filesystem("memory")
    store.put(str(pictures), "/bucket", recursive=True)
    local = task(pictures, classes=CLASSES, shift={"severity": 0.5})
    remote = task(pictures, classes=CLASSES, shift={"severity": 0.5}, table="memory://bucket/table.csv")
    assert np.array_equal(remote.open("a").train.inputs, local.open("a").train.inputs)


def test_one_error_has_all_invalid_files_and_names_the_first_five(pictures):
    for number in range(4):
        picture(pictures / f"b{number}_mask.png", np.full((8, 6), 7))
    (pictures / "a0.png").write_text("not a picture")
    picture(pictures / "a1_mask.png", np.zeros((6, 8)))
    with pytest.raises(ConfigError) as error:
        task(pictures, classes=CLASSES)
    text = str(error.value)
    assert text.count("\n") == 9
    assert "a0.png: cannot be read" in text
    assert "a1_mask.png: has the shape (1, 6, 8)" in text
    assert "b0_mask.png: has the values 7, which are not a class; the classes are [0, 255]" in text
    assert "and 1 more" in text
    assert text.endswith(
        "give each value a class name, and put the argument in quotes: "
        "'task.data.classes={background: 0, corner: 255, NAME7: 7}'\n"
        "  if several values mean the same class, save all masks with one value for it\n"
        "  if 255 marks voxels without a label, leave it out of the classes and add task.data.ignore=255"
    )


def suggested_classes(message):
    """The classes of the argument that a message suggests, read as the command line reads it."""
    (argument,) = [word for word in shlex.split(message) if word.startswith("task.data.classes=")]
    return parse_pairs([argument])["task"]["data"]["classes"]


def test_the_suggested_classes_have_every_value_and_fit(pictures):
    for number, value in enumerate([7, 9, 200]):
        picture(pictures / f"b{number}_mask.png", np.full((8, 6), value))
    suggested = suggested_classes(refused(pictures, classes=CLASSES))
    assert suggested == {"background": 0, "corner": 255, "NAME7": 7, "NAME9": 9, "NAME200": 200}
    assert task(pictures, classes=suggested).open("b").train.labels.max() == 3
    picture(pictures / "b0_mask.png", np.arange(48).reshape(8, 6))
    assert refused(pictures).splitlines()[-1].strip().startswith("masks need few values, all whole numbers")


@pytest.mark.parametrize("classes", [None, ("background", "corner"), CLASSES])
def test_two_values_are_background_and_foreground(pictures, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = task(pictures, classes=classes)
    assert built.open("a").train.labels[0, 0].sum() == 4 * 2
    name = "foreground" if classes is None else "corner"
    assert f"background 0 (83.3 %), {name} 255 (16.7 %)" in built.summary  # 8 of 48 pixels


def test_an_empty_mask_has_no_foreground_and_a_full_mask_is_foreground(pictures):
    picture(pictures / "a0_mask.png", np.zeros((8, 6)))
    picture(pictures / "a1_mask.png", np.full((8, 6), 255))
    assert task(pictures).open("a").train.labels.sum((1, 2, 3)).tolist() == [0, 48]


def test_masks_with_different_values_of_the_foreground_are_refused(pictures):
    picture(pictures / "b1_mask.png", np.pad(np.ones((2, 2)), ((0, 6), (0, 4))))
    message = refused(pictures, classes=None)
    assert "b1_mask.png: has the values 1, expected 0 and one other value, the same in all masks" in message
    assert "a3_mask.png: has the values 255" in message
    assert suggested_classes(message) == {"background": 0, "NAME1": 1, "NAME255": 255}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (CLASSES | {"background": 9}, {"background": 0, "corner": 255}),
        ({"background": 0, "corner": 1}, {"background": 0, "corner": 255}),
        ({"background": 0, "corner": 1, "other": 2}, {"background": 0, "NAME255": 255}),
    ],
)
def test_the_suggested_classes_have_no_value_that_no_mask_has(pictures, classes, expected):
    suggested = suggested_classes(refused(pictures, classes=classes))
    assert suggested == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task(pictures, classes=suggested)


def test_a_class_that_no_mask_has_gives_a_warning(pictures):
    with pytest.warns(UserWarning, match=r"classes that no prepared mask has: vein \(3\); the network has"):
        task(pictures, classes={**CLASSES, "vein": 3})


def test_ignored_voxels_are_in_neither_loss_nor_metrics(pictures):
    for number in range(4):
        mask = np.zeros((8, 6))
        mask[:4, 4:], mask[4:, :2] = 255, 100
        picture(pictures / f"a{number}_mask.png", mask)
    assert "100" in refused(pictures, classes=None)
    built = task(pictures, ignore=100)
    labels = torch.from_numpy(np.array(built.open("a").train.labels))
    assert labels.unique().tolist() == [0, 1, 255]
    logits = torch.stack([labels[:, 0] != 1, labels[:, 0] == 1], 1).float()
    logits[:, :, 4:, :2] += torch.tensor([0.0, 50.0])[None, :, None, None]  # wrong, if these voxels counted
    other = logits.clone()
    other[:, :, 4:, :2] = 0
    assert built.loss(logits, labels) == built.loss(other, labels) > 0
    assert built.loss(logits, torch.full_like(labels, 255)) == 0
    scores = built.score(lambda _: logits[:1], built.open("a").val, torch.device("cpu"))
    assert scores == {"dice": 1.0}
    assert "task.data.ignore=255 is the value of class 'corner'" in refused(pictures, classes=CLASSES, ignore=255)


def test_new_names_of_classes_do_not_prepare_images_again(pictures):
    task(pictures, classes=CLASSES)
    task(pictures, classes={"other": 0, "name": 255})
    assert len(list((pictures / "cache").iterdir())) == 2


@pytest.mark.parametrize("labels", [["0", "1"], ["cat", "dog"]])
def test_classes_are_not_masks(pictures, labels):
    write_table(pictures, [["a", "train", f"a{number}.png", label] for number, label in enumerate(labels)])
    assert "path of a mask" in refused(pictures)


def test_a_patient_in_several_splits_gives_a_warning(pictures):
    lines = (pictures / "table.csv").read_text().splitlines()
    (pictures / "table.csv").write_text("\n".join([lines[0] + ",patient", *(f"{line},p1" for line in lines[1:])]))
    with pytest.warns(UserWarning, match=r"patients .* 2, p1 of a \(train, val, test\), p1 of b"):
        task(pictures, classes=CLASSES)


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_resampling_that_removes_all_labels_warns(tmp_path, fit):
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[3, 3, 3] = 1
    volume(tmp_path / "x.nii.gz", mask.astype(np.float32))
    volume(tmp_path / "y.nii.gz", mask)
    write_table(tmp_path, [["a", "train", "x.nii.gz", "y.nii.gz"]])
    with pytest.warns(
        UserWarning, match=r"^task\.data\.spacing.* removes all labelled voxels of 1 image, such as .*x\.nii"
    ):
        built = task(tmp_path, spacing=[2, 2, 2], size=[4, 4, 4], fit=fit)
    assert not built.open("a").train.labels.any()


def test_a_note_about_a_mask_names_the_mask(tmp_path):
    """The voxel sizes of the mask differ from its sform; those of the image do not."""
    array = np.zeros((8, 8, 8), np.uint8)
    array[3:6, 3:6, 3:6] = 1
    volume(tmp_path / "x.nii.gz", array.astype(np.float32))
    mask = nib.Nifti1Image(array, np.eye(4))
    mask.header.set_sform(np.eye(4), 2)
    mask.header["qform_code"], mask.header["pixdim"][1:4] = 0, 2
    nib.save(mask, tmp_path / "y.nii.gz")
    write_table(tmp_path, [["a", "train", "x.nii.gz", "y.nii.gz"]])
    with pytest.warns(UserWarning, match=r"^1 file, such as .*y\.nii\.gz: its sform and its voxel sizes"):
        task(tmp_path)


def test_resizing_that_removes_all_labels_warns(pictures):
    mask = np.zeros((8, 6))
    mask[0, 0] = 255
    picture(pictures / "a0_mask.png", mask)
    with pytest.warns(
        UserWarning, match=r"^task\.data\.size removes all labelled voxels of 1 image, such as .*a0\.png"
    ):
        task(pictures, classes=CLASSES, size=[4, 4])


def refused(folder, **data):
    with pytest.raises(ConfigError) as error, warnings.catch_warnings():
        task(folder, **{"classes": CLASSES} | data)
    return str(error.value)


def test_wrong_settings_are_refused_with_the_cure(pictures):
    assert "task.data.table=FILE" in refused(pictures, table="")
    assert "did you mean 'b'" in refused(pictures, outside=["B"])
    assert "all sites are outside sites, so no site trains" in refused(pictures, outside=["a", "b"])
    assert "has 3 numbers, but images have 2 axes" in refused(pictures, size=[4, 4, 4])
    assert "only for volumes" in refused(pictures, spacing=[1, 1])
    assert "is not a volume, but task.data.slices=true needs volumes" in refused(pictures, slices=True)
    assert "a distinct value" in refused(pictures, classes={"x": 0, "y": 0})
    assert "has 1 channel, but task.data.channels=2" in refused(pictures, channels=2)
    assert "did you mean 'UNet'" in refused(pictures, network={"name": "unnet"})
    assert "has the values 255" in refused(pictures, classes=["background", "rim", "corner"])


def test_images_of_several_sizes_or_channels_are_refused(pictures):
    picture(pictures / "a1.png", np.zeros((4, 4)))
    picture(pictures / "a1_mask.png", np.zeros((4, 4)))
    assert "task.data.size" in refused(pictures)
    for number in range(4):
        picture(pictures / f"b{number}.png", np.zeros((8, 6, 3)))
    assert "same number of channels" in refused(pictures, size=[8, 6])


def test_volumes_in_another_position_or_with_nan_are_refused(tmp_path):
    image, moved = np.zeros((4, 4, 4), np.float32), np.eye(4)
    moved[0, 3] = 30
    volume(tmp_path / "x.nii.gz", image)
    volume(tmp_path / "y.nii.gz", image, moved)
    write_table(tmp_path, [["a", "train", "x.nii.gz", "y.nii.gz"]])
    assert "its position differs from that of its image" in refused(tmp_path)
    volume(tmp_path / "x.nii.gz", image + np.nan)
    assert "NaN" in refused(tmp_path)
    volume(tmp_path / "x.nii.gz", np.zeros((4, 4, 4, 2), np.float32), moved)
    assert task(tmp_path, intensity="none").open("a").train.inputs.shape == (1, 2, 4, 4, 4)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:40]])
def test_a_damaged_volume_is_reported_in_one_line(tmp_path, damage):
    volume(tmp_path / "x.nii.gz", np.zeros((4, 4, 4), np.float32))
    (tmp_path / "y.nii.gz").write_bytes(damage((tmp_path / "x.nii.gz").read_bytes()))
    write_table(tmp_path, [["a", "train", "x.nii.gz", "y.nii.gz"]])
    (line,) = refused(tmp_path).splitlines()
    assert "y.nii.gz: cannot be read" in line
    assert "LoadImage" not in line


def test_a_spacing_that_would_fill_the_memory_is_refused(tmp_path):
    volume(tmp_path / "x.nii.gz", np.zeros((4, 4, 4), np.float32))
    shutil.copy(tmp_path / "x.nii.gz", tmp_path / "mask.nii.gz")
    write_table(tmp_path, [["a", "train", "x.nii.gz", "mask.nii.gz"]])
    assert "6e+10 voxels; set a larger spacing" in refused(tmp_path, spacing=[0.001] * 3)


def test_the_configuration_has_the_scanner_shift():
    given = TypeAdapter(Segmentation).validate_python({"data": {"shift": {"severity": 0.5, "kinds": ["noise"]}}})
    assert given.data.shift == ScannerShift(severity=0.5, kinds=("noise",))


def test_augmentation_flips_image_and_label_together_and_depends_on_the_seed(pictures):
    flips = [
        {"name": "RandFlip", "prob": 0.5, "spatial_axis": 1},
        {"name": "rand_gaussian_noise", "prob": 1, "std": 0.01},
    ]
    data = {"table": str(pictures / "table.csv"), "cache": str(pictures / "cache"), "classes": CLASSES}
    given = {"data": data, "network": UNET, "augment": flips}
    built = pickle.loads(pickle.dumps(TypeAdapter(Segmentation).validate_python(given).build()))
    train = built.open("a").train
    inputs, labels = torch.from_numpy(np.repeat(train.inputs, 8, 0)), torch.from_numpy(np.repeat(train.labels, 8, 0))
    first, again, other = (built.augment(inputs, labels, np.random.RandomState(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], (first[0] > 0.5).to(torch.uint8))
    assert 0 < sum(not torch.equal(a, b) for a, b in zip(first[1], labels, strict=True)) < 16


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "RandFlipp"}, "did you mean 'RandFlipd'"),
        ({"name": "RandFlip", "axis": 1}, "unknown argument"),
        ({"name": "RandRotate90", "prob": 1.0}, "changes the shape"),
        ({"prob": 1}, "no name"),
    ],
)
def test_wrong_augmentations_are_refused(pictures, spec, message):
    data = {"table": str(pictures / "table.csv"), "cache": str(pictures / "cache"), "classes": CLASSES}
    with pytest.raises(ConfigError, match=message):
        TypeAdapter(Segmentation).validate_python({"data": data, "network": UNET, "augment": [spec]}).build()


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")
def test_real_volumes_of_several_scanners(tmp_path):
    data = {"table": str(DATA / "spinal_gm_3d" / "table.csv"), "cache": str(tmp_path), "outside": ["philips"]}
    data |= {"classes": ["background", "white", "grey"], "spacing": [0.5, 0.5], "size": [96, 96], "fit": "pad"}
    built = TypeAdapter(Segmentation).validate_python({"data": {**data, "slices": True}, "network": UNET}).build()
    test = built.open("philips").test
    assert test.inputs.shape == (20, 1, 96, 96)
    assert np.allclose(test.spacing, [0.5, 0.5, 3.0], atol=1e-5)
    assert np.unique(test.labels).tolist() == [0, 1, 2]


def test_augmentation_does_not_change_its_inputs():
    inputs, labels = torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    before = inputs.clone()
    specs = [{"name": "RandStdShiftIntensity", "factors": 0.5, "prob": 1}, {"name": "rand_bias_field", "prob": 1}]
    augment = make_augmentation(specs, 1, (8, 8))
    first, again = (augment(inputs, labels, np.random.RandomState(0))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(inputs, before)
    assert not torch.equal(first, before)


def test_augmentation_gives_plain_tensors_and_keeps_the_settings_of_monai():
    augment = make_augmentation([{"name": "RandFlip", "prob": 1.0}], 1, (4, 4))
    images, labels = augment(torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), np.random.RandomState(0))
    assert type(images) is type(labels) is torch.Tensor
    assert get_track_meta()
