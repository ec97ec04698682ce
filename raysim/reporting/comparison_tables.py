"""The tables of a comparison: as text for the console, CSV, LaTeX and HTML."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from rich.console import Console

from raysim.core.formatting import format_bytes, format_score, pluralize, printable
from raysim.reporting.comparison import Comparison, GroupResult
from raysim.reporting.page import environment, page_style
from raysim.reporting.text_tables import print_table
from raysim.storage.csv_file import to_csv

TableFormat = Literal["text", "csv", "latex", "html"]
TEMPLATE = Path(__file__).with_name("comparison.html.j2")
TEXT_WIDTH = 200  # characters per line of a text file
TESTS = {
    "wilcoxon": "Wilcoxon's signed-rank test",
    "permutation": "a permutation test",
    "delong": "DeLong's test",
}


def describe(comparison: Comparison) -> str:
    """A description of the tables in one sentence."""
    score, groups = comparison.score, comparison.groups
    text = (
        f"{score} of the {score.round} round: mean ± standard deviation over seeds of the mean over "
        f"{pluralize(len(groups[0].sites), 'site')} ({pluralize(comparison.cases, 'case')}), 95 % interval over cases"
    )
    if len(groups) == 1:
        return text
    effect = "; effect: matched-pairs rank-biserial correlation" if comparison.test != "delong" else ""
    test = f"paired by case: {TESTS[comparison.test]}, p-values with Holm's correction"
    return f"{text}; difference from {comparison.reference}, {test}{effect}"


def result_table(comparison: Comparison) -> pd.DataFrame:
    """A row of text for each group; columns without any value are left out."""
    rows = [
        {
            "group": group.name,
            "seeds": str(group.seeds),
            "mean": _mean(group.mean, group.deviation),
            "95 % interval": f"{format_score(group.low)} to {format_score(group.high)}",
            "difference": "" if group.difference is None else f"{group.difference:+.4f}",
            "p": "" if group.p_value is None else format_p_value(group.p_value),
            "effect": "" if group.effect is None else f"{group.effect:+.2f}",
            "worst site": _worst(comparison, group),
            "bytes": format_bytes(group.bytes),
            "seconds": f"{group.seconds:.1f}",
        }
        for group in comparison.groups
    ]
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()]


def site_table(comparison: Comparison) -> pd.DataFrame:
    """A row of text for each group, a column for each site."""
    return pd.DataFrame(
        [
            {"group": group.name, **{site: _mean(*values) for site, values in group.sites.items()}}
            for group in comparison.groups
        ]
    ).fillna("-")


def numbers(comparison: Comparison) -> pd.DataFrame:
    """A row of numbers for each group, with the mean and deviation of each site."""
    return pd.DataFrame([_numbers(comparison, group) for group in comparison.groups])


def _numbers(comparison: Comparison, group: GroupResult) -> dict[str, object]:
    worst_site, worst = comparison.worst_site(group) or (None, None)
    plain = {name: value for name, value in vars(group).items() if name != "sites"}
    sites = {
        f"{site}/{name}": value
        for site, values in group.sites.items()
        for name, value in zip(("mean", "deviation"), values, strict=True)
    }
    return {"score": str(comparison.score), **plain, "worst_site": worst_site, "worst": worst, **sites}


def _worst(comparison: Comparison, group: GroupResult) -> str:
    worst = comparison.worst_site(group)
    return "" if worst is None else f"{format_score(worst[1])} {worst[0]}"


def _mean(mean: float, deviation: float) -> str:
    return format_score(mean) + ("" if np.isnan(deviation) else f" ± {format_score(deviation)}")


def format_p_value(value: float) -> str:
    """The p-value with three decimals, or `< 0.001`; `-` for NaN."""
    if np.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the tables and the notes."""
    console.print(describe(comparison), highlight=False, markup=False)
    for table in (result_table(comparison), site_table(comparison)):
        print_table(table, console)
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)


def render(comparison: Comparison, form: TableFormat) -> str:
    """The tables as the text of a file, without control characters, which a terminal would execute."""
    return printable(_render(comparison, form))


def _render(comparison: Comparison, form: TableFormat) -> str:
    if form == "text":
        file = StringIO()
        print_comparison(comparison, Console(file=file, width=TEXT_WIDTH))
        return file.getvalue()
    if form == "csv":
        return to_csv(numbers(comparison))
    tables = [result_table(comparison), site_table(comparison)]
    if form == "latex":
        return _latex(comparison, tables)
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(style=page_style(), text=describe(comparison), tables=tables, comparison=comparison)
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _latex(comparison: Comparison, tables: list[pd.DataFrame]) -> str:
    """The tables for the LaTeX package booktabs, with the description and the notes as comments."""
    lines = (describe(comparison), *comparison.notes)
    comments = [f"% {' '.join(line.split())}\n" for line in lines]  # a line break would end a comment
    texts = [
        table.to_latex(index=False, escape=True, column_format="l" + "r" * (table.shape[1] - 1)) for table in tables
    ]
    text = "\n".join(texts).replace("±", r"$\pm$").replace("< 0.001", "$<$ 0.001")
    return "".join(comments) + re.sub(r"(?<=& )([+-][\d.]+)", r"$\1$", text)  # a minus, not a hyphen
