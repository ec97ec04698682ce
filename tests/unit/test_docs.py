"""The documentation: links lead somewhere, named functions exist, pages stay short, the indexes are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raysim.core.registry import algorithm_groups
from tests.support.paths import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("cluster", "benchmarks")] + sorted((ROOT / "studies").glob("*.md"))
DIAGRAM_PAGES = ("README.md", "CONTRIBUTING.md", "docs/design.md")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def links(page: Path) -> list[tuple[str, Path]]:
    """The text and the target of each link to a file of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    found = [(label, target.partition("#")[0]) for label, target in LINK.findall(text) if "://" not in target]
    return [(label, page.parent / target) for label, target in found if target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert not [str(target) for _, target in links(page) if not target.exists()]


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_at_most_200_lines(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= (150 if page.parent == ROOT else 200)


def test_a_function_named_in_a_link_is_defined_in_that_file() -> None:
    named = [
        (page.name, label.strip("`").partition("(")[0], target)
        for page in PAGES
        for label, target in links(page)
        if re.fullmatch(r"`[A-Za-z_]\w*(\(.*\))?`", label) and target.suffix == ".py"
    ]
    assert len(named) > 20
    wrong = [
        f"{page}: {name} is not in {target.name}"
        for page, name, target in named
        if not re.search(rf"^\s*(def|class) {name}\b|^{name}\b", target.read_text(), re.M)
    ]
    assert not wrong


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [name for name in pages if f"({name})" not in index] == []
    assert [int(name[:3]) for name in pages] == list(range(1, len(pages) + 1))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["README.md"]


def test_every_algorithm_is_in_the_section_of_its_group() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "algorithms.md").read_text(), flags=re.M)
    listed = {text.split("\n")[0].lower(): set(re.findall(r"\[`(\w+)`\]\(algorithms/", text)) for text in sections}
    assert {group: listed[group] for group in algorithm_groups()} == {g: set(n) for g, n in algorithm_groups().items()}


def test_troubleshooting_quotes_messages_that_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "raysim").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # messages that go on in the next line
    quoted = [part for row in re.findall(r"^\| (`.*?) \|", text, re.M) for part in re.findall(r"`(.*?)`", row)]
    assert len(quoted) > 10
    parts = [part.strip() for quote in quoted for part in quote.split("...") if part.strip()]
    assert [part for part in parts if part not in source] == []


def test_the_packages_are_shown_in_the_same_diagram_everywhere() -> None:
    found = {name: re.search(r"```\n(cli .*?)```", (ROOT / name).read_text(), re.S) for name in DIAGRAM_PAGES}
    diagrams = {match[1] for match in found.values() if match}
    assert all(found.values())
    assert len(diagrams) == 1
    packages = {path.parent.name for path in (ROOT / "raysim").glob("*/__init__.py")}
    assert {line.split()[0 if line.startswith("cli") else 1] for line in diagrams.pop().splitlines()} == packages
