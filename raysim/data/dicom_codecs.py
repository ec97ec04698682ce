"""Decodes compressed frames of DICOM files by imagecodecs, as a plugin of pydicom.

pydicom's own plugins need further packages, and decode a frame whose size differs from that of the header.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raysim.data import jpeg2000_header
from raysim.data.memory_limit import check_memory

# Transfer syntaxes.
JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
PLUGIN = "raysim"  # its name in pydicom
DECODER_DEPENDENCIES = dict.fromkeys([*JPEG, *JPEG_LS, *JPEG_2000], ("imagecodecs",))  # read by pydicom
NO_LENGTH = (0xD8, 0x01, *range(0xD0, 0xD8))  # second bytes of JPEG markers without a segment
NO_SIZE = (0xC4, 0xC8, 0xCC)  # tables, with codes between those of the markers that contain a size


def is_available(_: str) -> bool:
    """For pydicom: always true, because imagecodecs is installed with raysim."""
    return True


def decode_frame(content: bytes, runner: Any) -> bytes:
    """For pydicom: the values of a frame. Raises ValueError if its size differs from that in the header."""
    import imagecodecs

    syntax = str(runner.transfer_syntax)
    if syntax in JPEG_2000:
        check_memory(jpeg2000_header.content_decoding_bytes(content), len(content))
        decode: Callable[[bytes], np.ndarray[Any, Any]] = imagecodecs.jpeg2k_decode
    else:
        if jpeg_size(content) != (runner.rows, runner.columns):
            raise ValueError("the size of the frame differs from that in the header")
        decode = imagecodecs.jpegls_decode if syntax in JPEG_LS else imagecodecs.jpeg8_decode
    pixels = decode(content)
    if pixels.shape[:2] != (runner.rows, runner.columns):
        raise ValueError("the size of the frame differs from that in the header")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
        runner.set_option("photometric_interpretation", "RGB")  # the decoders convert colours
    return pixels.tobytes()


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Height and width in the header of a JPEG or JPEG-LS stream. Raises ValueError for a damaged one."""
    at = 0
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if (0xC0 <= marker <= 0xCF and marker not in NO_SIZE) or marker == 0xF7:
            return int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(content[at + 7 : at + 9], "big")
        at += 2 if marker in NO_LENGTH else 2 + max(2, int.from_bytes(content[at + 2 : at + 4], "big"))
    raise ValueError("the frame has no size")
