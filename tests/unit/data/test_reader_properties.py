"""For random files, the reader agrees with nibabel and numpy, or refuses the file; `describe` reads the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image

from raysim.core.errors import ConfigError
from raysim.data.file_inspection import inspect_case
from raysim.data.image_reader import read_image
from raysim.data.mask_colours import classes_from_colours

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def matrices() -> st.SearchStrategy[np.ndarray]:
    numbers = st.lists(st.integers(-40, 40), min_size=12, max_size=12)
    return numbers.map(lambda n: np.vstack([np.reshape(n, (3, 4)) / 8, [0, 0, 0, 1]]))


@SETTINGS
@given(
    sform=matrices(),
    codes=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    units=st.integers(0, 7),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
    seed=st.integers(0, 999),
)
def test_a_voxel_has_the_value_and_the_position_that_nibabel_gives(
    sform: np.ndarray, codes: tuple[int, int], units: int, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.permutation(24).reshape(2, 3, 4).astype(dtype)
    stored = nibabel.Nifti1Image(values, np.diag([1.5, 2, 3, 1]), dtype=dtype)
    stored.header["srow_x"], stored.header["srow_y"], stored.header["srow_z"] = sform[:3]
    stored.header["sform_code"], stored.header["qform_code"] = codes
    stored.header["quatern_b"], stored.header["xyzt_units"] = rng.random() / 2, units
    stored.header["vox_offset"], stored.header["magic"] = 352, b"n+1"
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x.nii"))
        Path(path).write_bytes(stored.header.binaryblock + bytes(4) + values.tobytes("F"))
        try:
            image = read_image(path)
        except ConfigError:
            assert inspect_case(path, None).statistics is None
            determinant = np.linalg.det(sform[:3, :3] / np.maximum(np.linalg.norm(sform[:3, :3], axis=0), 1e-9))
            assert units > 3 or (codes[0] > 0 and abs(determinant) < 1e-3)
            return
        expected, spacing = nibabel.load(path), inspect_case(path, None).statistics
        data = np.asanyarray(expected.dataobj)
    assert spacing is not None
    assert spacing.spacing == image.spacing
    affine = np.diag([UNIT_MM[units]] * 3 + [1]) @ expected.affine
    assert sorted(image.spacing) == pytest.approx(sorted(np.linalg.norm(affine[:3, :3], axis=0)))
    for index in np.ndindex(*image.space):
        source = np.rint(np.linalg.solve(affine, image.affine @ [*index, 1])[:3]).astype(int)
        assert image.array[(0, *index)] == data[tuple(source)]
        assert np.allclose(image.affine @ [*index, 1], affine @ [*source, 1], atol=1e-6 * np.abs(affine).max())


@SETTINGS
@given(
    bits=st.sampled_from([8, 12, 16]),
    channels=st.sampled_from([1, 3]),
    kind=st.sampled_from(["png", "tif", "jp2"]),
    seed=st.integers(0, 999),
)
def test_a_picture_has_the_values_that_were_written(bits: int, channels: int, kind: str, seed: int) -> None:
    shape = (16, 17, 3) if channels == 3 else (16, 17)
    dtype = np.uint8 if bits == 8 else np.uint16
    values = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{kind}")
        if kind == "png":
            path.write_bytes(imagecodecs.png_encode(values))
        elif kind == "tif":
            tifffile.imwrite(path, values, photometric="rgb" if channels == 3 else "minisblack")
        else:
            path.write_bytes(imagecodecs.jpeg2k_encode(values, bitspersample=bits, level=0, reversible=True))
        image = read_image(str(path))
        statistics = inspect_case(str(path), None).statistics
    assert np.array_equal(image.array, np.atleast_3d(values).transpose(2, 0, 1))
    assert statistics is not None
    assert (statistics.low, statistics.high, statistics.channels) == (values.min(), values.max(), channels)


COLOURS = st.lists(st.tuples(*[st.sampled_from([0, 9, 128, 255])] * 3), min_size=2, max_size=5, unique=True)


@SETTINGS
@given(colours=COLOURS, order=st.randoms(use_true_random=False), seed=st.integers(0, 999))
def test_a_palette_in_any_order_gives_the_same_classes(colours: list, order: object, seed: int) -> None:
    classes = np.random.default_rng(seed).integers(0, len(colours), (4, 5))
    packed = list(range(len(colours)))
    order.shuffle(packed)  # type: ignore[attr-defined]
    picture = Image.fromarray(np.argsort(packed)[classes].astype(np.uint8), "P")
    picture.putpalette([part for index in packed for part in colours[index]])
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x.png"))
        picture.save(path)
        mask = read_image(path, mask=True, colours=True).array
        found = inspect_case(None, path)
        try:
            indices = read_image(path, mask=True).array[0]
        except ConfigError:
            assert found.problems
        else:
            assert found.problems == ()
            assert sum(found.counts.values()) == indices.size
            assert found.counts == {value: (indices == value).sum() for value in np.unique(indices)}
    named = {str(number): colour for number, colour in enumerate(colours)}
    assert np.array_equal(classes_from_colours(mask, named)[0], classes)
