"""Simulated scanner shift: the images of each site are changed as if a different scanner had acquired them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from raysim.core.seeding import numpy_generator, stable_seed
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
ShiftKind = Literal["gamma", "bias", "noise", "blur", "contrast", "resolution"]
KINDS: tuple[ShiftKind, ...] = ("contrast", "gamma", "bias", "blur", "resolution", "noise")


@dataclass(frozen=True, kw_only=True)
class ScannerShift:
    """How much the scanners of the sites differ, and in which properties."""

    severity: Annotated[float, Ge(0), Le(1), "how much scanners differ: 0 is not at all, 1 is the maximum"] = 0.0
    kinds: Annotated[tuple[ShiftKind, ...], "properties that differ between scanners"] = KINDS


@dataclass(frozen=True)
class Scanner:
    """The scanner of one site. Lengths are in voxels.

    The value without effect is 0; for `gamma` and `resolution` it is 1.
    """

    key: tuple[int, str]  # seeds its noise and bias field: (seed, site)
    gain: tuple[float, ...]  # natural logarithm of the contrast, per channel
    offset: float
    gamma: float
    bias: float  # range of the coefficients of the smooth field, as natural logarithms
    blur: float  # standard deviation
    resolution: float  # side of a resolution element
    noise: float  # standard deviation, as a fraction of the image's range
    active: bool

    def __call__(self, images: Array, cases: Sequence[int | str]) -> Array:
        """The images (N, C, *space) as this scanner would acquire them: float32, in about their original range.

        `cases` identifies each image, so that its noise does not depend on the other images of the batch.
        """
        if not self.active or not len(images):
            return images
        inner = tuple(range(1, images.ndim))
        low = images.min(axis=inner, keepdims=True).astype(np.float32)
        span = images.max(axis=inner, keepdims=True) - low
        span = np.where(span > 0, span, 1).astype(np.float32)
        shifted = self._add_noise(self._apply_optics(self._apply_contrast((images - low) / span)), cases)
        result: Array = (shifted * span + low).astype(np.float32)
        return result

    def _apply_contrast(self, images: Array) -> Array:
        """Contrast and gamma, for images from 0 to 1."""
        gain = np.exp(np.array(self.gain, np.float32)).reshape(1, -1, *[1] * (images.ndim - 2))
        images = (images - 0.5) * gain + 0.5 + np.float32(self.offset)
        # A power of a negative number is not real. Negative values are mirrored: clipping would remove tissue.
        mirrored: Array = np.sign(images) * np.abs(images) ** np.float32(self.gamma)
        return mirrored

    def _apply_optics(self, images: Array) -> Array:
        """The smooth bias field of the coil, then blur, then a coarser grid."""
        space = images.shape[2:]
        if self.bias:
            from monai.transforms.intensity.array import RandBiasField  # MONAI takes longer to import than torch

            field = RandBiasField(degree=2, coeff_range=(-self.bias, self.bias), prob=1.0)
            field.set_random_state(stable_seed("bias", *self.key) % 2**32)
            ones = np.ones((1, *space), np.float32)
            images = images * np.asarray(field(ones), np.float32)
        if self.blur:
            # scipy, because its sums do not depend on the number of threads, as those of torch's convolutions may.
            from scipy.ndimage import gaussian_filter  # here, because tables are checked without it

            images = gaussian_filter(images, (0, 0, *[self.blur] * len(space)))
        coarse = [max(2, round(length / self.resolution)) for length in space]
        return resize_image(resize_image(images, coarse), space)

    def _add_noise(self, images: Array, cases: Sequence[int | str]) -> Array:
        if not self.noise:
            return images
        draws = (numpy_generator("noise", *self.key, case) for case in cases)
        noise = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in draws])
        return images + np.float32(self.noise) * noise


def make_scanner(site: str, shift: ScannerShift, seed: int, channels: int) -> Scanner:
    """The scanner of `site`, determined by seed and site; with severity 0 it returns images unchanged."""
    rng = numpy_generator(seed, "scanner", site)
    # All values are drawn for any `kinds`, so that a removed kind does not change the others.
    overall, level, gamma = rng.uniform(-1, 1, 3)
    bias, blur, coarse, noise = rng.uniform(0, 1, 4)
    tint = rng.uniform(-1, 1, channels)
    s = {kind: shift.severity if kind in shift.kinds else 0.0 for kind in KINDS}
    return Scanner(
        key=(seed, site),
        gain=tuple(float(gain) for gain in s["contrast"] * (0.4 * overall + 0.15 * tint)),
        offset=s["contrast"] * 0.2 * level,
        gamma=float(np.exp(s["gamma"] * gamma)),
        bias=s["bias"] * (0.1 + 0.4 * bias),
        blur=s["blur"] * (0.2 + 1.2 * blur),
        resolution=1 + s["resolution"] * 1.5 * coarse,
        noise=s["noise"] * (0.02 + 0.13 * noise),
        active=any(s.values()),
    )
