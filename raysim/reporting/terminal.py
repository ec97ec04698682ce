"""The console of all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from raysim.core.formatting import printable


class Terminal(Console):
    """A console that shows control characters as escapes, and tolerates a closed pipe.

    Cells of tables, names of files and texts of errors may contain sequences that a terminal would execute. After
    `raysim run | head` has closed the pipe, the run continues without output.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of `renderable`; only rich's own segments control the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
