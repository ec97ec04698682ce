"""Reads configuration files and command-line overrides as nested mappings of dotted keys, and merges them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raysim.config.yaml_loader import load_yaml
from raysim.core.errors import ConfigError

SHORT_KEYS = {"data": "task.data", "network": "task.network"}
SHORT_FORMS = {"cohort": "size", "early_stopping": "patience"}  # a value of the key is the value of this field
REPLACED_MAPPINGS = ("classes",)  # mappings with user-defined keys: the new mapping replaces the old one
# The keys of these mappings are dataclass fields, so they may be dotted in a file.
FIELD_MAPPINGS = ("task", "algorithm", "data", "task.data")


def read_file(path: str) -> dict[str, Any]:
    """The nested mapping of a YAML file. Raises ConfigError for a file that cannot be read or is not a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}; check its path") from error
    value = load_yaml(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is a {type(value).__name__}: expected keys and values, such as `rounds: 20`")
    return expand_dotted_keys(value, path)


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """The nested mapping of dotted `key=value` overrides. Values are YAML; a later override takes precedence."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise ConfigError(f"cannot read {pair!r}: expected key=value, such as rounds=20 or algorithm.lr=1e-3")
        result = merge(result, expand_short_keys(nested_keys(key, load_yaml(text, f"{key}={text}"))))
    return result


def merge(base: Mapping[str, Any], override: Mapping[str, Any], *, top: bool = True) -> dict[str, Any]:
    """`base` with the values of `override`, key by key.

    With a new name of a task or an algorithm, the other keys are kept, because most tasks and algorithms have them.
    With a new name at a deeper level, they are dropped: the arguments of one network do not fit another.
    """
    result = dict(base)
    for key, value in override.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and isinstance(old, str):
            old = {"name": old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in REPLACED_MAPPINGS:
            renamed = "name" in old and "name" in value and old["name"] != value["name"]
            value = dict(value) if renamed and not top else merge(old, value, top=False)
        result[key] = value
    return result


def expand_short_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with short keys replaced by full ones: `network` becomes `task.network`."""
    result = dict(values)
    for short, path in SHORT_KEYS.items():
        if short in result:
            result = merge(result, nested_keys(path, result.pop(short)))
    for key, field in SHORT_FORMS.items():
        if result.get(key) is not None and not isinstance(result[key], Mapping):
            result[key] = {field: result[key]}
    return result


def nested_keys(key: str, value: Any) -> dict[str, Any]:
    """The nested mapping of one dotted key: `a.b` and 1 give `{a: {b: 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def dotted_keys(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of each entry of nested mappings; an empty mapping and a list are values."""
    if isinstance(value, Mapping) and (value or not prefix):
        for key, item in value.items():
            yield from dotted_keys(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def expand_dotted_keys(values: Mapping[Any, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """The mapping under `prefix` of the file `path` as a nested mapping. Raises ConfigError for conflicting values."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: key {key!r} is not text; expected a name such as rounds or task.data.seed")
        full_key = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping) and full_key in FIELD_MAPPINGS:
            value = expand_dotted_keys(value, path, full_key)
        expanded = nested_keys(key, value) if prefix else expand_short_keys(nested_keys(key, value))
        if merge(result, expanded) != merge(expanded, result):
            raise ConfigError(f"{path}: {full_key} contradicts another entry of the file; keep one of the two")
        result = merge(result, expanded)
    return result
