"""Each claim on three seeds, and the table of all claims at the end of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

SEEDS = (0, 1, 2)
Claim = Callable[[str, Callable[[int], tuple[float, float]], float], None]


@pytest.fixture
def claim(record_property: Callable[[str, Any], None]) -> Claim:
    """Checks that `(method, reference) = measure(seed)` differ by at least `margin` for each of three seeds."""

    def check(statement: str, measure: Callable[[int], tuple[float, float]], margin: float) -> None:
        pairs = [measure(seed) for seed in SEEDS]
        differences = [method - reference for method, reference in pairs]
        record_property("claim", (statement, margin, pairs))
        assert min(differences) >= margin, f"{statement}: {differences}, expected at least {margin} for each seed"

    return check


@pytest.fixture
def beside(record_property: Callable[[str, Any], None]) -> Callable[[str, Callable[[int], tuple[float, float]]], None]:
    """Measures a pair that is shown in the table without a margin."""

    def measure_only(statement: str, measure: Callable[[int], tuple[float, float]]) -> None:
        record_property("claim", (statement, None, [measure(seed) for seed in SEEDS]))

    return measure_only


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [row for report in reports for name, row in report.user_properties if name == "claim"]
    if rows:
        terminalreporter.write_sep("=", "claims: method and reference of each seed")
        for line in table(sorted(rows, key=lambda row: row[0])):
            terminalreporter.write_line(line)


def table(rows: Sequence[tuple[str, float | None, list[tuple[float, float]]]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = ["| claim | margin | lowest difference | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |"]
    lines.append("|---" * (3 + len(SEEDS)) + "|")
    for statement, margin, pairs in rows:
        lowest = min(method - reference for method, reference in pairs)
        cells = [f"{method:.1f} / {reference:.1f}" for method, reference in pairs]
        least = "-" if margin is None else f"{margin:g}"
        lines.append(f"| {statement} | {least} | {lowest:+.1f} | " + " | ".join(cells) + " |")
    return lines
