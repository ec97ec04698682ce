"""Pictures of the problems of the claims, for the pages of the algorithms.

python -m tests.claims.pictures [NAME ...]

Writes docs/algorithms/problems/NAME.png, by default all of them, from the same examples as the claims with seed 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from raysim import Split, Task
from tests.claims import (
    test_domain_generalisation,
    test_fedsm,
    test_gradient_alignment,
    test_iopfl,
    test_local_drift,
    test_outside_adaptation,
    test_personal_layers,
    test_pretraining,
    test_shared_representation,
)
from tests.claims.discs import disc_task
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "algorithms" / "problems"
SEED, HEIGHT, WIDTH = 0, 2.1, 1.9  # inches per panel
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
SHOWN = 120  # points per panel


def panels(titles: Sequence[str], shared: bool = False) -> list[Any]:
    """Axes in a row, one for each title; `shared`: with the same limits."""
    size = (WIDTH * len(titles), HEIGHT)
    _, axes = plt.subplots(1, len(titles), figsize=size, layout="constrained", sharex=shared, sharey=shared)
    for axis, title in zip(np.atleast_1d(axes), titles, strict=True):
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=6)
    return list(np.atleast_1d(axes))


def discs(sources: Mapping[str, Any], outside: Sequence[str], highest: float = 2.5) -> None:
    """An image of each site and brightness with the outline of its label, all with the same grey scale."""
    task = disc_task(sources, outside, SEED)
    shown = [(site, row) for site, source in sources.items() for row in range(np.size(source.brightness))]
    titles = [f"{'outside' if site in outside else 'inside'} site {site}" for site, _ in shown]
    for axis, (site, row) in zip(panels(titles), shown, strict=True):
        split = task.open(site).test
        assert split.labels is not None
        axis.imshow(split.inputs[row, 0], cmap="gray", vmin=-0.5, vmax=highest)
        axis.contour(split.labels[row, 0], [0.5], colors=COLOURS[1], linewidths=1.5)
        axis.set_axis_off()


def levels() -> None:
    """A slice of each level with the outline of its label, and the classes of the labels as colours."""
    split = test_pretraining.volumes(1, test_pretraining.LEVELS, np.random.default_rng(SEED))
    first = [int(np.flatnonzero(split.levels == level + 1)[0]) for level in test_pretraining.LEVELS]
    assert split.labels is not None
    for level, (axis, row) in enumerate(zip(panels([f"level {row + 1}" for row in range(4)]), first, strict=True)):
        axis.imshow(split.inputs[row, 0], cmap="gray")
        axis.contour(split.labels[row, 0] > 0, [0.5], colors=COLOURS[level], linewidths=1.5)
        axis.set_axis_off()


def scatter(axis: Any, split: Split, columns: tuple[int, int] = (0, 1)) -> None:
    """Two features of the first examples, coloured by class."""
    assert split.labels is not None
    x, y = split.inputs[:SHOWN][:, columns], split.labels[:SHOWN, 0]
    colours = ListedColormap(COLOURS[: int(y.max()) + 1])
    axis.scatter(*x.T, c=y, cmap=colours, s=6, linewidths=0)


def features(task: Task, outside: Sequence[str] = (), sites: int = 4) -> None:
    """The first two features of the examples of each site."""
    shown = [*task.inside[:sites], *outside]
    for axis, site in zip(panels([site.replace("-", " ") for site in shown], shared=True), shown, strict=True):
        scatter(axis, task.open(site).test if len(task.open(site).test) else task.open(site).train)
        axis.set_xlabel("feature 1", fontsize=7)
    plt.gcf().axes[0].set_ylabel("feature 2", fontsize=7)


def lines(task: Task) -> None:
    """x and y of each site and of all data."""
    unit = test_local_drift.UNIT
    names = [*task.inside, *task.outside]
    for axis, site in zip(panels([f"site {s}" for s in task.inside] + ["all data"]), names, strict=True):
        data = task.open(site)
        split = data.test if len(data.test) else data.train
        assert split.labels is not None
        rows = np.random.default_rng(SEED).permutation(len(split))[: 2 * SHOWN if site in task.outside else len(split)]
        axis.scatter(split.inputs[rows, 0], split.labels[rows, 0] / unit, s=4, color=COLOURS[0], linewidths=0)
        slope = float(np.sum(split.inputs * split.labels / unit) / np.sum(split.inputs**2))
        axis.axline((0, 0), slope=slope, color=COLOURS[1], linewidth=1, label=f"best w = {slope:.2f}")
        axis.set(xlim=(-9, 9), ylim=(-9, 9))
        axis.legend(fontsize=6, loc="upper left")


def spurious() -> None:
    """The core and the spurious feature of the examples of each site, by class."""
    task = test_gradient_alignment.task(SEED)
    agreement = dict(zip(task.inside, test_gradient_alignment.SPURIOUS, strict=True))
    titles = [f"{s.replace('-', ' ')}: {100 * agreement.get(s, test_gradient_alignment.UNSEEN):.0f} %" for s in
              [*task.inside, *task.outside]]  # fmt: skip
    for axis, site in zip(panels(titles), [*task.inside, *task.outside], strict=True):
        scatter(axis, task.open(site).test)
        axis.set_xlabel("core feature", fontsize=7)
    plt.gcf().axes[0].set_ylabel("spurious feature", fontsize=7)


def relations() -> None:
    """The weights of the features in the relation of each site: those shared by all sites, and those of the site."""
    task = test_personal_layers.other_relations(SEED)
    bars = []
    for site in task.inside:
        split = task.open(site).test
        assert split.labels is not None
        sign = 2.0 * split.labels[:, 0] - 1
        bars.append(np.linalg.lstsq(split.inputs, sign, rcond=None)[0])
    limit = float(np.abs(bars).max())
    for axis, weights in zip(panels([site.replace("-", " ") for site in task.inside]), bars, strict=True):
        axis.bar(range(1, len(weights) + 1), weights, color=np.where(weights > 0, *COLOURS[:2]))
        axis.set(ylim=(-limit, limit), xticks=[1, 5, 10])
        axis.set_xlabel("feature", fontsize=7)
    plt.gcf().axes[0].set_ylabel("weight for class 1", fontsize=7)


def directions() -> None:
    """The examples of each site in two of the three shared directions."""
    task = test_shared_representation.shared_directions(SEED)
    shared = np.random.default_rng(SEED).normal(
        size=(test_shared_representation.FEATURES, test_shared_representation.DIRECTIONS)
    )
    for axis, site in zip(panels([site.replace("-", " ") for site in task.inside[:4]]), task.inside, strict=False):
        split = task.open(site).test
        assert split.labels is not None
        projected = split.inputs[:SHOWN] @ shared[:, :2]
        axis.scatter(*projected.T, c=split.labels[:SHOWN, 0], cmap=ListedColormap(COLOURS[:2]), s=6, linewidths=0)
        axis.set_xlabel("direction 1", fontsize=7)
    plt.gcf().axes[0].set_ylabel("direction 2", fontsize=7)


PICTURES: dict[str, Callable[[], None]] = {
    "discs_labels": lambda: discs(test_fedsm.SOURCES, ["x", "y"]),
    "discs_contrast": lambda: discs(test_iopfl.SOURCES, ["x"]),
    "discs_brightness": lambda: discs(test_domain_generalisation.BRIGHTNESS, ["x"], 3.2),
    "discs_scanners": lambda: discs(test_domain_generalisation.SCANNERS, ["x"]),
    "discs_minority": lambda: discs(test_domain_generalisation.MINORITY, ["x"]),
    "levels": levels,
    "spurious": spurious,
    "drift": lambda: lines(test_local_drift.task(SEED)),
    "unequal_steps": lambda: lines(test_local_drift.task_of_unequal_sites(SEED)),
    "scales": lambda: features(test_personal_layers.scaled_features(SEED)),
    "relations": relations,
    "directions": directions,
    "frequencies": lambda: features(test_shared_representation.class_frequencies(SEED)),
    "outside": lambda: features(test_outside_adaptation.task(SEED), ["outside"]),
}


def main(names: Sequence[str]) -> None:
    """Write the pictures with these names, or all."""
    mpl.use("agg")
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        PICTURES[name]()
        plt.savefig(FOLDER / f"{name}.png", dpi=100, metadata={"Software": None})
        plt.close("all")


if __name__ == "__main__":
    main(sys.argv[1:])
