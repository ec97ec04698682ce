"""Small data sets for wrong inputs, and files that are wrong in a way that text cannot express."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from tests.support.finished_runs import write_run

SITES, SPLITS = ("a", "b"), ("train", "train", "val")
HEADERS = {
    **dict.fromkeys(("table", "volumes", "classes"), "site,split,image,label"),
    "findings": "site,split,image,edema,effusion,age",
    "rows": "site,split,label,age,sex",
}
Array = np.ndarray


def write_data_sets(folder: Path) -> None:
    """`table.csv` (pictures and masks), `volumes.csv`, `classes.csv`, `findings.csv` and `rows.csv`, with two sites."""
    tables: dict[str, list[str]] = {name: [] for name in HEADERS}
    mask = np.zeros((16, 16, 4), np.uint8)
    mask[4:9, 5:12, 1:3] = 1
    for number, (site, split) in enumerate((site, split) for site in SITES for split in SPLITS):
        image = (mask * 80 + 60 + number + np.arange(16)[:, None, None]).astype(np.uint8)
        save_picture(folder / f"{number}.png", image[..., 1])
        save_picture(folder / f"{number}_m.png", mask[..., 1])
        save_volume(folder / f"{number}.nii", image)
        save_volume(folder / f"{number}_m.nii", mask)
        case = f"{site},{split}"
        tables["table"].append(f"{case},{number}.png,{number}_m.png")
        tables["volumes"].append(f"{case},{number}.nii,{number}_m.nii")
        tables["classes"].append(f"{case},{number}.png,{('sick', 'well')[number % 2]}")
        tables["findings"].append(f"{case},{number}.png,{number % 2},{int(number in (0, 2, 4, 5))},{40.5 + 7 * number}")
        tables["rows"].append(f"{case},{('sick', 'well')[number % 2]},{50 + 3 * number},{('f', 'm')[number % 2]}")
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([HEADERS[name], *rows, ""]))


def save_picture(path: Path, array: Array, mode: str | None = None) -> None:
    Image.fromarray(array, mode).save(path)


def save_volume(path: Path, array: Array, mm: float = 1.0) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([mm, mm, mm, 1.0])), path)


def _pixels(path: str) -> Array:
    return np.asarray(Image.open(path)).copy()


def _volume(path: str) -> Array:
    return np.asarray(nibabel.load(path).dataobj).copy()


def truncated() -> None:
    Path("0.png").write_bytes(Path("0.png").read_bytes()[:60])


def text_as_picture() -> None:
    Path("0.png").write_text("not a picture")


def nan_volume() -> None:
    array = _volume("0.nii").astype(np.float32)
    array[0, 0, 0] = np.nan
    save_volume(Path("0.nii"), array)


def negative_volume() -> None:
    save_volume(Path("0.nii"), _volume("0.nii").astype(np.int16) - 1000)


def complex_volume() -> None:
    save_volume(Path("0.nii"), _volume("0.nii").astype(np.complex64))


def other_grid() -> None:
    save_volume(Path("0_m.nii"), _volume("0_m.nii"), mm=1.5)


def no_affine() -> None:
    content = bytearray(Path("0.nii").read_bytes())
    content[252:256] = bytes((0, 0, 2, 0))  # the codes of qform and sform
    content[280:328] = bytes(48)  # the sform
    Path("0.nii").write_bytes(content)


def huge_volume() -> None:
    content = bytearray(Path("0.nii").read_bytes())
    content[42:48] = np.full(3, 4000, "<i2").tobytes()  # the number of voxels along each axis
    Path("0.nii").write_bytes(content)


def unknown_unit() -> None:
    volume = nibabel.Nifti1Image(_volume("0.nii"), np.eye(4))
    volume.header["xyzt_units"] = 5
    nibabel.save(volume, "0.nii")


def flat_volume() -> None:
    nibabel.save(nibabel.Nifti1Image(_volume("0.nii")[..., 0], np.eye(4)), "0.nii")


def pages() -> None:
    page = Image.fromarray(_pixels("0.png"))
    page.save("0.tif", save_all=True, append_images=[page])
    Path("table.csv").write_text(Path("table.csv").read_text().replace("0.png,", "0.tif,"))


def colour_image() -> None:
    save_picture(Path("1.png"), np.stack([_pixels("1.png")] * 3, -1))


def all_colour() -> None:
    for number in range(len(SITES) * len(SPLITS)):
        save_picture(Path(f"{number}.png"), np.stack([_pixels(f"{number}.png")] * 3, -1))


def other_size() -> None:
    for end in ("", "_m"):
        save_picture(Path(f"1{end}.png"), _pixels(f"1{end}.png")[:12])


def other_mask_size() -> None:
    save_picture(Path("0_m.png"), _pixels("0_m.png")[:12])


def three_values() -> None:
    mask = _pixels("0_m.png")
    mask[0, :2] = (128, 255)
    save_picture(Path("0_m.png"), mask)


def fraction_mask() -> None:
    mask = _volume("0_m.nii").astype(np.float32)
    mask[0, 0, 0] = 0.5
    save_volume(Path("0_m.nii"), mask)


def two_foregrounds() -> None:
    save_picture(Path("0_m.png"), _pixels("0_m.png") * 255)


def coloured_mask() -> None:
    mask = _pixels("0_m.png")
    save_picture(Path("0_m.png"), np.stack([mask * 255, 0 * mask, 0 * mask], -1))


def flipped_palette() -> None:
    for number, colours in ((0, (0, 0, 0, 255, 255, 255)), (1, (255, 255, 255, 0, 0, 0))):
        mask = _pixels(f"{number}_m.png")
        picture = Image.fromarray(1 - mask if number else mask, "P")
        picture.putpalette(colours)
        picture.save(f"{number}_m.png")


def many_values() -> None:
    save_picture(Path("0_m.png"), np.arange(256, dtype=np.uint8).reshape(16, 16))


def huge_label() -> None:
    save_volume(Path("0_m.nii"), (_volume("0_m.nii").astype(np.int32) * (2**24 + 1)).astype(np.int32))


def turned_deep() -> None:
    picture = Image.fromarray(_pixels("0.png").astype(np.uint16) * 200)
    picture.save("0.tif", tiffinfo={274: 6})
    Path("table.csv").write_text(Path("table.csv").read_text().replace("0.png,", "0.tif,"))


def channels() -> None:
    for channel in range(2):
        Path(f"0_000{channel}.png").write_bytes(Path("0.png").read_bytes())


def utf16_table() -> None:
    Path("table.csv").write_text(Path("table.csv").read_text(), encoding="utf-16")


def latin1_table() -> None:
    text = Path("table.csv").read_text().replace("b,", "Köln,")
    Path("table.csv").write_bytes(text.encode("latin-1"))


def finished_run() -> None:
    """A run directory whose run is done."""
    Path("done").mkdir()
    Path("done/config.yaml").write_text("{task: synthetic, algorithm: fedavg}")
    Path("done/summary.json").write_text('{"status": "done", "rounds": 20}')


def compared_runs() -> None:
    """Finished runs in runs/: two with the same cases, one with a further case, and one of another task."""
    write_run(Path("runs/first"), {"a": [0.5, 0.6]})
    write_run(Path("runs/second"), {"a": [0.6, 0.7]}, "algorithm=fedbn")
    write_run(Path("more"), {"a": [0.6, 0.7, 0.8]}, "algorithm=ditto")
    write_run(Path("masks"), {"a": [0.6]}, "task=segmentation task.data.table=table.csv")
    write_run(Path("failed"), {"a": [0.6]}, "rounds=3", status="failed")
    (write_run(Path("no_cases"), {"a": [0.6]}, "rounds=3") / "cases.parquet").unlink()


def pickled_objects() -> None:
    """A .pt file that would run code."""
    Path("code.pt").write_bytes(b"cbuiltins\nprint\n(S'code'\ntR.")


def other_weights() -> None:
    """The weights of another network."""
    torch.save({"weight": torch.ones(2, 2)}, "other.pt")


def _as_series(**fields: Any) -> None:
    """The image 0.nii of volumes.csv as a DICOM series."""
    from tests.support.dicom_files import write_series

    write_series(Path("series"), _volume("0.nii").astype(np.int16), **fields)
    Path("volumes.csv").write_text(Path("volumes.csv").read_text().replace("0.nii,", "series,", 1))


def two_dicom_series() -> None:
    _as_series()
    (Path("series") / "IM000").rename("first")
    _as_series(SeriesInstanceUID="1.9", SeriesNumber=4)
    Path("first").rename(Path("series") / "first")


def absent_dicom_slice() -> None:
    _as_series()
    (Path("series") / "IM014").unlink()


def dicom_contours() -> None:
    _as_series(Modality="RTSTRUCT", Rows=None)


def damaged_dicom() -> None:
    _as_series()
    file = Path("series") / "IM014"
    file.write_bytes(file.read_bytes()[:-100])


def damaged_in_the_middle() -> None:
    """The fifth of six volumes, at the second site, is cut off."""
    Path("4.nii").write_bytes(Path("4.nii").read_bytes()[:-600])


def pair_in_mixed_case() -> None:
    nibabel.save(nibabel.Nifti1Pair(_volume("0.nii"), np.eye(4)), "pair.hdr")
    for suffix in (".hdr", ".img"):
        Path(f"pair{suffix}").rename(f"pair{suffix.title()}")
    Path("volumes.csv").write_text(Path("volumes.csv").read_text().replace("0.nii,", "pair.Hdr,", 1))


def two_arrays() -> None:
    np.savez("0.npz", image=_volume("0.nii"), mask=_volume("0_m.nii"))
    Path("volumes.csv").write_text(Path("volumes.csv").read_text().replace("0.nii,", "0.npz,", 1))


WRONG_FILES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        *(truncated, text_as_picture, nan_volume, complex_volume, other_grid, no_affine, unknown_unit, flat_volume),
        *(pages, colour_image, all_colour, other_size, other_mask_size, three_values, fraction_mask, two_foregrounds),
        *(coloured_mask, flipped_palette, many_values, huge_label, turned_deep, utf16_table, latin1_table),
        *(channels, finished_run, negative_volume, huge_volume, compared_runs, pickled_objects, other_weights),
        *(two_dicom_series, absent_dicom_slice, dicom_contours, damaged_dicom, two_arrays),
        *(damaged_in_the_middle, pair_in_mixed_case),
    )
}
