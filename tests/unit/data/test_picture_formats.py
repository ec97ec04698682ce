"""Pictures keep all bits of their values, are upright, or are refused. Values by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data.image_reader import read_image

COLOUR = np.array([[[40, 300, 65535], [190, 256, 0]]], np.uint16)  # 1 x 2 pixels


def test_sixteen_bit_colour_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(COLOUR))
    tifffile.imwrite(tmp_path / "x.tif", COLOUR, photometric="rgb")
    tifffile.imwrite(tmp_path / "lzw.tif", COLOUR, photometric="rgb", compression="lzw")
    tifffile.imwrite(tmp_path / "planes.tif", COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    (tmp_path / "x.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.tile(COLOUR, (8, 8, 1)), level=0, reversible=True))
    for name in ("x.png", "x.tif", "lzw.tif", "planes.tif"):
        array = read_image(str(tmp_path / name)).array
        assert array.tolist() == [[[40, 190]], [[300, 256]], [[65535, 0]]], name
    assert read_image(str(tmp_path / "x.jp2")).array[:, 0, 0].tolist() == [40, 300, 65535]


def test_alpha_of_sixteen_bits_is_removed(tmp_path: Path) -> None:
    alpha = np.full((1, 2, 1), 65535, np.uint16)
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(np.concatenate([COLOUR, alpha], axis=2)))
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(np.concatenate([COLOUR[..., :1], alpha], axis=2)))
    assert read_image(str(tmp_path / "rgba.png")).array[:, 0, 0].tolist() == [40, 300, 65535]
    assert read_image(str(tmp_path / "grey.png")).array.tolist() == [[[40, 190]]]


def test_twelve_bits_are_not_scaled(tmp_path: Path) -> None:
    values = np.arange(170, dtype=np.uint16).reshape(10, 17) + 3900
    content = imagecodecs.jpeg2k_encode(values, bitspersample=12, level=0, reversible=True)
    (tmp_path / "x.jp2").write_bytes(content)
    assert read_image(str(tmp_path / "x.jp2")).array[0].tolist() == values.tolist()


@pytest.mark.parametrize(
    "values", [np.int8([[-3, 5]]), np.int16([[-300, 5]]), np.uint32([[2**31, 5]]), np.float32([[0.5, -2]])]
)
def test_other_types_of_tiff_keep_their_values(tmp_path: Path, values: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack")
    assert read_image(str(tmp_path / "x.tif")).array[0].tolist() == values.tolist()


def test_pictures_that_cannot_be_read_exactly_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "white.tif", COLOUR[..., 0], photometric="miniswhite")
    (tmp_path / "x.ppm").write_bytes(b"P6 1 1 4095\n" + bytes(6))
    Image.new("LAB", (2, 2)).save(tmp_path / "lab.tif")
    for name, message in {
        "white.tif": "photometric interpretation 0",
        "x.ppm": "highest value is not 255",
        "lab.tif": "colour space LAB",
    }.items():
        with pytest.raises(ConfigError, match=message):
            read_image(str(tmp_path / name))
    (tmp_path / "plain.ppm").write_bytes(b"P6 1 1 255\n" + bytes([1, 2, 3]))
    assert read_image(str(tmp_path / "plain.ppm")).array.ravel().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("dtype", "channels", "options", "message"),
    [
        (
            np.float16,
            1,
            {},
            r"is a TIFF with 1 channel of float16 \(MINISBLACK\): expected .* float32; .* convert other types",
        ),
        (np.float64, 1, {}, r"is a TIFF with 1 channel of float64"),
        (np.float32, 2, {}, r"is a TIFF with 2 channels of float32 .*; keep one channel"),
        (np.uint16, 2, {}, r"is a TIFF with 2 channels of uint16"),
        (np.uint8, 2, {}, r"is a TIFF with 2 channels, and not all of them are grey, RGB or alpha; keep one"),
        (np.uint16, 2, {"planarconfig": "separate"}, r"is a TIFF with 2 channels, and not all"),
        (np.uint8, 4, {"photometric": "rgb", "extrasamples": [0]}, r"is a TIFF with 4 channels, and not all"),
        (np.uint8, 5, {"photometric": "rgb"}, r"is a TIFF with 5 channels, and not all"),
    ],
)
def test_types_and_channels_of_tiff_that_would_be_lost_are_refused(
    tmp_path: Path, dtype: type, channels: int, options: dict[str, object], message: str
) -> None:
    planes = np.arange(channels * 20).reshape(channels, 4, 5).astype(dtype)
    array = planes if "planarconfig" in options else planes.transpose(1, 2, 0).squeeze()
    given = {"photometric": "minisblack", "planarconfig": "contig" if channels > 1 else None, **options}
    tifffile.imwrite(tmp_path / "x.tif", array, **given)
    with pytest.raises(ConfigError, match=message):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_alpha_of_a_tiff_is_removed(tmp_path: Path, dtype: type) -> None:
    array = np.arange(80).reshape(4, 5, 4).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    assert read_image(str(tmp_path / "x.tif")).array.tolist() == array[..., :3].transpose(2, 0, 1).tolist()


def test_a_volumetric_tiff_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((3, 4, 5), np.uint16), photometric="minisblack", volumetric=True)
    with pytest.raises(ConfigError, match="is a TIFF with several slices; store each slice"):
        read_image(str(tmp_path / "x.tif"))


STORED = [[0, 50, 100], [150, 200, 250]]
UPRIGHT = {  # what a viewer shows of STORED
    1: STORED,
    2: [[100, 50, 0], [250, 200, 150]],
    3: [[250, 200, 150], [100, 50, 0]],
    4: [[150, 200, 250], [0, 50, 100]],
    5: [[0, 150], [50, 200], [100, 250]],
    6: [[150, 0], [200, 50], [250, 100]],
    7: [[250, 100], [200, 50], [150, 0]],
    8: [[100, 250], [50, 200], [0, 150]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mask", [True, False])
def test_the_orientation_is_applied_to_images_and_masks(
    tmp_path: Path, orientation: int, suffix: str, mask: bool
) -> None:
    picture = Image.fromarray(np.array(STORED, np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"x.{suffix}", exif=exif)
    if suffix == "tif" and orientation > 4:  # Pillow mixes up the rows of such a TIFF
        with pytest.raises(ConfigError, match=f"orientation tag {orientation}"):
            read_image(str(tmp_path / f"x.{suffix}"), mask=mask)
        return
    image = read_image(str(tmp_path / f"x.{suffix}"), mask=mask)
    assert image.array[0].tolist() == UPRIGHT[orientation]
    assert image.notes == (() if orientation == 1 else ("its EXIF orientation is applied, as in image viewers",))


def test_the_orientation_of_a_deep_picture_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", COLOUR, photometric="rgb", extratags=[(274, "H", 1, 3, True)])
    with pytest.raises(ConfigError, match="orientation tag 3"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_of_jpeg_2000_without_a_definition_are_refused(tmp_path: Path, channels: int) -> None:
    array = np.arange(256 * channels).reshape(16, 16, channels).astype(np.uint16)
    (tmp_path / "x.jp2").write_bytes(imagecodecs.jpeg2k_encode(array, level=0, reversible=True))
    with pytest.raises(ConfigError, match=f"is a JPEG2000 with {channels} channels, and not all of them are grey, RGB"):
        read_image(str(tmp_path / "x.jp2"))
    alpha = np.arange(256 * channels).reshape(16, 16, channels).astype(np.uint8)
    Image.fromarray(alpha, {2: "LA", 4: "RGBA"}[channels]).save(tmp_path / "alpha.jp2")
    assert read_image(str(tmp_path / "alpha.jp2")).array.tolist() == alpha[..., :-1].transpose(2, 0, 1).tolist()


@pytest.mark.parametrize(("bits", "factor"), [(2, 85), (4, 17)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_of_few_bits_keep_their_values(tmp_path: Path, bits: int, factor: int, suffix: str) -> None:
    """Pillow scales the values of an image to 255."""
    values = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    file = tmp_path / f"x.{suffix}"
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(2, -1), axis=1)
    if suffix == "png":
        file.write_bytes(grey_png(bits, values.shape, packed))
    else:
        file.write_bytes(grey_tiff(bits, values.shape, packed))
    assert read_image(str(file), mask=True).array[0].tolist() == values.tolist()
    assert read_image(str(file)).array[0].tolist() == (values * factor).tolist()


def grey_png(bits: int, shape: tuple[int, ...], rows: np.ndarray) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], bits, 0, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    )
    parts = (struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey_tiff(bits: int, shape: tuple[int, ...], rows: np.ndarray) -> bytes:
    tags = {256: shape[1], 257: shape[0], 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: shape[0], 279: rows.nbytes}
    padded = rows.tobytes().ljust(16, b"\0")
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 24) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_masks_with_an_unclear_meaning_are_refused(tmp_path: Path) -> None:
    mask = np.zeros((4, 8), bool)
    mask[1, 2:5] = True
    tifffile.imwrite(tmp_path / "white.tif", mask)  # 0 is white, the default of tifffile for bool
    alpha = np.stack([np.zeros_like(mask), mask], -1).astype(np.uint8)
    Image.fromarray(alpha, "LA").save(tmp_path / "alpha.png")
    for name, message in {"white.tif": "some programs invert its values", "alpha.png": "in its alpha channel"}.items():
        with pytest.raises(ConfigError, match=message):
            read_image(str(tmp_path / name), mask=True)
    assert "its value 0 is white" in read_image(str(tmp_path / "white.tif")).notes[0]
    stored = tifffile.imread(tmp_path / "white.tif")
    tifffile.imwrite(tmp_path / "black.tif", stored, photometric="minisblack")  # the cure
    assert read_image(str(tmp_path / "black.tif"), mask=True).array[0].tolist() == mask.astype(float).tolist()
