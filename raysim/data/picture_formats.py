"""Decodes pictures: PNG, JPEG, TIFF, BMP, GIF, JPEG 2000 and 8-bit PPM, upright and with all bits of their values.

Pillow keeps 8 bits of each channel of a colour picture, and scales or wraps some values, so tifffile and imagecodecs
decode the files that Pillow cannot hold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data import jpeg2000_header
from raysim.data.image_formats import Array, Colour, DamagedImageError, Image
from raysim.data.mask_colours import format_colours_option, unique_colours
from raysim.data.memory_limit import check_memory

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "WEBP")  # Pillow's names
PLAIN_MODES = {  # Pillow's modes with a palette, alpha or another colour space, and the mode after conversion
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LA": "L",
    "1": "L",
}
VALUE_MODES = ("L", "RGB", "I;16", "I;16B", "I;16L", "I", "F")  # Pillow's modes whose values are those of the file
ORIENTATION_TAG = 0x0112  # of EXIF and TIFF; 1 is upright
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
TIFF_UNSIGNED, TIFF_MIN_IS_WHITE, TIFF_MIN_IS_BLACK, TIFF_RGB = 1, 0, 1, 2  # their values
TIFF_CHANNELS, TIFF_EXTRA_CHANNELS = 277, 338  # tags
TIFF_ALPHA = (1, 2)  # values of the tag of an extra channel; 0 is a channel of unknown meaning
TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # colour channels by photometric interpretation
CHANNELS_CURE = "keep one channel (grey) or three (RGB)"
PNG_DEPTH, PNG_COLOUR_TYPE = 24, 25  # bytes of the file
GREY_MODES = ("1", "L", "I;16", "I;16B", "I;16L")  # Pillow's modes of at most two bytes per pixel
# Bytes of memory per pixel while a picture is decoded and converted to float32: the largest that were measured.
GREY_BYTES, COLOUR_BYTES, DEEP_BYTES, WEBP_BYTES = 6, 16, 24, 24


def decode_picture(file: str, stored: int, mask: bool, colours: bool) -> Image:
    """(1 or 3, height, width) without alpha, in the file's data type; a mask is (1, height, width).

    A mask with `colours` is (3, height, width). Raises ConfigError for a picture whose values cannot be read exactly,
    and for one that takes more memory than a file of `stored` bytes may take.
    """
    from PIL import Image as PillowImage, UnidentifiedImageError  # not at the top: tables are read without it

    try:
        with PillowImage.open(file, formats=FORMATS) as picture:
            check_memory(_decoding_bytes(file, picture, mask and not colours), stored)
            if getattr(picture, "n_frames", 1) > 1:
                raise ConfigError("has several pages; store each page as a separate picture")
            if mask:
                _check_mask(picture)
            array, palette, turned = _read_pixels(file, stored, picture, mask and not colours)
            inverted = _is_inverted(picture)
    except UnidentifiedImageError:  # its message names the stream, not the file
        raise DamagedImageError(_describe_unknown(file)) from None
    array = array[: {2: 1, 4: 3}.get(len(array), len(array))]  # without its alpha channel
    notes = ["its EXIF orientation is applied, as in image viewers"] if turned else []
    if inverted:
        notes.append("its value 0 is white (photometric interpretation 0), so its values are inverted, as in viewers")
    if mask:
        array = np.repeat(array, 3, axis=0)[:3] if colours and len(array) == 1 else array
        array = array if colours else _single_channel(array)
    return Image(array, np.eye(3), tuple(notes), palette)


def _describe_unknown(file: str) -> str:
    """The message for a file that Pillow does not know: the channels and the type of a TIFF, or the formats."""
    import tifffile  # not at the top: few files need it

    try:
        with tifffile.TiffFile(file) as tiff:
            page: Any = tiff.pages[0]
            found = f"{pluralize(page.samplesperpixel, 'channel')} of {page.dtype} ({page.photometric.name})"
    except Exception:  # noqa: BLE001 - the file is not a TIFF, or damaged
        return "cannot be read: expected a picture in a supported format (PNG, JPEG, TIFF, BMP, GIF, JPEG 2000)"
    return (
        f"is a TIFF with {found}: expected MINISBLACK (grey) or RGB, of integers up to 32 bits or float32; "
        f"{CHANNELS_CURE}, and convert other types: tifffile.imwrite(FILE, tifffile.imread(FILE).astype('float32'))"
    )


def _check_channels(file: str, picture: Any) -> None:
    """Raises ConfigError for channels of a TIFF or JPEG 2000 that would be lost: neither colour nor alpha."""
    if picture.format == "TIFF":
        tags = picture.tag_v2
        channels, extra = tags.get(TIFF_CHANNELS, 1), np.atleast_1d(tags.get(TIFF_EXTRA_CHANNELS, ())).tolist()
        alpha = int(len(extra) > 0 and extra[0] in TIFF_ALPHA)
        is_known = channels == TIFF_COLOURS.get(tags.get(TIFF_PHOTOMETRIC), channels) + alpha
    elif picture.format == "JPEG2000":
        channels = len(jpeg2000_header.channel_depths(file))
        is_known = channels - jpeg2000_header.alpha_channels(file) in (1, 3)
    else:
        return
    if not is_known:
        raise ConfigError(
            f"is a {picture.format} with {pluralize(channels, 'channel')}, and not all of them are grey, RGB or alpha; "
            f"{CHANNELS_CURE}"
        )


def _is_inverted(picture: Any) -> bool:
    """Whether Pillow inverts the values, because 0 is white in the file."""
    return bool(picture.format == "TIFF" and picture.tag_v2.get(TIFF_PHOTOMETRIC) == TIFF_MIN_IS_WHITE)


def _check_mask(picture: Any) -> None:
    """Raises ConfigError for a mask whose values depend on how the file is read, or are in its alpha channel."""
    if _is_inverted(picture):
        raise ConfigError(
            "is a mask in which 0 is white (photometric interpretation 0), so some programs invert its values; store "
            "it with black as 0: tifffile.imwrite(FILE, tifffile.imread(FILE), photometric='minisblack')"
        )
    if picture.mode in ("LA", "RGBA"):
        *colours, alpha = picture.getextrema()
        if all(low == high for low, high in colours) and alpha[0] != alpha[1]:
            raise ConfigError(
                "is a mask whose values are in its alpha channel; store them as grey values without alpha"
            )


def _single_channel(mask: Array) -> Array:
    """A mask (1, height, width). Raises ConfigError with a value for `task.data.colours` if it is coloured."""
    if (mask != mask[0]).any():
        raise ConfigError(
            "a mask must be grey, one value per class, unless the colours of the classes are named; this one is "
            f"coloured. {format_colours_option(unique_colours(mask))}"
        )
    return mask[:1]


def _read_pixels(file: str, stored: int, picture: Any, indexed: bool) -> tuple[Array, dict[int, Colour], bool]:
    """(C, height, width), the palette if it is `indexed`, and whether it was rotated upright."""
    from PIL import ImageOps

    _check_channels(file, picture)
    deep = _is_deep(file, picture)
    orientation = _orientation(picture)  # before it is loaded: Pillow turns a TIFF and removes the tag
    # Pillow mixes up the rows of an uncompressed TIFF that it turns by 90 degrees.
    if (deep and orientation != 1) or (picture.format == "TIFF" and orientation > 4):
        raise ConfigError(
            f"has the orientation tag {orientation}; pictures with more than 8 bits per channel need 1, other TIFF "
            "files need 1 to 4. Rotate it upright and store it without this tag"
        )
    if deep:
        return _decode_deep(file, stored, picture), {}, False
    picture.load()
    orientation = max(orientation, _orientation(picture))  # the tag of a PNG may follow the pixels
    ImageOps.exif_transpose(picture, in_place=True)
    if indexed and picture.mode in ("P", "PA", "1"):
        array = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)[:1].astype(np.uint8)
        return array, _used_palette(picture, array), orientation != 1
    plain = picture.convert(PLAIN_MODES[picture.mode]) if picture.mode in PLAIN_MODES else picture
    if plain.mode not in VALUE_MODES:
        raise ConfigError(f"has the colour space {plain.mode}; store it as grey or RGB")
    array = np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)
    return array // _grey_scale(file, picture) if indexed else array, {}, orientation != 1


def _grey_scale(file: str, picture: Any) -> int:
    """The factor by which Pillow multiplies grey values of 2 or 4 bits. It scales images to 255, but not masks."""
    depth = 8
    if picture.format == "PNG" and (head := _head(file, 26))[PNG_COLOUR_TYPE] == 0:
        depth = head[PNG_DEPTH]
    if picture.format == "TIFF" and picture.mode == "L":
        depth = picture.tag_v2.get(TIFF_BITS, (8,))[0]
    return 255 // (2**depth - 1) if depth in (2, 4) else 1


def _decoding_bytes(file: str, picture: Any, indexed: bool) -> int:
    """The largest number of bytes of memory for decoding, from the header. A deep TIFF is counted later."""
    pixels: int = picture.width * picture.height
    if picture.format == "JPEG2000":
        return max(pixels * COLOUR_BYTES, jpeg2000_header.decoding_bytes(file))
    if picture.format == "TIFF":
        tags = picture.tag_v2
        pixels += tags.get(TIFF_TILE_WIDTH, 0) * tags.get(TIFF_TILE_LENGTH, 0)  # a tile may be larger than its picture
    if picture.format == "WEBP":
        return pixels * WEBP_BYTES
    if picture.format == "PNG" and _is_deep(file, picture):
        return pixels * DEEP_BYTES
    grey = picture.mode in GREY_MODES or (indexed and picture.mode == "P")
    return pixels * (GREY_BYTES if grey else COLOUR_BYTES)


def _orientation(picture: Any) -> int:
    """The orientation tag, 1 to 8; 1 for none and for a value that has no meaning."""
    tags = picture.tag_v2 if picture.format == "TIFF" else picture.getexif()
    value = tags.get(ORIENTATION_TAG, 1)
    return value if value in range(1, 9) else 1


def _used_palette(picture: Any, indices: Array) -> dict[int, Colour]:
    """The colour of each index that occurs. Raises ConfigError for an index without a colour."""
    flat = picture.getpalette("RGB") if picture.mode != "1" else [0, 0, 0, 255, 255, 255]
    colours = np.asarray(flat, int).reshape(-1, 3)
    used = np.unique(indices)
    if used[-1] >= len(colours):
        raise ConfigError(f"has the palette index {used[-1]}, but its palette has {len(colours)} colours")
    return {int(index): tuple(colours[index].tolist()) for index in used}


def _is_deep(file: str, picture: Any) -> bool:
    """Whether Pillow cannot hold the values of the file. Raises ConfigError if no decoder keeps them."""
    if picture.format == "PNG":
        head = _head(file, 26)
        return head[PNG_DEPTH] == 16 and head[PNG_COLOUR_TYPE] != 0
    if picture.format == "TIFF":
        unsigned = set(picture.tag_v2.get(TIFF_SAMPLE_FORMAT, (1,))) <= {TIFF_UNSIGNED, 4}  # 4: not declared
        return max(picture.tag_v2.get(TIFF_BITS, (1,))) > 8 or not unsigned
    if picture.format == "JPEG2000":
        return any(depth != 7 for depth in jpeg2000_header.channel_depths(file))
    if picture.format == "PPM" and picture.tile and picture.tile[0].codec_name != "raw":
        raise ConfigError("is a PPM picture in plain text, or its highest value is not 255; store it as PNG or TIFF")
    return False


def _head(file: str, count: int) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(count)


def _decode_deep(file: str, stored: int, picture: Any) -> Array:
    """(C, height, width) in the file's data type, from a decoder that keeps all bits."""
    import imagecodecs  # not at the top: few files need it

    if picture.format == "TIFF":
        return _decode_tiff(file, stored, picture)
    content = Path(file).read_bytes()
    decode = imagecodecs.png_decode if picture.format == "PNG" else imagecodecs.jpeg2k_decode
    return np.atleast_3d(decode(content)).transpose(2, 0, 1)


def _decode_tiff(file: str, stored: int, picture: Any) -> Array:
    import tifffile

    photometric = picture.tag_v2.get(TIFF_PHOTOMETRIC)
    if photometric not in (TIFF_MIN_IS_BLACK, TIFF_RGB):
        raise ConfigError(
            f"is a TIFF with more than 8 bits per channel and the photometric interpretation {photometric}; expected "
            "1 (grey, black is 0) or 2 (RGB)"
        )
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        check_tiff_page(page)
        segment = math.prod(page.chunks) * page.dtype.itemsize
        check_memory(page.nbytes + 4 * page.size + 3 * segment, stored)
        array = np.asarray(page.asarray(maxworkers=1))
        return array[None] if array.ndim == 2 else np.moveaxis(array, page.axes.index("S"), 0)


def check_tiff_page(page: Any) -> None:
    """Raises ConfigError for a page of a TIFF without real numbers, or whose decoded size is not in the header."""
    import tifffile

    if page.dtype is None or page.dtype.kind == "c":
        raise ConfigError("has complex or unknown values; expected one real number per channel")
    if page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:  # the decoded size may differ from that in the header
        raise ConfigError(
            f"is a TIFF with more than 8 bits per channel and {tifffile.COMPRESSION(page.compression).name} "
            "compression; store it uncompressed, or with LZW or Deflate"
        )
    if page.ndim > 2 and "S" not in page.axes:
        raise ConfigError("is a TIFF with several slices; store each slice as a picture, or all in a NIfTI volume")
