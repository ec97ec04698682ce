"""The layout of nnU-Net, versions 1 and 2: a file for each channel of a case, and the folds of its training cases."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.folder_layouts import ScannedCase
from raysim.data.image_files import is_image
from raysim.data.image_formats import IMAGE_SUFFIX

SPLITS_FILE = "splits_final.json"


def find_nnunet_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The cases of imagesTr with labelsTr, and of imagesTs with labelsTs; none without files such as `case_0000`.

    Version 2 has `channel_names` in dataset.json, version 1 `modality`. Raises ConfigError for a case that lacks a
    channel. Labels without images are left out, with a note in `notes`.
    """
    training, test = _files_by_case(root / "imagesTr"), _files_by_case(root / "imagesTs")
    channels = _read_channel_names(root)
    # Other numbers are those of cases, as in `heart_0012`.
    if not training or not {number for files in training.values() for number in files} <= set(range(len(channels))):
        return []
    labels, test_labels = (
        {IMAGE_SUFFIX.sub("", path.name): path for path in _images(root / name)} for name in ("labelsTr", "labelsTs")
    )
    if unmatched := sorted(labels.keys() - training.keys()):
        notes.append(f"masks without an image, left out: {len(unmatched)}, such as {labels[unmatched[0]]}")
    folds = _read_folds(root / SPLITS_FILE, training.keys() & labels.keys(), notes)
    files = {**test, **training}
    ordered = {case: _in_order(case, files[case], channels) for case in sorted(files)}
    return [
        ScannedCase(
            root.name,
            first,
            labels.get(case) if case in training else test_labels.get(case),
            split=_split(case in training, folds, case),
            further=tuple(further),
            channels=tuple(channels),
            fold=folds.get(case),
        )
        for case, (first, *further) in ordered.items()
    ]


def _split(is_training: bool, folds: Mapping[str, int], case: str) -> str | None:
    """The split of a case: that of the first fold, if there are folds. Labelled cases of imagesTs are test cases."""
    if not folds:
        return None if is_training else "test"
    return "test" if not is_training else "val" if folds.get(case) == 0 else "train"


def _read_folds(file: Path, cases: Any, notes: list[str]) -> dict[str, int]:
    """The number of the fold of each case, that in which it is a validation case; empty without the file."""
    if not file.is_file():
        return {}
    try:
        folds = {str(case): number for number, fold in enumerate(json.loads(file.read_text())) for case in fold["val"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{file} is not a list of folds with train and val; correct the file, or remove it for random splits"
        ) from None
    if lacking := sorted(cases - folds.keys()):
        count, which = pluralize(len(lacking), "case"), "its fold" if len(lacking) == 1 else "their folds"
        raise ConfigError(
            f"{file} has no fold for {count}, such as {lacking[0]}; add {which}, or remove the file for random splits"
        )
    notes.append(
        f"val is the first fold of {file.name}, and column fold has the number of the fold of each case: with "
        f"task.data.folds={max(folds.values()) + 1} task.data.fold=0 the cases of this fold are the test cases"
    )
    return folds


def _read_channel_names(root: Path) -> list[str]:
    """The names of the channels in dataset.json, in order; empty without them."""
    try:
        content = json.loads((root / "dataset.json").read_text("utf-8-sig"))
        names = content.get("channel_names") or content["modality"]
        return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
