"""Tables of folders in common layouts, as `read_table` reads them."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from raysim.cli import data
from raysim.core.errors import ConfigError
from raysim.data.scan import scan, write_scan
from raysim.data.table import read_table
from tests.support.paths import DATA

KINDS = ("images", "masks")


def made(root: Path, *files: str) -> str:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return str(root)


def labels(table: pd.DataFrame) -> dict[str, str]:
    known = table.dropna(subset="label")
    return dict(zip(known["image"], known["label"], strict=True))


def test_sites_with_images_and_masks(tmp_path: Path) -> None:
    folder = made(
        tmp_path,
        *(f"north/images/{i}.png" for i in range(10)),
        *(f"north/masks/{i}_mask.gif" for i in range(10)),
        "south/images/a.nii.gz",
        "south/labels/a.nii.gz",
        "south/images/._a.nii.gz",
        "south/images/.notes.txt",
    )
    table = scan(folder)
    assert list(table.columns) == ["site", "split", "image", "label"]
    assert table.groupby("site").size().to_dict() == {"north": 10, "south": 1}
    assert table[table["site"] == "north"].groupby("split").size().to_dict() == {"train": 7, "val": 1, "test": 2}
    assert labels(table)["north/images/3.png"] == "north/masks/3_mask.gif"
    assert labels(table)["south/images/a.nii.gz"] == "south/labels/a.nii.gz"
    assert table.attrs["notes"] == ["no val rows at south", "no test rows at south"]


@pytest.mark.parametrize("ending", ["", "_mask", "_seg", "-label", "_manual1", "_1stHO", " segmentation"])
def test_masks_are_matched_by_the_start_of_their_names(tmp_path: Path, ending: str) -> None:
    # case1 is also a prefix of case10 and of case1_b: the longest matching name of an image decides.
    names = ("case1", "case10", "case1_b")
    folder = made(tmp_path, *(f"images/{n}.jpg" for n in names), *(f"masks/{n}{ending}.png" for n in names))
    assert labels(scan(folder)) == {f"images/{n}.jpg": f"masks/{n}{ending}.png" for n in names}


def test_a_mask_of_the_same_name_takes_precedence_and_unmatched_masks_are_reported(tmp_path: Path) -> None:
    folder = made(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/a_old.png", "masks/z.png")
    table = scan(folder)
    assert labels(table) == {"images/a.png": "masks/a.png"}
    assert table.set_index("image")["split"]["images/b.png"] == "unlabelled"
    unmatched, unlabelled, *empty_splits = table.attrs["notes"]
    assert empty_splits == ["no val rows at any site", "no test rows at any site"]
    assert unmatched.startswith("masks without an image, left out: 2")
    assert unlabelled.startswith("images without a label, in split 'unlabelled': 1")


def test_a_site_without_masks_is_unlabelled_and_a_site_without_images_is_left_out(tmp_path: Path) -> None:
    table = scan(made(tmp_path, "a/images/1.png", "a/masks/1.png", "b/images/1.png", "c/masks/1.png"))
    assert table.groupby("site")["split"].agg(list).to_dict() == {"a": ["train"], "b": ["unlabelled"]}
    assert "c has no folder of images and is left out" in table.attrs["notes"]


def test_folders_of_splits_with_images_and_masks(tmp_path: Path) -> None:
    splits = {"Train": "train", "valid": "val", "test": "test"}
    folder = made(
        tmp_path / "clinic", *(f"{name}/{kind}/{name}{n}.png" for name in splits for kind in KINDS for n in range(3))
    )
    table = scan(folder, seed=3)
    assert set(table["site"]) == {"clinic"}
    assert dict(zip(table["image"], table["split"], strict=True)) == {
        f"{name}/images/{name}{n}.png": split for name, split in splits.items() for n in range(3)
    }
    assert labels(table)["valid/images/valid1.png"] == "valid/masks/valid1.png"
    assert table.attrs["notes"][0] == (
        "the folders of clinic are splits: Train -> train, test -> test, valid -> val; --fractions and --seed are not "
        "used"
    )


def test_images_without_a_mask_in_folders_of_splits_are_unlabelled(tmp_path: Path) -> None:
    masked = [f"{name}/{kind}/{name}.png" for name in ("train", "val") for kind in KINDS]
    table = scan(made(tmp_path, *masked, "train/images/x.png", "test/images/y.png"))
    assert dict(zip(table["image"], table["split"], strict=True)) == {
        "train/images/train.png": "train",
        "train/images/x.png": "unlabelled",
        "val/images/val.png": "val",
        "test/images/y.png": "unlabelled",
    }
    assert "no test rows at any site" in table.attrs["notes"]


def test_folders_of_splits_with_folders_of_classes(tmp_path: Path) -> None:
    """The class indices are those of all splits, although `test` does not have the first class."""
    files = ("train/cat/1.png", "train/dog/2.png", "train/fox/3.png", "test/dog/4.png", "test/fox/5.png")
    table = scan(made(tmp_path / "zoo", *files))
    assert set(table["site"]) == {"zoo"}
    rows = zip(table["image"], table["split"], table["label"], strict=True)
    expected = zip(files, (file.split("/")[0] for file in files), "01212", strict=True)
    assert sorted(rows) == sorted(expected)


def test_a_patient_in_several_folders_of_splits_is_reported(tmp_path: Path) -> None:
    names = {"train": "patient0_slice1", "test": "patient0_slice2"}
    table = scan(made(tmp_path, *(f"{split}/{kind}/{name}.png" for split, name in names.items() for kind in KINDS)))
    assert any("in more than one of train, val and test: 1, patient0" in note for note in table.attrs["notes"])


def test_a_folder_of_one_split_can_be_scanned(tmp_path: Path) -> None:
    assert scan(made(tmp_path / "train", "images/a.png", "masks/a.png"))["site"].tolist() == ["train"]
    assert scan(made(tmp_path / "test", "cat/a.png", "dog/b.png"))["site"].tolist() == ["test", "test"]


def test_a_single_site_has_the_name_of_the_folder(tmp_path: Path) -> None:
    table = scan(made(tmp_path / "clinic", "images/a.png", "labels/a.png"))
    assert table["site"].tolist() == ["clinic"]


def test_decathlon(tmp_path: Path) -> None:
    folder = made(
        tmp_path / "Task04",
        *(f"{f}/x{i}.nii.gz" for f in ("imagesTr", "labelsTr") for i in range(3)),
        "imagesTs/y.nii.gz",
    )
    training = [{"image": f"./imagesTr/x{i}.nii.gz", "label": f"./labelsTr/x{i}.nii.gz"} for i in range(3)]
    without = scan(folder)
    file = Path(folder) / "dataset.json"
    file.write_text(json.dumps({"training": training, "test": ["./imagesTs/y.nii.gz"]}))
    table = scan(folder)
    assert table["site"].unique().tolist() == ["Task04"]
    assert labels(table)["imagesTr/x2.nii.gz"] == "labelsTr/x2.nii.gz"
    assert table[table["label"].isna()]["image"].tolist() == ["imagesTs/y.nii.gz"]
    pd.testing.assert_frame_equal(table, without)
    file.write_text(json.dumps({"training": [{"image": "no.nii", "label": "no.nii"}]}))
    with pytest.raises(ConfigError, match="do not exist"):
        scan(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"training": 7}', '{"training": ["a"]}', '{"name": "x"}', "\x00"])
def test_a_json_file_with_other_content_is_ignored(tmp_path: Path, text: str) -> None:
    folder = made(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "dataset.json").write_text(text)
    table = scan(folder)
    assert len(table) == 1
    assert table.attrs["notes"][0].startswith(f"{tmp_path / 'dataset.json'} is ignored: ")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{bad", "it is not JSON in UTF-8: Expecting property name"),
        (b'\xff\xfe{"training": []}', "it is not JSON in UTF-8: 'utf-8' codec"),
        (b'{"training": []}', "it has no list 'training' with images and labels"),
        (b'{"training": [{"image": "a.nii.gz"}]}', "entry 1 of its 'training' has no 'label'"),
        (b'{"training": [{"image": "a.nii", "label": "a.nii"}], "test": [7]}', "entry 1 of its 'test' has no 'image'"),
        (b'{"training": [{"image": "a.nii", "label": "a.nii"}], "test": 7}', "its 'test' is not a list"),
    ],
)
def test_an_invalid_json_file_is_reported_if_there_are_no_other_cases(
    tmp_path: Path, content: bytes, part: str
) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        scan(str(tmp_path))
    assert f"{tmp_path / 'dataset.json'} is ignored: {part}" in str(refusal.value)
    assert "raysim supports these layouts" in str(refusal.value)


def test_case_is_ignored_except_for_names_that_differ_only_in_case(tmp_path: Path) -> None:
    images = ("IMG1.PNG", "img2.png", "Eye.png", "eye.png", "Case.png", "case_b.png")
    masks = ("img1.png", "img1_old.png", "IMG2_mask.PNG", "eye.png", "EYE.png", "Case_B.png", "case_x.png")
    folder = made(tmp_path, *(f"images/{n}" for n in images), *(f"masks/{n}" for n in masks))
    table = scan(folder)
    assert labels(table) == {
        "images/IMG1.PNG": "masks/img1.png",
        "images/img2.png": "masks/IMG2_mask.PNG",
        "images/eye.png": "masks/eye.png",
        "images/case_b.png": "masks/Case_B.png",
        "images/Case.png": "masks/case_x.png",
    }
    assert table.attrs["notes"][0].startswith("masks without an image, left out: 2, such as")  # img1_old and EYE


def test_skipped_entries_next_to_images_are_reported(tmp_path: Path) -> None:
    files = ("images/1.png", "images/2.xyz", "images/3.xyz", "images/p1/4.png", "images/5.png/x", "masks/1.png")
    folder = made(tmp_path, *(f"a/{file}" for file in files))
    (tmp_path / "a/images/6.png").symlink_to(tmp_path / "missing.png")
    table = scan(folder)
    assert table["image"].tolist() == ["a/images/1.png"]
    assert table.attrs["notes"][:3] == [
        f"broken links, left out: 1, such as {folder}/a/images/6.png",
        f"files in a format that raysim does not read, left out: 2, such as {folder}/a/images/2.xyz",
        f"folders inside image folders, not searched: 2, such as {folder}/a/images/5.png",
    ]


def test_skipped_entries_next_to_images_of_a_class_are_reported(tmp_path: Path) -> None:
    folder = made(tmp_path, "cat/1.png", "dog/2.png", "dog/3.xyz")
    (tmp_path / "dog/4.png").symlink_to(tmp_path / "missing.png")
    table = scan(folder)
    assert sorted(table["image"]) == [
        "cat/1.png",
        "dog/2.png",
    ]  # the split, and so the order, depends on the name of the folder
    links, formats = table.attrs["notes"][:2]
    assert "does not read, left out: 1" in formats
    assert "broken links, left out: 1" in links


@pytest.mark.parametrize(
    ("file", "part"), [("p1/1.png", "not searched: 2"), ("1.xyz", "raysim does not read, left out: 2")]
)
def test_a_folder_without_listable_images_is_refused_with_the_reason(tmp_path: Path, file: str, part: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        scan(made(tmp_path, f"a/images/{file}", f"a/masks/{file}"))
    assert part in str(refusal.value)


def test_splits_without_rows_are_reported(tmp_path: Path) -> None:
    folder = made(tmp_path, *(f"{s}/{k}/{i}.png" for s, n in (("a", 10), ("b", 1)) for k in KINDS for i in range(n)))
    assert scan(folder).attrs["notes"] == ["no val rows at b", "no test rows at b"]
    assert scan(folder, (0.4, 0, 0.6)).attrs["notes"] == ["no train rows at b", "no val rows at any site"]


def test_one_site_and_one_row_are_printed_in_the_singular(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    data.scan([made(tmp_path, "images/1.png", "masks/1.png")], None, "1,0,0", 0, None, console)
    assert isinstance(console.file, io.StringIO)
    assert ": 1 site, 1 row (train 1)" in console.file.getvalue()


def test_one_channel_of_nnunet(tmp_path: Path) -> None:
    folder = made(tmp_path, "imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz")
    assert labels(scan(folder)) == {"imagesTr/x_0000.nii.gz": "labelsTr/x.nii.gz"}


def test_classes_are_numbered_by_name_over_all_sites(tmp_path: Path) -> None:
    table = scan(made(tmp_path, "s1/cat/1.png", "s1/dog/2.png", "s2/bat/3.png"))
    assert labels(table) == {"s1/cat/1.png": "1", "s1/dog/2.png": "2", "s2/bat/3.png": "0"}
    assert dict(zip(table["image"], table["class"], strict=True))["s2/bat/3.png"] == "bat"
    flat = scan(made(tmp_path / "flat", "cat/1.png", "dog/2.png"))
    assert (flat["site"].unique().tolist(), flat["label"].tolist()) == (["flat"], ["0", "1"])


def test_patients_stay_together(tmp_path: Path) -> None:
    eyes = [f"p{i}{side}" for i in range(10) for side in "LR"]
    folder = made(tmp_path, *(f"images/{e}.png" for e in eyes), *(f"masks/{e}.png" for e in eyes))
    table = scan(folder, (0.5, 0.0, 0.5), group=r"(p\d+)")
    assert table["group"].nunique() == 10
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert table.groupby("split").size().to_dict() == {"test": 10, "train": 10}
    for wrong, part in (("p(", "regular"), ("p", "captures nothing"), ("(p.R)", "no patient in 10 of 20")):
        with pytest.raises(ConfigError, match=part):
            scan(folder, group=wrong)


@pytest.mark.parametrize("out", ["data/table.csv", "table.csv", "other/table.csv"])
def test_a_written_table_is_read_from_its_folder(tmp_path: Path, out: str) -> None:
    folder = made(tmp_path / "data", "a/images/1.png", "a/masks/1.png", "b/images/2.png", "b/masks/2_m.png")
    (tmp_path / "other").mkdir()
    write_scan(folder, str(tmp_path / out))
    table = read_table(str(tmp_path / out))
    assert table["label"].tolist() == [f"{folder}/a/masks/1.png", f"{folder}/b/masks/2_m.png"]
    with pytest.raises(ConfigError, match="never overwritten"):
        write_scan(folder, str(tmp_path / out))


def test_a_table_is_written_only_to_a_csv_file_in_a_folder_that_exists(tmp_path: Path) -> None:
    folder = made(tmp_path, "images/1.png", "masks/1.png")
    for out in ("none/t.csv", "t.txt"):
        with pytest.raises(ConfigError, match="cannot be written"):
            write_scan(folder, str(tmp_path / out))
    with pytest.raises(ConfigError, match=r"cannot write .*/t{300}\.csv: File name too long; choose another --out"):
        write_scan(folder, str(tmp_path / f"{'t' * 300}.csv"))


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ([], "raysim supports these layouts"),
        (["a.png", "b.png"], "raysim supports these layouts"),
        (["images/a.png"], "raysim supports these layouts"),
        (["images/a.png", "masks/a.png", "labels/a.png"], "keep one folder of images"),
        (
            ["images/01.png", "masks/01_manual1.png", "masks/01_manual2.png"],
            "several masks, 01_manual1.png and 01_manual2",
        ),
        (["images/01.png", "masks/01.png", "masks/01.gif"], "several masks"),
        (["images/01.png", "images/01.jpg", "masks/01.png"], "masks are matched by name"),
        (["images/21_training.tif", "masks/21_manual1.gif"], "no mask has the name of an image"),
        (["train/1.png", "test/1.png"], "are splits"),
        (["a.png", "a_mask.png"], "has masks beside images, such as a_mask.png; move them: images to"),
        (["H1/a.png", "H1/a-seg.png", "H2/b.png"], "H1/images, and masks to H1/masks"),
        (["benign/b (1).png", "benign/b (1)_mask.png", "ill/c.png"], "such as b (1)_mask.png"),
        ([f"train/{kind}/1.png" for kind in KINDS], "is a split, not a site; scan it: raysim data scan "),
        ([f"{f}/{kind}/1.png" for f in ("Train", "test", "H1") for kind in KINDS], "are splits, but H1 is not"),
        (["H1/Cat/1.png", "H1/cat/2.png", "H1/dog/3.png"], "nearly equal names, 'Cat' and 'cat'; rename them"),
        ([f"{kind}/{site}/1.png" for site in "ab" for kind in KINDS], "images/a to a/images, and masks/a to a/masks"),
        (["a&b/images/1.png", "a&b/masks/1.png"], "'a&b'"),
    ],
)
def test_folders_in_other_layouts_are_refused(tmp_path: Path, files: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        scan(made(tmp_path, *files))
    assert part in str(refusal.value)


def test_wrong_fractions_seeds_and_folders_are_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "images/1.png", "masks/1.png")
    with pytest.raises(ConfigError, match="expected three"):
        scan(folder, (0.5, 0.5))
    with pytest.raises(ConfigError, match="add up to"):
        scan(folder, (0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="seed -1: expected"):
        scan(folder, seed=-1)
    with pytest.raises(ConfigError, match="not a folder"):
        scan(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("images", "masks"),
    [("img", "gt"), ("image", "annotations"), ("Images", "seg"), ("imgs", "Label")],
)
def test_names_of_folders_of_images_and_masks(tmp_path: Path, images: str, masks: str) -> None:
    table = scan(made(tmp_path, *(f"H1/{kind}/{n}.png" for kind in (images, masks) for n in "ab")))
    assert labels(table) == {f"H1/{images}/{n}.png": f"H1/{masks}/{n}.png" for n in "ab"}
    assert (table.attrs["layout"], table.attrs["task"]) == ("folders of images and of masks", "segmentation")


def test_names_that_end_like_masks_without_an_image_are_images(tmp_path: Path) -> None:
    table = scan(made(tmp_path, "face/with_mask.png", "face/no_mask.png", "scan/label.png"))
    assert len(table) == 3


def test_folders_of_images_are_not_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="supported layout"):
        scan(made(tmp_path, "H1/gt/a.png", "H1/other/a.png"))
    table = scan(made(tmp_path / "classes", "cat/1.png", "dog/1.png"))
    assert (table.attrs["layout"], table.attrs["task"]) == ("a folder of images for each class", "classification")


@pytest.mark.parametrize(
    "files",
    [
        ["imagesTr/k_0000.nii.gz", "imagesTr/k_0001.nii.gz", "labelsTr/k.nii.gz"],
        ["images/k_t1.nii.gz", "images/k_flair.nii.gz", "masks/k.nii.gz"],
        ["images/k.nii.gz", "images/k_T2.nii.gz", "masks/k.nii.gz"],
    ],
)
def test_several_files_of_one_case_are_refused(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"several files for one case.*task.data.image_columns"):
        scan(made(tmp_path, *files))


def test_the_channels_of_nnunet_are_columns(tmp_path: Path) -> None:
    files = [f"imagesTr/{case}_000{channel}.nii.gz" for case in "kmn" for channel in (0, 1)]
    folder = made(
        tmp_path,
        *files,
        *(f"labelsTr/{case}.nii.gz" for case in "kmx"),
        "imagesTs/t_0000.nii.gz",
        "imagesTs/t_0001.nii.gz",
    )
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T1 Gd"}, "labels": {}}))
    table = scan(folder)
    assert table.attrs["layout"] == "nnU-Net"
    assert table.attrs["image_columns"] == ["image", "image_t1_gd"]
    found = table.set_index("image").loc["imagesTr/k_0000.nii.gz"]
    assert (found["image_t1_gd"], found["label"]) == ("imagesTr/k_0001.nii.gz", "labelsTr/k.nii.gz")
    assert table["image"][table["split"] == "unlabelled"].tolist() == [
        "imagesTr/n_0000.nii.gz",
        "imagesTs/t_0000.nii.gz",
    ]
    assert any("masks without an image" in note for note in table.attrs["notes"])


def test_a_case_of_nnunet_without_a_channel_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, "imagesTr/k_0000.nii.gz", "labelsTr/k.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {}}))
    with pytest.raises(ConfigError, match=r"has no file k_0001 \(T2\), a channel of dataset.json"):
        scan(folder)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": {}}))
    assert len(scan(folder)) == 1


def test_slices_of_a_patient_stay_together_without_an_option(tmp_path: Path) -> None:
    names = [f"patient{patient}_slice{number}" for patient in range(6) for number in range(3)]
    table = scan(made(tmp_path, *(f"{kind}/{name}.png" for kind in KINDS for name in names)), (0.5, 0.0, 0.5))
    assert sorted(table["patient"].unique()) == [f"patient{patient}" for patient in range(6)]
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert (
        "images with the same patient in their names are in one split: patient0 for images/" in table.attrs["notes"][0]
    )
    assert len(scan(str(tmp_path), group="(.+)")["group"].unique()) == 18


def test_names_that_may_have_patients_are_reported(tmp_path: Path) -> None:
    names = ("anna_1", "anna_2", "bert_1", "bert_2")
    table = scan(made(tmp_path / "a", *(f"{kind}/{name}.png" for kind in KINDS for name in names)))
    assert "patient" not in table
    note = "no patients were found in the names of images; if several images, such as images/anna_1.png, show"
    assert note in str(table.attrs)
    plain = scan(made(tmp_path / "b", *(f"{kind}/img_{n}.png" for kind in KINDS for n in range(4))))
    assert "patients" not in str(plain.attrs)


def scanned_command(folder: Path) -> list[str]:
    """The arguments of the run command that `raysim data scan` prints, as a shell reads them."""
    console = Console(file=io.StringIO(), width=500)
    data.scan([str(folder)], None, "1,0,0", 0, None, console)
    assert isinstance(console.file, io.StringIO)
    return shlex.split(console.file.getvalue().partition("to train on the table: ")[2])


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ((0, 255), (32, 48), []),
        ((0, 1), (30, 50), ["task.data.size=[32,48]"]),
        ((0, 1, 4), (32, 32), ["task.data.classes={background: 0, NAME1: 1, NAME4: 4}"]),
        ((3, 9), (32, 32), ["task.data.classes={background: 3, foreground: 9}"]),
    ],
)
def test_the_printed_command_has_the_values_that_were_found(
    tmp_path: Path, values: tuple[int, ...], shape: tuple[int, int], expected: list[str]
) -> None:
    folder = tmp_path / "my data"
    made(folder, "images/a.png", "masks/a.png")
    Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "images" / "a.png")
    Image.fromarray(np.resize(np.array(values, np.uint8), shape)).save(folder / "masks" / "a.png")
    table = f"task.data.table={folder}/table.csv"
    assert scanned_command(folder) == ["raysim", "run", "task=segmentation", table, *expected]


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not next to the project")
def test_real_folders_are_scanned() -> None:
    counts = {name: len(scan(str(DATA / name))) for name in ("retina_vessels", "hippocampus_3d", "spinal_gm_3d")}
    assert counts == {"retina_vessels": 95, "hippocampus_3d": 100, "spinal_gm_3d": 8}


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1+1", "@SUM(A1)", "-2+3"])
def test_a_folder_with_the_name_of_a_formula_is_refused(name: str, tmp_path: Path) -> None:
    for folder in (name, "normal"):
        (tmp_path / folder).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / folder / "a.png")
    with pytest.raises(ConfigError, match="would be a formula in a spreadsheet; rename the folder"):
        write_scan(str(tmp_path), str(tmp_path / "t.csv"))
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("ending", ["", "_roi"])
def test_masks_in_a_folder_of_another_name_are_no_class(tmp_path: Path, ending: str) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for site in ("H1", "H2"):
        for folder in ("raw", "roi"):
            (tmp_path / site / folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(pixels).save(tmp_path / site / "raw" / f"{number}.png")
            Image.fromarray(pixels // 200).save(tmp_path / site / "roi" / f"{number}{ending}.png")
    message = r"H1/roi seems to have the masks of the images in .*/H1/raw: .* Rename the folders to masks and images"
    with pytest.raises(ConfigError, match=message):
        scan(str(tmp_path))
    for site in ("H1", "H2"):
        for file in (tmp_path / site / "roi").iterdir():
            file.rename(file.with_name(f"roi-{file.name}"))
    assert scan(str(tmp_path)).attrs["task"] == "classification"


def test_numbers_without_a_name_are_reported_as_a_series(tmp_path: Path) -> None:
    table = scan(made(tmp_path, *(f"H/images/{p}_{n}.png" for p in range(3) for n in range(2)), "H/masks/0_0.png"))
    assert any(note.startswith("no patients were found in the names of images") for note in table.attrs["notes"])
