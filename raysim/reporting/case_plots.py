"""Plots and tables of report.html from cases.parquet: the cases of the best or the last round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from raysim.core.contracts import Array
from raysim.reporting.plots import BAR, BARS, HEIGHT, INK, INSIDE, NAME, OUTSIDE, ROLES, render_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 6  # largest number of classes with an ROC curve each
BINS = 10  # in the calibration plot
MAX_CLASSES = 20  # in a confusion matrix
TRUE_CLASS = "probability of the true class"
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))


class CaseValues:
    """The cases of one round: test cases, or val cases if a role has no test cases.

    values: a row per case; the columns are the metrics of the method's predictor, the index role, site, split, case.
    """

    def __init__(self, cases: pd.DataFrame) -> None:
        shown = cases[cases["best"]] if cases["best"].any() else cases
        shown = shown[~shown["metric"].str.contains("@")]
        if (shown["split"] == "test").any():
            shown = shown[shown["split"] == "test"]
        self.round = int(shown["round"].max()) if len(shown) else 0
        self.split = str(shown["split"].iloc[0]) if len(shown) else ""
        self.values = shown.pivot_table("value", ["role", "site", "case"], "metric", dropna=False, observed=True)
        self.values = self.values.dropna(how="all")
        names = [str(name) for name in self.values]
        self.labels = [name.removeprefix("label_") for name in names if name.startswith("label_")]  # of several labels
        self.has_numbers = "prediction" in names
        logits = (name for name in names if name.startswith("logit_") and not self.labels)
        self.logits = sorted(logits, key=lambda name: int(name.removeprefix("logit_")))

    def of_role(self, role: str) -> pd.DataFrame:
        """The cases of a role."""
        return self.values[self.values.index.get_level_values("role") == role]

    def predictions(self, role: str) -> tuple[Array, Array]:
        """The probabilities (N, K) and the labels (N,) of the cases of a role; empty if there are no logits."""
        found = self.of_role(role)
        if not self.logits or not len(found):
            return np.zeros((0, 0)), np.zeros(0, int)
        return softmax(found[self.logits].to_numpy(), axis=1), found["label"].to_numpy().astype(int)


def case_plots(cases: CaseValues, metric: str, classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields title and SVG of each plot. `metric` is the name of the main metric, without role and split."""
    plots: list[tuple[str, Callable[[Axes], object], float]] = []
    values = _by_case(cases, metric)
    if values is not None:
        name, column = values
        sites = column.index.get_level_values("site").nunique()
        draw, height = (_strips, 0.8 + 2 * BAR * sites) if sites <= BARS else (_histogram, HEIGHT)
        plots.append((f"{name} of each case, {cases.split}", partial(draw, column=column, name=name), height))
    if cases.logits or cases.labels:
        plots.append((f"ROC curves, {cases.split}", partial(_roc, cases=cases, classes=classes), WIDE))
    if cases.has_numbers:
        plots.append((f"predictions, {cases.split}", partial(_predicted_numbers, cases=cases), WIDE))
    if cases.logits:
        plots.append((f"calibration, {cases.split}", partial(_calibration, cases=cases), WIDE))
    for title, plot, inches in plots:
        if svg := render_svg(title, plot, inches):
            yield title, svg


WIDE = 3.4  # inches: as high as a square plot


def _by_case(cases: CaseValues, metric: str) -> tuple[str, pd.Series[float]] | None:
    """A score that each case has: its name and its values; None if there is none."""
    if metric in cases.values and metric != "accuracy":
        return metric, cases.values[metric].dropna()
    if cases.logits:
        labels = cases.values["label"].to_numpy().astype(int)
        probabilities = softmax(cases.values[cases.logits].to_numpy(), axis=1)
        return TRUE_CLASS, pd.Series(probabilities[np.arange(len(labels)), labels], cases.values.index)
    return None


def _strips(axes: Axes, column: pd.Series[float], name: str) -> None:
    """Plot a point for each case in the row of its site, and a mark at the median of the site; the best site on top."""
    sites = column.groupby(["role", "site"]).median().sort_values()
    jitter = np.random.default_rng(0)
    for role, colour in ROLES.items():
        at = [(place, site) for place, (of, site) in enumerate(sites.index) if of == role]
        for number, (place, site) in enumerate(at):
            values = column[role, site].to_numpy()
            height = place + jitter.uniform(-0.25, 0.25, len(values))
            axes.plot(values, height, ".", color=colour, alpha=0.5, markersize=4, label=role if number == 0 else None)
            axes.plot([np.median(values)], [place], "|", color=INK, markersize=11, markeredgewidth=2)
    names = [site if len(site) <= NAME else f"{site[: NAME - 1]}…" for _, site in sites.index]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{name}; the mark is the median")


def _histogram(axes: Axes, column: pd.Series[float], name: str) -> None:
    groups = {str(role): of.to_numpy() for role, of in column.groupby("role")}
    colours = [ROLES[role] for role in groups]
    axes.hist(list(groups.values()), bins=30, stacked=True, color=colours, label=list(groups))
    axes.set_xlabel(name)
    axes.set_ylabel("cases")


def roc_curve(scores: Array, positive: Array) -> tuple[Array, Array, float]:
    """False and true positive rates at each threshold, from the highest, and the area under the curve (trapezoids).

    scores (N,), positive (N,) boolean with both values. Equal scores are one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true, false = (np.append(0, np.cumsum(of)[last]) for of in (positive[order], ~positive[order]))
    rates = false / false[-1], true / true[-1]
    return *rates, float(np.trapezoid(rates[1], rates[0]))


def _roc(axes: Axes, cases: CaseValues, classes: Sequence[str]) -> None:
    """Plot the ROC curves of inside and outside sites, at most CURVES of each."""
    for role, colour in ROLES.items():
        for line, (name, scores, positive) in zip(LINES, _binary_scores(cases, role, classes), strict=False):
            if 0 < positive.sum() < len(positive):
                false, true, area = roc_curve(scores, positive)
                axes.plot(false, true, color=colour, linestyle=line, label=f"{role}, {name[:NAME]}: AUC {area:.3f}")
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")


def _binary_scores(cases: CaseValues, role: str, classes: Sequence[str]) -> Iterator[tuple[str, Array, Array]]:
    """Yields the name, scores and positive cases of class 1 of two classes, of each of more classes, or of each label.

    All other cases are negative.
    """
    if cases.labels:
        found = cases.of_role(role)
        for name in cases.labels:
            yield name, found[f"logit_{name}"].to_numpy(), found[f"label_{name}"].to_numpy() == 1
        return
    probabilities, labels = cases.predictions(role)
    count = len(cases.logits)
    for number in [1] if count == 2 else range(count):
        name = classes[number] if number < len(classes) else f"class {number}"
        yield name, probabilities[:, number] if len(labels) else np.zeros(0), labels == number


def _predicted_numbers(axes: Axes, cases: CaseValues) -> None:
    """Plot the predicted number of each case over its label, and the line of equal values."""
    for role, colour in ROLES.items():
        found = cases.of_role(role)
        if len(found):
            axes.plot(found["label"], found["prediction"], ".", color=colour, alpha=0.6, markersize=5, label=role)
    both = cases.values[["label", "prediction"]].to_numpy()
    axes.plot([both.min(), both.max()], [both.min(), both.max()], color=INK, alpha=0.4, linewidth=0.8)
    axes.set_xlabel("label")
    axes.set_ylabel("prediction")


def _calibration(axes: Axes, cases: CaseValues) -> None:
    """Plot the fraction of correct predictions over the mean probability of the predicted class, in BINS bins."""
    for role, colour, marker in (("inside", INSIDE, "o"), ("outside", OUTSIDE, "s")):
        probabilities, labels = cases.predictions(role)
        if len(labels):
            confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
            bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
            means = [(confidence[bins == each].mean(), right[bins == each].mean()) for each in np.unique(bins)]
            axes.plot(*zip(*means, strict=True), color=colour, marker=marker, markersize=4, label=role)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=0.8)
    axes.set_xlabel("mean probability of the predicted class")
    axes.set_ylabel("fraction of correct predictions")


def confusion_matrices(cases: CaseValues, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each role the counts of cases by class (rows) and predicted class (columns), and the names of the classes."""
    count = len(cases.logits)
    if not 2 <= count <= MAX_CLASSES:
        return []
    names = [classes[number] if number < len(classes) else str(number) for number in range(count)]
    found = []
    for role in ROLES:
        probabilities, labels = cases.predictions(role)
        if len(labels):
            counts = np.zeros((count, count), int)
            np.add.at(counts, (labels, probabilities.argmax(1)), 1)
            shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
            cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]
            found.append({"role": role, "names": names, "rows": list(zip(names, cells, strict=True))})
    return found
