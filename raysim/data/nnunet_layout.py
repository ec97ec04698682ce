"""The layout of nnU-Net (version 2) with several channels: a file for each channel of a case."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.data.folder_layouts import ScannedCase
from raysim.data.image_files import is_image
from raysim.data.image_formats import IMAGE_SUFFIX


def find_nnunet_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The cases of imagesTr with labelsTr, and of imagesTs; none unless `dataset.json` has several `channel_names`.

    Raises ConfigError for a case that lacks a channel. Labels without images are left out, with a note in `notes`.
    """
    if len(channels := read_channel_names(root)) < 2:
        return []
    training, test = _files_by_case(root / "imagesTr"), _files_by_case(root / "imagesTs")
    labels = {IMAGE_SUFFIX.sub("", path.name): path for path in _images(root / "labelsTr")}
    if unmatched := sorted(labels.keys() - training.keys()):
        notes.append(f"masks without an image, left out: {len(unmatched)}, such as {labels[unmatched[0]]}")
    files = {**test, **training}
    ordered = {case: _in_order(case, files[case], channels) for case in sorted(files)}
    return [
        ScannedCase(root.name, first, labels.get(case) if case in training else None, further=tuple(further))
        for case, (first, *further) in ordered.items()
    ]


def read_channel_names(root: Path) -> list[str]:
    """The names of the channels in dataset.json, in order; empty without them."""
    try:
        names = json.loads((root / "dataset.json").read_text("utf-8-sig"))["channel_names"]
        return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def image_columns(channels: Sequence[str], count: int) -> list[str]:
    """The columns of `count` images of a case: `image`, then `image_NAME`, or `image_0001` for names that are equal."""
    names = [re.sub(r"\W+", "_", name).strip("_").lower() for name in channels]
    if len(set(names)) < count or not all(names):
        names = [f"{number:04}" for number in range(count)]
    return ["image", *(f"image_{name}" for name in names[1:count])]


def _images(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(".") and is_image(str(path))]


def _files_by_case(folder: Path) -> dict[str, dict[int, Path]]:
    """The file of each channel of each case, from names such as `case_0001.nii.gz`."""
    found: dict[str, dict[int, Path]] = {}
    for path in _images(folder):
        if match := re.fullmatch(r"(.+)_(\d{4})", IMAGE_SUFFIX.sub("", path.name)):
            found.setdefault(match[1], {})[int(match[2])] = path
    return found


def _in_order(case: str, files: dict[int, Path], channels: Sequence[str]) -> list[Path]:
    lacking = [f"{case}_{number:04} ({name})" for number, name in enumerate(channels) if number not in files]
    if lacking:
        first = next(iter(files.values()))
        raise ConfigError(
            f"{first.parent} has no file {lacking[0]}, a channel of dataset.json, but {first.name}; add the file, or "
            "remove the case"
        )
    return [files[number] for number in range(len(channels))]
