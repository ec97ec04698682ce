"""A table for a folder of images in one of the common layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.data.layouts import KNOWN, classes, decathlon, paired
from raysim.data.partition import split_fractions
from raysim.data.table import in_order, site_faults

FRACTIONS = (0.7, 0.1, 0.2)  # of train, val and test


def scan(
    folder: str, fractions: Sequence[float] = FRACTIONS, seed: int = 0, *, group: str | None = None
) -> pd.DataFrame:
    """The table of `folder`, paths relative to it; `table.attrs["notes"]` lists what is unlabelled or left out.

    The labelled images of each site are drawn into train, val and test by `fractions`. `group` is a regular
    expression whose first capture in an image's path names the patient: the images of one stay together.
    Raises ConfigError for a folder in no layout that raysim knows.
    """
    return _scanned(_root(folder), _root(folder), fractions, seed, group)


def write_scan(
    folder: str, out: str, fractions: Sequence[float] = FRACTIONS, seed: int = 0, *, group: str | None = None
) -> pd.DataFrame:
    """As `scan`, also written to the CSV file `out`; paths are relative to its folder, as `read_table` has them.

    Raises ConfigError, before anything is scanned, where `out` exists: it may have been edited by hand.
    """
    root = _root(folder)
    target = Path(os.path.abspath(os.path.expanduser(out)))
    if os.path.lexists(target):
        raise ConfigError(f"{out} exists and is never overwritten; remove it, or write to another file")
    if target.suffix != ".csv" or not target.parent.is_dir():
        raise ConfigError(f"{out} cannot be written; name a .csv file in a folder that exists")
    table = _scanned(root, target.parent, fractions, seed, group)
    _write(table, target)
    return table


def _write(table: pd.DataFrame, target: Path) -> None:
    try:
        table.to_csv(target, index=False)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror or error}; choose another --out") from error


def _root(folder: str) -> Path:
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder (seen from {os.getcwd()}); give one that holds images")
    return root


def _scanned(root: Path, base: Path, fractions: Sequence[float], seed: int, group: str | None) -> pd.DataFrame:
    """The table of `root`, paths relative to `base`."""
    if len(fractions) != 3:
        raise ConfigError(f"fractions {tuple(fractions)}: give three, of train, val and test, that add up to 1")
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected a whole number, 0 or larger; leave --seed out for 0")
    notes: list[str] = []
    cases = decathlon(root, notes) or paired(root, notes) or classes(root, notes)
    if not cases:
        raise ConfigError("; ".join([*notes, f"{root} holds no images in a known layout", KNOWN]))
    table = pd.DataFrame(
        {
            "site": [case.site for case in cases],
            "split": "unlabelled",
            "image": [_relative(case.image, base) for case in cases],
            "label": [_relative(case.label, base) for case in cases],
        },
        dtype="string",
    )
    for fault in site_faults(table["site"].unique()):
        raise ConfigError(f"{root}: {fault}")
    if any(case.class_name for case in cases):
        table["class"] = [case.class_name for case in cases]
    if group is not None:
        table["group"] = _captured([str(_relative(case.image, root)) for case in cases], group)
    table = _drawn(table, fractions, seed, notes)
    table.attrs["notes"] = notes
    return table


def _drawn(table: pd.DataFrame, fractions: Sequence[float], seed: int, notes: list[str]) -> pd.DataFrame:
    bare = table["label"].isna()
    if bare.any():
        notes.append(f"images without a label, now unlabelled: {bare.sum()}, such as {table['image'][bare].iloc[0]}")
    shares = dict(zip(("train", "val", "test"), fractions, strict=True))
    labelled = split_fractions(table[~bare], shares, seed)
    notes += _lacking(labelled)
    return in_order(pd.concat([labelled, table[bare]]))


def _lacking(labelled: pd.DataFrame) -> Iterator[str]:
    """The splits that no row of a site, or of any, was drawn into."""
    drawn = labelled.groupby("site")["split"].agg(set)
    for split in ("train", "val", "test"):
        sites = [site for site, splits in drawn.items() if split not in splits]
        if sites:
            yield f"no {split} rows at {join_names(sites) if len(sites) < len(drawn) else 'any site'}"


def _relative(path: Path | int | None, base: Path) -> str | None:
    if path is None or isinstance(path, int):
        return None if path is None else str(path)
    return Path(os.path.relpath(path, base)).as_posix()


def _captured(images: Sequence[str], group: str) -> list[str]:
    """What `group` captures in each path."""
    try:
        pattern = re.compile(group)
    except re.error as reason:
        raise ConfigError(f"group {group!r} is not a regular expression: {reason}") from None
    if pattern.groups < 1:
        raise ConfigError(f"group {group!r} captures nothing; put what names the patient in ( )")
    found = {image: match.group(1) for image in images if (match := pattern.search(image)) and match.group(1)}
    lost = [image for image in images if image not in found]
    if lost:
        raise ConfigError(
            f"group {group!r} finds no patient in {len(lost)} of {pluralize(len(images), 'image')}, as in {lost[0]}"
        )
    return [found[image] for image in images]
