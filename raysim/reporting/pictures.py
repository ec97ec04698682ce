"""The pictures of cases and the summary of the data in report.html, from pictures/ of a run."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 2_500_000  # of the pictures on a page, so that the page stays below 5 MB
FOLDER = "pictures"


@dataclass(frozen=True)
class ShownPictures:
    """The content of pictures/ for a page.

    sites: the pictures of each site, those with the lowest scores first; each with `source`, a data URL.
    hidden: number of sites whose pictures are not on the page, because it would be too large.
    data: the summary of each site's data. classes: the names of the classes, if they are known.
    """

    sites: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    hidden: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()

    def splits(self) -> list[str]:
        """The splits that at least one site has."""
        found = {split for site in self.data.values() for split in site["splits"]}
        return [split for split in ("train", "val", "test", "unlabelled") if split in found]

    def describe(self, site: str) -> tuple[str, str]:
        """Mean and standard deviation of the inputs of a site, and the share of each class in its labels."""
        splits = self.data[site]["splits"]
        of = splits.get("train") or next(iter(splits.values()), None)
        if of is None:
            return "", ""
        names = [*self.classes, *map(str, range(len(self.classes), len(of["shares"])))]
        shares = (f"{name}: {100 * share:.1f} %" for name, share in zip(names, of["shares"], strict=False))
        return f"{of['mean']:.2f} ± {of['deviation']:.2f}", ", ".join(shares)


def read_pictures(out: Path, max_bytes: int = MAX_BYTES) -> ShownPictures:
    """The content of pictures/ of the run in `out`, with pictures up to `max_bytes`; empty if it is incomplete."""
    try:
        found = json.loads((out / FOLDER / "pictures.json").read_text())
        sites: dict[str, list[dict[str, Any]]] = {}
        for each in found["pictures"]:
            sites.setdefault(each["site"], []).append(each)
        return _within_limit(out / FOLDER, sites, found["data"], found["classes"], max_bytes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ShownPictures()


def picture_path(folder: Path, name: str) -> Path:
    """The path of a picture. Raises ValueError for a file outside of `folder`, which would be shown to others."""
    path = folder / name
    if path.name != name or path.is_symlink():
        raise ValueError(f"{name} is not a file in {folder}")
    return path


def _within_limit(
    folder: Path,
    sites: Mapping[str, list[dict[str, Any]]],
    data: Mapping[str, Any],
    classes: Sequence[str],
    max_bytes: int,
) -> ShownPictures:
    shown: dict[str, list[dict[str, Any]]] = {}
    size = 0
    for site in sorted(sites, key=lambda site: (sites[site][-1]["value"], site)):  # the last one is the worst case
        content = [picture_path(folder, each["file"]).read_bytes() for each in sites[site]]
        size += sum(map(len, content))
        if size > max_bytes:
            break
        sources = (f"data:image/jpeg;base64,{base64.b64encode(each).decode()}" for each in content)
        shown[site] = [each | {"source": source} for each, source in zip(sites[site], sources, strict=True)]
    return ShownPictures(dict(sorted(shown.items())), len(sites) - len(shown), data, classes)
