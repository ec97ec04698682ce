"""`raysim list`: prints what can be listed, the names of one kind, or the keys of one entry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.cli.parser import KINDS
from raysim.config.introspection import field_docs
from raysim.core import registry

TASKS_OF = {
    "segmentation": "segmentation, synthetic",
    "classification": "classification, tabular",
    "multilabel": "multilabel",
    "regression": "regression",
}
SUPPLIED = {
    "networks": "The task fills in dimensions, channels and image size.",
    "losses": "raysim sets to_onehot_y, softmax and use_softmax, and calls the loss with logits and labels.",
    "transforms": "raysim sets keys, and mode for masks.",
}


def print_kinds(console: Console) -> None:
    """Print what can be listed."""
    _print_rows(KINDS.items(), console)
    _print_hint(
        "To show the names: raysim list KIND; to show one of them with its keys: raysim list KIND NAME", console
    )


def print_names(kind: str, console: Console) -> None:
    """Print every name of this kind with a one-line description."""
    for title, header, rows in _tables(kind):
        _print_rows(rows, console, header, title)
    _print_hint(f"To show one of them with its keys: raysim list {kind} NAME", console)
    if kind != "spaces":
        _print_hint("NAME may also be your own, module:Name (docs/own-parts.md)", console)


def print_details(kind: str, name: str, console: Console) -> None:
    """Print the description of one entry, its paper, and its keys with defaults and units."""
    if kind == "spaces":
        _print_space(name, console)
    elif kind == "metrics":
        _print_metric(name, console)
    elif kind in SUPPLIED:
        _print_factory(kind, name, console)
    else:
        _print_dataclass(kind, name, console)


def _print_rows(
    rows: Iterable[tuple[str, ...]], console: Console, header: tuple[str, ...] = (), title: str | None = None
) -> None:
    table = Table(*header, box=None, padding=(0, 2, 0, 0), show_header=bool(header), title=title, title_justify="left")
    for name, *cells in rows:
        table.add_row(Text(name, "bold"), *map(Text, cells))  # as Text, because a list would be parsed as markup
    console.print(table)


def _print_hint(text: str, console: Console) -> None:
    console.print(f"\n{text}", style="dim", highlight=False, soft_wrap=True)


def _print_dataclass(kind: str, name: str, console: Console) -> None:
    cls = registry.algorithm_class(name) if kind == "algorithms" else registry.task_class(name)
    module = sys.modules[cls.__module__]
    console.print(inspect.getdoc(module) or cls.__doc__ or "", highlight=False, markup=False, soft_wrap=True)
    key = kind.removesuffix("s")
    table = Table(title=f"\nkeys under {key}.", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("key", no_wrap=True)
    for column in ("value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in field_docs(cls):
        if row.name != "name":
            table.add_row(*map(Text, (row.name, row.kind, row.default, row.doc)))
    console.print(table)


def _print_factory(kind: str, name: str, console: Console) -> None:
    from raysim.tasks.augmentation import find_transform
    from raysim.tasks.losses import find_loss
    from raysim.tasks.networks import find_network

    find, key = {
        "networks": (find_network, "task.network."),
        "losses": (find_loss, "task.loss."),
        "transforms": (find_transform, "an entry of task.augment"),
    }[kind]
    factory = find(name)
    console.print(inspect.getdoc(factory) or factory.__name__, highlight=False, markup=False)
    table = Table("key", "default", title=f"\nkeys under {key}", title_justify="left", box=SIMPLE_HEAD)
    for parameter in inspect.signature(factory).parameters.values():
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(Text(parameter.name), Text(default))
    console.print(table)
    _print_hint(SUPPLIED[kind], console)


def _print_metric(name: str, console: Console) -> None:
    from raysim.tasks.classification_metrics import METRICS as CLASSIFICATION
    from raysim.tasks.label_metrics import METRICS as LABELS
    from raysim.tasks.metric_lookup import find_metric, format_range
    from raysim.tasks.number_metrics import METRICS as NUMBERS
    from raysim.tasks.segmentation_metrics import METRICS as SEGMENTATION

    metric = find_metric(name, LABELS | NUMBERS | SEGMENTATION | CLASSIFICATION)
    console.print(inspect.getdoc(metric.function) or metric.name, highlight=False, markup=False)
    _print_rows([("better", metric.better), ("range", format_range(metric.range))], console)


def _print_space(name: str, console: Console) -> None:
    from raysim.search.space_files import read_space, space_docstring

    space = read_space(name)
    console.print(space_docstring(name), highlight=False, markup=False, soft_wrap=True)
    table = Table("key", "distribution", "first points", title="\nsearch space", title_justify="left", box=SIMPLE_HEAD)
    for key in space.domains:
        points = ", ".join(str(point[key]) for point in space.points if key in point)
        table.add_row(*map(Text, (key, space.text(key), points)))
    console.print(table)


def _tables(kind: str) -> Iterable[tuple[str | None, tuple[str, ...], Iterable[tuple[str, ...]]]]:
    """Title, header and rows of each table of names; the last cell of a row is a description."""
    if kind == "metrics":
        yield from _metric_tables()
    elif kind == "losses":
        from raysim.tasks.losses import list_losses

        for task, losses in list_losses().items():
            yield f"\n{TASKS_OF[task]}", (), sorted(losses.items())
    elif kind == "algorithms":
        descriptions = registry.algorithms()
        for group, names in registry.algorithm_groups().items():
            yield f"\n{group}", (), [(name, descriptions[name]) for name in names]
    else:
        yield None, (), _descriptions(kind).items()


def _metric_tables() -> Iterable[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]:
    from raysim.tasks import classification_metrics, label_metrics, number_metrics, segmentation_metrics
    from raysim.tasks.factory_lookup import doc_summary
    from raysim.tasks.metric_lookup import format_range

    modules = segmentation_metrics, classification_metrics, label_metrics, number_metrics
    for task, metrics in zip(TASKS_OF, (module.METRICS for module in modules), strict=True):
        rows = [
            (metric.name, metric.better, format_range(metric.range), doc_summary(metric.function))
            for metric in metrics.values()
        ]
        yield f"\n{TASKS_OF[task]}", ("name", "better", "range", "meaning"), rows


def _descriptions(kind: str) -> dict[str, str]:
    """Every name of this kind with its one-line description."""
    if kind == "spaces":
        from raysim.search.space_files import installed_spaces

        return installed_spaces()
    if kind == "networks":
        from raysim.tasks.networks import list_networks

        return list_networks()
    if kind == "transforms":
        from raysim.tasks.augmentation import list_transforms

        return list_transforms()
    return registry.tasks()
