"""Completion of the command line in bash, zsh and fish, by argcomplete: commands, options, keys and names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

VARIABLE = "_ARGCOMPLETE"  # set by the shell function of argcomplete
KEY_COMMANDS = ("run", "tune", "doctor", "evaluate")  # their other arguments are key=value


def add_keys(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add the keys as arguments of the commands that have them, if the shell requests completions."""
    for name in KEY_COMMANDS if VARIABLE in os.environ else ():
        keys: Any = commands[name].add_argument("keys", nargs="*")
        keys.completer = complete_keys


def complete(parser: argparse.ArgumentParser) -> None:
    """Print the completions and exit, if the shell requests them."""
    if VARIABLE in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def complete_keys(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The arguments key=value that begin with `prefix`, of the task and the algorithm that the line names."""
    given = dict(pair.split("=", 1) for pair in parsed_args.keys or () if "=" in pair)
    return [text for text in _arguments(prefix, given) if text.startswith(prefix)]


def _arguments(prefix: str, given: Mapping[str, str]) -> Iterator[str]:
    """`key=`, and `key=name` for tasks and algorithms. Keys of the task need the prefix `task.`: its import is slow."""
    from raysim.config.introspection import field_docs
    from raysim.config.schema import RunConfig
    from raysim.core.registry import algorithms, declared_algorithm_fields, task_class, tasks

    yield from (f"task={name}" for name in tasks())
    yield from (f"algorithm={name}" for name in algorithms())
    yield from (f"{row.name}=" for row in field_docs(RunConfig) if row.name not in ("task", "algorithm"))
    algorithm = given.get("algorithm", "fedavg")
    if algorithm in algorithms():
        yield from (f"algorithm.{name}=" for name in declared_algorithm_fields(algorithm))
    if prefix.startswith("task."):
        yield from (f"task.{row.name}=" for row in field_docs(task_class(given.get("task", "synthetic"))))
