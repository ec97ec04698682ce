"""Inputs that users of other programs have reported: each gives the right result, or is refused with its cure."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim.cli.main import main
from raysim.tasks.segmentation import Segmentation
from raysim.tasks.segmentation_config import SegmentationData
from tests.support import recomputed
from tests.support.paths import CASES

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not CASES.is_dir(), reason=f"the reported inputs are not at {CASES}"),
]
RUN = (
    *("run", "task=segmentation", "backend=local", "rounds=1", "task.batch_size=2", "task.data.table=table.csv"),
    *("task.data.cache=cache", "--out", "out"),
)
SMALL = ("task.network.channels=[4,8]", "task.network.num_res_units=0")


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with the input that the test's parameter, or its name, names."""
    name = getattr(request, "param", None) or request.node.name.removeprefix("test_")
    (tmp_path / name).mkdir()
    for file in (CASES / "make.py", *(CASES / name).iterdir()):
        target = tmp_path / ("" if file.name == "make.py" else name) / file.name
        target.write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path / name)
    runpy.run_path("make_data.py")
    return tmp_path / name


@pytest.mark.parametrize(
    ("case", "command", "message"),
    [
        (
            "bf16_network",
            (*RUN, "network=mynet:Half"),
            "network Half cannot be sent between server and sites: 'a.weight' is bfloat16: expected float32, .*; keep "
            "the parameters in float32 and set algorithm.amp=true to compute in bfloat16",
        ),
        (
            "grey_and_colour",
            (*RUN, *SMALL),
            "the data cannot be used:(\n  DIR/[ab]_[02].png: its prepared shape is .* task.data.channels=3 repeats the "
            "channel of grey pictures, task.data.channels=1 converts to grey){4}",
        ),
        (
            "label_NA",
            (*RUN, "task=classification", "network={name: resnet}"),
            "table DIR/table.csv: empty label cells in row 12; .* 'NA' marks a missing value; if it is a class, list "
            "all classes in task.data.classes",
        ),
        (
            "lambda_field",
            (*RUN, "algorithm=algos:Lambda"),
            r"algorithm.f=<function Lambda.<lambda> at 0x\w+>: config.yaml cannot store a function; expected .*",
        ),
        (
            "nifti_other_grid",
            (*RUN, *SMALL),
            "the data cannot be used:(\n  DIR/._._m.nii.gz: its position differs from that of its image DIR/._..nii.gz "
            "by up to 9 voxels at the corners; expected at most 0.1; resample it to the image){5}\n  and 3 "
            "more",
        ),
        (
            "palette_order",
            (*RUN, *SMALL),
            "the data cannot be used:(\n  DIR/._[02]_m.png: the order of its palette is ambiguous .*){4}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value and " " not in value else "",
    indirect=["case"],
)
def test_refused(case: Path, command: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(case.iterdir())
    assert main(list(command)) == 2
    error = capsys.readouterr().err.replace(f"{case}", "DIR").replace("DIR/dataset.json", "dataset.json")
    assert re.fullmatch(f"raysim: {message}\n", error), error
    after = [path for path in sorted(case.iterdir()) if path.name not in ("__pycache__", "cache")]
    assert after == before


def test_nnunet_channels(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "task.data.image_columns=[image,image_t2]" in printed(capsys, "data", "scan", ".")


def printed(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    assert main(list(command)) == code
    return capsys.readouterr().out


def summary(out: str = "out") -> Any:
    return json.loads(Path(out, "summary.json").read_text())


def scores_by_hand(metrics: tuple[str, ...], dims: int) -> dict[str, float]:
    """The test scores of site a, from the saved model and the files."""
    from monai.networks.nets import UNet

    net = UNet(dims, 1, 2, channels=[4, 8], strides=[2], num_res_units=0)
    read = recomputed.read_volume if dims == 3 else recomputed.read_picture
    table = pd.read_csv("table.csv").query("site == 'a' and split == 'test'")
    cases = []
    for row in table.itertuples():
        (image, spacing), (label, _) = read(Path(row.image)), read(Path(row.label))
        cases.append((recomputed.zscore(image), np.rint(label).astype(int), spacing))
    return recomputed.segmentation_scores(recomputed.load_network(net, Path("out")), cases, ("foreground",), metrics)


def check_scores(*metrics: str, dims: int) -> dict[str, float]:
    expected = scores_by_hand(metrics, dims)
    site = summary()["sites"]["a"]
    assert {name: site[f"test/{name}"] for name in metrics} == pytest.approx(expected, rel=1e-6)
    return expected


def test_all_background(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, *RUN, *SMALL)
    assert "note: classes that no prepared mask has: foreground" in shown
    (note,) = summary()["notes"]
    assert note.startswith("nothing could be evaluated: no metric has a value at any site. A metric has no value where")
    assert f"note: {note}" in shown
    assert "nothing could be evaluated" in Path("out/report.html").read_text()


def test_exif_orientation(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, *RUN, *SMALL)
    assert "note: 4 files, such as DIR/a_3.jpg: its EXIF orientation is applied, as in image viewers" in shown.replace(
        str(case), "DIR"
    )
    task = Segmentation(data=SegmentationData(table="table.csv", cache="cache"), batch_size=2).build()
    make = runpy.run_path("../make.py")
    for site, first in (("a", 0), ("b", 4)):
        data = task.open(site)
        inputs = np.concatenate([data[split].inputs[:, 0] for split in ("train", "val", "test")])
        for number, image in enumerate(inputs):
            original = make["blob"](first + number)[0]
            assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.95  # JPEG loses some


def test_float_label(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, *RUN, *SMALL)
    masks = [recomputed.read_volume(path)[0] > 0.5 for path in sorted(case.glob("*_m.nii.gz"))]
    assert f"foreground 1 ({100 * np.mean(masks):.1f} %)" in shown
    check_scores("dice", dims=3)


@pytest.mark.parametrize("case", ["grey_and_colour"], indirect=True)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cure_for_grey_and_colour(case: Path, channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, *RUN, *SMALL, f"task.data.channels={channels}")
    assert summary()["notes"] == []


def test_inplace_data(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "algorithm=mut:Drift", "rounds=4"]) == 1
    error = capsys.readouterr().err
    line = error.splitlines()[-1]
    assert line.startswith("raysim: site 'a' failed in round 1: ValueError: output array is read-only (")
    assert "; arrays that a method receives are read-only: change a copy" in line


def test_nifti_pixdim_off(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = "task.metrics=[dice,hd95]"
    shown = printed(capsys, *RUN, *SMALL, metrics)
    assert "its sform and its voxel sizes (pixdim) differ; the sform has a code and is used" in shown
    check_scores("dice", "hd95", dims=3)
    assert "1.4 x 1.4 x 10" in printed(capsys, "data", "describe", "table.csv")


def test_nifti_units(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, *RUN, *SMALL, "task.metrics=[dice,hd95]")
    assert "its unit of length is metres, which are converted to mm" in shown
    assert check_scores("dice", "hd95", dims=3)["hd95"] > 1
    assert "1 x 1 x 2" in printed(capsys, "data", "describe", "table.csv")


def test_patient_column(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "patients (column 'subject_id') in more than one of train, val and test: 2, p0 of a (train, val, test)"
    assert f"note: {message}" in printed(capsys, *RUN, *SMALL)
    assert message in printed(capsys, "data", "describe", "table.csv").replace("\n", " ").replace("  ", " ")


def test_png_16bit_colour(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = runpy.run_path("../make.py")
    images = [make["blob"](number)[0] for number in range(8)]
    printed(capsys, *RUN, *SMALL)
    shown = printed(capsys, "data", "describe", "table.csv")
    line = re.findall(r"^ *all .*$", shown[shown.index("Intensity") :], re.MULTILINE)[0]
    assert line.split()[1] == str(min(map(np.min, images)))
    assert line.split()[-1] == str(max(map(np.max, images)))
    data = Segmentation(data=SegmentationData(table="table.csv", cache="cache", intensity="none")).build().open("a")
    np.testing.assert_array_equal(data.train.inputs[0], np.stack([images[0]] * 3))


@pytest.mark.parametrize("case", ["palette_order"], indirect=True)
def test_the_cure_for_palettes(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = "task.data.colours={background: [0, 0, 0], NAME1: [255, 255, 255]}"
    assert main([*RUN, *SMALL]) == 2
    assert f"'{colours}'" in capsys.readouterr().err
    shown = printed(capsys, *RUN, *SMALL, colours)
    white = np.mean([np.asarray(Image.open(path).convert("L")) == 255 for path in case.glob("*_m.png")])
    assert f"NAME1 1 ({100 * white:.1f} %)" in shown


def test_every_reported_input_has_a_test() -> None:
    source = Path(__file__).read_text()
    folders = {path.name for path in CASES.iterdir() if path.is_dir()}
    assert {name for name in folders if name not in source} == set()
