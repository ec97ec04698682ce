"""Control characters of files and errors do not reach the terminal or the report."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from raysim.cli.main import main
from raysim.core.formatting import printable
from raysim.reporting.html_report import template
from raysim.reporting.terminal import Terminal

EVIL = "a\x1b]0;title\x07b\x9bc\u202ed\udce9"
SHOWN = r"a\x1b]0;title\x07b\x9bc\u202ed\udce9"


def test_control_characters_become_escapes() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("plain\ttext, ü 漢\n") == "plain\ttext, ü 漢\n"


def test_the_console_shows_escapes_and_keeps_its_own_colours() -> None:
    table = Table(EVIL)
    table.add_row(Text(EVIL))
    for style, colour in ((None, False), ("red", True)):
        file = io.StringIO()
        console = Terminal(file=file, force_terminal=colour, color_system="standard" if colour else None, width=200)
        console.print(EVIL, style=style, markup=False, highlight=False)
        console.print(table)
        assert file.getvalue().count(r"a\x1b]0;title") == 3  # rich itself drops the bell that follows
        assert ("\x1b[31m" in file.getvalue()) is colour
        assert "\x1b]" not in file.getvalue()


def test_an_error_shows_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "a\x1b[31m.csv"
    table.write_text("site\x1b[2J\nx\n")
    assert main(["data", "describe", str(table)]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert r"a\x1b[31m.csv" in shown
    assert r"site\x1b[2J" in shown


def test_the_report_shows_escapes(tmp_path: Path) -> None:
    page = tmp_path / "page.j2"
    page.write_text("<b>{{ text }}</b>{{ number }}{{ safe|safe }}")
    assert template(page).render(text=f"<{EVIL}", number=3, safe="<i>") == f"<b>&lt;{SHOWN}</b>3<i>"
