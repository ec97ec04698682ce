"""Writes the table of a folder of images that has one of the common layouts (`raysim data scan`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import is_formula, join_names, pluralize
from raysim.data.folder_layouts import ScannedCase
from raysim.data.near_equal import near_equal_sites_warning
from raysim.data.nnunet_layout import image_columns
from raysim.data.partition import assign_splits
from raysim.data.patient_names import numbered_series, patients_of_images
from raysim.data.patient_warnings import patient_warnings
from raysim.data.scanned_folders import ScannedFolder, folders_of_sites, scan_folders
from raysim.data.site_names import site_name_problems
from raysim.data.table import sort_rows

FRACTIONS = (0.7, 0.1, 0.2)  # of train, val and test


def scan(
    folders: str | Sequence[str], fractions: Sequence[float] = FRACTIONS, seed: int = 0, *, group: str | None = None
) -> pd.DataFrame:
    """The table of a folder, with paths relative to it, or of several folders `SITE=FOLDER`, each of which is a site.

    `table.attrs["notes"]` lists unlabelled and skipped files; `layout` and `task` are the recognised ones, `classes`
    the mask values by the names in dataset.json, `labels` the columns of several labels.

    The labelled images of each site are assigned to train, val and test at random, by `fractions`. Images in folders of
    splits have the split of their folder. `group` is a regular expression: its first capture in the path of an image is
    the patient, and all images of a patient get the same split. Raises ConfigError for a folder that does not have a
    supported layout.
    """
    scanned = scan_folders(folders_of_sites(folders))
    return _build_table(scanned, scanned.root, fractions, seed, group)


def write_scan(
    folders: str | Sequence[str],
    out: str,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    group: str | None = None,
) -> pd.DataFrame:
    """Like `scan`, and writes the table to the CSV file `out`; paths are relative to its folder, for `read_table`.

    Raises ConfigError, before anything is scanned, if `out` exists: it may have been edited by hand.
    """
    found = folders_of_sites(folders)
    target = Path(os.path.abspath(os.path.expanduser(out)))
    if os.path.lexists(target):
        raise ConfigError(f"{out} exists and is never overwritten; remove it, or choose another file")
    if target.suffix != ".csv" or not target.parent.is_dir():
        raise ConfigError(f"{out} cannot be written; name a .csv file in a folder that exists")
    table = _build_table(scan_folders(found), target.parent, fractions, seed, group)
    check_formulas(table)
    _write(table, target)
    return table


def check_formulas(table: pd.DataFrame) -> None:
    """Raises ConfigError for a cell that a spreadsheet would execute as a formula: the name of a folder or a file."""
    for name in table.select_dtypes(exclude="number"):
        cells = table[name].dropna().astype(str)
        formulas = cells[cells.map(is_formula).astype(bool)]
        if len(formulas):
            raise ConfigError(
                f"{name} {formulas.iloc[0]!r} would be a formula in a spreadsheet; rename the folder or file so that "
                "its name begins with a letter, a digit or '_'"
            )


def _write(table: pd.DataFrame, target: Path) -> None:
    try:
        table.to_csv(target, index=False)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror or error}; choose another --out") from error


def _build_table(
    scanned: ScannedFolder, base: Path, fractions: Sequence[float], seed: int, group: str | None
) -> pd.DataFrame:
    """The table of the cases, with paths relative to `base`."""
    if len(fractions) != 3:
        raise ConfigError(f"fractions {tuple(fractions)}: expected three, for train, val and test, that add up to 1")
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected a whole number, 0 or larger; omit --seed for 0")
    cases, root, notes = scanned.cases, scanned.root, list(scanned.notes)
    columns = image_columns(cases[0].channels, 1 + len(cases[0].further))
    table = _table_of_cases(cases, base, columns, scanned.labels)
    for problem in site_name_problems(table["site"].unique()):
        raise ConfigError(f"{root}: {problem}")
    images = [str(relative_path(case.image, root)) for case in cases]
    if group is not None:
        table["group"] = _capture_patients(images, group)
    elif any(case.patient for case in cases):
        table["patient"] = pd.Series([case.patient for case in cases], table.index, dtype="string")
    else:
        table = _group_by_name(table, images, notes)
    if warning := near_equal_sites_warning(table["site"].unique()):
        notes.append(warning)
    table = _draw_splits(table, fractions, seed, notes, [*scanned.labels] or ["label"])
    notes += patient_warnings(table)
    table.attrs |= {"notes": notes, "layout": scanned.layout, "task": scanned.task, "classes": scanned.classes}
    table.attrs |= {"image_columns": columns, "labels": scanned.labels}
    return table


def _table_of_cases(
    cases: Sequence[ScannedCase], base: Path, columns: Sequence[str], labels: Sequence[str]
) -> pd.DataFrame:
    """The table of cases, with paths relative to `base`; a case without a label or a split is `unlabelled`.

    `columns` are those of the images of a case, and `labels` those of several labels; without them there is one label.
    """
    further = {
        name: [relative_path(case.further[number], base) for case in cases] for number, name in enumerate(columns[1:])
    }
    table = pd.DataFrame(
        {
            "site": [case.site for case in cases],
            "split": [case.split if case.split and _is_labelled(case) else "unlabelled" for case in cases],
            "image": [relative_path(case.image, base) for case in cases],
            **further,
            **{name: [str((case.labels or {})[name]) for case in cases] for name in labels},
            **({} if labels else {"label": [relative_path(case.label, base) for case in cases]}),
        },
        dtype="string",
    )
    if any(case.class_name for case in cases):
        table["class"] = [case.class_name for case in cases]
    if any(case.fold is not None for case in cases):
        table["fold"] = pd.Series([case.fold for case in cases], table.index, dtype="Int64")
    return table


def _is_labelled(case: ScannedCase) -> bool:
    return case.label is not None or case.labels is not None


def _group_by_name(table: pd.DataFrame, images: Sequence[str], notes: list[str]) -> pd.DataFrame:
    """The table with a column `patient` if names of images have patients; else a note if they may have."""
    patients = patients_of_images(images)
    if patients is not None:
        first = next(index for index, patient in enumerate(patients) if patient is not None)
        notes.append(
            f"images with the same patient in their names are in one split: {patients[first]} for {images[first]}; "
            "use --group REGEX for another rule, --group '(.+)' for none"
        )
        return table.assign(patient=pd.Series(patients, table.index, dtype="string"))
    if numbered := numbered_series(images):
        notes.append(
            f"no patients were found in the names of images; if several images, such as {numbered}, show one "
            "patient, use --group REGEX, which keeps them in one split"
        )
    return table


def _draw_splits(
    table: pd.DataFrame, fractions: Sequence[float], seed: int, notes: list[str], labels: list[str]
) -> pd.DataFrame:
    unlabelled = table[labels].isna().any(axis=1)
    if unlabelled.any():
        first = table["image"][unlabelled].iloc[0]
        notes.append(f"images without a label, in split 'unlabelled': {unlabelled.sum()}, such as {first}")
    labelled = table[~unlabelled]
    without = labelled["split"] == "unlabelled"
    if without.any():
        shares = _shares(fractions, has_test=bool((labelled["split"] == "test").any()))
        labelled = pd.concat([assign_splits(labelled[without], shares, seed), labelled[~without]])
    notes += _empty_split_notes(labelled)
    return sort_rows(pd.concat([labelled, table[unlabelled]]))


def _shares(fractions: Sequence[float], *, has_test: bool) -> dict[str, float]:
    """The share of each split among the cases without a split; none is for test if the layout has test cases."""
    train, val, test = fractions
    if not has_test:
        return {"train": train, "val": val, "test": test}
    if not train + val > 0:
        raise ConfigError(f"--fractions {train:g},{val:g},{test:g}: expected training or validation cases too")
    return {"train": train / (train + val), "val": val / (train + val)}


def _empty_split_notes(labelled: pd.DataFrame) -> Iterator[str]:
    """A note for each split that is empty at some sites or at all sites."""
    splits_of_site = labelled.groupby("site")["split"].agg(set)
    for split in ("train", "val", "test"):
        sites = [site for site, splits in splits_of_site.items() if split not in splits]
        if sites:
            yield f"no {split} rows at {join_names(sites) if len(sites) < len(splits_of_site) else 'any site'}"


def relative_path(path: Path | int | None, base: Path) -> str | None:
    """The cell of a table in `base` for an image or a label: a path relative to `base`, a class as text, or None."""
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
