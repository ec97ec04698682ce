"""`raysim data scan`, `raysim data make` and `raysim data describe`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.status import Status

from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.core.formatting import format_argument, pluralize, quote_path
from raysim.core.suggestions import did_you_mean
from raysim.data.label_columns import number_label, several_labels
from raysim.data.run_command import run_command
from raysim.data.scan import write_scan
from raysim.data.summarize import dataset_kind, summarize
from raysim.data.table import read_table

if TYPE_CHECKING:
    import pandas as pd

    from raysim.core.contracts import ProgressCallback
    from raysim.data.dataset_summary import DatasetSummary


def scan(
    folders: Sequence[str], out: str | None, fractions: str, seed: int, group: str | None, console: Console
) -> None:
    """Write the table of a folder, or of several, and print a summary of it."""
    of_sites = len(folders) > 1 or ("=" in folders[0] and not Path(folders[0]).is_dir())
    target = out or ("table.csv" if of_sites else str(Path(folders[0]) / "table.csv"))
    with _status("reading folders"):
        table = write_scan(folders, target, _numbers(fractions), seed, group=group)
    recognised = f"layout: {table.attrs['layout']}; task: {table.attrs['task']}"
    _print_table(target, table, [recognised], table.attrs.get("notes", ()), console)
    found = table.attrs
    _print_next(target, found["task"], found["classes"], found["image_columns"], found["labels"], console)


def make(name: str | None, source: str | None, out: str | None, fractions: str, seed: int, console: Console) -> None:
    """Write the table of a public data set and print a summary of it; without a name, list the data sets."""
    from raysim.data.dataset_recipe import make_dataset
    from raysim.data.public_datasets import RECIPES

    if name is None:
        for known, recipe in RECIPES.items():
            console.print(f"{known:10}{recipe.title}", highlight=False, markup=False, soft_wrap=True)
        console.print("To write a table: raysim data make NAME SOURCE", style="dim", highlight=False)
        return
    if name not in RECIPES:
        raise ConfigError(f"unknown data set '{name}'{did_you_mean(name, RECIPES)}; choose from {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if source is None:
        raise ConfigError(
            f"raysim data make {name} needs the folder with the owners' files: {recipe.layout}. Download: {recipe.url}"
        )
    folder = out or name
    table, notes = make_dataset(name, recipe, Path(source), Path(folder), _numbers(fractions), seed)
    target = str(Path(folder) / "table.csv")
    terms = [f"licence: {recipe.licence}", f"to cite: {recipe.citation}"]
    _print_table(target, table, terms, notes, console)
    _print_next(target, recipe.task, recipe.classes, ("image",), (), console)


def _numbers(fractions: str) -> tuple[float, ...]:
    try:
        parts = tuple(float(part) for part in fractions.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3:
        raise ConfigError(f"--fractions {fractions}: expected three numbers that add up to 1, such as 0.7,0.1,0.2")
    return parts


def _print_table(
    target: str, table: pd.DataFrame, lines: Sequence[str], notes: Sequence[str], console: Console
) -> None:
    counts = table.groupby("split").size()
    rows = ", ".join(f"{split} {count}" for split, count in counts.items())
    sites = pluralize(table["site"].nunique(), "site")
    console.print(f"{target}: {sites}, {pluralize(len(table), 'row')} ({rows})", highlight=False, markup=False)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"  {note}", style="yellow", highlight=False, markup=False)


def _print_next(
    target: str,
    task: str,
    classes: Mapping[str, int],
    columns: Sequence[str],
    labels: Sequence[str],
    console: Console,
) -> None:
    """Print the commands for the next steps."""
    keys = f" task={task} {format_argument('task.data.labels', list(labels))}" if labels else ""
    lines = [f"to inspect the table: raysim data describe {quote_path(target)}{keys}"]
    try:
        command = f"raysim run task=tabular task.data.table={quote_path(target)}"
        with _status("reading images and masks"):
            command = command if task == "tabular" else run_command(target, task, classes, columns, labels)
        lines.append(f"to train on the table: {command}")
    except ConfigError as error:
        lines.append(f"no command to train on the table: {error}")
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def describe(table: str, root: str | None, config: str | None, overrides: Sequence[str], console: Console) -> None:
    """Print the contents of the table by site, and its problems. With keys of a run, files are read as in that run."""
    rows = read_table(table, root, needs_label=False, needs_image=False, check_files=False, in_order=True)
    keys = merge(read_file(config) if config else {}, parse_pairs(overrides))
    with _progress_bar() as show:
        summary = _summary(rows, table, root, keys, show)
    summary.print(console)


def _status(text: str) -> Status:
    """Shows what is done on stderr, if it is a terminal."""
    return Console(stderr=True).status(text)


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback]:
    """A function that shows the progress of reading files on stderr, if it is a terminal."""
    columns, terminal = ("reading files", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()), Console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _summary(
    rows: pd.DataFrame, table: str, root: str | None, keys: Mapping[str, Any], progress: ProgressCallback
) -> DatasetSummary:
    """The summary of the table, with files read as in a run with these keys."""
    summary = partial(summarize, progress=progress)
    if not keys:
        return summary(rows)
    kind = dataset_kind(rows)
    keys = merge({"task": {"name": "segmentation" if kind == "unlabelled" else kind}}, keys)
    keys = merge(keys, {"task": {"data": {"table": table} | ({"root": root} if root else {})}})
    data = resolve(keys).task.data
    from raysim.tasks.image_config import ImageData
    from raysim.tasks.multilabel import MultiLabelData
    from raysim.tasks.regression import RegressionData
    from raysim.tasks.segmentation_config import SegmentationData
    from raysim.tasks.tabular import TabularData

    if isinstance(data, TabularData):
        return summary(rows, selection=data.selection(rows), outside=data.outside)
    if isinstance(data, SegmentationData):
        return summary(rows, data.preparation(data.values(), data.colours, data.ignore))
    preparation = data.preparation(None) if isinstance(data, ImageData) else None
    if isinstance(data, MultiLabelData):
        labelled = several_labels(rows, data.labels, table, needed=False)
        return summary(labelled, preparation, target=("multilabel", data.labels))
    if isinstance(data, RegressionData):
        numbered = number_label(rows, data.target, table, needed=False)
        return summary(numbered, preparation, target=("regression", (data.target,)))
    return summary(rows, preparation)
