"""Recognises common folder layouts of images, and lists their cases with site and label."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import quote_path
from raysim.data.file_roles import CHANNEL_ADVICE, MASK_FOLDERS, channel_case, masks_beside_images, role_problems
from raysim.data.image_files import is_image, is_second_file
from raysim.data.image_formats import IMAGE_SUFFIX
from raysim.data.image_reader import read_image
from raysim.data.near_equal import near_equal_names

LAYOUT_HELP = """raysim supports these layouts:
  SITE/images/* with SITE/masks/*, or these folders at the top for a single site; also named image, imgs or img,
  and mask, labels, label, gt, annotations, annotation, seg, segmentation or groundtruth;
  imagesTr/* with labelsTr/*, as in the Medical Segmentation Decathlon and nnU-Net, with or without dataset.json;
  BIDS, folders of DICOM series, MedMNIST, Fed-IXI, and a CSV file with the class of each image;
  SITE/CLASS/* or CLASS/*, a folder of images for each class.
  The folder SITE may also have the name of a split: train, val or test."""
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr"}
MAX_MASK_VALUES, INSPECTED_FILES = 8, 4
SPLIT_FOLDERS = {  # names of folders, and the split of their images
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class ScannedCase(NamedTuple):
    """An image with its site and label: a mask file, a class index, or None for an unlabelled image.

    `split` is the split of its folder; None without one. `further` are the other images of the case, and `channels` the
    names of all its images. `fold` is its fold in a cross-validation of the layout. `labels` has 0 or 1 of each of
    several labels by name, instead of `label`.
    """

    site: str
    image: Path
    label: Path | int | None
    class_name: str | None = None
    split: str | None = None
    further: tuple[Path, ...] = ()
    channels: tuple[str, ...] = ()
    patient: str | None = None
    fold: int | None = None
    labels: Mapping[str, int] | None = None


def find_masked_images(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The images of each site with their masks; none if no site has both a folder of images and one of masks."""
    root_folders = _image_and_mask_folders(root)
    single_site = bool(root_folders[1])
    pairs = {root: root_folders} if single_site else {s: _image_and_mask_folders(s) for s in _subfolders(root)}
    notes += _skipped_entries(folder for pair in pairs.values() for folders in pair for folder in folders)
    found = {site: (_image_files(*images), _image_files(*masks)) for site, (images, masks) in pairs.items()}
    if not any(masks for _, masks in found.values()):
        return []
    splits = (
        {} if single_site else _splits_of_folders(root, [s.name for s, files in found.items() if any(files)], notes)
    )
    notes += [f"{site.name} has no folder of images and is left out" for site in pairs if not found[site][0]]
    return [
        ScannedCase(root.name if splits else site.name, image, mask, split=splits.get(site.name))
        for site, (images, masks) in found.items()
        for image, mask in _match_masks(images, masks, notes).items()
    ]


def reject_shared_files(cases: Iterable[ScannedCase]) -> None:
    """Raises ConfigError for a file with two roles, and for several files of one case."""
    pairs = [(str(case.image), str(case.label) if isinstance(case.label, Path) else None) for case in cases]
    for problem in role_problems(pairs):
        raise ConfigError(problem)


def find_class_folders(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The images in a folder per class; the label is the index of the class in the sorted names of all classes."""
    _reject_sites_below_masks(root)
    _reject_masks_beside_images(root, _image_files(root))
    root_folders = _images_by_class(root)
    sites = {root: root_folders} if root_folders else {site: _images_by_class(site) for site in _subfolders(root)}
    for site, found in sites.items():
        for name, images in found.items():
            _reject_masks_beside_images(site / name, images)
    names = sorted({name for found in sites.values() for name in found})
    if len(names) < 2 or {name.lower() for name in names} & (IMAGE_FOLDERS | MASK_FOLDERS):
        return []
    _reject_unclear_classes(root, names)
    splits = {} if root_folders else _splits_of_folders(root, [s.name for s, found in sites.items() if found], notes)
    for site, found in sites.items():
        _reject_masks_as_class(site, found)
    notes += _skipped_entries(site / name for site, found in sites.items() for name in found)
    return [
        ScannedCase(root.name if splits else site.name, image, names.index(name), name, splits.get(site.name))
        for site, found in sites.items()
        for name, images in found.items()
        for image in images
    ]


def _reject_sites_below_masks(root: Path) -> None:
    """Raises ConfigError for images/NAME/* with masks/NAME/*, which are not sites with the classes NAME."""
    images, masks = _image_and_mask_folders(root)
    if masks and (names := sorted(_images_by_class(masks[0]))):
        image_folder, mask_folder, name = images[0].name, masks[0].name, names[0]
        raise ConfigError(
            f"{mask_folder} in {root} has folders of masks, such as {name}; if they are sites or splits, move "
            f"{image_folder}/{name} to {name}/{image_folder}, and {mask_folder}/{name} to {name}/{mask_folder}"
        )


def _reject_masks_beside_images(folder: Path, files: Sequence[Path]) -> None:
    """Raises ConfigError for masks beside images, because a mask is not an image of a class."""
    for name in masks_beside_images([file.name for file in files]):
        raise ConfigError(
            f"{folder} has masks beside images, such as {name}; move them: images to "
            f"{folder.name}/images, and masks to {folder.name}/masks"
        )


def _reject_masks_as_class(site: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """Raises ConfigError for a class with pictures of few values whose names are those of the images of another class.

    `images` are those of each class at `site`.
    """
    for mask, name in permutations(images, 2):
        matched = _assign_images(list(images[mask]), list(map(_stem, images[name])))
        if None not in matched.values() and _look_like_masks(images[mask]) and not _look_like_masks(images[name]):
            raise ConfigError(
                f"{site / mask} seems to have the masks of the images in {site / name}: the files have the same names, "
                f"and those of {mask} have at most {MAX_MASK_VALUES} values. Rename the folders to masks and images; "
                "if both are classes, rename the files of one"
            )


def _look_like_masks(files: Sequence[Path]) -> bool:
    try:
        return all(len(np.unique(read_image(str(file)).array)) <= MAX_MASK_VALUES for file in files[:INSPECTED_FILES])
    except ConfigError:  # reported when the table is used
        return False


def _reject_unclear_classes(root: Path, names: Sequence[str]) -> None:
    """Raises ConfigError if folders of classes have the names of splits, or nearly equal names."""
    if {name.lower() for name in names} <= SPLIT_FOLDERS.keys():
        raise ConfigError(f"{', '.join(names)} in {root} are splits, not classes; scan each folder separately")
    for group in near_equal_names(names):
        raise ConfigError(
            f"{root} has folders of classes with nearly equal names, {' and '.join(map(repr, group))}; rename them so "
            "that each class has one name"
        )


def _splits_of_folders(root: Path, names: Sequence[str], notes: list[str]) -> dict[str, str]:
    """The split of each of these folders, with a note; empty for folders of sites.

    Raises ConfigError if only some are folders of splits, or if the only folder is that of a split.
    """
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in SPLIT_FOLDERS}
    others = [name for name in names if name not in splits]
    if len(splits) > 1 and others:
        raise ConfigError(
            f"{', '.join(splits)} in {root} are splits, but {', '.join(others)} is not; keep either folders of splits "
            "or folders of sites there"
        )
    if len(splits) == 1 and not others:
        raise ConfigError(
            f"{names[0]} in {root} is a split, not a site; scan it: raysim data scan {quote_path(root / names[0])}"
        )
    if others or not splits:
        return {}
    found = ", ".join(f"{name} -> {split}" for name, split in splits.items())
    notes.append(f"the folders of {root.name} are splits: {found}; --fractions and --seed are not used")
    return splits


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _image_files(*folders: Path) -> list[Path]:
    """The image files of these folders, sorted by name within each."""
    return [path for folder in folders for path in _visible_entries(folder) if is_image(str(path))]


def _visible_entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden ones such as the `._*` files of macOS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _skipped_entries(folders: Iterable[Path]) -> Iterator[str]:
    """A note for each kind of entry in these folders that is not listed as an image."""
    others: dict[str, list[Path]] = {}
    for path in (path for folder in folders for path in _visible_entries(folder)):
        if is_image(str(path)) or is_second_file(str(path)):
            continue
        if path.is_dir():
            others.setdefault("folders inside image folders, not searched", []).append(path)
        elif not path.exists():
            others.setdefault("broken links, left out", []).append(path)
        else:
            others.setdefault("files in a format that raysim does not read, left out", []).append(path)
    for kind, paths in sorted(others.items()):
        yield f"{kind}: {len(paths)}, such as {paths[0]}"


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    return {path.name: images for path in _subfolders(folder) if (images := _image_files(path))}


def _image_and_mask_folders(site: Path) -> tuple[list[Path], list[Path]]:
    """The folders of images and of masks of a site."""
    folders = {path.name.lower(): path for path in _subfolders(site)}
    images, masks = (sorted(folders.keys() & known) for known in (IMAGE_FOLDERS, MASK_FOLDERS))
    if images and masks and len(images) + len(masks) > 2:
        raise ConfigError(
            f"{site} has the folders {', '.join([*images, *masks])}; keep one folder of images and one folder of masks"
        )
    inputs = [folders[name] for name in (*images, "imagests") if name in folders]
    return inputs, [folders[name] for name in masks] if images else []


def _match_masks(images: list[Path], masks: list[Path], notes: list[str]) -> dict[Path, Path | None]:
    """Each image with its mask, None for an image without one. Raises ConfigError if names are ambiguous."""
    image_of_stem: dict[str, Path] = {}
    for image in images:
        if image_of_stem.setdefault(_stem(image), image) != image:
            other = image_of_stem[_stem(image)]
            raise ConfigError(f"{image} has the same name as {other}; masks are matched by name: rename one of the two")
    found: dict[Path, Path | None] = dict.fromkeys(images)
    unmatched = []
    stem_of_mask = _assign_images(masks, list(image_of_stem))
    # Masks with closer names are first: a mask with exactly the image's name takes precedence over its variants.
    for mask in sorted(masks, key=lambda mask: (_name_distance(mask, stem_of_mask[mask]), mask)):
        name = stem_of_mask[mask]
        closest = found[image_of_stem[name]] if name else None
        if name is None or (closest and _name_distance(closest, name) < _name_distance(mask, name)):
            unmatched.append(mask)
        elif closest:
            raise ConfigError(f"{image_of_stem[name]} has several masks, {closest.name} and {mask.name}; keep one")
        else:
            found[image_of_stem[name]] = mask
    _reject_channel_files(images, unmatched)
    if masks and images and not any(found.values()):
        raise ConfigError(
            f"no mask has the name of an image: for example, {masks[0]} does not match {images[0].name}; rename them"
        )
    if unmatched:
        notes.append(f"masks without an image, left out: {len(unmatched)}, such as {unmatched[0]}")
    return found


def _reject_channel_files(images: Sequence[Path], unmatched: Sequence[Path]) -> None:
    """Raises ConfigError if a mask without an image has the name of a case that has several images."""
    files: dict[str, list[Path]] = {}
    for image in images:
        if (case := channel_case(str(image))) is not None:
            files.setdefault(os.path.basename(case), []).append(image)
    for mask in unmatched:
        if len(found := files.get(_stem(mask), [])) > 1:
            raise ConfigError(f"several files for one case: {found[0]} and {found[1]} of {mask}. {CHANNEL_ADVICE}")


def _stem(path: Path) -> str:
    return IMAGE_SUFFIX.sub("", path.name)


def _name_distance(mask: Path, name: str | None) -> int:
    """0 if the mask has the image's name, 1 if only the case differs, 2 if it has a suffix, 3 without an image."""
    if name is None:
        return 3
    return (_stem(mask) != name) + (_stem(mask).lower() != name.lower())


def _assign_images(masks: list[Path], names: list[str]) -> dict[Path, str | None]:
    """The image name of each mask. Case is ignored, except for images with names that differ only in case."""
    counts = Counter(name.lower() for name in names)
    exact = {name: name for name in names}
    folded = {name.lower(): name for name in names if counts[name.lower()] == 1}
    return {mask: _find_image(_stem(mask), exact, folded) for mask in masks}


def _find_image(mask: str, exact: Mapping[str, str], folded: Mapping[str, str]) -> str | None:
    """The image name that is the name of the mask, or its longest prefix before a separator, as in `x_mask`."""
    ends = (end for end in range(len(mask) - 1, 0, -1) if not mask[end].isalnum())
    # The name of nnU-Net is tried last: there, the image has a suffix, the number of its only channel.
    names: Iterable[str] = (mask, *(mask[:end] for end in ends), f"{mask}_0000")
    return next((image for name in names if (image := exact.get(name) or folded.get(name.lower()))), None)
