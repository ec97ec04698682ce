"""Public data sets: the tables of small imitations of the owners' files."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from raysim.cli import data
from raysim.core.errors import ConfigError
from raysim.data.dataset_recipe import make_dataset
from raysim.data.image_reader import read_image
from raysim.data.public_datasets import RECIPES
from raysim.data.table import read_table
from tests.support.paths import DATA

GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")
FRACTIONS = (0.7, 0.1, 0.2)


def picture(path: Path, value: Any = 100, shape: tuple[int, ...] = (8, 8, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.array(value, np.uint8), shape).copy()).save(path)


def volume(path: Path, value: float = 1.0, shape: tuple[int, ...] = (4, 4, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full(shape, value, np.float32), np.diag([2.0, 2.0, 8.0, 1.0])), path)


def retina(root: Path) -> dict[str, int]:
    for name in ("Image_01L", "Image_01R", "Image_02L"):
        picture(root / f"CHASEDB1/{name}.jpg")
        Image.fromarray(np.eye(8, dtype=bool)).save(root / f"CHASEDB1/{name}_1stHO.png")  # one bit: read as 0 and 1
    for name in ("01_dr", "02_g", "03_h"):
        picture(root / f"hrf/images/{name}.JPG")
        picture(root / f"hrf/manual1/{name}.tif", 255, (8, 8))
    picture(root / "DRIVE/training/images/21_training.tif")
    picture(root / "DRIVE/training/1st_manual/21_manual1.gif", 255, (8, 8))
    picture(root / "DRIVE/test/images/01_test.tif")  # without a label, as in some copies
    picture(root / "LES-AV/images/7.png")
    picture(root / "LES-AV/vessel-segmentations/7.png", 255, (8, 8))
    return {"chasedb1": 3, "hrf": 3, "drive": 1, "lesav": 1}


def fundus(root: Path) -> dict[str, int]:
    for domain in (1, 3):
        for part, name in (("train", "g001"), ("train", "n002"), ("test", "g003")):
            picture(root / f"Fundus/Domain{domain}/{part}/ROIs/image/{name}.png")
            mask = np.full((8, 8), 255, np.uint8)
            mask[2:6, 2:6], mask[3:5, 3:5] = 128, 0
            picture(root / f"Fundus/Domain{domain}/{part}/ROIs/mask/{name}.png", mask, (8, 8))
    return {"drishti": 3, "refuge_train": 3}


def nuclei(root: Path) -> dict[str, int]:
    for name, value, shape in (
        ("dark", 10, (256, 256, 3)),
        ("pink", (200, 120, 190), (256, 320, 3)),
        ("other", 10, (300, 300, 3)),  # not one of the kinds
    ):
        picture(root / f"stage1_train/{name}/images/{name}.png", value, shape)
        for number in range(2):
            mask = np.zeros(shape[:2], np.uint8)
            mask[number * 10 : number * 10 + 5, :4] = 255
            picture(root / f"stage1_train/{name}/masks/{number}.png", mask, shape[:2])
    return {"fluo_256": 1, "purple_320": 1}


def acdc(root: Path) -> dict[str, int]:
    for number in range(1, 51):
        folder = root / f"training/patient{number:03}"
        for frame in ("01", "12"):
            volume(folder / f"patient{number:03}_frame{frame}.nii.gz")
            volume(folder / f"patient{number:03}_frame{frame}_gt.nii.gz")
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {GROUPS[(number - 1) // 10]}\n")
    volume(root / "testing/patient101/patient101_frame01.nii.gz")
    return {f"site{number:02}": 10 for number in range(1, 11)}


def prostate(root: Path) -> dict[str, int]:
    for site, ending in (("BIDMC", "segmentation"), ("BMC", "Segmentation")):
        for number in range(3):
            volume(root / f"{site}/Case{number:02}.nii.gz")
            volume(root / f"{site}/Case{number:02}_{ending}.nii.gz", 2.0)
    return {"BIDMC": 3, "BMC": 3}


def mnms(root: Path) -> dict[str, int]:
    rows = []
    for number, part in enumerate(("Training/Labeled", "Training/Labeled", "Testing")):
        code = f"A{number}B"
        frames = np.broadcast_to(np.arange(5.0), (4, 4, 2, 5))
        for ending in ("_sa", "_sa_gt"):
            path = root / f"OpenDataset/{part}/{code}/{code}{ending}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(frames.astype(np.float32), np.eye(4)), path)
        rows.append({"External code": code, "VendorName": "Philips", "Centre": number // 2 + 1, "ED": 0, "ES": 3})
    pd.DataFrame(rows).to_csv(root / "OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv")
    return {"centre-1": 4, "centre-2": 2}


def ixi(root: Path) -> dict[str, int]:
    for name in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873"):
        volume(root / f"ixi_tiny/image/{name}_image.nii.gz")
        volume(root / f"ixi_tiny/label/{name}_label.nii.gz")
    return {"Guys": 1, "HH": 1, "IOP": 1}


def heart(root: Path) -> dict[str, int]:
    for site in ("cleveland", "va"):
        lines = [f"6{number}.0,1.0,4.0,?,260.0,0,0,140,0,1.5,?,?,?,{number}" for number in range(5)]
        (root / f"processed.{site}.data").write_text("\n".join(lines) + "\n")
    return {"cleveland": 5, "va": 5}


IMITATIONS: dict[str, Callable[[Path], dict[str, int]]] = {
    each.__name__: each for each in (retina, fundus, nuclei, acdc, prostate, mnms, ixi, heart)
}


def made(name: str, tmp_path: Path) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
    source = tmp_path / "source"
    source.mkdir()
    counts = IMITATIONS[name](source)
    recipe = replace(RECIPES[name], checksums={})
    table, notes = make_dataset(name, recipe, source, tmp_path / name, FRACTIONS, 0)
    return table, notes, counts


def test_every_recipe_has_an_imitation() -> None:
    assert set(IMITATIONS) == set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_table_of_a_public_data_set_can_be_read(name: str, tmp_path: Path) -> None:
    table, notes, counts = made(name, tmp_path)
    assert table["site"].value_counts().to_dict() == counts
    images = RECIPES[name].task == "segmentation"
    read = read_table(str(tmp_path / name / "table.csv"), needs_image=images, label_files=images)
    assert len(read) == len(table)
    assert all(note.endswith(f"the complete data set has {RECIPES[name].sites[note.split(':')[0]]}") for note in notes)
    assert len(notes) == sum(counts.get(site, 0) != count for site, count in RECIPES[name].sites.items())
    if images:
        values = {float(v) for label in read["label"] for v in np.unique(read_image(label, mask=True).array)}
        assert values <= set(map(float, RECIPES[name].classes.values()))
        assert read.groupby("patient")["split"].nunique().eq(1).all()
    description = json.loads((tmp_path / name / "dataset.json").read_text())
    assert (description["rows"], description["licence"]) == (counts, RECIPES[name].licence)


def test_published_test_cases_stay_the_test_split(tmp_path: Path) -> None:
    table, _, _ = made("fundus", tmp_path)
    assert table.groupby(["site", "split"]).size().to_dict() == {
        (site, split): count for site in ("drishti", "refuge_train") for split, count in (("test", 1), ("train", 2))
    }
    mask = read_image(str(tmp_path / "fundus" / table["label"].iloc[0]), mask=True).array.squeeze()
    assert (mask[0, 0], mask[2, 2], mask[3, 3]) == (0, 1, 2)


def test_frames_are_cut_out_of_4d_files(tmp_path: Path) -> None:
    table, _, _ = made("mnms", tmp_path)
    image: Any = nibabel.load(tmp_path / "mnms" / table.loc[table["frame"] == "ES", "image"].iloc[0])
    assert image.shape == (4, 4, 2)
    assert set(np.unique(image.get_fdata())) == {3.0}


def test_masks_of_nuclei_are_united(tmp_path: Path) -> None:
    table, _, _ = made("nuclei", tmp_path)
    mask = read_image(str(tmp_path / "nuclei" / table["label"].iloc[0]), mask=True).array
    assert (mask > 0).sum() == 2 * 5 * 4


def test_patients_of_acdc_are_spread_over_ten_sites(tmp_path: Path) -> None:
    table, _, _ = made("acdc", tmp_path)
    assert table["site"].nunique() == 10
    assert table.groupby(["site", "disease"])["patient"].nunique().to_list() == [1] * 50
    assert set(table["frame"]) == {"ED", "ES"}


def test_records_have_missing_cells_and_two_classes(tmp_path: Path) -> None:
    table, _, _ = made("heart", tmp_path)
    assert table["trestbps"].isna().all()
    assert table.groupby("label").size().to_dict() == {0: 2, 1: 8}


@pytest.mark.data
def test_the_staining_of_real_images(tmp_path: Path) -> None:
    from raysim.data.public_datasets import _staining

    root = DATA / "nuclei_multisource"
    if not root.exists():
        pytest.skip("no real data at nuclei_multisource/ beside the project")
    table = pd.read_csv(root / "table.csv").groupby("site").head(20)
    found = [_staining(read_image(str(root / path)).array.astype(float)) for path in table["image"]]
    agreement = np.mean([site.startswith(kind) for site, kind in zip(table["site"], found, strict=True)])
    assert agreement > 0.95


def test_wrong_input_writes_nothing(tmp_path: Path) -> None:
    console = Console(quiet=True)
    heart(tmp_path)
    before = sorted(tmp_path.iterdir())

    def refused(name: str | None, source: Path | None, out: Path, cause: str, fractions: str = "0.7,0.1,0.2") -> None:
        with pytest.raises(ConfigError, match=cause):
            data.make(name, None if source is None else str(source), str(out), fractions, 0, console)
        assert sorted(tmp_path.iterdir()) == before

    out = tmp_path / "out"
    refused("hart", tmp_path, out, r"unknown data set 'hart' \(did you mean 'heart'\?\)")
    refused("heart", None, out, r"raysim data make heart needs the folder .*https://archive\.ics\.uci\.edu")
    refused("heart", tmp_path / "nowhere", out, "nowhere is not a folder; it must contain processed")
    refused("heart", tmp_path, out, r"processed\.cleveland\.data: sha256 \w+; expected a74b7efa")
    refused("ixi", tmp_path, out, "has no files of this data set; it must contain ixi_tiny")
    refused("ixi", tmp_path, tmp_path / "no" / "out", "is not a folder; choose another --out")
    refused("ixi", tmp_path, tmp_path, "exists and is never overwritten")
    refused("ixi", tmp_path, out, "--fractions 1,0: expected three numbers", "1,0")
    picture(tmp_path / "CHASEDB1" / "Image_01L.jpg")
    before = sorted(tmp_path.iterdir())
    refused(
        "retina", tmp_path, out, r"Image_01L\.jpg has no label .*Image_01L_1stHO\.png; the download is not complete"
    )


def remove_group(root: Path) -> None:
    (root / "training/patient001/Info.cfg").write_text("ED: 1\n")


def change_header(root: Path) -> None:
    next(root.rglob("*opendataset.csv")).write_text("code,ED\nA0B,0\n")


def cut_volume(root: Path) -> None:
    next(root.rglob("*egmentation.nii.gz")).write_bytes(b"\x1f\x8b damaged")


def add_cells(root: Path) -> None:
    (root / "processed.va.data").write_text("1,2\n1,2,3\n")


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("acdc", remove_group, "KeyError: 'Group'"),
        ("acdc", lambda root: (root / "training/patient001/Info.cfg").unlink(), "FileNotFoundError: .*Info.cfg"),
        ("mnms", change_header, "KeyError: .*External code"),
        ("prostate", cut_volume, "BadGzipFile: "),
        ("heart", add_cells, "ParserError: Error tokenizing data"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    name: str, damage: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    IMITATIONS[name](source)
    damage(source)
    recipe = replace(RECIPES[name], checksums={})
    with pytest.raises(
        ConfigError, match=rf"source cannot be read \(.*{reason}.*; it must contain .* Download the files again: "
    ) as caught:
        make_dataset(name, recipe, source, tmp_path / "out", FRACTIONS, 0)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_volume_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    prostate(tmp_path / "source")
    large = tmp_path / "source" / "BIDMC" / "Case00_segmentation.nii.gz"
    large.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(ConfigError, match=r"Case00_segmentation.nii.gz: would take 512.0 GB of memory to read"):
        make_dataset("prostate", RECIPES["prostate"], tmp_path / "source", tmp_path / "out", FRACTIONS, 0)


def test_the_archive_is_checked_beside_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "ixi_tiny"
    source.mkdir()
    ixi(source)
    (tmp_path / "ixi_tiny.zip").write_bytes(b"archive")
    right = replace(RECIPES["ixi"], checksums={"ixi_tiny.zip": f"md5:{hashlib.md5(b'archive').hexdigest()}"})
    make_dataset("ixi", right, source, tmp_path / "out", FRACTIONS, 0)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["checksums"] == dict(right.checksums)
    with pytest.raises(ConfigError, match=r"ixi_tiny\.zip: md5 \w+; expected bfb60f"):
        make_dataset("ixi", RECIPES["ixi"], source, tmp_path / "other", FRACTIONS, 0)


def test_the_command_prints_the_next_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ixi(tmp_path / "source")
    with (tmp_path / "shown").open("w") as stream:
        console = Console(file=stream, width=200)
        data.make(None, None, None, "0.7,0.1,0.2", 0, console)
        data.make("ixi", "source", None, "0.7,0.1,0.2", 0, console)
    shown = (tmp_path / "shown").read_text()
    assert "prostate  The prostate in T2-weighted MRI of six hospitals" in shown
    assert "ixi/table.csv: 3 sites, 3 rows" in shown
    assert "licence: CC BY-SA 3.0" in shown
    assert "raysim run task=segmentation task.data.table=ixi/table.csv" in shown
