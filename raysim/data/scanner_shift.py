"""Simulated scanners: each site sees its images through a machine of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from monai.transforms.intensity.array import RandBiasField
from scipy import ndimage

from raysim.core.seeding import numpy_generator, stable_seed
from raysim.data.resize import resize_image

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["gamma", "bias", "noise", "blur", "contrast", "resolution"]
KINDS: tuple[Kind, ...] = ("contrast", "gamma", "bias", "blur", "resolution", "noise")


@dataclass(frozen=True, kw_only=True)
class ScannerShift:
    """How much, and in what, the scanners of the sites differ."""

    severity: Annotated[float, Ge(0), Le(1), "0: all scanners are alike; 1: as different as may be"] = 0.0
    kinds: Annotated[tuple[Kind, ...], "what differs between scanners"] = KINDS


@dataclass(frozen=True)
class Scanner:
    """One machine; what it does not do is 0, or 1 for `gamma` and `resolution`. Lengths are in voxels."""

    key: tuple[int, str]  # of its noise: (seed, site)
    gain: tuple[float, ...]  # natural logarithm of the contrast, per channel
    offset: float
    gamma: float
    bias: float  # range of the coefficients of the smooth field, in natural logarithm
    blur: float  # standard deviation
    resolution: float  # size of what it can tell apart
    noise: float  # standard deviation, as a fraction of the image's range
    active: bool

    def __call__(self, images: Array, cases: Sequence[int | str]) -> Array:
        """The images (N, C, *space) as this scanner would show them, float32, about in the range they had.

        `cases` names each image, so that its noise does not depend on what else is in the batch.
        """
        if not self.active or not len(images):
            return images
        inner = tuple(range(1, images.ndim))
        low = images.min(axis=inner, keepdims=True).astype(np.float32)
        span = images.max(axis=inner, keepdims=True) - low
        span = np.where(span > 0, span, 1).astype(np.float32)
        seen = self._noisy(self._optics(self._tones((images - low) / span)), cases)
        back: Array = (seen * span + low).astype(np.float32)
        return back

    def _tones(self, images: Array) -> Array:
        """Contrast and gamma, of images from 0 to 1."""
        gain = np.exp(np.array(self.gain, np.float32)).reshape(1, -1, *[1] * (images.ndim - 2))
        images = (images - 0.5) * gain + 0.5 + np.float32(self.offset)
        # Below zero a power has no value: mirrored, so that no tissue is lost.
        mirrored: Array = np.sign(images) * np.abs(images) ** np.float32(self.gamma)
        return mirrored

    def _optics(self, images: Array) -> Array:
        """The smooth field of the coil, then blur, then a coarser grid."""
        space = images.shape[2:]
        if self.bias:
            field = RandBiasField(degree=2, coeff_range=(-self.bias, self.bias), prob=1.0)
            field.set_random_state(stable_seed("bias", *self.key) % 2**32)
            ones = np.ones((1, *space), np.float32)
            images = images * np.asarray(field(ones), np.float32)
        # scipy, for its sums do not depend on the number of threads as torch's convolutions may.
        images = ndimage.gaussian_filter(images, (0, 0, *[self.blur] * len(space))) if self.blur else images
        coarse = [max(2, round(length / self.resolution)) for length in space]
        return resize_image(resize_image(images, coarse), space)

    def _noisy(self, images: Array, cases: Sequence[int | str]) -> Array:
        if not self.noise:
            return images
        draws = (numpy_generator("noise", *self.key, case) for case in cases)
        noise = np.stack([rng.standard_normal(images.shape[1:], np.float32) for rng in draws])
        return images + np.float32(self.noise) * noise


def scanner(site: str, shift: ScannerShift, seed: int, channels: int) -> Scanner:
    """The scanner of `site`, always the same; with severity 0 it returns its images as they are."""
    rng = numpy_generator(seed, "scanner", site)
    # All are drawn whatever the kinds, so that leaving one out leaves the others as they were.
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
