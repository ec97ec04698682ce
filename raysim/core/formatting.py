"""Numbers, byte counts and lists of names as text for messages."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from os import PathLike

import yaml

# Characters that a terminal interprets, but tab and newline; those that reverse the order of text; lone surrogates.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA, NUMBER = re.compile(r"[=+\-@\t\r]"), re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MAX_NAMED = 5  # rows, files or sites named in one message
HASH_CHARACTERS = 16


def pluralize(number: int, noun: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def join_names(items: Sequence[object]) -> str:
    """`a, b, c, d, e and 2 more`."""
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(map(str, items[:MAX_NAMED])) + more


def format_argument(key: str, value: object) -> str:
    """`key=value` as an argument of a command line: the value as YAML, quoted for the shell where that is needed."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, sort_keys=False).removesuffix("\n...\n")
    return shlex.quote(f"{key}={text.strip()}")


def quote_path(path: str | PathLike[str]) -> str:
    """The path as an argument of a command line, quoted for the shell where that is needed."""
    return shlex.quote(str(path))


def format_bytes(count: float) -> str:
    """A number of bytes with a decimal unit from B to TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_objective(value: float | None, column: str) -> str:
    """A value of an objective of a search: bytes with a unit, any other number as a score."""
    return format_bytes(value) if column == "bytes" and value is not None else format_score(value)


def format_score(value: float | None) -> str:
    """`value` with four decimals, or two if it is at least 10 in magnitude; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def printable(text: str) -> str:
    """`text` with control characters as escapes such as `\\x1b`: text of files and of other programs is output so."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def hash_name(name: str | None) -> str | None:
    """The name of an image or a patient in a run with `anonymous_cases`: the start of its SHA-256."""
    return None if name is None else hashlib.sha256(name.encode()).hexdigest()[:HASH_CHARACTERS]


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would execute a cell with this text."""
    return bool(FORMULA.match(text)) and not NUMBER.fullmatch(text)


def redact(text: str) -> str:
    """`text` without user names and passwords in URLs, and without the values of their queries, such as signatures."""
    return re.sub(r"([?&][\w.-]+=)[^&\s'\"]+", r"\1***", re.sub(r"://[^/@\s]*@", "://***@", text))
