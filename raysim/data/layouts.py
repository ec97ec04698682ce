"""How folders of images are commonly laid out, and what each layout says of an image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from raysim.core.errors import ConfigError
from raysim.data.file_paths import missing_files

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


def decathlon(root: Path, notes: list[str]) -> list[Case]:
    """The cases that `dataset.json` lists; none without such a file, or where a note says what it lacks."""
    file = root / "dataset.json"
    if not file.is_file():
        return []
    try:
        cases = _listed(root, _content(file))
    except (OSError, ValueError) as fault:
        notes.append(f"{file} is passed over: {fault}")
        return []
    missing = missing_files(str(path) for case in cases for path in case[1:3] if path is not None)
    if missing:
        raise ConfigError(
            f"{file} lists files that do not exist: {len(missing)}, such as {missing[0]}; "
            "add them, or remove dataset.json to have the folders read without it"
        )
    return cases


def _content(file: Path) -> object:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except ValueError as fault:  # of the encoding too
        raise ValueError(f"it is no JSON in UTF-8: {fault}") from fault


def _listed(root: Path, content: object) -> list[Case]:
    """The cases of a `dataset.json`. Raises ValueError with what it lacks."""
    content = content if isinstance(content, dict) else {}
    training, test = content.get("training"), content.get("test") or []
    if not isinstance(training, list) or not training:
        raise ValueError("it has no list 'training' with images and labels")
    if not isinstance(test, list):
        raise ValueError("its 'test' is no list of images")
    cases = [
        Case(root.name, root / _path(case, "training", place, "image"), root / _path(case, "training", place, "label"))
        for place, case in enumerate(training, 1)
    ]
    images = (
        case if isinstance(case, str) else _path(case, "test", place, "image") for place, case in enumerate(test, 1)
    )
    return [*cases, *(Case(root.name, root / image, None) for image in images)]


def _path(case: object, part: str, place: int, name: str) -> str:
    path = case.get(name) if isinstance(case, dict) else None
    if not isinstance(path, str):
        raise ValueError(f"entry {place} of its '{part}' has no '{name}'")
    return path


def paired(root: Path, notes: list[str]) -> list[Case]:
    """The images of each site with their masks; none where no site has a folder of each."""
    top = _pair(root)
    pairs = {root: top} if top[1] else {site: _pair(site) for site in _folders(root)}
    notes += _left_out(folder for pair in pairs.values() for side in pair for folder in side)
    found = {site: (_images(*images), _images(*masks)) for site, (images, masks) in pairs.items()}
    if not any(masks for _, masks in found.values()):
        return []
    if not top[1]:
        _refuse_splits(root, [site.name for site, sides in found.items() if any(sides)])
    notes += [f"{site.name} has no folder of images and is left out" for site in pairs if not found[site][0]]
    return [
        Case(site.name, image, mask)
        for site, (images, masks) in found.items()
        for image, mask in _matched(images, masks, notes).items()
    ]


def classes(root: Path, notes: list[str]) -> list[Case]:
    """The images of each class, labelled by the place of the class among the sorted names of all."""
    top = _by_class(root)
    sites = {root: top} if top else {site: _by_class(site) for site in _folders(root)}
    names = sorted({name for found in sites.values() for name in found})
    if len(names) < 2 or "images" in names:
        return []
    _refuse_splits(root, names)
    _refuse_splits(root, [site.name for site in sites])
    notes += _left_out(site / name for site, found in sites.items() for name in found)
    return [
        Case(site.name, image, names.index(name), name)
        for site, found in sites.items()
        for name, images in found.items()
        for image in images
    ]


def _refuse_splits(root: Path, names: list[str]) -> None:
    """Raises ConfigError where folders that stand for sites or classes are called as splits are."""
    if names and {name.lower() for name in names} <= SPLIT_FOLDERS:
        raise ConfigError(f"{', '.join(names)} in {root} are splits, not sites or classes; scan each by itself")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images(*folders: Path) -> list[Path]:
    """Image files by name."""
    return [path for folder in folders for path in _visible(folder) if SUFFIX.search(path.name) and path.is_file()]


def _visible(folder: Path) -> list[Path]:
    """Hidden files, and with them the `._*` copies that macOS leaves, do not count."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _left_out(folders: Iterable[Path]) -> Iterator[str]:
    """What lies beside the images in these folders and is not listed, a line for each kind."""
    others: dict[str, list[Path]] = {}
    for path in (path for folder in folders for path in _visible(folder)):
        if path.is_dir():
            others.setdefault("folders inside folders of images, not looked into", []).append(path)
        elif not path.exists():
            others.setdefault("links to nothing, left out", []).append(path)
        elif not SUFFIX.search(path.name):
            others.setdefault("files of a format that raysim does not read, left out", []).append(path)
    for kind, paths in sorted(others.items()):
        yield f"{kind}: {len(paths)}, such as {paths[0]}"


def _by_class(folder: Path) -> dict[str, list[Path]]:
    return {path.name: images for path in _folders(folder) if (images := _images(path))}


def _pair(site: Path) -> tuple[list[Path], list[Path]]:
    """The folders of images and of masks at a site."""
    folders = {path.name.lower(): path for path in _folders(site)}
    present = [pair for pair in PAIRS if folders.keys() >= set(pair)]
    if len(present) > 1:
        names = sorted({name for pair in present for name in pair})
        raise ConfigError(f"{site} has the folders {', '.join(names)}; leave one of images and one of labels")
    images, masks = present[0] if present else ("images", "masks")
    inputs = [folders[name] for name in (images, "imagests") if name in folders]
    return inputs, [folders[masks]] if present else []


def _matched(images: list[Path], masks: list[Path], notes: list[str]) -> dict[Path, Path | None]:
    """Each image with its mask, None where it has none."""
    owners: dict[str, Path] = {}
    for image in images:
        if owners.setdefault(_stem(image), image) != image:
            raise ConfigError(f"{image} has the name of {owners[_stem(image)]}; masks go by names: rename one")
    found: dict[Path, Path | None] = dict.fromkeys(images)
    strays = []
    named = _owned(masks, list(owners))
    # Nearer names come first, so that a mask of just the image's name wins over its variants.
    for mask in sorted(masks, key=lambda mask: (_distance(mask, named[mask]), mask)):
        name = named[mask]
        taken = found[owners[name]] if name else None
        if name is None or (taken and _distance(taken, name) < _distance(mask, name)):
            strays.append(mask)
        elif taken:
            raise ConfigError(f"{owners[name]} has several masks, {taken.name} and {mask.name}; leave one")
        else:
            found[owners[name]] = mask
    if masks and images and not any(found.values()):
        raise ConfigError(f"no mask fits an image by its name: {masks[0]} is none of {images[0].name}'s; rename them")
    if strays:
        notes.append(f"masks of no image, left out: {len(strays)}, such as {strays[0]}")
    return found


def _stem(path: Path) -> str:
    return SUFFIX.sub("", path.name)


def _distance(mask: Path, name: str | None) -> int:
    """How far the mask's name is from its image's: the same, in other case, longer, or of none."""
    if name is None:
        return 3
    return (_stem(mask) != name) + (_stem(mask).lower() != name.lower())


def _owned(masks: list[Path], names: list[str]) -> dict[Path, str | None]:
    """The image's name that each mask goes by; case counts only where names differ in nothing else."""
    times = Counter(name.lower() for name in names)
    exact = {name: name for name in names}
    folded = {name.lower(): name for name in names if times[name.lower()] == 1}
    return {mask: _owner(_stem(mask), exact, folded) for mask in masks}


def _owner(mask: str, exact: Mapping[str, str], folded: Mapping[str, str]) -> str | None:
    """The image that a mask is of: its name, or the longest that its name goes on from, as with `_mask`."""
    ends = (end for end in range(len(mask) - 1, 0, -1) if not mask[end].isalnum())
    # Last, nnU-Net: there it is the image that carries a suffix, the number of its only channel.
    names: Iterable[str] = (mask, *(mask[:end] for end in ends), f"{mask}_0000")
    return next((owner for name in names if (owner := exact.get(name) or folded.get(name.lower()))), None)
