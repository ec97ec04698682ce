"""Functions for all HTML pages: templates with escaping, the style sheet, and writing a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, UndefinedError

from raysim.core.atomic_io import write_text
from raysim.core.formatting import format_bytes, format_objective, format_score, pluralize, printable

STYLED_TEMPLATE = Path(__file__).with_name("html_report.html.j2")  # has the style sheet


class MissingValueError(UndefinedError, LookupError):
    """A value of a page is missing, for example because summary.json is damaged."""


class _MissingValue(StrictUndefined):
    def __init__(self, *args: Any, **keys: Any) -> None:
        super().__init__(*args, **{"exc": MissingValueError, **keys})


def environment() -> Environment:
    """The environment of the templates, with escaping and the filters."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": _MissingValue}
    made = Environment(autoescape=True, finalize=_finalize, **options)
    made.filters |= {"counted": pluralize, "number": format_score, "size": format_bytes}
    made.filters["score"] = lambda value, objective: format_objective(value, objective.column)
    made.filters["value"] = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    return made


def _finalize(value: Any) -> Any:
    """A value as it is shown: without control characters, which a page must not contain."""
    return printable(value) if type(value) is str else value  # the template itself is Markup, which is unchanged


def page_style() -> str:
    """The style sheet of report.html, for use in other pages."""
    return STYLED_TEMPLATE.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]


def write_page(path: Path, page: str) -> None:
    """Write a page atomically, as ASCII, which does not depend on the locale and allows lone surrogates."""
    write_text(path, page.encode("ascii", "xmlcharrefreplace").decode())
