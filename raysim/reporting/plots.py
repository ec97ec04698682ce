"""The plots of report.html: SVG in the colours and fonts of the page, for light and dark mode."""

from __future__ import annotations

import html
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysim.core.formatting import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 60  # largest number of sites shown as bars; more sites are shown as a histogram
NAME = 24  # characters of a site's name beside its bar
DOTS = 40  # largest number of points of a line with markers
MARKS = 500  # largest number of marked rounds, so that the page does not grow with the run
CURVES, COLUMNS, SHORT_NAME = 24, 4, 16  # largest number of sites with a curve, curves in a row, characters of a name
WIDTH, HEIGHT, BAR = 4.4, 2.5, 0.16  # inches
LEGEND = 60  # characters in a row of the legend

# matplotlib cannot use the CSS variables of the page, so these colours are replaced by CSS variables in the SVG.
INK, INSIDE, OUTSIDE, LOST, PAGE = "#000001", "#000002", "#000003", "#000004", "#000005"
COLOURS = {
    INK: "currentColor",
    INSIDE: "var(--inside)",
    OUTSIDE: "var(--outside)",
    LOST: "var(--lost)",
    PAGE: "var(--page)",
}
ROLES = {"inside": INSIDE, "outside": OUTSIDE}
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "axes.formatter.useoffset"), False),
    "font.size": 9.0,
    "lines.linewidth": 1.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a site's name may contain a $
}


def plots(
    summary: Any, rounds: pd.DataFrame, site_rows: pd.DataFrame, lost: Collection[int]
) -> Iterator[tuple[str, str]]:
    """Yields title and SVG of each plot that has data. `lost` has the rounds with failures.

    rounds, site_rows: the tables rounds.parquet and sites.parquet.
    """
    sites, score = summary["sites"], summary["metric"].split("/", 1)[1]
    known = {site: found for site, found in sites.items() if found.get(score) is not None}
    each, height = (_bars, 0.8 + BAR * len(known)) if len(known) <= BARS else (_histogram, HEIGHT)
    higher = summary["direction"] == "higher"
    for title, draw, inches in (
        (f"{score} over rounds", partial(_scores, rounds=rounds, score=score), HEIGHT),
        (f"{score} of each site over rounds", *_curves(site_rows, score, higher=higher)),
        (f"last {score} of the sites", partial(each, known=known, score=score, higher=higher), height),
        ("training loss", partial(plot_column, rounds=rounds, column="loss", label="", color=INSIDE), HEIGHT),
        ("seconds per round", partial(_seconds, rounds=rounds, lost=lost), HEIGHT),
        ("bytes per round", partial(_bytes, rounds=rounds), HEIGHT),
    ):
        if svg := render_svg(title, draw, inches):
            yield title, svg


def render_svg(title: str, draw: Callable[[Axes], object], height: float, width: float = WIDTH) -> str:
    """The SVG of the plot that `draw` draws on the axes, in inches; empty if it draws nothing."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hides the log line about the font cache
    from matplotlib import style  # imported here, because the import takes a second
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), style.context(["default", {**STYLE, "svg.hashsalt": title}]):
        warnings.simplefilter("ignore")  # about missing letters in matplotlib's font: the browser has them
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if not axes.has_data():
            return ""
        if labels := axes.get_legend_handles_labels()[1]:
            figure.legend(loc="outside upper left", ncols=max(1, min(3, LEGEND // (max(map(len, labels)) + 6))))
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # a second layout, for SVG, could choose other ticks
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    described = f'<svg role="img" aria-label="{html.escape(title)}"'
    return _with_css_colours(file.getvalue()).replace("<svg", described, 1)


def _with_css_colours(text: str) -> str:
    """The `svg` element in the colours of the page, without group ids, because several plots have the same ids."""
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return re.sub(": (#00000[1-5])", lambda match: f": {COLOURS[match[1]]}", text)


def _scores(axes: Axes, rounds: pd.DataFrame, score: str) -> None:
    for role, colour in ROLES.items():
        mean, worst, plain = (f"{role}/{score}{end}" for end in ("/mean", "/worst", "@global/mean"))
        plot_column(axes, rounds, mean, f"{role}, mean", color=colour)
        for column, label, line in ((worst, "worst", ":"), (plain, "mean @global", "--")):
            if mean not in rounds or column not in rounds or not rounds[column].equals(rounds[mean]):
                plot_column(axes, rounds, column, f"{role}, {label}", color=colour, linestyle=line)


def _curves(site_rows: pd.DataFrame, score: str, *, higher: bool) -> tuple[Callable[[Axes], object], float]:
    """The function that plots the learning curve of each site, and the height of its plot."""
    split, _, metric = score.partition("/")
    known = site_rows[(site_rows["split"] == split) & (site_rows["metric"] == metric)]
    curves = [(site, of) for site, of in known.groupby("site") if of["round"].nunique() > 1]
    curves.sort(key=lambda curve: (curve[1]["value"].iloc[-1] * (1 if higher else -1), curve[0]))
    rows = math.ceil(min(len(curves), CURVES) / COLUMNS)
    return partial(_small_multiples, curves=curves), 0.5 + rows


def _small_multiples(axes: Axes, curves: Sequence[tuple[Any, pd.DataFrame]]) -> None:
    """Plot each learning curve in a separate frame, the worst sites first, all with the same scales.

    All frames are on one pair of axes, because drawing separate axes takes a second.
    """
    shown = curves[:CURVES]
    if not shown:
        return
    columns = min(len(shown), COLUMNS)
    values = np.concatenate([of["value"].to_numpy() for _, of in shown])
    low, high, last = values.min(), max(values.max(), values.min() + 1e-9), max(of["round"].max() for _, of in shown)
    frame = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]) * (0.86, 0.62)
    small: dict[str, Any] = {"fontsize": 6.5, "clip_on": False}
    for place, (site, of) in enumerate(shown):
        left, bottom = corner = np.array([place % columns, -(place // columns)])
        axes.plot(*(corner + frame).T, color=INK, alpha=0.25, linewidth=0.5)
        at = np.column_stack([(of["round"] - 1) / max(last - 1, 1), 0.04 + 0.92 * (of["value"] - low) / (high - low)])
        axes.plot(*(corner + at * frame[2]).T, color=ROLES[of["role"].iloc[0]], linewidth=1.2)
        name = site if len(site) <= SHORT_NAME else f"{site[: SHORT_NAME - 1]}…"
        axes.text(left, bottom + 0.66, name, **small)
        if place % columns == 0:
            for value, height in ((low, 0.02), (high, 0.6)):
                axes.text(left - 0.03, bottom + height, f"{value:.3g}", ha="right", va="center", **small)
        if place + columns >= len(shown):
            axes.text(left, bottom - 0.02, "1", va="top", **small)
            axes.text(left + 0.86, bottom - 0.02, f"{last}", ha="right", va="top", **small)
    axes.set_xlim(-0.22, columns - 0.1)
    axes.set_axis_off()
    if len(curves) > CURVES:
        axes.set_title(f"the {CURVES} worst of {len(curves)} sites", fontsize=8)


def plot_column(axes: Axes, rounds: pd.DataFrame, column: str, label: str, **look: Any) -> None:
    """Plot a column of rounds.parquet, if it exists, over the rounds with a value."""
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlim(0.5, rounds["round"].max() + 0.5 if len(rounds) else 1.5)
    if column in rounds:
        known = rounds[["round", column]].astype(float).dropna()
        if len(known):
            marker = "." if len(known) <= DOTS else ""
            axes.plot(known["round"], known[column], label=label, marker=marker, **look)


def _bars(axes: Axes, known: Mapping[str, Any], score: str, higher: bool) -> None:
    """Plot a bar for each site, the best on top, and a mark for the score of the global model if it differs."""
    order = sorted(known, key=lambda site: known[site][score], reverse=not higher)
    for role, colour in ROLES.items():
        at = [place for place, site in enumerate(order) if known[site]["role"] == role]
        if at:
            axes.barh(at, [known[order[place]][score] for place in at], color=colour, label=role)
    plain = [(known[site].get(f"{score}@global"), place) for place, site in enumerate(order)]
    other = [(value, place) for value, place in plain if value not in (None, known[order[place]][score])]
    if other:
        axes.plot(*zip(*other, strict=True), "|", color=INK, markersize=8, label="@global")
    names = [site if len(site) <= NAME else f"{site[: NAME - 1]}…" for site in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_ylim(-0.6, max(len(order), 1) - 0.4)
    axes.grid(visible=False, axis="y")


def _histogram(axes: Axes, known: Mapping[str, Any], score: str, higher: bool) -> None:
    groups = {role: [found[score] for found in known.values() if found["role"] == role] for role in ROLES}
    roles = [role for role, values in groups.items() if values]
    axes.hist(
        [groups[role] for role in roles], bins=30, stacked=True, color=[ROLES[role] for role in roles], label=roles
    )
    axes.set_xlabel(f"{score} ({'higher' if higher else 'lower'} is better)")
    axes.set_ylabel("sites")


def _seconds(axes: Axes, rounds: pd.DataFrame, lost: Collection[int]) -> None:
    plot_column(axes, rounds, "seconds", "", color=INSIDE)
    marked = rounds[rounds["round"].isin(lost)]
    every = math.ceil(len(marked) / MARKS)
    if every:
        label = "round with failures" if every == 1 else f"round with failures (one in {every} marked)"
        axes.plot(marked["round"][::every], marked["seconds"][::every], "x", color=LOST, label=label)
    _from_zero(axes)


def _bytes(axes: Axes, rounds: pd.DataFrame) -> None:
    for name, colour, line in (("up", INSIDE, "-"), ("down", OUTSIDE, "--"), ("between", INK, ":")):
        if f"bytes_{name}" in rounds and rounds[f"bytes_{name}"].any():
            plot_column(axes, rounds, f"bytes_{name}", name, color=colour, linestyle=line)
    _from_zero(axes)
    axes.locator_params(axis="y", integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value).replace(".0 ", " "))


def _from_zero(axes: Axes) -> None:
    axes.update_datalim([(1, 0)])
    axes.autoscale_view(scalex=False)
    axes.set_ylim(bottom=0)
