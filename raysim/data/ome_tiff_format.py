"""Decodes OME-TIFF volumes (`.ome.tif`) with their channels and the physical size of a voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.image_formats import Array, Image, decoded_type
from raysim.data.memory_limit import check_memory
from raysim.data.picture_formats import check_tiff_page

MM_PER_UNIT = {"nm": 1e-6, "µm": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}  # micrometre is the default
MAX_XML = 5_000_000  # characters
NO_ORIENTATION = "an OME-TIFF has no orientation; its axes X, Y and Z are read as right, anterior and superior"


def decode_ome_tiff(file: str, stored: int, mask: bool) -> Image:
    """The volume (C, x, y, z). Raises ConfigError for a file that cannot be used, and for one that takes more memory
    than a file of `stored` bytes may take.
    """
    import tifffile  # not at the top: few files need it

    with tifffile.TiffFile(file) as tiff:
        pixels = read_pixels(tiff)
        channels, depth = _planes(pixels, len(tiff.pages))
        first: Any = tiff.pages[0]
        check_tiff_page(first)
        if first.ndim != 2:
            raise ConfigError("has pages with colours; a volume needs one value per voxel in each channel")
        dtype = decoded_type(first.dtype, mask)
        shape = (channels, first.imagewidth, first.imagelength, depth)
        per_voxel = dtype.itemsize * (2 if mask else 1)
        check_memory(math.prod(shape) * per_voxel + 3 * math.prod(first.chunks) * first.dtype.itemsize, stored)
        array: Array = np.empty(shape, dtype, order="F")
        z_first = pixels.get("DimensionOrder", "XYCZT").index("Z") < pixels.get("DimensionOrder", "XYCZT").index("C")
        for number in range(channels * depth):
            page: Any = tiff.pages[number]
            if page.shape != first.shape or page.dtype != first.dtype:
                raise ConfigError("its pages differ in size or type; store one volume in each file")
            check_tiff_page(page)
            channel, z = (number // depth, number % depth) if z_first else (number % channels, number // channels)
            array[channel, ..., z] = page.asarray(maxworkers=1).T
    affine = np.diag([*(_millimetres(pixels, axis) for axis in "XYZ"), 1.0])
    return Image(array, affine, (NO_ORIENTATION,))


def read_pixels(tiff: Any) -> Mapping[str, str]:
    """The attributes of the only image in the OME-XML. Raises ConfigError for other files.

    tifffile's own `series` allocates memory for the number of planes that the XML declares.
    """
    text = str(tiff.pages[0].description)
    if len(text) > MAX_XML:
        raise ConfigError(f"has OME-XML of {len(text)} characters; expected at most {MAX_XML}")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise ConfigError("has no OME-XML in its first page; name it .tif, or store it as OME-TIFF") from None
    images = [node for node in root.iter() if node.tag.endswith("}Pixels") or node.tag == "Pixels"]
    if len(images) != 1:
        raise ConfigError(f"has {len(images)} images in its OME-XML; store one image in each file")
    blocks = [node.attrib for node in images[0] if node.tag.endswith("TiffData")]
    if any(int(block.get("IFD", number)) != number for number, block in enumerate(blocks)):
        raise ConfigError(
            "has planes whose order in the OME-XML differs from that of the pages; store it again, for example with "
            "tifffile"
        )
    return images[0].attrib


def _planes(pixels: Mapping[str, str], pages: int) -> tuple[int, int]:
    """The number of channels and of slices. Raises ConfigError for several time points, and for absent pages."""
    sizes: Sequence[int] = [int(pixels.get(f"Size{axis}", 1)) for axis in "CZT"]
    if sizes[2] != 1:
        raise ConfigError(f"has {sizes[2]} time points; store each in a separate file")
    if sizes[0] * sizes[1] != pages:
        raise ConfigError(
            f"has {pages} pages, but {sizes[0]} channels of {sizes[1]} slices in its OME-XML; a volume needs a page "
            "for each slice of each channel"
        )
    return sizes[0], sizes[1]


def _millimetres(pixels: Mapping[str, str], axis: str) -> float:
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
    size = float(pixels.get(f"PhysicalSize{axis}", 1000.0))  # 1 mm, as in other files without a size
    if unit not in MM_PER_UNIT or not size > 0:
        raise ConfigError(f"its physical size is {size:g} {unit}; expected one of {', '.join(MM_PER_UNIT)}")
    return size * (MM_PER_UNIT[unit] if f"PhysicalSize{axis}" in pixels else 1e-3)
