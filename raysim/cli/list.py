"""`raysim list`: prints the algorithms, tasks, networks and search spaces, or the keys of one of them."""

from __future__ import annotations

import inspect
import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysim.config.introspection import field_docs
from raysim.core import registry


def print_names(kind: str, console: Console) -> None:
    """Print every name of this kind with a one-line description; algorithms by group."""
    descriptions = _descriptions(kind)
    groups = registry.algorithm_groups() if kind == "algorithms" else {"": list(descriptions)}
    for group, names in groups.items():
        table = Table(
            title=group and f"\n{group}", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False
        )
        table.add_column(min_width=max(map(len, descriptions)))
        for name in names:
            table.add_row(f"[bold]{name}[/]", descriptions[name])
        console.print(table)
    console.print(f"\nTo show the keys of one: raysim list {kind} NAME", style="dim", highlight=False)


def print_details(kind: str, name: str, console: Console) -> None:
    """Print the description of one entry, its paper, and its keys with defaults and units."""
    if kind in ("networks", "spaces"):
        (_print_network if kind == "networks" else _print_space)(name, console)
        return
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
            # As Text, because a list in a string would be parsed as markup.
            table.add_row(*map(Text, (row.name, row.kind, row.default, row.doc)))
    console.print(table)


def _print_network(name: str, console: Console) -> None:
    from raysim.tasks.networks import find_network

    cls = find_network(name)
    console.print(inspect.getdoc(cls) or cls.__name__, highlight=False, markup=False)
    table = Table("key", "default", title="\nkeys under task.network.", title_justify="left", box=SIMPLE_HEAD)
    for parameter in list(inspect.signature(cls).parameters.values()):
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(Text(parameter.name), Text(default))
    console.print(table)
    console.print("The task fills in dimensions, channels and image size.", style="dim", highlight=False)


def _print_space(name: str, console: Console) -> None:
    from raysim.search.space_files import read_space, space_docstring

    space = read_space(name)
    console.print(space_docstring(name), highlight=False, markup=False, soft_wrap=True)
    table = Table("key", "distribution", "first points", title="\nsearch space", title_justify="left", box=SIMPLE_HEAD)
    for key in space.domains:
        points = ", ".join(str(point[key]) for point in space.points if key in point)
        table.add_row(*map(Text, (key, space.text(key), points)))
    console.print(table)


def _descriptions(kind: str) -> dict[str, str]:
    """Every name of this kind with its one-line description."""
    if kind == "spaces":
        from raysim.search.space_files import installed_spaces

        return installed_spaces()
    if kind == "networks":
        from raysim.tasks.networks import list_networks

        return list_networks()
    return registry.algorithms() if kind == "algorithms" else registry.tasks()
