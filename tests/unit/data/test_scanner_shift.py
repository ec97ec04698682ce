"""Scanners: the same for a site, different between sites, the identity without severity."""

from __future__ import annotations

import numpy as np
import pytest

from raysim.data.resize import resize_image
from raysim.data.scanner_shift import KINDS, ScannerShift, make_scanner

IMAGES = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
CASES = ["a", "b", "c"]


def shifted(site="one", images=IMAGES, cases=CASES, seed=0, **shift):
    return make_scanner(site, ScannerShift(**shift), seed, images.shape[1])(images, cases)


def test_without_severity_or_kinds_images_are_unchanged():
    assert shifted() is IMAGES
    assert shifted(severity=1.0, kinds=()) is IMAGES


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_grows_with_severity(kind):
    changes = [np.abs(shifted(severity=s, kinds=(kind,)) - IMAGES).mean() for s in (0.1, 0.5, 1.0)]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_scanners_differ_between_sites_and_seeds_and_never_change():
    first = shifted(severity=0.5)
    assert np.array_equal(first, shifted(severity=0.5))
    assert not np.allclose(first, shifted("two", severity=0.5), atol=0.02)
    assert not np.allclose(first, shifted(severity=0.5, seed=1), atol=0.02)


def test_an_image_does_not_depend_on_its_batch():
    whole = shifted(severity=1.0)
    for place, case in enumerate(CASES):
        assert np.array_equal(
            whole[place : place + 1], shifted(images=IMAGES[place : place + 1], cases=[case], severity=1.0)
        )


def test_two_cases_with_the_same_image_have_different_noise():
    images = np.repeat(IMAGES[:1], 2, axis=0)
    first, second = shifted(images=images, cases=["a", "b"], severity=1.0, kinds=("noise",))
    assert not np.allclose(first, second, atol=0.02)


def test_a_removed_kind_does_not_change_the_others():
    both, one = (make_scanner("s", ScannerShift(severity=0.5, kinds=k), 0, 1) for k in [("gamma", "noise"), ("gamma",)])
    assert both.gamma == one.gamma
    assert one.noise == 0


@pytest.mark.parametrize("shape", [(2, 3, 16, 12), (2, 1, 8, 9, 10)])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (4, -2), (1000, 50)])
def test_shape_type_and_range_are_kept(shape, scale, offset):
    images = (np.random.default_rng(1).random(shape) * scale + offset).astype(np.float32)
    changed = shifted(images=images, cases=["a", "b"], severity=1.0)
    assert (changed.shape, changed.dtype) == (images.shape, np.float32)
    assert offset - scale < changed.min() < changed.max() < offset + 2 * scale


def test_a_constant_image_stays_finite():
    assert np.isfinite(shifted(images=IMAGES * 0, severity=1.0)).all()


def test_resizing_averages_and_interpolates():
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
    # from two voxels to one: a triangle of half-width 2 at 0.5 has the weights 3:3:1 for voxels 0, 1, 2
    assert resize_image(ramp, (1, 2)).ravel() == pytest.approx(
        [(0 * 3 + 1 * 3 + 2 * 1) / 7, (1 * 1 + 2 * 3 + 3 * 3) / 7]
    )
    # from one voxel to two: a quarter of a voxel to each side
    assert resize_image(ramp, (1, 8)).ravel() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert np.array_equal(resize_image(ramp, (1, 4)), ramp)
