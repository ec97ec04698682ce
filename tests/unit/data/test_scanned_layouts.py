"""The tables of nnU-Net, BIDS, DICOM studies, MedMNIST, Fed-IXI, CSV files of challenges, and folders of sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from raysim.core.errors import ConfigError
from raysim.data.image_reader import read_image
from raysim.data.scan import scan, write_scan
from tests.support.dicom_files import PERSONAL, write_segmentation, write_series

VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def made(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def by_image(table: pd.DataFrame, *columns: str) -> dict[str, tuple[object, ...]]:
    rows = table.set_index("image")[list(columns)].astype(object)
    return {
        str(image): tuple(None if pd.isna(cell) else cell for cell in row)
        for image, row in zip(rows.index, rows.to_numpy(), strict=True)
    }


def nnunet(root: Path, *, cases: str = "abcde", channels: int = 2, **content: object) -> Path:
    files = [f"imagesTr/{case}_000{channel}.nii.gz" for case in cases for channel in range(channels)]
    made(root, *files, *(f"labelsTr/{case}.nii.gz" for case in cases))
    names = {str(channel): f"T{channel + 1}" for channel in range(channels)}
    description = {"channel_names": names, "labels": {"background": 0, "liver": 1}, **content}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_the_folds_of_nnunet_are_a_column(tmp_path: Path) -> None:
    folder = made(nnunet(tmp_path), "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz", "labelsTs/t.nii.gz")
    folds = [{"train": [x for x in "abcde" if x != case], "val": [case]} for case in "cabde"]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    table = scan(str(folder))
    assert table.attrs["layout"] == "nnU-Net"
    assert table.attrs["classes"] == {"background": 0, "liver": 1}
    assert by_image(table, "split", "fold") == {
        "imagesTr/a_0000.nii.gz": ("train", 1),
        "imagesTr/b_0000.nii.gz": ("train", 2),
        "imagesTr/c_0000.nii.gz": ("val", 0),
        "imagesTr/d_0000.nii.gz": ("train", 3),
        "imagesTr/e_0000.nii.gz": ("train", 4),
        "imagesTs/t_0000.nii.gz": ("test", None),
    }
    assert "task.data.folds=5 task.data.fold=0" in table.attrs["notes"][0]


def test_labelled_test_cases_of_nnunet_without_folds(tmp_path: Path) -> None:
    folder = made(nnunet(tmp_path, cases="abcdefghij", channels=1), "imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz")
    table = scan(str(folder), (0.8, 0.2, 0.0))
    assert table.groupby("split").size().to_dict() == {"test": 1, "train": 8, "val": 2}


def test_version_1_of_nnunet(tmp_path: Path) -> None:
    cases = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in "ab"]
    nnunet(tmp_path, cases="ab", channel_names=None, modality={"0": "CT", "1": "PET"}, training=cases)
    table = scan(str(tmp_path))
    assert table.attrs["layout"] == "nnU-Net"
    assert by_image(table, "image_pet", "label") == {
        f"imagesTr/{case}_0000.nii.gz": (f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz") for case in "ab"
    }


def test_numbers_of_cases_are_no_channels(tmp_path: Path) -> None:
    files = [f"{kind}/heart_00{number:02}.nii.gz" for kind in ("imagesTr", "labelsTr") for number in range(3)]
    made(tmp_path, *files)
    cases = [{"image": f"./imagesTr/heart_000{n}.nii.gz", "label": f"./labelsTr/heart_000{n}.nii.gz"} for n in range(3)]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": cases}))
    table = scan(str(tmp_path))
    assert table.attrs["layout"] == "dataset.json of the Medical Segmentation Decathlon"
    assert len(table) == 3


def bids(root: Path) -> Path:
    subjects = ("sub-01", "sub-02", "sub-03")
    made(root, *(f"{subject}/anat/{subject}_{kind}.nii.gz" for subject in subjects for kind in ("T1w", "T2w")))
    made(root, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/func/sub-01_task-rest_bold.nii.gz")
    made(root, *(f"derivatives/labels/{s}/anat/{s}_label-lesion_mask.nii.gz" for s in subjects[:2]))
    (root / "participants.tsv").write_text(
        "participant_id\tage\tcenter\nsub-01\t44\tparis\nsub-02\t50\trome\nsub-03\t60\trome\n"
    )
    return root


def test_bids(tmp_path: Path) -> None:
    table = scan(str(bids(tmp_path)))
    assert table.attrs["layout"] == "BIDS"
    assert list(table.columns) == ["site", "split", "image", "image_t2w", "label", "patient"]
    assert by_image(table, "site", "patient", "image_t2w", "label") == {
        f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz": (
            site,
            f"sub-0{n}",
            f"sub-0{n}/anat/sub-0{n}_T2w.nii.gz",
            f"derivatives/labels/sub-0{n}/anat/sub-0{n}_label-lesion_mask.nii.gz" if n < 3 else None,
        )
        for n, site in ((1, "paris"), (2, "rome"), (3, "rome"))
    }
    assert table.attrs["notes"][:2] == [
        "images that some subjects lack, left out: FLAIR",
        "sites are those of column center in participants.tsv",
    ]


def test_sessions_of_bids_are_cases_of_one_patient(tmp_path: Path) -> None:
    files = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T1w.nii.gz" for n in (1, 2)]
    table = scan(str(made(tmp_path, *files)))
    assert by_image(table, "patient", "split") == dict.fromkeys(files, ("sub-01", "unlabelled"))


def studies(root: Path) -> Path:
    """Two patients; the second has two series, one with a segmentation that lacks slices."""
    for patient, series in (("A", "1"), ("B", "2"), ("B", "3")):
        fields = {"PatientID": f"PID-{patient}-4711", "SeriesInstanceUID": f"1.2.{series}"}
        write_series(root / patient / series, VOXELS, **fields)
    write_series(root / "B" / "scout", VOXELS[..., :1], SeriesInstanceUID="1.2.9")
    frame = np.ones((4, 5), bool)
    reference = Dataset()
    reference.SeriesInstanceUID = "1.2.3"
    path = root / "B" / "seg" / "seg.dcm"
    write_segmentation(
        path,
        [(1, 1.0, frame), (1, 2.0, frame)],
        (1, 1, 1),
        ReferencedSeriesSequence=Items([reference]),
        PatientID="PID-B-4711",
        SeriesInstanceUID="1.2.8",
    )
    return root


def test_dicom_studies(tmp_path: Path) -> None:
    table = scan(str(studies(tmp_path)))
    assert table.attrs["layout"] == "DICOM studies"
    assert by_image(table, "label", "patient") == {
        "A/1": (None, "p1"),
        "B/2": (None, "p2"),
        "B/3": ("B/seg/seg.dcm", "p2"),
    }
    assert table.attrs["notes"][0] == f"{tmp_path}/B/scout has one slice and is left out"
    texts = table.to_csv() + str(table.attrs)
    assert not any(text in texts for text in (*PERSONAL, "4711"))


def test_series_of_dicom_as_images_with_masks(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_series(tmp_path / "images" / case, VOXELS)
    made(tmp_path, "masks/a.nii.gz", "masks/b_seg.nii.gz")
    table = scan(str(tmp_path))
    assert by_image(table, "label") == {"images/a": ("masks/a.nii.gz",), "images/b": ("masks/b_seg.nii.gz",)}


def medmnist(root: Path, *shape: int, labels: int = 1, name: str = "toymnist", highest: int = 1) -> Path:
    random, counts = np.random.default_rng(0), {"train": 3, "val": 1, "test": 2}
    arrays = {f"{s}_images": random.integers(0, 255, (n, *shape), np.uint8) for s, n in counts.items()}
    values = {f"{s}_labels": np.arange(n * labels).reshape(n, labels) % (highest + 1) for s, n in counts.items()}
    np.savez_compressed(root / f"{name}.npz", **arrays, **values)
    return root


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (8, 9, 10)])
def test_medmnist(tmp_path: Path, shape: tuple[int, ...]) -> None:
    table = scan(str(medmnist(tmp_path, *shape)))
    assert (table.attrs["layout"], table.attrs["task"]) == ("MedMNIST", "classification")
    suffix = "npy" if len(shape) == 3 and shape[2] != 3 else "png"
    assert by_image(table, "split", "label")[f"toymnist/train/000001.{suffix}"] == ("train", "1")
    assert table.groupby("split").size().to_dict() == {"test": 2, "train": 3, "val": 1}
    stored = np.load(tmp_path / "toymnist.npz")["train_images"][1]
    expected = stored.transpose(2, 0, 1) if shape[2:] == (3,) else stored[None]
    assert np.array_equal(read_image(str(tmp_path / f"toymnist/train/000001.{suffix}")).array, expected)


@pytest.mark.parametrize(
    ("name", "labels", "columns"),
    [("chestmnist_64", 14, ["atelectasis", "cardiomegaly"]), ("toymnist", 3, ["label_0", "label_1"])],
)
def test_several_labels_of_medmnist(tmp_path: Path, name: str, labels: int, columns: list[str]) -> None:
    table = scan(str(medmnist(tmp_path, 28, 28, labels=labels, name=name)))
    assert (table.attrs["task"], len(table.attrs["labels"])) == ("multilabel", labels)
    assert list(table)[:5] == ["site", "split", "image", *columns]
    first = labels % 2  # of the second image
    row = ("train", str(first), str(1 - first))
    assert by_image(table, "split", *columns)[f"{name}/train/000001.png"] == row
    assert "label" not in table


@pytest.mark.parametrize("kind", ["T1", "image"])
def test_fed_ixi(tmp_path: Path, kind: str) -> None:
    subjects = {"IXI002-Guys-0828": "Guys", "IXI012-HH-1211": "HH", "IXI035-IOP-0873": "IOP"}
    files = {s: (f"{s}/{kind}/{s}_image.nii.gz", f"{s}/label/{s}_label.nii.gz") for s in subjects}
    made(tmp_path, *(file for pair in files.values() for file in pair), "IXI012-HH-1211/T2/IXI012-HH-1211_image.nii.gz")
    table = scan(str(tmp_path)) if kind == "T1" else scan(str(tmp_path), (1, 0, 0))
    kept = subjects if kind == "T1" else {}
    assert table.attrs["layout"] == "Fed-IXI"
    for subject in kept:
        image, label = files[subject]
        assert by_image(table, "site", "label", "patient")[image] == (subjects[subject], label, subject[:6])


def challenge(root: Path, header: str, *rows: str) -> Path:
    made(root, *(f"train/{name}.jpg" for name in ("a1", "b2", "c3")))
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def test_the_csv_file_of_a_challenge(tmp_path: Path) -> None:
    rows = ("a1,P1,melanoma,rome", "b2,P1,nevus,rome", "c3,P2,nevus,oslo", "z9,P3,nevus,oslo")
    table = scan(str(challenge(tmp_path, "image_id,patient_id,dx,hospital", *rows)))
    assert table.attrs["layout"] == "a CSV file with the class of each image"
    assert by_image(table, "site", "label", "class", "patient") == {
        "train/a1.jpg": ("rome", "0", "melanoma", "P1"),
        "train/b2.jpg": ("rome", "1", "nevus", "P1"),
        "train/c3.jpg": ("oslo", "1", "nevus", "P2"),
    }
    assert "rows of train.csv without an image, left out: 1" in table.attrs["notes"]


def test_several_labels_of_a_challenge(tmp_path: Path) -> None:
    rows = ("a1,61,1,0.0", "b2,40,1,1.0", "c3,55,0,0.0", "c3,55,,1.0")
    table = scan(str(challenge(tmp_path, "image_id,age,edema,effusion", *rows[:3])))
    assert (table.attrs["task"], table.attrs["labels"]) == ("multilabel", ("edema", "effusion"))
    assert by_image(table, "edema", "effusion") == {
        "train/a1.jpg": ("1", "0"),
        "train/b2.jpg": ("1", "1"),
        "train/c3.jpg": ("0", "0"),
    }
    table = scan(str(challenge(tmp_path, "image_id,age,edema,effusion", *rows[:2], rows[3])))
    assert "rows of train.csv without a label, left out: 1" in table.attrs["notes"]


def test_classes_of_a_challenge_in_a_column_each(tmp_path: Path) -> None:
    table = scan(str(challenge(tmp_path, "image,MEL,NV", "a1,1.0,0.0", "b2,0.0,1.0", "c3,0.0,1.0")))
    assert table.attrs["task"] == "classification"
    assert by_image(table, "label", "class") == {
        "train/a1.jpg": ("0", "MEL"),
        "train/b2.jpg": ("1", "NV"),
        "train/c3.jpg": ("1", "NV"),
    }


def test_a_folder_for_each_site(tmp_path: Path) -> None:
    made(tmp_path, *(f"one/{name}.png" for name in ("cat/1", "dog/2", "dog/3")))
    made(tmp_path, *(f"two/{name}.png" for name in ("cat/1", "ape/2")))
    table = scan([f"rome={tmp_path / 'one'}", f"oslo={tmp_path / 'two'}"], (1, 0, 0))
    assert by_image(table, "site", "label", "class") == {
        "one/cat/1.png": ("rome", "1", "cat"),
        "one/dog/2.png": ("rome", "2", "dog"),
        "one/dog/3.png": ("rome", "2", "dog"),
        "two/ape/2.png": ("oslo", "0", "ape"),
        "two/cat/1.png": ("oslo", "1", "cat"),
    }


def test_folders_of_different_layouts_are_sites(tmp_path: Path) -> None:
    made(tmp_path, "one/images/a.nii.gz", "one/masks/a.nii.gz")
    write_series(tmp_path / "two" / "images" / "x", VOXELS)
    made(tmp_path, "two/masks/x.nii.gz")
    table = write_scan([f"rome={tmp_path / 'one'}", f"oslo={tmp_path / 'two'}"], str(tmp_path / "t.csv"), (1, 0, 0))
    assert by_image(table, "site", "label") == {
        "one/images/a.nii.gz": ("rome", "one/masks/a.nii.gz"),
        "two/images/x": ("oslo", "two/masks/x.nii.gz"),
    }


def two_masks(root: Path) -> Path:
    return made(bids(root), "derivatives/other/sub-01/anat/sub-01_dseg.nii.gz")


def two_series(root: Path) -> Path:
    write_series(root / "p", VOXELS)
    write_series(root / "q", VOXELS, SeriesInstanceUID="1.9", SeriesNumber=8)
    (root / "q" / "IM007").rename(root / "p" / "other")
    return root


def segmentation_without_suffix(root: Path) -> Path:
    (studies(root) / "B" / "seg" / "seg.dcm").rename(root / "B" / "seg" / "seg")
    return root


def damaged_folds(root: Path, text: str) -> Path:
    (nnunet(root) / "splits_final.json").write_text(text)
    return root


ERRORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two masks of a subject": (
        two_masks,
        "sub-01 has several masks, derivatives/labels/sub-01/anat/sub-01_label-lesion_mask.nii.gz and "
        "derivatives/other/sub-01/anat/sub-01_dseg.nii.gz; keep one in derivatives",
    ),
    "two series in a folder": (two_series, "p: has 2 series: number 3 (CT, 6 files), number 8 (CT, 1 file); keep one"),
    "a segmentation without a suffix": (
        segmentation_without_suffix,
        "B/seg: seg has several frames, so it is an image without other files; rename it to seg.dcm",
    ),
    "folds that are no list": (lambda root: damaged_folds(root, "{}x"), "splits_final.json is not a list of folds"),
    "a case without a fold": (
        lambda root: damaged_folds(root, json.dumps([{"train": [], "val": list("abcd")}])),
        "splits_final.json has no fold for 1 case, such as e; add its fold, or remove the file for random splits",
    ),
    "several labels that are not 0 or 1": (
        lambda root: medmnist(root, 8, 8, labels=14, highest=3),
        "toymnist.npz has 14 labels for each image with values such as 2; expected 0 and 1",
    ),
    "images that were written before": (
        lambda root: made(medmnist(root, 8, 8), "toymnist/x"),
        "toymnist exists and is never overwritten; remove or rename it, because the images are written there",
    ),
    "no column of classes": (
        lambda root: challenge(root, "image,age,sex", "a1,4,f", "b2,5,m", "c3,6,f"),
        "train.csv has no column that is certainly the class of an image; its columns are age, sex. Rename the column",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_folders_that_are_refused(tmp_path: Path, name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ConfigError) as caught:
        scan(str(make(tmp_path)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a=one", "two"], "two needs a site of its own; write SITE=FOLDER for each of several folders"),
        (["a=one", "a=two"], "a=two needs a site of its own; write SITE=FOLDER for each of several folders"),
        (["a=one", "b=two"], "two (segmentation, folders of images and of masks) and "),
        (["a=one", "b=none"], "none is not a folder"),
        (["a=one", "b=both"], "has the sites s1, s2; scan it separately"),
    ],
)
def test_folders_of_sites_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], message: str
) -> None:
    made(tmp_path, "one/cat/1.png", "one/dog/2.png", "two/images/1.png", "two/masks/1.png")
    made(tmp_path, *(f"both/{site}/{name}/1.png" for site in ("s1", "s2") for name in ("cat", "dog")))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        scan(folders)
    assert message in str(caught.value)
