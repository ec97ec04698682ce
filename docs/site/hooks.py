"""Hooks of MkDocs: collect the pages of the repository, and write the API reference from the published names.

The pages are those that a code host shows, without changes, except that links to other files
than pages and images become text.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "*/README.md", "studies/*.md")
IMAGES = ("docs/**/*.png", "*/*.png")
PUBLISHED = ("raysim", "raysim.training")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Collect the pages in a temporary folder, from which MkDocs builds."""
    folder = Path(tempfile.mkdtemp(prefix="raysim-docs-"))
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            target = folder / page.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(LINK.sub(lambda link, page=page: _page_link(link, page), page.read_text()))
    for pattern in IMAGES:
        for image in sorted(ROOT.glob(pattern)):
            target = folder / image.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
    (folder / "reference.md").write_text(_reference())
    config.docs_dir = str(folder)
    config.nav = _expand(config.nav, folder)
    return config


def on_post_build(config: Any) -> None:
    """Remove the temporary folder."""
    shutil.rmtree(config.docs_dir, ignore_errors=True)


def _page_link(link: re.Match[str], page: Path) -> str:
    """The link if it leads to a page, image or the web, else its text. A missing target stays, and fails the build."""
    target = link[2].partition("#")[0]
    path = page.parent / target
    leaves = target and "://" not in target and path.exists() and path.suffix not in (".md", ".png")
    return link[1] if leaves else link[0]


def _reference() -> str:
    """A page with the documentation of every published name, in the order of its module."""
    sections = []
    for name in PUBLISHED:
        module = import_module(name)
        names = "\n\n".join(f"::: {_definition(module, public)}" for public in sorted(module.__all__, key=str.lower))
        sections.append(f"## {name}\n\n{(module.__doc__ or '').strip()}\n\n{names}")
    return "# API reference\n\nWhat raysim promises to keep; nothing else is public.\n\n" + "\n\n".join(sections) + "\n"


def _definition(module: Any, name: str) -> str:
    """The path at which a published name is defined."""
    return f"{module._MODULE.get(name, module.__name__)}.{name}"


def _expand(entry: Any, folder: Path) -> Any:
    """The navigation with each FOLDER/* replaced by its pages, without README.md."""
    if isinstance(entry, list):
        return [each for part in entry for each in _expand_entry(part, folder)]
    if isinstance(entry, dict):
        return {title: _expand(part, folder) for title, part in entry.items()}
    return entry


def _expand_entry(entry: Any, folder: Path) -> list[Any]:
    if isinstance(entry, str) and entry.endswith("/*"):
        pages = sorted(folder.glob(f"{entry}.md"))
        return [str(page.relative_to(folder)) for page in pages if page.name != "README.md"]
    return [_expand(entry, folder)]
