"""Recognises patients in the names of images, such as `patient0` in `patient0_slice1.png`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from raysim.data.file_roles import stem

PATTERNS = (
    re.compile(r"(?:^|[^a-z])((?:patient|pat|subject|subj|sub|participant)[ _-]?\d+)(?!\d)", re.IGNORECASE),
    # An image of a series or of one side: the part before it must have a digit, which `img` in img_s1 lacks.
    re.compile(r"^(.*\d.*?)[ _.-]+(?:slice|slc|frame|tile|patch|crop|view|visit|scan|z|s)[ _-]?\d+$", re.IGNORECASE),
    re.compile(r"^(.*\d.*?)[ _-](?:left|right|l|r|od|os)$", re.IGNORECASE),
)
NUMBERED = re.compile(r"^(.*[^ _-].*?)[ _-]\d+$")


def patients_of_images(images: Sequence[str]) -> list[str | None] | None:
    """The patient of each image by its name, None without one; None if no two images seem to share a patient."""
    patients = [_find_patient(os.path.basename(stem(image))) for image in images]
    counts = Counter(patient for patient in patients if patient is not None)
    return patients if any(count > 1 for count in counts.values()) else None


def numbered_series(images: Sequence[str]) -> str | None:
    """An image of a numbered series, such as `a_1.png` beside `a_2.png`, `b_1.png` and `b_2.png`; None without one."""
    series: dict[str, list[str]] = {}
    for image in images:
        if match := NUMBERED.match(os.path.basename(stem(image))):
            series.setdefault(match[1], []).append(image)
    several = [names[0] for names in series.values() if len(names) > 1]
    return several[0] if len(several) > 1 else None


def _find_patient(name: str) -> str | None:
    return next((match[1] for pattern in PATTERNS if (match := pattern.search(name))), None)
