"""Writes the table of a folder of images that has one of the common layouts (`raysim data scan`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.data.folder_layouts import LAYOUT_HELP, find_class_folders, find_decathlon_cases, find_masked_images
from raysim.data.partition import assign_splits
from raysim.data.table import site_name_problems, sort_rows

FRACTIONS = (0.7, 0.1, 0.2)  # of train, val and test


def scan(
    folder: str, fractions: Sequence[float] = FRACTIONS, seed: int = 0, *, group: str | None = None
) -> pd.DataFrame:
    """The table of `folder`, with paths relative to it; `table.attrs["notes"]` lists unlabelled and skipped files.

    The labelled images of each site are assigned to train, val and test at random, by `fractions`. `group` is a
    regular expression: its first capture in the path of an image is the patient, and all images of a patient get the
    same split. Raises ConfigError for a folder that does not have a supported layout.
    """
    return _build_table(_resolve_folder(folder), _resolve_folder(folder), fractions, seed, group)


def write_scan(
    folder: str, out: str, fractions: Sequence[float] = FRACTIONS, seed: int = 0, *, group: str | None = None
) -> pd.DataFrame:
    """Like `scan`, and writes the table to the CSV file `out`; paths are relative to its folder, for `read_table`.

    Raises ConfigError, before anything is scanned, if `out` exists: it may have been edited by hand.
    """
    root = _resolve_folder(folder)
    target = Path(os.path.abspath(os.path.expanduser(out)))
    if os.path.lexists(target):
        raise ConfigError(f"{out} exists and is never overwritten; remove it, or choose another file")
    if target.suffix != ".csv" or not target.parent.is_dir():
        raise ConfigError(f"{out} cannot be written; name a .csv file in a folder that exists")
    table = _build_table(root, target.parent, fractions, seed, group)
    _write(table, target)
    return table


def _write(table: pd.DataFrame, target: Path) -> None:
    try:
        table.to_csv(target, index=False)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror or error}; choose another --out") from error


def _resolve_folder(folder: str) -> Path:
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder (working directory: {os.getcwd()}); use a folder with images")
    return root


def _build_table(root: Path, base: Path, fractions: Sequence[float], seed: int, group: str | None) -> pd.DataFrame:
    """The table of `root`, with paths relative to `base`."""
    if len(fractions) != 3:
        raise ConfigError(f"fractions {tuple(fractions)}: expected three, for train, val and test, that add up to 1")
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected a whole number, 0 or larger; omit --seed for 0")
    notes: list[str] = []
    cases = find_decathlon_cases(root, notes) or find_masked_images(root, notes) or find_class_folders(root, notes)
    if not cases:
        raise ConfigError("; ".join([*notes, f"{root} has no images in a supported layout", LAYOUT_HELP]))
    table = pd.DataFrame(
        {
            "site": [case.site for case in cases],
            "split": "unlabelled",
            "image": [_relative_path(case.image, base) for case in cases],
            "label": [_relative_path(case.label, base) for case in cases],
        },
        dtype="string",
    )
    for problem in site_name_problems(table["site"].unique()):
        raise ConfigError(f"{root}: {problem}")
    if any(case.class_name for case in cases):
        table["class"] = [case.class_name for case in cases]
    if group is not None:
        table["group"] = _capture_patients([str(_relative_path(case.image, root)) for case in cases], group)
    table = _draw_splits(table, fractions, seed, notes)
    table.attrs["notes"] = notes
    return table


def _draw_splits(table: pd.DataFrame, fractions: Sequence[float], seed: int, notes: list[str]) -> pd.DataFrame:
    unlabelled = table["label"].isna()
    if unlabelled.any():
        first = table["image"][unlabelled].iloc[0]
        notes.append(f"images without a label, in split 'unlabelled': {unlabelled.sum()}, such as {first}")
    shares = dict(zip(("train", "val", "test"), fractions, strict=True))
    labelled = assign_splits(table[~unlabelled], shares, seed)
    notes += _empty_split_notes(labelled)
    return sort_rows(pd.concat([labelled, table[unlabelled]]))


def _empty_split_notes(labelled: pd.DataFrame) -> Iterator[str]:
    """A note for each split that is empty at some sites or at all sites."""
    splits_of_site = labelled.groupby("site")["split"].agg(set)
    for split in ("train", "val", "test"):
        sites = [site for site, splits in splits_of_site.items() if split not in splits]
        if sites:
            yield f"no {split} rows at {join_names(sites) if len(sites) < len(splits_of_site) else 'any site'}"


def _relative_path(path: Path | int | None, base: Path) -> str | None:
    if path is None or isinstance(path, int):
        return None if path is None else str(path)
    return Path(os.path.relpath(path, base)).as_posix()


def _capture_patients(images: Sequence[str], group: str) -> list[str]:
    """The patient of each path: the first capture of `group`. Raises ConfigError if a path has no match."""
    try:
        pattern = re.compile(group)
    except re.error as reason:
        raise ConfigError(f"group {group!r} is not a regular expression: {reason}") from None
    if pattern.groups < 1:
        raise ConfigError(f"group {group!r} captures nothing; put ( ) around the part that identifies the patient")
    found = {image: match.group(1) for image in images if (match := pattern.search(image)) and match.group(1)}
    unmatched = [image for image in images if image not in found]
    if unmatched:
        raise ConfigError(
            f"group {group!r} finds no patient in {len(unmatched)} of {pluralize(len(images), 'image')}, "
            f"such as {unmatched[0]}; correct the pattern"
        )
    return [found[image] for image in images]
