"""The actor that stands for a search. It is apart from what it stands for, which would bring torch into its process."""

from __future__ import annotations

from typing import Any


class Stand:
    """The actor: keeps what was last said of the search, and whether someone has asked for its end."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said, self.asked = said, False

    def tell(self, said: dict[str, Any]) -> bool:
        """Keep this; whether the search is to end."""
        self.said = said
        return self.asked

    def status(self) -> dict[str, Any]:
        """What `raysim status` shows."""
        return self.said

    def stop(self) -> None:
        """End the search when it next says something."""
        self.asked = True
