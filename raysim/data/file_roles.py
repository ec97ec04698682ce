"""Finds files with two roles: a mask of two images, an image that is a mask, several files of one case."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

from raysim.core.formatting import join_names, pluralize
from raysim.data.image_formats import IMAGE_SUFFIX

Pair = tuple[str, str | None]  # an image and its mask, None without one
# The ends of the names of files that are one channel of a case: of nnU-Net, or the name of a sequence.
CHANNEL = re.compile(
    r"^(.+)[_-]"
    r"(\d{4}|ch(?:annel)?_?\d+|t1|t2|t1w|t2w|t1c|t1ce|t1gd|t1n|t2f|flair|pd|adc|dwi|swi|bold|ct|pet)$",
    re.IGNORECASE,
)
MASK_FOLDERS = {  # names of folders of masks, and ends of the names of masks
    *("masks", "mask", "labels", "label", "labelstr", "gt", "gts", "annotations", "annotation"),
    *("seg", "segs", "segmentation", "segmentations", "groundtruth", "ground_truth"),
}
CHANNEL_ADVICE = (
    "write one row for each case, with a column for each file, and name the columns: "
    "task.data.image_columns=[image_t1,image_t2]; or keep one file of each case. If these images are separate cases, "
    "rename them"
)


def role_problems(pairs: Sequence[Pair]) -> Iterator[str]:
    """A message for each file that has two roles; a link is the file that it points to."""
    images = {file_identity(image): image for image, _ in pairs}
    masks, images_of_mask = dict[str, str](), dict[str, list[str]]()
    for image, mask in pairs:
        if mask is not None:
            masks.setdefault(file := file_identity(mask), mask)
            images_of_mask.setdefault(file, []).append(image)
    both = [images[file] for file in masks if file in images]
    if both:
        yield f"files that are both an image and a mask: {join_names(both)}. Store images and masks in separate files"
    yield from channel_problems(pairs)
    shared = [f"{masks[f]} of {' and '.join(sorted(names)[:3])}" for f, names in images_of_mask.items() if names[1:]]
    if shared:
        yield (
            f"masks that are the label of more than one image: {join_names(shared)}. Each image needs its own mask; "
            "several channels of one case need a column each, in task.data.image_columns"
        )


def masks_beside_images(names: Sequence[str]) -> list[str]:
    """The files of a folder that are masks of other files in it, such as `a_mask.png` beside `a.png`."""
    stems = {stem(name) for name in names}
    matches = {name: re.fullmatch(r"(.+)[\W_]([^\W_]+)", stem(name)) for name in names}
    return [
        name
        for name, match in matches.items()
        if match and match[2].lower() in MASK_FOLDERS and stems & {match[1], match[1].rstrip("_-. ")}
    ]


def channel_problems(pairs: Sequence[Pair]) -> Iterator[str]:
    """A message if images without a mask seem to be further channels of a case that has a mask."""
    masked = {name for image, mask in pairs if mask is not None for name in (stem(image), _case_of_mask(image, mask))}
    masked |= _cases_of_first_channels([image for image, mask in pairs if mask is not None])
    extra = [image for image, mask in pairs if mask is None and channel_case(image) in masked]
    if extra:
        case = os.path.basename(str(channel_case(extra[0])))
        yield (
            f"several files for one case: {pluralize(len(extra), 'image')} without a mask, such as {extra[0]} of case "
            f"{case}. {CHANNEL_ADVICE}"
        )


def channel_case(image: str) -> str | None:
    """The path of a case without the end of the name that numbers its channel; None if there is none."""
    channel = CHANNEL.match(stem(image))
    return channel[1] if channel else None


def _cases_of_first_channels(images: Sequence[str]) -> set[str]:
    """The cases with exactly one of these images whose name ends with a sequence or 0000; not a series of cases."""
    counts = Counter(case for image in images if (case := channel_case(image)) is not None)
    first = (image for image in images if stem(image).endswith("0000") or not stem(image)[-4:].isdigit())
    return {case for image in first if (case := channel_case(image)) is not None and counts[case] == 1}


def _case_of_mask(image: str, mask: str) -> str:
    """`images/case_1` for the image `images/case_1_0000` with the mask `labels/case_1`."""
    return os.path.join(os.path.dirname(image), os.path.basename(stem(mask)))


def stem(path: str) -> str:
    """The path without the suffix of an image format."""
    return IMAGE_SUFFIX.sub("", path.partition("::")[0])


def file_identity(path: str) -> str:
    """A text that is equal for all paths and links (also hard links) of a local file; a URL is returned unchanged."""
    if "://" in path:
        return path
    with suppress(OSError):  # it does not exist
        if (found := os.stat(path)).st_nlink > 1:
            return f"{found.st_dev}:{found.st_ino}"
    return os.path.realpath(path)
