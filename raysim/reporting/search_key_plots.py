"""Further plots of a search report: each key against the score, two keys together, progress, and trials over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from raysim.reporting.plots import HEIGHT, INK, INSIDE, LOST, OUTSIDE, PAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from raysim.search.objectives import Objective
    from raysim.search.space import Space
    from raysim.search.spec import SearchSpec
    from raysim.search.trial_store import TrialRecord

Draw = Callable[["Axes"], object]
Point = tuple[float, float]
MAX_SLICES = 8  # keys with a plot of their values, the most important ones
MAX_NUMBERS = 30  # trials up to which each dot has the number of its trial
MIN_TRIALS = 6  # of a contour
NOT_DONE = {"stopped": OUTSIDE, "failed": LOST}  # the colours of trials that have not run all rounds


def search_key_plots(
    spec: SearchSpec, scored: Sequence[TrialRecord], weights: Mapping[str, float]
) -> Iterator[tuple[str, Draw, float]]:
    """Yields title, function and height of the plots of single keys, and of the two most important ranges."""
    keys = sorted(spec.space.domains, key=lambda key: -weights.get(key, 0.0))
    for key in keys[:MAX_SLICES]:
        yield f"{short_name(key)} and score", partial(_slice, spec=spec, scored=scored, key=key), HEIGHT
    ranges = [key for key in keys if not spec.space.is_choice(key)]
    if len(ranges) > 1:
        one, two = ranges[:2]
        title = f"{short_name(one)} and {short_name(two)}"
        yield title, partial(_contour, spec=spec, scored=scored, keys=(one, two)), HEIGHT + 0.4


def short_name(key: str) -> str:
    """The key without the prefix that most keys have."""
    return key.removeprefix("algorithm.").removeprefix("task.")


def annotate(axes: Axes, text: str, place: Point) -> None:
    """Write a small text above a point and to its right."""
    axes.annotate(text, place, xytext=(2, 2), textcoords="offset points", fontsize=6.5)


def number_points(axes: Axes, points: Mapping[int, Point]) -> None:
    """Write the numbers of trials beside their points; numbers at the same point are separated by commas."""
    for point in dict.fromkeys(points.values()):
        annotate(axes, ",".join(str(number) for number, each in points.items() if each == point), point)


def colour_scale(axes: Axes, low: float, high: float, objective: Objective) -> Callable[[float], Any]:
    """The colour of a value of the objective; adds the scale beside the axes."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(low, high), colormaps["viridis" if objective.better == "higher" else "viridis_r"])
    axes.figure.colorbar(scale, ax=axes, label=objective.row_column.split("/", 1)[-1])
    return lambda value: scale.to_rgba(np.array(value))


def best_so_far(objective: Objective, scored: Sequence[TrialRecord], axes: Axes) -> None:
    """Draw the score of each trial by its number, and the best score up to it."""
    scored = [each for each in scored if not each.failed]
    if len(scored) < 2:
        return
    numbers, values = [each.number for each in scored], [float(each.last[objective.column]) for each in scored]
    better = max if objective.better == "higher" else min
    axes.plot(numbers, values, "o", color=INK, alpha=0.45, markersize=4, label="trial")
    axes.step(numbers, list(accumulate(values, better)), where="post", color=INSIDE, label="best so far")
    axes.set_xlabel("trial")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _slice(axes: Axes, spec: SearchSpec, scored: Sequence[TrialRecord], key: str) -> None:
    """Draw the score of each trial against its value of the key, on the scale of the key."""
    known, column = [each for each in scored if key in each.values], spec.objectives[0].column
    if len(known) < 2:
        return
    for status, colour in {"done": INSIDE, **NOT_DONE, "unfinished": INK}.items():
        of = [each for each in known if each.reported_status == status]
        at = [spec.space.position(key, each.values[key]) for each in of]
        if of:
            axes.plot(at, [each.last[column] for each in of], "o", color=colour, markersize=4, label=status)
    if len(known) <= MAX_NUMBERS:
        number_points(
            axes, {each.number: (spec.space.position(key, each.values[key]), each.last[column]) for each in known}
        )
    _label_positions(axes.xaxis, spec.space, key)
    axes.set_xlim(-0.08, 1.08)


def _label_positions(axis: Axis, space: Space, key: str) -> None:
    """Label an axis with the key and the values of a choice, or the bounds of a range and its middle."""
    bounds = space.bounds(key)
    if not space.is_choice(key):
        bounds = [bounds[0], space.value_at(key, 0.5), bounds[1]]
    texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in bounds]
    axis.set_ticks([space.position(key, value) for value in bounds], labels=[text[:16] for text in texts])
    axis.set_label_text(short_name(key))


def _contour(axes: Axes, spec: SearchSpec, scored: Sequence[TrialRecord], keys: tuple[str, str]) -> None:
    """Draw the score over two ranges: interpolated between the trials, which are dots."""
    known = [each for each in scored if all(key in each.values for key in keys)]
    places = {tuple(spec.space.position(key, each.values[key]) for key in keys): each for each in known}
    x, y = [place[0] for place in places], [place[1] for place in places]
    if len(places) < MIN_TRIALS or min(len(set(x)), len(set(y))) < 3:
        return
    values = [float(each.last[spec.objectives[0].column]) for each in places.values()]
    colours = colour_scale(axes, min(values), max(values), spec.objectives[0])
    axes.tricontourf(x, y, values, levels=8, cmap="viridis" if spec.objectives[0].better == "higher" else "viridis_r")
    axes.scatter(x, y, c=[colours(value) for value in values], edgecolors=INK, s=14)
    for axis, key in zip((axes.xaxis, axes.yaxis), keys, strict=True):
        _label_positions(axis, spec.space, key)
    axes.axis((-0.08, 1.08, -0.08, 1.08))


def timeline(records: Sequence[TrialRecord], axes: Axes) -> None:
    """Draw each trial from its start to its end; trials that ran at the same time are in different slots."""
    timed = sorted((each for each in records if each.started and each.ended), key=lambda each: each.started)
    if len(timed) < 2:
        return
    zero, free = timed[0].started, list[float]()  # the time at which each slot is free
    seen: set[str] = set()
    for each in timed:
        slot = next((slot for slot, end in enumerate(free, 1) if end <= each.started), len(free) + 1)
        free[slot - 1 : slot] = [each.ended]
        status, start, length = each.reported_status, (each.started - zero) / 60, (each.ended - each.started) / 60
        label = None if status in seen else status
        seen.add(status)
        axes.barh(slot, length, left=start, color=NOT_DONE.get(status, INSIDE), label=label)
        axes.text(start, slot, f" {each.number}", va="center", fontsize=6.5, color=PAGE)
    axes.set_xlabel("minutes since the first trial")
    axes.set_ylabel("slot")
    axes.set_yticks(range(1, len(free) + 1))
