"""Finds names that differ only in case, spelling of a number, separators, accents or characters that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from raysim.core.formatting import join_names

DIGIT_LOOK_ALIKES = str.maketrans("lIOo", "1100")  # of two letters, l and I look alike in many fonts
# Cyrillic and Greek letters that look like a Latin letter, after conversion to lower case.
LOOK_ALIKES = str.maketrans("аеорсухіјѕԁһԛԝвкмнтαεικνορτυχ", "aeopcyxijsdhqwbkmhtaeikvoptux")


def near_equal_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The groups of distinct names that are easily mistaken for each other, such as `01`, `1` and `1.0`; sorted."""
    groups: dict[tuple[str, bool], set[str]] = {}
    for name in names:
        groups.setdefault((_skeleton(name), True), set()).add(name)
        # Separate from the skeleton, which ignores case: `L` does not look like `I`.
        groups.setdefault((name.translate(DIGIT_LOOK_ALIKES), False), set()).add(name)
    return sorted({tuple(sorted(group)) for group in groups.values() if len(group) > 1})


def near_equal_sites_warning(sites: Iterable[str]) -> str | None:
    """A warning about sites that may be one hospital with two spellings; None if there are none."""
    groups = [" and ".join(map(_quote, group)) for group in near_equal_names(map(str, sites))]
    if not groups:
        return None
    return (
        f"sites with nearly equal names, each used as a separate site: {join_names(groups)}; "
        "if they are one hospital, use one spelling of its name"
    )


def _quote(name: str) -> str:
    """The name in quotes; with escapes if accents are separate characters, because both spellings look the same."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def _skeleton(name: str) -> str:
    """The name without differences that readers overlook; numbers of equal value have equal skeletons."""
    plain = unicodedata.normalize("NFKD", name)
    visible = "".join(letter for letter in plain if unicodedata.category(letter) not in ("Mn", "Cf"))
    text = re.sub(r"(?<=\S)[\s_-]+", " ", visible.casefold().translate(LOOK_ALIKES)).strip() or name
    if re.fullmatch(r"\+?\d+([.,]\d*)?(e\+?\d+)?", text) and len(text) < 20:
        return repr(float(text.replace(",", ".")))
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", text)
