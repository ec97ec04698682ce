"""Reads the header of a JPEG 2000 file: number and depth of the values, and sizes of the blocks.

The decoder allocates memory for all values and blocks before it reads any of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from raysim.core.errors import ConfigError

START = b"\xff\x4f\xff\x51"  # start of the code stream and of its first segment, which has the size
CODING_DEFAULT, CODING_COMPONENT = 0x52, 0x53  # second bytes of markers; the first is 255
TILE_PART, TILE_DATA, END = 0x90, 0x93, 0xD9
OTHER_SEGMENTS = (0x50, 0x55, 0x57, 0x58, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x63, 0x64, 0x74, 0x75, 0x77, 0x78)
SMALLEST_EXPONENT = 4  # blocks have at least 2^4 values along each axis; encoders use 2^6, and 2^15 for precincts
TILE_BYTES = 14_000  # memory per tile
VALUE_BYTES = 12  # memory per value while a file with the smallest blocks is decoded


def decoding_bytes(file: str) -> int:
    """The bytes of memory that decoding takes at most. Raises ConfigError for blocks that are too small."""
    return content_decoding_bytes(Path(file).read_bytes())


def content_decoding_bytes(content: bytes) -> int:
    """The `decoding_bytes` of the content of a file."""
    # Only one code stream is decoded, but a box before it may contain START too.
    streams = content.split(START)[1:]
    if any(exponent < SMALLEST_EXPONENT for stream in streams for exponent in _block_exponents(stream)):
        raise ConfigError(
            f"is a JPEG 2000 picture with blocks below {2**SMALLEST_EXPONENT} x {2**SMALLEST_EXPONENT} values, which "
            "take much memory; store it with the default blocks, or as PNG or TIFF"
        )
    return max(map(_count_bytes, streams))


def channel_depths(file: str) -> list[int]:
    """Bits - 1 of each channel, with 128 added for signed values."""
    stream = Path(file).read_bytes().split(START)[1]
    return [stream[38 + 3 * channel] for channel in range(int.from_bytes(stream[36:38], "big"))]


def alpha_channels(file: str) -> int:
    """The number of alpha channels. The box `cdef` has number, type (1 or 2: alpha) and colour of each channel."""
    boxes, _, _ = Path(file).read_bytes().partition(START)
    _, box, definitions = boxes.partition(b"cdef")
    count = int.from_bytes(definitions[:2], "big") if box else 0
    return sum(int.from_bytes(definitions[4 + 6 * n : 6 + 6 * n], "big") in (1, 2) for n in range(count))


def _count_bytes(stream: bytes) -> int:
    """The bytes of memory for values and tiles."""
    fields = [int.from_bytes(stream[at : at + 4], "big") for at in range(4, 36, 4)]
    right, bottom, left, top, tile_width, tile_height, first_x, first_y = fields
    values = (right - left) * (bottom - top) * int.from_bytes(stream[36:38], "big")
    tiles = math.ceil((right - first_x) / tile_width) * math.ceil((bottom - first_y) / tile_height)
    return VALUE_BYTES * values + TILE_BYTES * tiles


def _block_exponents(stream: bytes) -> Iterator[int]:
    """The logarithms to base 2 of the width and the height of all code blocks and precincts."""
    for marker, segment in _segments(stream):
        if marker in (CODING_DEFAULT, CODING_COMPONENT):
            style, levels = (2, 7) if marker == CODING_DEFAULT else (3, 4)  # positions in the segment
            yield from (size + 2 for size in segment[levels + 1 : levels + 3])
            if segment[style] & 1:
                yield from (exponent for size in segment[levels + 5 :] for exponent in (size & 15, size >> 4))


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content (from the length field on) of each segment in the headers of the stream and of its tiles.

    Raises ConfigError for an unknown marker, because the decoder may skip such a segment differently.
    """
    at, part = int.from_bytes(stream[:2], "big"), 0
    while at + 2 <= len(stream) and stream[at : at + 2] != bytes([255, END]):
        first, marker = stream[at : at + 2]
        if marker == TILE_DATA:
            length = int.from_bytes(stream[part + 6 : part + 10], "big")
            if not length:  # the last tile, up to the end of the file
                return
            at = max(at + 2, part + length)
            continue
        if first != 255 or marker not in (CODING_DEFAULT, CODING_COMPONENT, TILE_PART, *OTHER_SEGMENTS):
            raise ConfigError("is a damaged JPEG 2000 picture; replace it with an intact file")
        part = at if marker == TILE_PART else part
        size = max(2, int.from_bytes(stream[at + 2 : at + 4], "big"))
        yield marker, stream[at + 2 : at + 2 + size]
        at += 2 + size
