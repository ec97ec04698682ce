"""Checks of the arguments of a search without Ray and torch, so that a typo is reported within a second."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysim.config.introspection import format_setting
from raysim.config.merge import merge, nested_keys
from raysim.config.resolve import resolve_without_algorithm
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms
from raysim.search.distribution_text import CHOICES, ParsedDistribution, long_key, parse_text

Keys = Mapping[str, Any]


def check_arguments_of_named_space(
    path: Path, parsed: Mapping[str, ParsedDistribution], file_keys: Keys, overrides: Keys
) -> None:
    """As `check_space_arguments`, for arguments that change the space in the Python file `path`.

    Checks nothing if the values of SPACE are only known when the file is run.
    """
    try:
        fixed, searched = _literal_space(path)
    except (ConfigError, SyntaxError, ValueError):
        return
    names = searched["algorithm"].arguments if "algorithm" in searched else ()
    if not (names and contains_key(overrides, "algorithm")):  # the keys of the others are then left out
        check_space_arguments(parsed, merge(file_keys, fixed), overrides, names)


def _literal_space(path: Path) -> tuple[dict[str, Any], dict[str, ParsedDistribution]]:
    """The fixed keys and the distributions of SPACE in the file, which is not run.

    Raises SyntaxError, ValueError or ConfigError if an entry is neither a literal nor a distribution of literals.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "SPACE"]
    (space,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets == uses)
    if not isinstance(space, ast.Dict) or None in space.keys:
        raise ValueError("SPACE is computed")
    fixed, searched = dict[str, Any](), dict[str, ParsedDistribution]()
    for name, value in zip(filter(None, space.keys), space.values, strict=True):
        key = long_key(str(ast.literal_eval(name)))
        if isinstance(value, ast.Call):
            searched[key] = parse_text(ast.unparse(value).removeprefix("tune."), key)
        else:
            fixed = merge(fixed, nested_keys(key, ast.literal_eval(value)))
    return fixed, searched


def check_space_arguments(
    parsed: Mapping[str, ParsedDistribution], file_keys: Keys, overrides: Keys, algorithm_names: Sequence[Any] = ()
) -> None:
    """Raises ConfigError for an unknown key of the `--space` arguments, and for a key that an override fixes.

    `algorithm_names` are the searched algorithms, unless an argument searches others.
    """
    searched = parsed["algorithm"].arguments if "algorithm" in parsed else algorithm_names
    names = [name for name in searched if isinstance(name, str)]
    for key in parsed:
        if contains_key(overrides, key) and not _conditional_algorithm(key, names):
            raise ConfigError(
                f"{key} is given twice: --space searches it, and the argument {key}=... fixes it; remove one of them"
            )
    check_conditional_keys(parsed, names)
    base = merge(file_keys, _without_conditional(overrides, names))
    resolve_without_algorithm(base)
    for key, (name, arguments) in parsed.items():
        for algorithm in _algorithms_of(key, names):
            run_key = key.replace(f".{algorithm}.", ".", 1) if key.startswith(f"algorithm.{algorithm}.") else key
            keys = merge(base, {"algorithm": algorithm}) if algorithm else base
            for value in arguments if name in CHOICES else arguments[:1]:
                _check_value(merge(keys, nested_keys(run_key, list(value) if isinstance(value, tuple) else value)), key)


def _check_value(keys: Keys, key: str) -> None:
    try:
        resolve_without_algorithm(keys)
    except ConfigError as error:
        raise ConfigError(f"the search space: {key}: {error}") from error


def _conditional_algorithm(key: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if key.startswith(f"algorithm.{name}.")), None)


def _algorithms_of(key: str, names: Sequence[str]) -> Sequence[str | None]:
    """The algorithms with which a key is tried; None for the algorithm of the base."""
    if name := _conditional_algorithm(key, names):
        return [name]
    return names if key.startswith("algorithm.") and names else [None]


def _without_conditional(overrides: Keys, names: Iterable[str]) -> dict[str, Any]:
    """`overrides` without the keys of single algorithms, such as `algorithm.fedsm.pull`."""
    given = overrides.get("algorithm")
    if not isinstance(given, Mapping):
        return dict(overrides)
    return {**overrides, "algorithm": {key: value for key, value in given.items() if key not in names}}


def check_conditional_keys(keys: Iterable[str], names: Sequence[str]) -> None:
    """Raises ConfigError for a key of an algorithm that is not among the searched ones, whose names are `names`."""
    known = algorithms()
    for key in keys:
        name = key.split(".")[1] if key.startswith("algorithm.") else ""
        if name not in known or name in names:
            continue
        if names:
            raise ConfigError(
                f"{key} is a key of the algorithm {name}, which is not searched; add it: --space "
                f"'algorithm=choice({', '.join([*names, name])})', or remove the key"
            )
        raise ConfigError(
            f"{key} is a key of the algorithm {name} and needs algorithm=choice({name}, ...); for a single "
            f"algorithm write algorithm.{key.split('.', 2)[2]}"
        )


def contains_key(overrides: Keys, key: str) -> bool:
    """Whether the overrides fix `key`. Further keys of an algorithm or a network do not fix its name."""
    value: Any = overrides
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return not isinstance(value, Mapping) or "name" in value


def all_keys_fixed(searched: Iterable[str], overrides: Keys) -> ConfigError:
    """The error of a space whose keys all have a fixed value."""
    key = next(iter(searched))
    value: Any = overrides
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else value
    return ConfigError(
        f"no key is searched: arguments fix every key of the space, such as {format_setting(key, value)}; remove one "
        "of these arguments, or add another key: --space 'algorithm.lr=loguniform(1e-4,1e-1)'"
    )
