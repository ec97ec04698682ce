"""The plots of a search report: learning curves, parallel coordinates, importance of each key, trade-offs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysim.core.formatting import format_bytes
from raysim.core.numeric import is_finite_number
from raysim.reporting.plots import HEIGHT, INK, INSIDE, LOST, OUTSIDE, PAGE, WIDTH, render_svg
from raysim.reporting.search_key_plots import (
    Point,
    annotate,
    best_so_far,
    colour_scale,
    number_points,
    search_key_plots,
    short_name,
    timeline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from raysim.search.objectives import Objective
    from raysim.search.results import SearchResults
    from raysim.search.space import Space
    from raysim.search.spec import SearchSpec
    from raysim.search.trial_store import TrialRecord

MAX_CURVES = 200  # trials with a curve
MAX_NUMBERED_CURVES = 10  # up to which each curve has the number of its trial
MAX_AXES = 6  # parallel axes in a plot of the usual width
MAX_WIDTH = 14.0  # inches
VALUE_GROUPS = 4  # number of groups for the values of a numeric key
MIN_TRIALS = 6  # trials that are needed to compute the importance of a key
Importance = Mapping[str, float]


def search_plots(results: SearchResults, rounds: pd.DataFrame) -> Iterator[tuple[str, str, bool]]:
    """Yields title and SVG of each plot that has data, and whether it is as wide as the page.

    `rounds` is the table in rounds.parquet.
    """
    spec, best = results.spec, results.best()
    records = sorted(results.records.values(), key=lambda record: record.number)
    first, values = spec.objectives[0], results.objective_by_round(rounds)
    scored = [record for record in records if is_finite_number(record.last.get(first.column))]
    stem, _, aggregate = first.column.rpartition("/")
    other = "mean" if aggregate == "worst" else "worst"
    other_aggregate, cost = replace(first, column=f"{stem}/{other}"), replace(first, column="bytes", better="lower")
    pairs = partial(_pairs, results=results, scored=scored)
    weights, at = importance(spec, records, values)
    parallel, parallel_axes = partial(_parallel, spec=spec, scored=scored), len(spec.space.domains) + 1
    plots: tuple[tuple[str, Callable[[Axes], object], float], ...] = (
        (f"{first.row_column} over rounds", partial(_curves, results, records, best, values), HEIGHT),
        ("best value so far", partial(best_so_far, first, scored), HEIGHT),
        ("values of the keys and scores", parallel, HEIGHT + 0.6),
        (f"importance of each key at round {at}", *_bars(weights)),
        ("importance of each key by Optuna (PED-ANOVA)", *_bars(results.optuna_importance())),
        *search_key_plots(spec, scored, weights),
        (f"{other} against {aggregate} of the sites", partial(pairs, one=first, other=other_aggregate), HEIGHT),
        ("bytes against the metric", partial(pairs, one=first, other=cost), HEIGHT),
        ("rounds of each trial", partial(_lengths, spec=spec, records=records), HEIGHT),
        ("trials over time", partial(timeline, records), HEIGHT),
    )
    for title, draw, inches in plots:
        is_wide = draw is parallel and parallel_axes > MAX_AXES
        if svg := render_svg(title, draw, inches, min(parallel_axes, MAX_WIDTH) if is_wide else WIDTH):
            yield title, svg, is_wide


def importance(spec: SearchSpec, records: Sequence[TrialRecord], values: pd.DataFrame) -> tuple[Importance, int]:
    """For each key, the share of the variance of ranks that is explained by its values; and the round of the ranking.

    `values` has the first objective by trial and round. Trials are ranked by it in the last round that all trials have
    reached, because a trial is not worse only because it was stopped early. Numeric values are divided into four
    groups. The share is omega squared, which is adjusted for the number of groups: a key without effect has a share of
    about 0.
    """
    started = [record for record in records if record.rounds and not record.failed]
    at = min((record.rounds for record in started), default=0)
    if len(started) < MIN_TRIALS:
        return {}, at
    compared = values[values["round"] <= at].sort_values("round").groupby("trial")["value"].last()
    known = [record for record in started if record.number in compared.index]
    ranks = pd.Series({record.number: compared[record.number] for record in known}).rank()
    weights = {}
    for key in spec.space.domains:
        having = [record for record in known if key in record.values]
        if len(having) >= MIN_TRIALS:
            groups = _groups([record.values[key] for record in having], spec.space.is_choice(key))
            weights[key] = _omega_squared(np.array([ranks[record.number] for record in having]), groups)
    return weights, at


def _groups(values: Sequence[Any], is_choice: bool) -> list[Any]:
    """The group of each value: the value, or its quantile if the values are many numbers."""
    if is_choice or len(set(values)) <= VALUE_GROUPS:
        return [repr(value) for value in values]
    return list(pd.qcut(pd.Series(values).rank(method="first"), VALUE_GROUPS, labels=False))


def _omega_squared(ranks: np.ndarray[Any, Any], groups: Sequence[Any]) -> float:
    names = sorted(set(groups))
    total, count = float(((ranks - ranks.mean()) ** 2).sum()), len(ranks)
    if total == 0 or len(names) < 2 or count <= len(names):
        return 0.0
    parts = [ranks[[group == name for group in groups]] for name in names]
    within = float(sum(((part - part.mean()) ** 2).sum() for part in parts))
    error = within / (count - len(names))
    return max(0.0, (total - within - (len(names) - 1) * error) / (total + error))


def _curves(
    results: SearchResults,
    records: Sequence[TrialRecord],
    best: Sequence[TrialRecord],
    values: pd.DataFrame,
    axes: Axes,
) -> None:
    """Draw a line for each trial, and the states taken over (PBT). The best and stopped lines are numbered, few all."""
    top, curves = {record.number for record in best}, dict(iter(values.groupby("trial")))
    labels, ends = {"best": INSIDE, "done": INK, "stopped": OUTSIDE, "failed": LOST}, dict[int, Point]()
    for record in sorted(records[:MAX_CURVES], key=lambda record: record.number in top):
        if record.number not in curves:
            continue
        curve = curves[record.number].set_index("round")["value"]
        kind = "best" if record.number in top else record.status.value if record.stopped or record.failed else "done"
        look: dict[str, Any] = {"color": labels[kind], "alpha": 0.3 if kind == "done" else 0.7, "linewidth": 0.9}
        look |= {"alpha": 1.0, "linewidth": 2.0} if kind == "best" else {}
        label = None if kind in axes.get_legend_handles_labels()[1] else kind
        axes.plot(curve.index.to_numpy(), curve.to_numpy(), marker="." if len(curve) < 3 else "", label=label, **look)
        if kind == "best" or record.stopped or len(curves) <= MAX_NUMBERED_CURVES:
            ends[record.number] = (float(curve.index[-1]), float(curve.iloc[-1]))
        _mark_imports(axes, results.imports(record) if record.lineage else (), curve)
    number_points(axes, ends)
    axes.set_xlabel("round")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _mark_imports(axes: Axes, imports: Sequence[tuple[int, int]], curve: pd.Series) -> None:
    """Mark the rounds after which a trial took over the state of another one, with the number of that trial."""
    for at, donor in imports:
        if at in curve.index:
            axes.plot(at, curve[at], "o", color=INK, markersize=3)
            annotate(axes, f"from {donor}", (at, curve[at]))


def _parallel(axes: Axes, spec: SearchSpec, scored: Sequence[TrialRecord]) -> None:
    """Draw a line for each trial through its values to its outcome, which is its colour; inactive keys are skipped."""
    keys, first = list(spec.space.domains), spec.objectives[0]
    if len(scored) < 2 or not keys:
        return
    outcome = [float(record.last[first.column]) for record in scored]
    low, high = min(outcome), max(outcome)
    colours = colour_scale(axes, low, high, first)
    for i in sorted(range(len(scored)), key=lambda i: outcome[i], reverse=first.better == "lower"):
        record = scored[i]
        heights = [spec.space.position(key, record.values.get(key)) for key in keys]
        heights.append((outcome[i] - low) / (high - low) if high > low else 0.5)
        known = [(at, height) for at, height in enumerate(heights) if math.isfinite(height)]
        axes.plot(*zip(*known, strict=True), linewidth=1.2, color=colours(outcome[i]), alpha=0.8)
    names = [short_name(key) for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*names, first.row_column.split("/", 1)[-1]], rotation=30, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    _label_values(axes, spec.space, low, high)
    axes.margins(x=0.08)
    axes.set_ylim(-0.12, 1.12)
    axes.set_yticks([])


def _label_values(axes: Axes, space: Space, low: float, high: float) -> None:
    """Write the values of each choice on its axis, and the bounds of a range and of the outcome at the ends of theirs.

    A value on an axis has the colour of the page behind it, because lines cross it.
    """
    box = {"facecolor": PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    for at, key in enumerate(space.domains):
        if space.is_choice(key):
            for value in space.bounds(key):
                axes.text(at, space.position(key, value), str(value), ha="center", va="center", fontsize=7, bbox=box)
    ends = {at: space.bounds(key) for at, key in enumerate(space.domains) if not space.is_choice(key)}
    for at, bounds in (ends | {len(space.domains): [low, high]}).items():
        for place, value in zip((-0.07, 1.03), bounds, strict=True):
            axes.text(at, place, f"{value:.3g}" if isinstance(value, float) else str(value), ha="center", fontsize=7)


def _bars(weights: Importance) -> tuple[Callable[[Axes], object], float]:
    """The function that draws a bar for each key, and the height of its plot."""
    order = sorted(weights, key=lambda key: weights[key])

    def draw(axes: Axes) -> None:
        axes.barh(range(len(order)), [weights[key] for key in order], color=INSIDE)
        axes.set_yticks(range(len(order)), [short_name(key) for key in order], fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share")
        axes.grid(visible=False, axis="y")

    return draw, 0.9 + 0.28 * len(order)


def _pairs(axes: Axes, one: Objective, other: Objective, results: SearchResults, scored: Sequence[TrialRecord]) -> None:
    """Draw a dot for each trial, and a line through the Pareto front of the two columns."""
    known = [record for record in scored if record.last.get(other.column) is not None]
    known = [record for record in known if record.done] or known
    if other.column == one.column or len({record.last[other.column] for record in known}) < 2:
        return
    front = sorted(results.pareto_front(known, [one, other]), key=lambda record: float(record.last[one.column]))
    axes.plot(*_xy(known, one, other), "o", color=INK, alpha=0.45, markersize=4)
    axes.plot(*_xy(front, one, other), "o-", color=INSIDE, markersize=5, label="Pareto front")
    axes.set_xlabel(f"{one.column} ({one.better} is better)")
    axes.set_ylabel(other.column.split("/", 1)[-1])
    if other.column == "bytes":
        axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))


def _xy(records: Sequence[TrialRecord], one: Objective, other: Objective) -> tuple[list[float], list[float]]:
    return [float(r.last[one.column]) for r in records], [float(r.last[other.column]) for r in records]


def _lengths(axes: Axes, spec: SearchSpec, records: Sequence[TrialRecord]) -> None:
    """Draw the rounds that each trial reached, in the colour of its status."""
    if all(record.rounds == spec.rounds for record in records):
        return
    for status, colour in (("done", INSIDE), ("stopped", OUTSIDE), ("failed", LOST), ("unfinished", INK)):
        of = [record for record in records if record.reported_status == status and record.rounds]
        if of:
            axes.bar([each.number for each in of], [each.rounds for each in of], color=colour, width=0.8, label=status)
    axes.axhline(spec.rounds, color=INK, linestyle=":")
    axes.set_xlabel("trial")
    axes.set_ylabel("rounds")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
