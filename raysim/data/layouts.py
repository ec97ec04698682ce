"""How folders of images are commonly laid out, and what each layout says of an image."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from raysim.data.files import missing_files
from raysim.errors import ConfigError

KNOWN = """raysim knows three layouts:
  SITE/images/* with SITE/masks/* or SITE/labels/*, or these folders at the top for a single site;
  imagesTr/* with labelsTr/*, as in the Medical Segmentation Decathlon, with or without its dataset.json;
  SITE/CLASS/* or CLASS/*, a folder of images for each class"""
SUFFIX = re.compile(r"\.(nii\.gz|nii|png|jpe?g|tiff?|bmp|gif)$", re.IGNORECASE)
PAIRS = (("images", "masks"), ("images", "labels"), ("imagestr", "labelstr"))
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class Case(NamedTuple):
    """An image that was found; its label is a mask, the number of a class, or None where it has none."""

    site: str
    image: Path
    label: Path | int | None
    class_name: str | None = None


def decathlon(root: Path) -> list[Case]:
    """The cases that `dataset.json` lists; none where there is no such file or it is of another kind."""
    try:
        listed = json.loads((root / "dataset.json").read_text())
        cases = [Case(root.name, root / case["image"], root / case["label"]) for case in listed["training"]]
        test = [case["image"] if isinstance(case, dict) else case for case in listed.get("test", [])]
        cases += [Case(root.name, root / image, None) for image in test]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    missing = missing_files(str(path) for case in cases for path in case[1:3] if path is not None)
    if missing:
        raise ConfigError(
            f"{root / 'dataset.json'} lists files that do not exist: {len(missing)}, such as {missing[0]}; "
            "add them, or remove dataset.json to have the folders read without it"
        )
    return cases


def paired(root: Path, notes: list[str]) -> list[Case]:
    """The images of each site with their masks; none where no site has a folder of each."""
    sites = [root] if _pair(root)[1] else _folders(root)
    pairs = {site: _pair(site) for site in sites}
    if not any(masks for _, masks in pairs.values()):
        return []
    notes += [f"{site.name} has no folder of images and is left out" for site in sites if not pairs[site][0]]
    return [
        Case(site.name, image, mask)
        for site, (images, masks) in pairs.items()
        for image, mask in _matched(images, masks, notes).items()
    ]


def classes(root: Path) -> list[Case]:
    """The images of each class, labelled by the place of the class among the sorted names of all."""
    top = _by_class(root)
    sites = {root: top} if top else {site: _by_class(site) for site in _folders(root)}
    names = sorted({name for found in sites.values() for name in found})
    if len(names) < 2 or "images" in names:
        return []
    for level in (names, [site.name for site in sites]):
        if {name.lower() for name in level} <= SPLIT_FOLDERS:
            raise ConfigError(f"{', '.join(level)} in {root} are splits, not sites or classes; scan each by itself")
    return [
        Case(site.name, image, names.index(name), name)
        for site, found in sites.items()
        for name, images in found.items()
        for image in images
    ]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images(folder: Path) -> list[Path]:
    """Image files by name; hidden ones, and with them the `._*` copies that macOS leaves, do not count."""
    return sorted(path for path in folder.iterdir() if SUFFIX.search(path.name) and not path.name.startswith("."))


def _by_class(folder: Path) -> dict[str, list[Path]]:
    return {path.name: images for path in _folders(folder) if (images := _images(path))}


def _pair(site: Path) -> tuple[list[Path], list[Path]]:
    """The images and the masks of a site."""
    folders = {path.name.lower(): path for path in _folders(site)}
    present = [pair for pair in PAIRS if folders.keys() >= set(pair)]
    if len(present) > 1:
        names = sorted({name for pair in present for name in pair})
        raise ConfigError(f"{site} has the folders {', '.join(names)}; leave one of images and one of labels")
    images, masks = present[0] if present else ("images", "masks")
    inputs = [image for name in (images, "imagests") if name in folders for image in _images(folders[name])]
    return inputs, _images(folders[masks]) if present else []


def _matched(images: list[Path], masks: list[Path], notes: list[str]) -> dict[Path, Path | None]:
    """Each image with its mask, None where it has none."""
    owners: dict[str, Path] = {}
    for image in images:
        if owners.setdefault(_stem(image), image) != image:
            raise ConfigError(f"{image} has the name of {owners[_stem(image)]}; masks go by names: rename one")
    found: dict[Path, Path | None] = dict.fromkeys(images)
    strays = []
    # Equal names come first, so that a mask of just the image's name wins over its variants.
    for mask in sorted(masks, key=lambda mask: (_stem(mask) not in owners, mask)):
        name = _owner(_stem(mask), owners)
        taken = found[owners[name]] if name else None
        if name is None or (taken and _stem(taken) == name != _stem(mask)):
            strays.append(mask)
        elif taken:
            raise ConfigError(f"{owners[name]} has several masks, {taken.name} and {mask.name}; leave one")
        else:
            found[owners[name]] = mask
    if masks and not any(found.values()):
        raise ConfigError(f"no mask fits an image by its name: {masks[0]} is none of {images[0].name}'s; rename them")
    if strays:
        notes.append(f"masks of no image, left out: {len(strays)}, such as {strays[0]}")
    return found


def _stem(path: Path) -> str:
    return SUFFIX.sub("", path.name)


def _owner(mask: str, images: Collection[str]) -> str | None:
    """The image that a mask is of: its name, or the longest that its name goes on from, as with `_mask`."""
    ends = (end for end in range(len(mask) - 1, 0, -1) if not mask[end].isalnum())
    # Last, nnU-Net: there it is the image that carries a suffix, the number of its only channel.
    names: Iterable[str] = (mask, *(mask[:end] for end in ends), f"{mask}_0000")
    return next((name for name in names if name in images), None)
