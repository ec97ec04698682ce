"""Volumes as hospitals have them are scanned, described, trained on, predicted and evaluated, without personal data."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from raysim.cli.main import main
from raysim.data.image_reader import read_image
from tests.support.dicom_files import PERSONAL, write_segmentation, write_series

SPACING = (0.5, 1.0, 2.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SITES = ("north", "south")
KEYS = (
    *("run", "task=segmentation", "backend=local", "rounds=1", "task.data.size=[16,16,8]", "task.batch_size=2"),
    *("network={name: unet, channels: [2, 4], strides: [2], num_res_units: 0}", "pictures=false"),
)


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


WRITERS: dict[str, tuple[Callable[[Path, int], None], str]] = {
    "DICOM": (write_dicom, "images/c5"),
    "NRRD": (write_nrrd, "images/c5.nrrd"),
    "MetaImage": (write_metaimage, "images/c5.mha"),
    "pair": (write_pair, "images/c5.img"),
}


def raysim(*arguments: str) -> None:
    assert main(list(arguments)) == 0, arguments


@pytest.mark.parametrize(
    "kind", ["DICOM", "NRRD", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("MetaImage", "pair"))]
)
def test_from_the_scan_to_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, image = WRITERS[kind]
    for case in range(6):
        write(tmp_path / "data" / SITES[case // 3], case)
    raysim("data", "scan", "data", "--fractions", "0.7,0.3,0")
    raysim("data", "describe", "data/table.csv", "task.data.size=[16,16,8]")
    raysim(*KEYS, "task.data.table=data/table.csv", f"task.data.cache={tmp_path / 'cache'}", "--out", "out")
    raysim("predict", "out", "--images", "data/south/images", "--out", "predicted")
    raysim("evaluate", "out", "--out", "evaluated")
    source, mask = tmp_path / "data" / "south" / image, tmp_path / "predicted" / "c5.nii.gz"
    predicted, expected = read_image(str(mask), mask=True), read_image(str(source))
    assert predicted.space == expected.space
    assert predicted.affine == pytest.approx(expected.affine)
    shown = capsys.readouterr()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "data" not in path.parents]
    texts = [shown.out.encode(), shown.err.encode(), (tmp_path / "data" / "table.csv").read_bytes()]
    texts += [_content(path) for path in written]
    assert len(written) > 10
    assert not [text for text in PERSONAL for content in texts if text.encode() in content]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
