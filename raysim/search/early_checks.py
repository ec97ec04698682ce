"""Checks of the arguments of a search without Ray and torch, so that a typo is reported within a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raysim.config.introspection import format_setting
from raysim.config.merge import merge, nested_keys
from raysim.config.resolve import resolve_without_algorithm
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms
from raysim.search.distribution_text import CHOICES, ParsedDistribution

Keys = Mapping[str, Any]


def check_space_arguments(parsed: Mapping[str, ParsedDistribution], file_keys: Keys, overrides: Keys) -> None:
    """Raises ConfigError for an unknown key of the `--space` arguments, and for a key that an override fixes."""
    names = [name for name in _algorithm_names(parsed) if isinstance(name, str)]
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


def _algorithm_names(parsed: Mapping[str, ParsedDistribution]) -> Sequence[Any]:
    return parsed["algorithm"].arguments if "algorithm" in parsed else []


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
