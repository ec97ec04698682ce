"""`raysim data describe` with keys of a run reads files as that run does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysim.cli.main import main
from tests.support.wrong_files import WRONG_FILES, write_data_sets

COLOURS = "task.data.colours={background: [0, 0, 0], disc: [255, 0, 0]}"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def described(capsys: pytest.CaptureFixture[str], *keys: str) -> str:
    assert main(["data", "describe", "table.csv", *keys]) == 0
    return capsys.readouterr().out


def shares(shown: str) -> list[str]:
    """The shares in the row of all sites."""
    return re.findall(r"[\d.]+%", shown[shown.index("Labels, share of pixels") :].split(" all ")[1].splitlines()[0])


def test_values_have_the_names_of_their_classes(capsys: pytest.CaptureFixture[str]) -> None:
    plain, named = described(capsys), described(capsys, "task.data.classes=[background, disc]")
    assert "0 background" in named
    assert "1 disc" in named
    assert shares(named) == shares(plain)


def test_an_ignored_value_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path.cwd().glob("*_m.png"):
        mask = np.asarray(Image.open(path)).copy()
        mask[:8] = np.where(mask[:8], mask[:8], 255)
        Image.fromarray(mask).save(path)
    shown = described(capsys, "task.data.ignore=255")
    known = [np.asarray(Image.open(path)) for path in Path.cwd().glob("*_m.png")]
    disc = np.mean(np.concatenate([mask[mask != 255] for mask in known]))
    assert shares(shown) == [f"{1 - disc:.2%}", f"{disc:.2%}"]
    assert "no problems found" in shown


def test_colours_and_channels(capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path.cwd().glob("*_m.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.stack([mask * 255, 0 * mask, 0 * mask], -1)).save(path)
    WRONG_FILES["colour_image"]()
    assert "is coloured" in described(capsys)
    shown = described(capsys, COLOURS, "task.data.channels=3")
    assert "1 disc" in shown
    assert "no problems found" in shown


@pytest.mark.parametrize(
    ("wrong", "keys"),
    [
        ("three_values", ["task.data.classes={background: 0, disc: 1}"]),
        ("other_mask_size", ["task.data.channels=1"]),
        ("truncated", ["task.data.channels=1"]),
        ("coloured_mask", ["task.data.colours={background: [0, 0, 0], disc: [0, 0, 255]}"]),
    ],
)
def test_a_problem_has_the_message_of_the_run(wrong: str, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    WRONG_FILES[wrong]()
    shown = " ".join(described(capsys, *keys).split())
    arguments = ["run", "task=segmentation", "backend=local", "task.data.table=table.csv", "task.data.cache=cache"]
    assert main([*arguments, "network={name: unet, channels: [2, 4], strides: [2]}", *keys]) == 2
    refusal = capsys.readouterr().err.removeprefix("raysim: the data cannot be used:").strip()
    assert refusal.splitlines()[0].split("; give each value")[0].split(" (site ")[0] in shown


def test_masks_with_several_values_of_the_foreground(capsys: pytest.CaptureFixture[str]) -> None:
    WRONG_FILES["two_foregrounds"]()
    shown = " ".join(described(capsys, "task.data.channels=1").split())
    assert "masks differ in the value of the foreground: 1 in " in shown


def test_wrong_keys_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", "table.csv", "task.data.colors={a: 1}"]) == 2
    assert "did you mean 'task.data.colours'" in capsys.readouterr().err
    assert main(["data", "describe", "table.csv", "--channels", "3"]) == 2
    assert "keys are written without dashes: channels=3" in capsys.readouterr().err


def test_columns_that_a_run_leaves_out_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = "columns left out because they are not numeric: sex ('f', 'm')"
    assert main(["data", "describe", "rows.csv"]) == 0
    assert left_out in capsys.readouterr().out
    assert main(["data", "describe", "rows.csv", "task.data.categorical=[sex]"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_features_that_a_run_refuses_are_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text(Path("rows.csv").read_text().replace(",50,", ',"50,5",'))
    assert main(["data", "describe", "rows.csv"]) == 0
    assert "column 'age' has numbers with commas, such as '50,5'" in capsys.readouterr().out
    assert main(["data", "describe", "rows.csv", "task.data.features=[aeg]"]) == 0
    assert "it has no column 'aeg' (did you mean 'age'?)" in capsys.readouterr().out


def test_the_statistics_are_those_of_the_features(capsys: pytest.CaptureFixture[str]) -> None:
    """A column without a number in the training rows of inside sites is not a feature."""
    rows = "site,split,label,age,late\na,train,x,50,\na,val,y,60,7\nb,train,y,70,8\n"
    Path("rows.csv").write_text(rows)
    assert main(["data", "describe", "rows.csv"]) == 0
    assert re.search(r"^\s*late ", capsys.readouterr().out, re.MULTILINE)
    assert main(["data", "describe", "rows.csv", "task.data.outside=[b]"]) == 0
    shown = capsys.readouterr().out
    assert "columns left out because they are not numeric: late (empty)" in shown
    assert not re.search(r"^\s*late ", shown, re.MULTILINE)
