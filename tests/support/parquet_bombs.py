"""Small Parquet files whose footer or page headers give false sizes, so that reading them takes much memory.

The structures are those of https://github.com/apache/parquet-format, in the compact protocol of Thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

I32, I64, TEXT, LIST, STRUCT = 5, 6, 8, 9, 12
PLAIN, RLE, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 3, 7, 8
DATA_PAGE, DICTIONARY_PAGE = 0, 2
BYTE_ARRAY, UTF8, ZSTD, NONE = 6, 0, 6, 0
Fields = Mapping[int, tuple[int, Any]]


def number(value: int) -> bytes:
    """An integer of variable length."""
    content = b""
    while value >= 128:
        content, value = content + bytes([value & 127 | 128]), value >> 7
    return content + bytes([value])


def encode(kind: int, value: Any) -> bytes:
    """A value; a list is given as its element type and its elements."""
    if kind in (I32, I64):
        return number(value << 1)
    if kind == TEXT:
        return number(len(value)) + value.encode()
    if kind == LIST:
        of, items = value
        size = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + number(len(items))
        return size + b"".join(encode(of, item) for item in items)
    content, last = b"", 0
    for field, (of, item) in sorted(value.items()):
        content, last = content + bytes([(field - last) << 4 | of]) + encode(of, item), field
    return content + b"\0"


def page(kind: int, content: bytes, values: int, encoding: int, size: int | None = None) -> bytes:
    """A compressed page with its header. size: a false uncompressed size."""
    stored = bytes(pa.compress(content, "zstd", asbytes=True))
    about = {1: (I32, values), 2: (I32, encoding)}
    of_data = {5: (STRUCT, about | {3: (I32, RLE), 4: (I32, RLE)})}
    sizes = {1: (I32, kind), 2: (I32, len(content) if size is None else size), 3: (I32, len(stored))}
    return encode(STRUCT, sizes | (of_data if kind == DATA_PAGE else {7: (STRUCT, about)})) + stored


def file(pages: bytes, rows: int, *, text: bool = True, first: int = 0, stored: int = 0, group_rows: int = 0) -> bytes:
    """A file with the column `image`, whose footer says that it has few bytes.

    first: the size of a dictionary page. stored, group_rows: false sizes of the column chunk and of its row group.
    """
    chunk: dict[int, Any] = {1: (I32, BYTE_ARRAY), 2: (LIST, (I32, [RLE])), 3: (LIST, (TEXT, ["image"]))}
    chunk |= {4: (I32, ZSTD), 5: (I64, group_rows or rows), 6: (I64, 100), 7: (I64, stored or len(pages))}
    chunk |= {9: (I64, 4 + first)} | ({11: (I64, 4)} if first else {})
    column = {1: (I32, BYTE_ARRAY), 3: (I32, 0), 4: (TEXT, "image")} | ({6: (I32, UTF8)} if text else {})
    group = {1: (LIST, (STRUCT, [{2: (I64, 4), 3: (STRUCT, chunk)}])), 2: (I64, 100), 3: (I64, group_rows or rows)}
    schema = [{4: (TEXT, "schema"), 5: (I32, 1)}, column]
    footer = {1: (I32, 1), 2: (LIST, (STRUCT, schema)), 3: (I64, rows), 4: (LIST, (STRUCT, [group]))}
    return with_footer(pages, encode(STRUCT, footer))


def with_footer(pages: bytes, footer: bytes) -> bytes:
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def text(length: int) -> bytes:
    """A plain cell."""
    return struct.pack("<I", length) + b"a" * length


def repeated(values: int) -> bytes:
    """The indices of `values` cells, all of which are the first text of the dictionary: one run."""
    return bytes([1]) + number(values << 1) + b"\0"


def dictionary(length: int, cells: int, **options: Any) -> bytes:
    """A cell of the dictionary that all rows repeat; `options` as in `file`."""
    first = page(DICTIONARY_PAGE, text(length), 1, PLAIN)
    pages = first + page(DATA_PAGE, repeated(cells), cells, RLE_DICTIONARY)
    return file(pages, **{"rows": cells, "first": len(first), **options})


def shared_prefixes(length: int, rows: int) -> bytes:
    """Cells that each repeat the previous cell, whose first one has `length` bytes.

    DELTA_BYTE_ARRAY stores the lengths of the shared prefixes (0, length, length, ...), those of the other bytes
    (length, 0, 0, ...), and the other bytes of all cells. Numbers are stored as differences in blocks of 128, with the
    smallest difference of a block and, for each quarter of it, the bits of what exceeds the smallest difference.
    """
    bits = length.bit_length()
    all_but_first = sum(length << bits * index for index in range(1, 32)).to_bytes(bits * 4, "little")
    every = sum(length << bits * index for index in range(32)).to_bytes(bits * 4, "little")
    zeros = (number(0) + bytes(4)) * (-(-(rows - 1) // 128) - 1)
    start = number(128) + number(4) + number(rows)
    prefixes = start + number(0) + number(0) + bytes([bits, 0, 0, 0]) + length.to_bytes(bits * 4, "little") + zeros
    rest = number(2 * length - 1) + bytes([bits] * 4) + all_but_first + every * 3 + zeros
    return page(DATA_PAGE, prefixes + start + number(2 * length) + rest + b"a" * length, rows, DELTA_BYTE_ARRAY)


def footer_of_lists(count: int) -> bytes:
    """A footer whose list of row groups has `count` elements, of which the file has none."""
    start = bytes([0x15, 2, 0x19, 0x0C | 0x00])  # version 1, an empty schema
    return with_footer(b"", start + bytes([0x16, 0, 0x19, 0xFC]) + number(count) + bytes(count))


PARQUET_BOMBS = {
    "page": lambda: file(page(DATA_PAGE, text(500_000_000) * 3, 3, PLAIN), 3),
    "dictionary page": lambda: dictionary(1_500_000_000, 3),
    "many rows": lambda: dictionary(1, 5_000_000),
    "repeated text": lambda: dictionary(100_000, 60_000),
    "repeated bytes": lambda: dictionary(100_000, 60_000, text=False),
    "shared prefixes": lambda: file(shared_prefixes(100_000, 60_000), 60_000, text=False),
    "false page size": lambda: file(page(DATA_PAGE, text(3), 1, PLAIN, size=2**31 - 1), 1),
    "false values": lambda: file(page(DATA_PAGE, text(3), 2**31 - 1, PLAIN), 3),
    "false chunk size": lambda: file(page(DATA_PAGE, text(3), 1, PLAIN), 1, stored=2**40),
    "false row group": lambda: dictionary(3, 2**31 - 1, rows=3, group_rows=2**31 - 1),
    "lists of the footer": lambda: footer_of_lists(900_000),
}
