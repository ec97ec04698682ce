"""Recognises the layout of folders, and collects their cases: those of one folder, or of a folder for each site."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.data.bids_layout import find_bids_cases
from raysim.data.challenge_layout import find_challenge_cases
from raysim.data.dataset_json import find_class_names, find_decathlon_cases
from raysim.data.dicom_layout import find_dicom_cases
from raysim.data.folder_layouts import (
    LAYOUT_HELP,
    ScannedCase,
    find_class_folders,
    find_masked_images,
    reject_shared_files,
)
from raysim.data.ixi_layout import find_ixi_cases
from raysim.data.medmnist_layout import find_medmnist_cases
from raysim.data.nnunet_layout import find_nnunet_cases

SEGMENTATION, CLASSIFICATION, MULTILABEL = "segmentation", "classification", "multilabel"
# The layouts, in the order in which they are tried: their task, and the function that finds their cases.
LAYOUTS: dict[str, tuple[str, Callable[[Path, list[str]], list[ScannedCase]]]] = {
    "nnU-Net": (SEGMENTATION, find_nnunet_cases),
    "dataset.json of the Medical Segmentation Decathlon": (SEGMENTATION, find_decathlon_cases),
    "Fed-IXI": (SEGMENTATION, find_ixi_cases),
    "BIDS": (SEGMENTATION, find_bids_cases),
    "MedMNIST": (CLASSIFICATION, find_medmnist_cases),
    "folders of images and of masks": (SEGMENTATION, find_masked_images),
    "a CSV file with the class of each image": (CLASSIFICATION, find_challenge_cases),
    "DICOM studies": (SEGMENTATION, find_dicom_cases),
    "a folder of images for each class": (CLASSIFICATION, find_class_folders),
}


@dataclass(frozen=True)
class ScannedFolder:
    """The cases of a folder `root` in a layout, or those of several folders below it.

    `classes` are the mask values by the names in dataset.json.
    """

    root: Path
    layout: str
    task: str
    cases: Sequence[ScannedCase]
    classes: Mapping[str, int]
    notes: Sequence[str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the several labels of each case; empty for cases with one label."""
        return tuple(self.cases[0].labels or ())


def folders_of_sites(folders: str | Sequence[str]) -> dict[str, Path]:
    """The folder of each site in `SITE=FOLDER`; the key of a single folder without a site is "".

    Raises ConfigError for a folder that does not exist, and for several folders of a site or without one.
    """
    given = [folders] if isinstance(folders, str) else list(folders)
    found: dict[str, Path] = {}
    for argument in given:
        is_plain = "=" not in argument or os.path.isdir(argument)
        site, folder = ("", argument) if is_plain else argument.split("=", 1)
        if site in found or (not site and len(given) > 1):
            raise ConfigError(f"{argument} needs a site of its own; write SITE=FOLDER for each of several folders")
        found[site] = _resolve_folder(folder)
    return found


def scan_folders(folders: Mapping[str, Path]) -> ScannedFolder:
    """The cases of `folders_of_sites`. Raises ConfigError for folders that do not fit together."""
    scanned = {site: _scan_folder(folder) for site, folder in folders.items()}
    return scanned[""] if "" in scanned else _join(scanned)


def _join(scanned: Mapping[str, ScannedFolder]) -> ScannedFolder:
    """The cases of all sites. Raises ConfigError for a folder with several sites, and for unequal tasks or channels."""
    first = next(iter(scanned.values()))
    for site, found in scanned.items():
        if len(names := {case.site for case in found.cases}) > 1:
            raise ConfigError(f"{site}={found.root} has the sites {join_names(sorted(names))}; scan it separately")
        if found.task != first.task or found.classes != first.classes or found.labels != first.labels:
            raise ConfigError(
                f"{found.root} ({found.task}, {found.layout}) and {first.root} ({first.task}, {first.layout}) have "
                "different tasks, classes or labels; scan them separately"
            )
        if found.cases[0].channels != first.cases[0].channels:
            raise ConfigError(
                f"the cases of {found.root} have the images {list(found.cases[0].channels)}, but those of {first.root} "
                f"have {list(first.cases[0].channels)}; scan them separately"
            )
    classes = sorted({str(case.class_name) for found in scanned.values() for case in found.cases if case.class_name})
    cases = [_at_site(case, site, classes) for site, found in scanned.items() for case in found.cases]
    layouts = dict.fromkeys(found.layout for found in scanned.values())
    root = Path(os.path.commonpath([found.root for found in scanned.values()]))
    notes = [f"{site}: {note}" for site, found in scanned.items() for note in found.notes]
    return ScannedFolder(root, "; ".join(layouts), first.task, cases, first.classes, notes)


def _at_site(case: ScannedCase, site: str, classes: Sequence[str]) -> ScannedCase:
    """The case of a folder as a case of `site`: its class among those of all folders, and its patient with the site."""
    label = classes.index(case.class_name) if case.class_name else case.label
    return case._replace(site=site, label=label, patient=case.patient and f"{site}-{case.patient}")


def _scan_folder(root: Path) -> ScannedFolder:
    """The layout of `root`, its task and its cases. Raises ConfigError for a folder without cases."""
    notes: list[str] = []
    for layout, (task, find_cases) in LAYOUTS.items():
        if cases := find_cases(root, notes):
            reject_shared_files(cases)
            task = MULTILABEL if cases[0].labels else task
            return ScannedFolder(root, layout, task, cases, find_class_names(root), notes)
    raise ConfigError("; ".join([*notes, f"{root} has no images in a supported layout", LAYOUT_HELP]))


def _resolve_folder(folder: str) -> Path:
    root = Path(os.path.abspath(os.path.expanduser(folder)))
    if not root.is_dir():
        raise ConfigError(f"{folder} is not a folder (working directory: {os.getcwd()}); use a folder with images")
    return root
