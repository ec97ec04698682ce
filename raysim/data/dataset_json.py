"""Reads dataset.json of the Medical Segmentation Decathlon and of nnU-Net: cases, and names of classes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.data.file_paths import missing_files
from raysim.data.folder_layouts import ScannedCase


def find_decathlon_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The cases of `dataset.json`; none without that file, or if it lists no files, as that of nnU-Net.

    An invalid file also gives none, and a note in `notes`.
    """
    file = root / "dataset.json"
    if not file.is_file():
        return []
    try:
        content = _read_json(file)
        if isinstance(content, dict) and "channel_names" in content:  # nnU-Net, which lists no files
            return []
        cases = _parse_dataset_json(root, content)
    except (OSError, ValueError) as reason:
        notes.append(f"{file} is ignored: {reason}")
        return []
    missing = missing_files(str(path) for case in cases for path in case[1:3] if path is not None)
    if missing:
        raise ConfigError(
            f"{file} lists files that do not exist: {len(missing)}, such as {missing[0]}; "
            "add them, or remove dataset.json to read the folders without it"
        )
    return cases


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except ValueError as reason:  # UnicodeDecodeError too
        raise ValueError(f"it is not JSON in UTF-8: {reason}") from reason


def _parse_dataset_json(root: Path, content: object) -> list[ScannedCase]:
    """The cases of a `dataset.json`. Raises ValueError that names the missing part."""
    content = content if isinstance(content, dict) else {}
    training, test = content.get("training"), content.get("test") or []
    if not isinstance(training, list) or not training:
        raise ValueError("it has no list 'training' with images and labels")
    if not isinstance(test, list):
        raise ValueError("its 'test' is not a list of images")
    cases = [
        ScannedCase(
            root.name,
            root / _entry_path(case, "training", number, "image"),
            root / _entry_path(case, "training", number, "label"),
        )
        for number, case in enumerate(training, 1)
    ]
    images = (
        case if isinstance(case, str) else _entry_path(case, "test", number, "image")
        for number, case in enumerate(test, 1)
    )
    return [*cases, *(ScannedCase(root.name, root / image, None) for image in images)]


def _entry_path(case: object, part: str, number: int, name: str) -> str:
    path = case.get(name) if isinstance(case, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"entry {number} of its '{part}' has no '{name}'")
    return path


def find_class_names(root: Path) -> dict[str, int]:
    """The value of each class by its name in `dataset.json`; empty without it, and if a class has several values.

    The Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}.
    """
    try:
        content = _read_json(root / "dataset.json")
        labels = content["labels"] if isinstance(content, dict) else {}
        if all(isinstance(name, str) for name in labels.values()):
            return {name: int(value) for value, name in labels.items()}
        return {str(name): value for name, value in labels.items()} if _are_values(labels.values()) else {}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _are_values(values: Iterable[object]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
