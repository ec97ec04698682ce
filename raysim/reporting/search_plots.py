"""The plots of a search's page: curves, parallel coordinates, what each key matters, what is traded for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysim.core.formatting import format_bytes
from raysim.reporting.plots import HEIGHT, INK, INSIDE, LOST, OUTSIDE, render_svg
from raysim.search import distributions
from raysim.search.objectives import Objective
from raysim.search.results import pareto
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 200  # trials that get a curve
BINS = 4  # groups that the values of a number are put into
LEAST = 6  # trials from which on the weight of a key can be told at all
Weights = Mapping[str, float]


def search_plots(
    search: SearchSpec, records: Sequence[TrialRecord], best: Sequence[TrialRecord], rounds: pd.DataFrame
) -> Iterator[Any]:
    """Title and SVG of each plot that has something to show."""
    first, keys = search.objectives[0], list(search.space.domains)
    judged = [record for record in records if record.last.get(first.column) is not None]
    stem, _, kind = first.column.rpartition("/")
    against = "mean" if kind == "worst" else "worst"
    sites = Objective(f"{stem}/{against}", first.better)
    cost = Objective("bytes", "lower")
    weights, at = importance(search, records, rounds)
    tall = 0.9 + 0.28 * len(keys)
    several: tuple[tuple[str, Callable[[Axes], object], float], ...] = (
        (
            f"{first.column} over rounds",
            partial(_curves, first, records, best, rounds),
            HEIGHT,
        ),
        ("keys and what came of them", partial(_parallel, search=search, judged=judged), HEIGHT + 0.6),
        (f"how much each key matters, at round {at}", partial(_bars, weights=weights), tall),
        (f"sites' {against} against {kind}", partial(_pairs, one=first, other=sites, judged=judged), HEIGHT),
        (
            "bytes against the metric",
            partial(_pairs, one=first, other=cost, judged=judged),
            HEIGHT,
        ),
        ("rounds that trials went through", partial(_lengths, search=search, records=records), HEIGHT),
    )
    for title, draw, inches in several:
        if svg := render_svg(title, draw, inches):
            yield title, svg


def importance(search: SearchSpec, records: Sequence[TrialRecord], rounds: pd.DataFrame) -> tuple[Weights, int]:
    """For each key the part of the spread of ranks that goes with its values, and the round in which that is so.

    Trials are ranked by the objective in the last round that all of them have reached, for a trial that was stopped
    early is not worse by being younger. A number's values are put into four groups; the part is adjusted for how many
    groups there are (omega squared), so that a key of no effect comes out near 0.
    """
    first = search.objectives[0].column
    begun = [record for record in records if record.rounds and record.status != "failed"]
    at = min((record.rounds for record in begun), default=0)
    if len(begun) < LEAST or first not in rounds:
        return {}, at
    judged = rounds[rounds["round"] <= at].dropna(subset=[first])
    values = judged.sort_values("round").groupby(["trial", "federation"])[first].last().groupby("trial").mean()
    known = [record for record in begun if record.number in values.index]
    ranks = pd.Series({record.number: values[record.number] for record in known}).rank()
    found = {}
    for key, domain in search.space.domains.items():
        having = [record for record in known if key in record.values]
        if len(having) >= LEAST:
            groups = _groups([record.values[key] for record in having], domain)
            found[key] = _omega(np.array([ranks[record.number] for record in having]), groups)
    return found, at


def _groups(values: Sequence[Any], domain: Any) -> list[Any]:
    numbers = not hasattr(domain, "categories")
    if not numbers or len(set(values)) <= BINS:
        return [repr(value) for value in values]
    return list(pd.qcut(pd.Series(values).rank(method="first"), BINS, labels=False))


def _omega(ranks: np.ndarray[Any, Any], groups: Sequence[Any]) -> float:
    names = sorted(set(groups))
    total, count = float(((ranks - ranks.mean()) ** 2).sum()), len(ranks)
    if total == 0 or len(names) < 2 or count <= len(names):
        return 0.0
    parts = [ranks[[group == name for group in groups]] for name in names]
    within = float(sum(((part - part.mean()) ** 2).sum() for part in parts))
    error = within / (count - len(names))
    return max(0.0, (total - within - (len(names) - 1) * error) / (total + error))


def _curves(
    first: Objective, records: Sequence[TrialRecord], best: Sequence[TrialRecord], rounds: pd.DataFrame, axes: Axes
) -> None:
    if first.column not in rounds:
        return
    top = {record.number for record in best}
    means = rounds.dropna(subset=[first.column]).groupby(["trial", "round"])[first.column].mean()
    for record in sorted(records[:CURVES], key=lambda record: record.number in top):
        if record.number not in means.index.get_level_values(0):
            continue
        curve = means.loc[record.number]
        look: dict[str, Any] = {"color": INK, "alpha": 0.3, "linewidth": 0.9}
        if record.status in ("stopped", "failed"):
            look |= {"color": OUTSIDE if record.status == "stopped" else LOST, "alpha": 0.6}
        if record.number in top:
            look = {"color": INSIDE, "linewidth": 2.0, "label": f"trial {record.number}" if len(top) == 1 else None}
        axes.plot(curve.index, curve.values, marker="." if len(curve) < 3 else "", **look)
    axes.set_xlabel("round (stopped trials in the second colour)")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _parallel(axes: Axes, search: SearchSpec, judged: Sequence[TrialRecord]) -> None:
    """A line for each trial through its values, the quarter with the best outcome in colour."""
    keys, first = list(search.space.domains), search.objectives[0]
    if len(judged) < 2 or not keys:
        return
    outcome = [float(record.last[first.column]) for record in judged]
    order = sorted(range(len(judged)), key=lambda i: outcome[i], reverse=first.better == "higher")
    top = set(order[: max(1, len(judged) // 4)])
    low, high = min(outcome), max(outcome)
    for i in reversed(order):
        record = judged[i]
        heights = [_height(search.space.domains[key], record.values.get(key)) for key in keys]
        heights.append((outcome[i] - low) / (high - low) if high > low else 0.5)
        look: dict[str, Any] = {"color": INSIDE, "alpha": 0.9} if i in top else {"color": INK, "alpha": 0.2}
        axes.plot(range(len(heights)), heights, linewidth=1.2, **look)
    names = [key.removeprefix("algorithm.").removeprefix("task.") for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*names, first.column.split("/", 1)[-1]], rotation=30, ha="right", fontsize=8)
    for at, key in enumerate(keys):
        ends = distributions.bounds(search.space.domains[key])
        for place, value in ((-0.07, ends[0]), (1.03, ends[-1])):
            axes.text(at, place, f"{value:.3g}" if isinstance(value, float) else str(value), ha="center", fontsize=7)
    for place, value in ((-0.07, low), (1.03, high)):
        axes.text(len(keys), place, f"{value:.3g}", ha="center", fontsize=7)
    axes.set_ylim(-0.12, 1.12)
    axes.set_yticks([])


def _height(domain: Any, value: Any) -> float:
    """Where a value stands between the ends, from 0 to 1; not a number where the trial has none."""
    if value is None and not hasattr(domain, "categories"):
        return float("nan")
    ends = distributions.bounds(domain)
    if hasattr(domain, "categories"):
        return ends.index(value) / max(1, len(ends) - 1) if value in ends else float("nan")
    low, high, value = np.log([ends[0], ends[-1], value]) if distributions.logarithmic(domain) else (*ends, value)
    return float((value - low) / (high - low)) if high > low else 0.5


def _bars(axes: Axes, weights: Weights) -> None:
    if not weights:
        return
    order = sorted(weights, key=lambda key: weights[key])
    axes.barh(range(len(order)), [weights[key] for key in order], color=INSIDE)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("part of the spread of ranks")
    axes.grid(visible=False, axis="y")


def _pairs(axes: Axes, one: Objective, other: Objective, judged: Sequence[TrialRecord]) -> None:
    """A dot for each trial, those that no other beats in both joined by a line."""
    known = [record for record in judged if record.last.get(other.column) is not None]
    known = [record for record in known if record.status == "done"] or known
    if other.column == one.column or len({record.last[other.column] for record in known}) < 2:
        return
    front = sorted(pareto(known, [one, other]), key=lambda record: float(record.last[one.column]))
    axes.plot(*_xy(known, one, other), "o", color=INK, alpha=0.45, markersize=4)
    axes.plot(*_xy(front, one, other), "o-", color=INSIDE, markersize=5, label="not beaten in both")
    axes.set_xlabel(f"{one.column} ({one.better} is better)")
    axes.set_ylabel(other.column.split("/", 1)[-1])
    if other.column == "bytes":
        axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))


def _xy(records: Sequence[TrialRecord], one: Objective, other: Objective) -> tuple[list[float], list[float]]:
    return [float(e.last[one.column]) for e in records], [float(e.last[other.column]) for e in records]


def _lengths(axes: Axes, search: SearchSpec, records: Sequence[TrialRecord]) -> None:
    if all(record.rounds == search.rounds for record in records):
        return
    lengths = sorted((record.rounds for record in records), reverse=True)
    axes.bar(range(1, len(lengths) + 1), lengths, color=INSIDE, width=1.0)
    axes.axhline(search.rounds, color=INK, linestyle=":")
    axes.set_xlabel("trials, the longest first")
    axes.set_ylabel("rounds")
