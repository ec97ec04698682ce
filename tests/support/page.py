"""A page that raysim wrote, as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "br", "wbr", "hr", "img", "link", "input"}  # elements without an end tag


class Page(HTMLParser):
    """The text, tags and links of a page. Raises AssertionError if the page is not well-formed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.description: list[str] = []
        self.links: list[str | None] = []
        self.ids: list[str | None] = []
        self.tags: set[str] = set()
        self.feed(path.read_text())
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        files = [
            link
            for link in map(str, self.links)
            if not link.startswith(("#", "data:image/jpeg;base64,", "data:image/png;base64,"))
        ]
        assert all((path.parent / link).exists() for link in files)  # the page loads nothing from elsewhere
        assert self.tags.isdisjoint({"link", "iframe", "object"})
        self.text = " ".join(" ".join(self.description).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        assert tag != "img" or dict(attrs).get("alt")
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.description.append(data)
