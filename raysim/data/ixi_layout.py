"""The brain images of IXI from three hospitals, in the folders of Fed-IXI (FLamby) or of IXITiny (TorchIO)."""

from __future__ import annotations

import re
from pathlib import Path

from raysim.data.file_roles import MASK_FOLDERS
from raysim.data.folder_layouts import ScannedCase

SUBJECT = re.compile(r"(IXI\d{3})-(Guys|HH|IOP)-\d+")


def find_ixi_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The subjects with a T1 image, or the only kind of image, at the sites Guys, HH and IOP; none without them."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(root.rglob("IXI*.nii*")):
        if match := SUBJECT.match(path.name):
            kind = "label" if path.parent.name.lower() in MASK_FOLDERS else path.parent.name
            found.setdefault((match[2], match[1]), {})[kind] = path
    kinds = sorted({kind for files in found.values() for kind in files} - {"label"})
    if not kinds:
        return []
    kind = "T1" if "T1" in kinds else kinds[0]
    if others := [each for each in kinds if each != kind]:
        notes.append(f"the image of a subject is {kind}; other kinds are left out: {', '.join(others)}")
    return [
        ScannedCase(site, files[kind], files.get("label"), patient=subject)
        for (site, subject), files in sorted(found.items())
        if kind in files
    ]
