"""Intact volumes in the formats other than NIfTI, for tests/support/fuzz_readers.py."""

from __future__ import annotations

import io
import tempfile
import zlib
from pathlib import Path

import numpy as np

VOXELS = np.arange(210, dtype=np.int16).reshape(5, 6, 7)


def a_nrrd() -> bytes:
    import nrrd

    file = io.BytesIO()
    nrrd.write(file, VOXELS, {"space": "RAS", "space directions": np.eye(3), "space origin": np.zeros(3)})
    return file.getvalue()


def a_metaimage() -> bytes:
    header = (
        "ObjectType = Image\nNDims = 3\nCompressedData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        "ElementSpacing = 1 1 1\nDimSize = 5 6 7\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return header.encode() + zlib.compress(VOXELS.tobytes())


def an_array() -> bytes:
    file = io.BytesIO()
    np.save(file, VOXELS)
    return file.getvalue()


def an_array_archive() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, VOXELS)
    return file.getvalue()


def an_ome_tiff() -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, VOXELS.astype(np.uint16), ome=True, metadata={"axes": "ZYX"}, compression="zlib")
    return file.getvalue()


def a_dicom_volume() -> bytes:
    from pydicom.sequence import Sequence

    from tests.support.dicom_files import dataset, frame_groups, shared_groups

    made = dataset(VOXELS, NumberOfFrames=5)
    made.SharedFunctionalGroupsSequence = Sequence([shared_groups((1, 1, 1))])
    made.PerFrameFunctionalGroupsSequence = Sequence([frame_groups((0, 0, z)) for z in range(5)])
    return _content(made)


def a_dicom_picture() -> bytes:
    """Compressed, so that a decoder of imagecodecs reads it."""
    import imagecodecs
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    from tests.support.dicom_files import dataset

    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    made = dataset(pixels)
    made.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.70")
    made.PixelData = encapsulate([imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=16)])
    return _content(made)


def a_dicom_segmentation() -> bytes:
    from tests.support.dicom_files import write_segmentation

    with tempfile.TemporaryDirectory() as folder:
        frame = VOXELS[..., 0] > 100
        path = write_segmentation(Path(folder) / "x.dcm", [(1, 0.0, frame), (1, 1.0, frame)], (1, 1, 1))
        return Path(path).read_bytes()


def _content(made: object) -> bytes:
    from tests.support.dicom_files import save

    with tempfile.TemporaryDirectory() as folder:
        return Path(save(Path(folder) / "x.dcm", made)).read_bytes()  # type: ignore[arg-type]


VOLUMES = {  # the function that makes an intact file, by the name of the file
    "v.nrrd": a_nrrd,
    "v.mha": a_metaimage,
    "v.npy": an_array,
    "v.npz": an_array_archive,
    "v.ome.tif": an_ome_tiff,
    "v.dcm": a_dicom_volume,
    "p.dcm": a_dicom_picture,
    "s.dcm": a_dicom_segmentation,
}
