"""The decoder of each file format of volumes, and of the formats that may have either a volume or a picture."""

from __future__ import annotations

import re
from collections.abc import Callable

from raysim.data.image_formats import DICOM_SUFFIX, Image, is_folder, is_volume

Decoder = Callable[[str, int, bool], Image]  # of a file, its stored bytes, and whether it is a mask
NUMPY = re.compile(r"\.(npy|npz)$", re.IGNORECASE)
OME_TIFF = re.compile(r"\.ome\.tiff?$", re.IGNORECASE)


def decoder(file: str) -> Decoder | None:
    """The decoder of a file; None for a picture that is not DICOM or numpy. Raises ConfigError for a damaged file."""
    # Not at the top: these formats import libraries that few tables need.
    from raysim.data import dicom_format, metaimage_format, nifti_format, nrrd_format, numpy_format, ome_tiff_format

    if NUMPY.search(file):
        return numpy_format.decode_array
    if is_folder(file):
        return dicom_format.decode_dicom_volume
    if DICOM_SUFFIX.search(file):
        is_flat = dicom_format.spatial_axes(file) == 2
        return dicom_format.decode_dicom_picture if is_flat else dicom_format.decode_dicom_volume
    if OME_TIFF.search(file):
        return ome_tiff_format.decode_ome_tiff if is_volume(file) else None
    if not is_volume(file):
        return None
    by_suffix = {
        ".nrrd": nrrd_format.decode_nrrd,
        ".mha": metaimage_format.decode_metaimage,
        ".mhd": metaimage_format.decode_metaimage,
    }
    return by_suffix.get(file[-5:].lower(), by_suffix.get(file[-4:].lower(), nifti_format.decode_nifti))
