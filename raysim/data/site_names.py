"""The names of sites that are valid, for tables and for tasks without a table. Does not import pandas."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

SITE_NAME_PATTERN = re.compile(r"\w[\w. -]*")  # a site name is used as a file name and in dotted keys


def site_name_problems(sites: Iterable[str]) -> Iterator[str]:
    """A message for each invalid site name."""
    for site in sites:
        if not SITE_NAME_PATTERN.fullmatch(unicodedata.normalize("NFC", site)):
            yield (
                f"site {site!r} cannot be a file name: use letters, digits, '_', '-', '.' and spaces, "
                "and begin with a letter, a digit or '_'"
            )
