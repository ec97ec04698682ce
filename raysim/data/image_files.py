"""The files of an image: usually one; a folder for a DICOM series; a header and a file of voxels in some formats."""

from __future__ import annotations

import os

from raysim.data.image_formats import IMAGE_SUFFIX, is_folder

PARTNERS = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}


def files_of(path: str) -> list[str]:
    """The files of the image at a local path, sorted; absent ones are left out."""
    if is_folder(path):
        return sorted(entry.path for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith("."))
    return sorted([path, *filter(None, [partner(path)])])


def partner(path: str) -> str | None:
    """The second file of an image at a local path: the voxels of a header, or the header of voxels; else None."""
    stem, suffix = os.path.splitext(path)
    if suffix in PARTNERS:
        other = stem + PARTNERS[suffix]
        return other if os.path.isfile(other) else None
    if suffix.lower() == ".mhd":
        from raysim.data.metaimage_format import voxel_file  # not at the top: few images need it

        return voxel_file(path)
    return None


def is_second_file(path: str) -> bool:
    """Whether a local file belongs to another file that is the image: the header of a pair, the voxels of a header."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == ".hdr":
        return partner(path) is not None
    return suffix.lower() in (".raw", ".zraw") and os.path.isfile(f"{stem}.mhd")


def is_image(path: str) -> bool:
    """Whether a local path is an image: a file, by its name, or a folder with the slices of a DICOM series."""
    if os.path.isdir(path):
        from raysim.data.dicom_headers import is_series_folder  # not at the top: few folders need it

        return not IMAGE_SUFFIX.search(path) and is_series_folder(path)
    return bool(IMAGE_SUFFIX.search(path)) and os.path.isfile(path) and not is_second_file(path)
