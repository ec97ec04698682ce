"""The layout of BIDS: `sub-NAME/[ses-NAME/]anat/` with masks in `derivatives`, and sites in `participants.tsv`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.data.folder_layouts import ScannedCase

NAME = re.compile(r"(sub-[a-zA-Z0-9]+)(?:_(ses-[a-zA-Z0-9]+))?_((?:[a-z]+-[a-zA-Z0-9]+_)*)([a-zA-Z0-9]+)\.nii(?:\.gz)?")
MASK_SUFFIXES = ("dseg", "mask")
SITE_COLUMNS = ("site", "center", "centre", "hospital", "institution", "site_id", "scanner_site")
Case = tuple[str, str]  # subject and session, "" without one
LABELS_FOLDER = "derivatives"


def find_bids_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The subjects, or sessions of subjects, with the kinds of anatomical images that all have; none without images.

    Raises ConfigError for several masks of a case, because one of them must be chosen.
    """
    images = _files_by_case(root, "sub-*")
    if not images:
        return []
    kinds = {kind for found in images.values() for kind in found}
    common = sorted(set.intersection(*(set(found) for found in images.values())))
    if not common:
        raise ConfigError(
            f"{root} has no kind of image that all subjects have, of {join_names(sorted(kinds))}; move the subjects "
            "without the kind that you use to another folder"
        )
    if rest := sorted(kinds - set(common)):
        notes.append(f"images that some subjects lack, left out: {join_names(rest)}")
    masks, sites = _masks(root), _sites(root, notes)
    return [
        ScannedCase(
            sites.get(case[0], root.name),
            found[common[0]],
            masks.get(case),
            further=tuple(found[kind] for kind in common[1:]),
            channels=tuple(common),
            patient=case[0],
        )
        for case, found in sorted(images.items())
    ]


def _files_by_case(folder: Path, pattern: str) -> dict[Case, dict[str, Path]]:
    """The images of each case by their kind, such as `T1w` or `acq-fast_T2w`."""
    found: dict[Case, dict[str, Path]] = {}
    for path in sorted(folder.glob(f"{pattern}/**/anat/*.nii*")):
        if (match := NAME.fullmatch(path.name)) and match[4] not in MASK_SUFFIXES:
            found.setdefault((match[1], match[2] or ""), {})[match[3] + match[4]] = path
    return found


def _masks(root: Path) -> dict[Case, Path]:
    """The mask of each case below `derivatives`."""
    found: dict[Case, Path] = {}
    for path in sorted((root / LABELS_FOLDER).glob("**/*.nii*")):
        if not (match := NAME.fullmatch(path.name)) or match[4] not in MASK_SUFFIXES:
            continue
        case = (match[1], match[2] or "")
        if case in found:
            raise ConfigError(
                f"{case[0]} has several masks, {found[case].relative_to(root)} and {path.relative_to(root)}; keep one "
                f"in {LABELS_FOLDER}, and move the others to another folder"
            )
        found[case] = path
    return found


def _sites(root: Path, notes: list[str]) -> Mapping[str, str]:
    """The site of each subject in participants.tsv; empty without a column of sites. Other columns are not used."""
    file = root / "participants.tsv"
    if not file.is_file():
        return {}
    try:
        table = pd.read_csv(file, sep="\t", dtype="string")
    except (OSError, ValueError) as reason:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(reason).split())}; correct or remove it") from None
    columns = [name for name in table if str(name).lower() in SITE_COLUMNS]
    if "participant_id" not in table or not columns:
        return {}
    notes.append(f"sites are those of column {columns[0]} in {file.name}")
    known = table[["participant_id", columns[0]]].dropna()
    return dict(zip(known["participant_id"], known[columns[0]].str.strip(), strict=True))
