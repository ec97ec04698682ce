"""Printed commands and arguments work when they are copied: those of a scan, and the cures of data errors."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim.cli.main import main
from tests.support.wrong_files import WRONG_FILES, save_picture, save_volume, write_data_sets

LOCAL = ("backend=local", "rounds=1", "task.batch_size=2", "task.data.cache=cache", "--out", "out")
SEGMENTATION = ("task=segmentation", "task.network.channels=[2,4]", "task.network.num_res_units=0")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mask(number: int, shape: tuple[int, ...], *values: int) -> np.ndarray:
    """A mask with a block of each of these values."""
    array = np.zeros(shape, np.uint8)
    for index, value in enumerate(values):
        array[3 + 5 * index : 6 + 5 * index, number % 4 : number % 4 + 9] = value
    return array


def save(folder: str, name: str, array: np.ndarray) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (save_volume if array.ndim == 3 else save_picture)(Path(folder, name), array)


def pictures() -> None:
    for site in ("north clinic", "south"):
        for number in range(5):
            label = mask(number, (40, 35), 255)
            save(f"data/{site}/img", f"{number}.png", label // 2 + 50)
            save(f"data/{site}/gt", f"{number}_mask.png", label)


def decathlon() -> None:
    for number in range(5):
        label = mask(number, (20, 30, 16), 1, 2)
        save("data/imagesTr", f"{number}.nii.gz", label * 40 + 50)
        save("data/labelsTr", f"{number}.nii.gz", label)
    files = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in range(5)]
    labels = {"0": "background", "1": "liver", "2": "liver tumour", "3": "absent"}
    Path("data/dataset.json").write_text(json.dumps({"training": files, "labels": labels}))


def nnunet() -> None:
    for number in range(5):
        label = mask(number, (32, 32), 1, 2, 7)
        save("data/imagesTr", f"case_{number:04}_0000.png", label * 20 + 50)
        save("data/labelsTr", f"case_{number:04}.png", label)
    labels = {"background": 0, "vessel": 1, "2": 2, "ignore": 7}
    Path("data/dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))


def class_folders() -> None:
    for site in ("a", "b"):
        for number in range(10):
            save(f"data/{site}/{('sick', 'well')[number % 2]}", f"{number}.png", mask(number, (33, 50), 90))


@pytest.mark.parametrize(
    ("layout", "arguments"),
    [
        (pictures, "task=segmentation task.data.table=data/table.csv 'task.data.size=[32,32]'"),
        (
            decathlon,
            "task=segmentation task.data.table=data/table.csv "
            "'task.data.classes={background: 0, liver: 1, liver tumour: 2}' 'task.data.size=[32,32,32]'",
        ),
        (
            nnunet,
            "task=segmentation task.data.table=data/table.csv "
            "'task.data.classes={background: 0, vessel: 1, '\"'\"'2'\"'\"': 2}' task.data.ignore=7",
        ),
        (class_folders, "task=classification task.data.table=data/table.csv 'task.data.size=[32,48]'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_commands_of_a_scan(layout: Callable[[], None], arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    layout()
    assert main(["data", "scan", "data", "--fractions", "0.4,0.3,0.3"]) == 0
    shown = capsys.readouterr().out
    show, train = (
        re.search(rf"^to {what} the table: raysim (.*)$", shown, re.MULTILINE) for what in ("inspect", "train on")
    )
    assert show is not None
    assert train is not None
    assert train[1] == f"run {arguments}"
    network = SEGMENTATION[1:] if "segmentation" in arguments else ("network={name: resnet}",)
    assert main([*shlex.split(show[1])]) == 0
    capsys.readouterr()
    assert main([*shlex.split(train[1]), *network, *LOCAL]) == 0
    assert "classes that no prepared mask has" not in capsys.readouterr().out


def all_coloured() -> None:
    for path in Path.cwd().glob("*_m.png"):
        label = np.asarray(Image.open(path))
        save_picture(path, np.stack([label * 255, 0 * label, label * 128], -1))


def one_site_without_training() -> None:
    table = pd.read_csv("table.csv")
    table[~((table["site"] == "b") & (table["split"] == "train"))].to_csv("table.csv", index=False)


def near_equal() -> None:
    text = Path("classes.csv").read_text()
    Path("classes.csv").write_text(text.replace("sick", "Sick", 1))


@pytest.mark.parametrize(
    ("wrong", "arguments", "cure"),
    [
        (WRONG_FILES["three_values"], SEGMENTATION, r"'(task\.data\.classes=.*?)'"),
        (WRONG_FILES["two_foregrounds"], SEGMENTATION, r"'(task\.data\.classes=.*?)'"),
        (WRONG_FILES["colour_image"], SEGMENTATION, r"(task\.data\.channels=3)"),
        (WRONG_FILES["colour_image"], SEGMENTATION, r"(task\.data\.channels=1)"),
        (WRONG_FILES["other_size"], SEGMENTATION, r"set one size with (task\.data\.size)"),
        (all_coloured, SEGMENTATION, r"'(task\.data\.colours=.*?)'"),
        (one_site_without_training, SEGMENTATION, r"'(task\.data\.outside=.*?)'"),
        (near_equal, ("task=classification", "network={name: resnet}"), r"'(task\.data\.classes=.*?)'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_printed_argument_is_the_cure(
    wrong: Callable[[], None], arguments: tuple[str, ...], cure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_sets(Path.cwd())
    wrong()
    table = "table.csv" if arguments is SEGMENTATION else "classes.csv"
    command = ["run", *arguments, f"task.data.table={table}", *LOCAL]
    assert main(command) == 2
    found = re.search(cure, capsys.readouterr().err)
    assert found is not None
    size = "=[16,16]" if found[1] == "task.data.size" else ""
    assert main([*command, found[1] + size]) == 0


@pytest.mark.parametrize("wrong", ["utf16_table", "latin1_table"])
def test_the_command_that_converts_a_table(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_data_sets(Path.cwd())
    WRONG_FILES[wrong]()
    assert main(["data", "describe", "table.csv"]) == 2
    command = capsys.readouterr().err.split("convert it: ")[1].strip()
    subprocess.run(command, shell=True, check=True)
    assert main(["data", "describe", command.split("> ")[1]]) == 0
    assert ("Köln" in capsys.readouterr().out) == (wrong == "latin1_table")


def test_a_folder_instead_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    pictures()
    assert main(["data", "describe", "data"]) == 2
    command = re.search("`raysim (.*)`", capsys.readouterr().err)
    assert command is not None
    assert main(shlex.split(command[1])) == 0
    assert main(["data", "describe", "data/table.csv"]) == 0


def test_the_channels_of_a_case_are_columns_with_the_printed_key(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["site,split,image_t1,image_t2,label"]
    for number in range(5):
        label = mask(number, (16, 16, 16), 1)
        for channel in range(2):
            save("data/imagesTr", f"c{number}_000{channel}.nii.gz", label * 50 + 30 * channel)
        save("data/labelsTr", f"c{number}.nii.gz", label)
        files = [f"imagesTr/c{number}_0000.nii.gz", f"imagesTr/c{number}_0001.nii.gz", f"labelsTr/c{number}.nii.gz"]
        rows.append(",".join(["a", ("train", "train", "train", "val", "test")[number], *files]))
    assert main(["data", "scan", "data"]) == 2
    key = re.search(r"task\.data\.image_columns=\[\S+\]", capsys.readouterr().err)
    assert key is not None
    Path("data/table.csv").write_text("\n".join(rows))  # one row for each case, as the message says
    assert main(["run", *SEGMENTATION, "task.data.table=data/table.csv", key[0], *LOCAL]) == 0
