"""`raysim list`: what there is by name, and the fields of one of them."""

from __future__ import annotations

import inspect
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.config.introspection import field_docs
from raysim.core import registry


def names(what: str, console: Console) -> None:
    """Print every algorithm, task or network with a line about it."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, line in _found(what).items():
        table.add_row(f"[bold]{name}[/]", line)
    console.print(table)
    console.print(f"\nraysim list {what} NAME shows one with its fields.", style="dim", highlight=False)


def one(what: str, name: str, console: Console) -> None:
    """Print one of them: what it is, its paper, and its fields with defaults and units."""
    if what in ("networks", "spaces"):
        (_network if what == "networks" else _space)(name, console)
        return
    cls = registry.algorithm_class(name) if what == "algorithms" else registry.task_class(name)
    module = sys.modules[cls.__module__]
    console.print(inspect.getdoc(module) or cls.__doc__ or "", highlight=False, markup=False, soft_wrap=True)
    key = what.removesuffix("s")
    table = Table(title=f"\nkeys under {key}.", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("key", no_wrap=True)
    for column in ("value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for row in field_docs(cls):
        if row.name != "name":
            table.add_row(*map(Text, (row.name, row.kind, row.default, row.doc)))  # as text: a list is no markup
    console.print(table)


def _network(name: str, console: Console) -> None:
    from raysim.tasks.networks import network_class

    cls = network_class(name)
    console.print(inspect.getdoc(cls) or cls.__name__, highlight=False, markup=False)
    table = Table("key", "default", title="\nkeys under task.network.", title_justify="left", box=SIMPLE_HEAD)
    for parameter in list(inspect.signature(cls).parameters.values()):
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(Text(parameter.name), Text(default))
    console.print(table)
    console.print("What the task knows (dimensions, channels, image size) it fills in.", style="dim", highlight=False)


def _space(name: str, console: Console) -> None:
    from raysim.search.space_files import read_space, space_docstring

    space = read_space(name)
    console.print(space_docstring(name), highlight=False, markup=False, soft_wrap=True)
    table = Table("key", "searched", "first points", title="\nwhat is searched", title_justify="left", box=SIMPLE_HEAD)
    for key in space.domains:
        points = ", ".join(str(point[key]) for point in space.points if key in point)
        table.add_row(*map(Text, (key, space.text(key), points)))
    console.print(table)


def _found(what: str) -> dict[str, str]:
    if what == "spaces":
        from raysim.search.space_files import installed_spaces

        return installed_spaces()
    if what == "networks":
        from raysim.tasks.networks import list_networks

        return list_networks()
    return registry.algorithms() if what == "algorithms" else registry.tasks()
