"""Volumes as hospitals have them are scanned, described, trained on, predicted and evaluated, without personal data."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile

from raysim.cli.main import main
from raysim.data.image_reader import read_image
from tests.support.dicom_files import PERSONAL, write_segmentation, write_series

SPACING = (0.5, 1.0, 2.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SITES = ("north", "south")
KEYS = (
    *("task=segmentation", "rounds=1", "task.batch_size=2", "pictures=false"),
    "network={name: unet, channels: [2, 4], strides: [2], num_res_units: 0}",
)
FORMS = {
    "whole": ("task.data.size=[16,16,8]",),
    "patches": ("task.data.patch=[8,8,4]", "task.data.spacing=[0.7,1,2]"),
    "slices": ("task.data.slices=true", "task.data.patch=[8,8]"),
}


def scan_of(case: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume and its mask (columns, rows, slices)."""
    mask = np.zeros((16, 14, 8), np.uint8)
    mask[4:9, 3:8, 2 : 5 + case % 2] = 1
    return (mask * 500.0 + np.random.default_rng(case).integers(0, 100, mask.shape)).astype(np.int16), mask


def write_dicom(folder: Path, case: int) -> None:
    image, mask = scan_of(case)
    uid = f"1.2.3.{case}"
    write_series(folder / "images" / f"c{case}", image, spacing=SPACING, SeriesInstanceUID=uid, SeriesNumber=case)
    frames = [(1, 2.0 * z, mask[..., z]) for z in range(mask.shape[2]) if mask[..., z].any()]
    (folder / "masks").mkdir(exist_ok=True)
    write_segmentation(folder / "masks" / f"c{case}.dcm", frames, SPACING)


def write_nrrd(folder: Path, case: int) -> None:
    header = {"space": "LPS", "space directions": np.diag(SPACING), "space origin": np.zeros(3)}
    for kind, array in zip(("images", "masks"), scan_of(case), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nrrd.write(str(folder / kind / f"c{case}.nrrd"), array, header)


def write_metaimage(folder: Path, case: int) -> None:
    for kind, array, code in zip(("images", "masks"), scan_of(case), ("SHORT", "UCHAR"), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        header = (
            f"NDims = 3\nDimSize = 16 14 8\nElementType = MET_{code}\nElementSpacing = 0.5 1 2\nCompressedData = True\n"
            "ElementDataFile = LOCAL\n"
        )
        content = header.encode() + zlib.compress(array.tobytes(order="F"))
        (folder / kind / f"c{case}.mha").write_bytes(content)


def write_pair(folder: Path, case: int) -> None:
    for kind, array in zip(("images", "masks"), scan_of(case), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pair = nibabel.Nifti1Pair(array, LPS @ np.diag([*SPACING, 1.0]))
        nibabel.save(pair, folder / kind / f"c{case}.img")


def write_ome_tiff(folder: Path, case: int) -> None:
    sizes = {f"PhysicalSize{axis}": mm for axis, mm in zip("XYZ", SPACING, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
    for kind, array in zip(("images", "masks"), scan_of(case), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        path = folder / kind / f"c{case}.ome.tif"
        tifffile.imwrite(path, array.T.copy(), ome=True, metadata={"axes": "ZYX", **sizes, **units})


def write_numpy(folder: Path, case: int) -> None:
    for kind, array in zip(("images", "masks"), scan_of(case), strict=True):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / kind / f"c{case}.npy", array)


WRITERS: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "DICOM": (write_dicom, "images/c5"),
    "NRRD": (write_nrrd, "images/c5.nrrd"),
    "MetaImage": (write_metaimage, "images/c5.mha"),
    "pair": (write_pair, "images/c5.img"),
    "OME-TIFF": (write_ome_tiff, "images/c5.ome.tif"),
    "numpy": (write_numpy, "images/c5.npy"),
}


def raysim(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(("DICOM", "whole"), ("NRRD", "patches")),
        *(slow("DICOM", "patches"), slow("DICOM", "slices"), slow("NRRD", "slices"), slow("MetaImage", "patches")),
        *(slow("pair", "whole"), slow("OME-TIFF", "patches"), slow("OME-TIFF", "slices"), slow("numpy", "patches")),
    ],
)
def test_from_the_scan_to_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, form: str
) -> None:
    from_scan_to_evaluation(tmp_path, monkeypatch, kind, *FORMS[form], "backend=local")
    shown = capsys.readouterr()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "data" not in path.parents]
    texts = [shown.out.encode(), shown.err.encode(), (tmp_path / "data" / "table.csv").read_bytes()]
    texts += [_content(path) for path in written]
    assert len(written) > 10
    assert not [text for text in PERSONAL for content in texts if text.encode() in content]


@pytest.mark.slow
def test_patches_of_dicom_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_started: None) -> None:
    from_scan_to_evaluation(tmp_path / "ray", monkeypatch, "DICOM", *FORMS["patches"], "backend=ray")
    from_scan_to_evaluation(tmp_path / "local", monkeypatch, "DICOM", *FORMS["patches"], "backend=local")
    masks = [read_image(str(tmp_path / name / "predicted" / "c5.nii.gz"), mask=True) for name in ("ray", "local")]
    assert np.array_equal(masks[0].array, masks[1].array)


def from_scan_to_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, *keys: str) -> None:
    """Run all commands in `tmp_path`, and check that a predicted mask has the grid of its image."""
    tmp_path.mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write, image = WRITERS[kind]
    for case in range(6):
        write(tmp_path / "data" / SITES[case // 3], case)
    raysim("data", "scan", "data", "--fractions", "0.7,0.3,0")
    raysim("data", "describe", "data/table.csv", *(key for key in keys if key.startswith("task.")))
    table = "task.data.table=data/table.csv"
    raysim("run", *KEYS, *keys, table, f"task.data.cache={tmp_path / 'cache'}", "--out", "out")
    raysim("predict", "out", "--images", "data/south/images", "--out", "predicted")
    raysim("evaluate", "out", "--out", "evaluated")
    source, mask = tmp_path / "data" / "south" / image, tmp_path / "predicted" / "c5.nii.gz"
    predicted, expected = read_image(str(mask), mask=True), read_image(str(source))
    assert predicted.space == expected.space
    assert predicted.affine == pytest.approx(expected.affine)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
