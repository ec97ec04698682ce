"""The counts in the summary of a data set, by hand. Missing and damaged files are problems and raise no error."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from raysim.data.dataset_summary import DatasetSummary
from raysim.data.summarize import summarize
from raysim.data.table import read_table
from tests.support.paths import DATA


def picture(path: Path, pixels: list[list[int]] | np.ndarray) -> str:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


def volume(path: Path, pixels: np.ndarray, zooms: tuple[float, ...] = (1.0, 1.0, 1.0)) -> str:
    nibabel.save(nibabel.Nifti1Image(pixels, np.diag([*zooms[:3], 1.0])), path)
    return str(path)


def table(*rows: tuple[str, str, str, str | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["site", "split", "image", "label"], dtype="string")


def printed(description: DatasetSummary) -> str:
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    description.print(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_masks_and_grey_pictures(tmp_path: Path) -> None:
    one = picture(tmp_path / "1.png", [[0, 10], [20, 30]])
    two = picture(tmp_path / "2.png", [[50, 50, 50]])
    mask_one = picture(tmp_path / "m1.png", [[0, 0], [0, 255]])
    mask_two = picture(tmp_path / "m2.png", [[0, 255, 255]])
    seen = summarize(table(("a", "train", one, mask_one), ("a", "test", two, mask_two)))
    assert (seen.kind, seen.problems) == ("segmentation", ())
    assert seen.counts.loc["a"].to_dict() == {"train": 1, "val": 0, "test": 1, "unlabelled": 0, "all": 2}
    images = seen.images.loc["a"]
    assert (images["shape_min"], images["shape_max"], images["channels"]) == ((1, 2), (2, 3), (1,))
    assert (images["low"], images["mean"], images["high"]) == (0, (15 + 50) / 2, 50)
    assert seen.values.loc["a"].to_dict() == {0.0: 4, 255.0: 3}
    assert seen.prevalence.loc["a", 255.0] == pytest.approx(3 / 7)


def test_volumes_have_spacing_and_channels(tmp_path: Path) -> None:
    flat = volume(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.float32), (0.5, 1, 2))
    multi = volume(tmp_path / "b.nii", np.ones((4, 5, 8, 2), np.float32), (0.5, 1, 3))
    seen = summarize(table(("s", "train", flat, "1"), ("s", "train", multi, "0")))
    images = seen.images.loc["s"]
    assert (images["shape_min"], images["shape_max"]) == ((4, 5, 6), (4, 5, 8))
    assert (images["spacing_min"], images["spacing_max"]) == ((0.5, 1, 2), (0.5, 1, 3))
    assert images["channels"] == (1, 2)
    (problem,) = seen.problems
    assert problem.startswith(f"images differ in their number of channels: 1 in {flat}, 2 in {multi}; all images need")
    assert "4 x 5 x 6..8" in printed(seen)


def test_only_images_that_a_run_refuses_are_problems(tmp_path: Path) -> None:
    alpha = picture(tmp_path / "alpha.png", np.full((2, 2, 4), 9))
    grey = picture(tmp_path / "grey.png", np.full((2, 2, 3), 5))
    colour = picture(tmp_path / "colour.png", np.zeros((2, 2, 3)))
    seen = summarize(table(("s", "train", alpha, grey), ("s", "train", colour, grey)))
    assert (seen.problems, seen.values.loc["s"].to_dict()) == ((), {5.0: 8})

    turned = np.zeros((2, 3, 4), np.uint8)
    image = volume(tmp_path / "i.nii", turned)
    swapped = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(turned.swapaxes(0, 1), swapped), tmp_path / "same.nii")
    assert summarize(table(("s", "train", image, str(tmp_path / "same.nii")))).problems == ()
    moved = volume(tmp_path / "moved.nii", turned, (2.0, 1.0, 1.0))
    (problem,) = summarize(table(("s", "train", image, moved))).problems
    assert problem == (
        f"image and label differ in position by up to 1 voxels at the corners; expected at most 0.1: {image}, {moved}"
    )


def test_colour_pictures_have_three_channels_and_masks_keep_their_palette(tmp_path: Path) -> None:
    colour = picture(tmp_path / "c.png", np.zeros((4, 5, 3)))
    mask = Image.new("P", (5, 4), 2)
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    mask.save(tmp_path / "m.png")
    seen = summarize(table(("s", "train", colour, str(tmp_path / "m.png"))))
    assert seen.images.loc["s", "channels"] == (3,)
    assert seen.values.loc["s"].to_dict() == {2.0: 20}
    assert seen.problems == ()


def test_missing_and_damaged_files_are_problems(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png", np.zeros((4, 4)))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "bad.nii.gz").write_bytes(b"not a volume")
    holes = volume(tmp_path / "holes.nii", np.full((2, 2, 2), np.nan, np.float32))
    noisy = picture(tmp_path / "noisy.png", np.arange(64).reshape(8, 8))
    seen = summarize(
        table(
            ("a", "train", good, picture(tmp_path / "small.png", np.zeros((2, 4)))),
            ("a", "train", str(tmp_path / "missing.png"), picture(tmp_path / "m.png", np.ones((4, 4)))),
            ("a", "val", str(tmp_path / "bad.png"), None),
            ("a", "test", str(tmp_path / "bad.nii.gz"), picture(tmp_path / "rgb.png", np.eye(3)[None] * 9)),
            ("b", "test", holes, picture(tmp_path / "z.png", np.zeros((2, 2)))),
            ("b", "test", noisy, noisy),
        )
    )
    problems = "\n".join(seen.problems)
    for part in (
        "image and label differ in shape, 4 x 4 and 2 x 4",
        f"image {tmp_path}/missing.png does not exist",
        f"image {tmp_path}/bad.png cannot be read",
        f"image {tmp_path}/bad.nii.gz cannot be read",
        "rgb.png a mask must be grey",
        "holes.nii contains NaN",
        "noisy.png has 64 different values",
        "site a: rows of train, val or test without a label: 1",
        "site b: label values that do not occur: 1",
    ):
        assert part in problems
    assert f"{tmp_path}/missing.pngdoesnotexist" in "".join(printed(seen).split())


def test_classes_are_counted_and_absent_ones_are_problems(tmp_path: Path) -> None:
    image = picture(tmp_path / "i.png", np.zeros((2, 2)))
    seen = summarize(
        table(
            ("a", "train", image, "0"),
            ("a", "val", image, "2"),
            ("b", "test", image, "0"),
            ("b", "unlabelled", image, None),
        )
    )
    assert seen.kind == "classification"
    assert seen.values.loc["a"].to_dict() == {0.0: 1, 2.0: 1}
    assert seen.values.loc["b"].to_dict() == {0.0: 1, 2.0: 0}
    assert seen.problems == ("site b: label values that do not occur: 2",)


def test_classes_of_images_may_be_text(tmp_path: Path) -> None:
    image = picture(tmp_path / "i.png", np.zeros((2, 2)))
    seen = summarize(table(("a", "train", image, "cat"), ("a", "val", image, "dog")))
    assert (seen.kind, seen.problems) == ("classification", ())
    assert seen.values.loc["a"].to_dict() == {"cat": 1, "dog": 1}


def test_classes_have_names_if_each_number_has_one_name(tmp_path: Path) -> None:
    image = picture(tmp_path / "i.png", np.zeros((2, 2)))
    frame = table(("a", "train", image, "0"), ("a", "val", image, "1"), ("b", "test", image, "0"))
    seen = summarize(frame.assign(**{"class": pd.Series(["cat", "dog", "cat"], dtype="string")}))
    assert seen.values.loc["a"].to_dict() == {"cat": 1, "dog": 1}
    assert seen.problems == ("site b: label values that do not occur: dog",)
    assert "cat" in printed(seen)
    unclear = summarize(frame.assign(**{"class": pd.Series(["cat", "dog", "hen"], dtype="string")}))
    assert unclear.values.loc["a"].to_dict() == {0.0: 1, 1.0: 1}


def test_a_patient_in_several_splits_is_a_problem() -> None:
    rows = {
        "site": [*"aaaaaabb"],
        "split": ["test", "train", "train", "val", "train", "unlabelled", "train", "test"],
        "patient": ["1", "1", "2", "2", "3", "3", "4", None],
        "label": "1",
        "age": "50",
    }
    frame = pd.DataFrame(rows, dtype="string")
    (problem,) = summarize(frame).problems
    assert problem.startswith(
        "patients (column 'patient') in more than one of train, val and test: 2, "
        "1 of a (train, test), 2 of a (train, val); keep"
    )
    (problem,) = summarize(frame.assign(site=frame["split"])).problems
    assert problem.startswith("patients (column 'patient') at more than one site: 3, 1 (test, train), 2 (train, val)")


def test_images_without_labels(tmp_path: Path) -> None:
    image = picture(tmp_path / "i.png", np.zeros((2, 2)))
    assert summarize(table(("a", "unlabelled", image, None))).problems == ()
    seen = summarize(table(("a", "train", image, None)))
    assert (seen.kind, seen.problems) == ("unlabelled", ("the label column is empty",))
    assert "cases: 1, sites: 1" in printed(seen)


def test_features_of_a_table_without_images() -> None:
    rows = {
        "site": ["a", "a", "b"],
        "split": "train",
        "age": ["50", "60", "?"],
        "ward": list("xyz"),
        "label": ["0", "1", "1"],
    }
    seen = summarize(pd.DataFrame(rows, dtype="string"))
    assert seen.features.to_dict("list") | {"mean": None} == {
        "site": ["a", "b"],
        "feature": ["age", "age"],
        "rows": [2, 1],
        "missing": [0, 1],
        "mean": None,
    }
    assert seen.features["mean"].tolist()[0] == 55
    assert seen.problems == (
        "site b: label values that do not occur: 0",
        "site b: empty columns: age",
        "columns left out because they are not numeric: ward ('x', 'y'); list columns of names or codes in "
        "task.data.categorical",
    )


@pytest.mark.parametrize("label", [["healthy", "ill"] * 20, [str(i / 7) for i in range(40)]])
def test_labels_that_are_text_or_measurements(label: list[str]) -> None:
    seen = summarize(pd.DataFrame({"site": "a", "split": "train", "x": "1", "label": label}, dtype="string"))
    assert seen.values.shape[1] == (2 if "ill" in label else 0)
    assert "cases: 40" in printed(seen)


@pytest.mark.parametrize("images", [True, False])
def test_the_sites_after_the_first_forty_are_combined(tmp_path: Path, images: bool) -> None:
    frame = pd.DataFrame({"site": [f"site-{i:03}" for i in range(300)], "split": "train", "label": "1", "age": "5"})
    if images:
        frame["image"] = picture(tmp_path / "i.png", np.zeros((2, 2)))
    text = printed(summarize(frame.astype("string")))
    assert len(text.splitlines()) < 200
    assert "site-039" in text
    assert "site-040" not in text
    (line,) = [line for line in text.split("Labels")[0].split("Images")[0].splitlines() if "260 more" in line]
    assert line.split() == ["260", "more", "260", "0", "0", "0", "260"]


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    frame = table(*((f"s{i % 3}", "train", picture(tmp_path / f"{i}.png", [[i]]), str(i % 2)) for i in range(9)))
    assert printed(summarize(frame)) == printed(summarize(frame.sample(frac=1, random_state=1)))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not next to the project")
@pytest.mark.parametrize(
    "name", ["retina_vessels", "hippocampus_3d", "spinal_gm_3d", "wbc_classification", "heart_disease"]
)
def test_real_data_sets_have_one_known_problem(name: str) -> None:
    path = str(DATA / name / "table.csv")
    rows = read_table(path, needs_label=False, needs_image=False, check_files=False)
    if name == "wbc_classification":  # a part of its 577 pictures, with every class of every site
        rows = rows.groupby(["site", "label"]).head(20)
    seen = summarize(rows)
    # Two of the spinal subjects were scanned twice, and are in train and val.
    expected = ("patients (column 'subject') in more than one of train, val and test: 2, ",) * (name == "spinal_gm_3d")
    assert len(seen.problems) == len(expected)
    assert all(problem.startswith(part) for problem, part in zip(seen.problems, expected, strict=True))
    assert ("no problems found" in printed(seen)) == (not expected)
