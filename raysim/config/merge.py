"""The one grammar: dotted keys from a file and from the command line, checked against dataclass fields.

Imports neither torch nor Ray; a task's or an algorithm's own module is imported when its fields are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raysim.config.introspection import default_of, explain_errors, field_docs, format_setting, nested, to_plain
from raysim.config.schema import RunConfig
from raysim.config.yaml_loader import load_yaml
from raysim.core.errors import ConfigError
from raysim.core.registry import NESTED_ALGORITHM, algorithm_class, name_of, task_class
from raysim.core.suggestions import did_you_mean, squash

SHORT = {"data": "task.data", "network": "task.network"}
REPLACED_WHOLE = ("classes",)  # a mapping of the user's own names: another one replaces it, as a list would
PARTS = {"task": (task_class, "synthetic"), "algorithm": (algorithm_class, "fedavg")}
OF_FIELDS = ("task", "algorithm", "data", "task.data")  # mappings whose keys are fields, in a file dotted or not


def read_file(path: str) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    value = load_yaml(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold keys and values, such as `rounds: 20`; it holds a {type(value).__name__}")
    return _split(value, path)


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Dotted `key=value` words as a nested mapping; values are read as YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise ConfigError(f"cannot read {pair!r}: expected key=value, such as rounds=20 or algorithm.lr=1e-3")
        result = merge(result, expand_short_keys(nested_keys(key, load_yaml(text, f"{key}={text}"))))
    return result


def _split(values: Mapping[Any, Any], path: str, at: str = "") -> dict[str, Any]:
    """The mapping under `at` of the file `path` with its dotted keys written out, no value given twice."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: key {key!r} is not text; expected a name such as rounds or task.data.seed")
        place = f"{at}.{key}" if at else key
        if isinstance(value, Mapping) and place in OF_FIELDS:
            value = _split(value, path, place)
        given = nested_keys(key, value) if at else expand_short_keys(nested_keys(key, value))
        if merge(result, given) != merge(given, result):
            raise ConfigError(f"{path}: {place} gives another value to what a key before it gave; keep one of them")
        result = merge(result, given)
    return result


def nested_keys(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def merge(base: Mapping[str, Any], over: Mapping[str, Any], *, top: bool = True) -> dict[str, Any]:
    """`base` with the values of `over`, key by key.

    A new name keeps the other keys of an algorithm or a task, which share most of them, and drops those of anything
    deeper: the arguments of one network are not for another.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and isinstance(old, str):
            old = {"name": old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in REPLACED_WHOLE:
            renamed = "name" in old and "name" in value and old["name"] != value["name"]
            value = dict(value) if renamed and not top else merge(old, value, top=False)
        result[key] = value
    return result


def resolve(given: Mapping[str, Any]) -> RunConfig:
    """The run that `given` describes, every key and value checked. Raises ConfigError for the first wrong ones."""
    given = expand_short_keys(given)
    _check_keys(given)
    # The run's own keys first: a task's or an algorithm's module takes seconds to import.
    run: RunConfig = build(RunConfig, {**given, "task": None, "algorithm": None}, "")
    return replace(run, **{part: build(*_class_and_values(given, part), part) for part in PARTS})


def to_mapping(run: RunConfig) -> dict[str, Any]:
    """The run as plain values, every default written out: what config.yaml holds and `raysim run -c` repeats."""
    named = {part: {"name": name_of(type(getattr(run, part)))} for part in ("task", "algorithm")}
    # The name twice: it stands first, and wins over a field of that name in a user's own task.
    return {key: named[key] | value | named[key] if key in named else value for key, value in to_plain(run).items()}


def expand_short_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with its short keys written out: `network` is `task.network`."""
    result = dict(given)
    for short, path in SHORT.items():
        if short in result:
            result = merge(result, nested_keys(path, result.pop(short)))
    if "cohort" in result and not isinstance(result["cohort"], Mapping):
        result["cohort"] = {"size": result["cohort"]}
    return result


def _check_keys(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that a run does not have, with the nearest one: it may be the task's."""
    own = {squash(f.name): f.name for f in fields(RunConfig)}
    for key in (key for key in given if key not in own.values()):
        known = own | {squash(short): short for short in SHORT}
        for part in PARTS:
            for row in field_docs(_class_and_values(given, part)[0]):
                known.setdefault(squash(row.name.rpartition(".")[2]), f"{part}.{row.name}")
        close = get_close_matches(squash(str(key)), known, n=1)
        near = f" (did you mean '{known[close[0]]}'?)" if close else ""
        raise ConfigError(
            f"unknown key '{key}'{near}; valid under a run: {', '.join(sorted(own.values()))}; "
            "the task's keys begin with task., the algorithm's with algorithm."
        )


def _class_and_values(given: Mapping[str, Any], part: str) -> tuple[Any, dict[str, Any]]:
    find, default = PARTS[part]
    return _found(find, given.get(part, default), part, default)


def _found(find: Any, value: Any, key: str, default: str) -> tuple[Any, dict[str, Any]]:
    """The class that `value` names, and the values of its fields."""
    values = _named(value, key, default)
    return find(values["name"]), {key: value for key, value in values.items() if key != "name"}


def _named(value: Any, key: str, default: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{format_setting(key, value)}: expected a name, or keys such as {key}.name={default}")
    name = value.get("name", default)
    if not isinstance(name, str):
        raise ConfigError(f"{format_setting(f'{key}.name', name)}: expected a name such as {default}")
    return {**value, "name": name}


def build(cls: Any, values: Mapping[str, Any], at: str) -> Any:
    """An instance of the dataclass `cls` from `values`, which stand under the dotted key `at`."""
    checked = _checked(cls, values, at)
    part: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, cls], config=ConfigDict(allow_inf_nan=False))
    try:
        return part.validate_python({at: checked})[at]
    except ValidationError as error:
        raise ConfigError(explain_errors(error.errors())) from None


def _checked(cls: Any, values: Mapping[str, Any], at: str) -> dict[str, Any]:
    """`values` with short forms written out, after a look at every key."""
    hints, defaults = get_type_hints(cls), {f.name: default_of(f) for f in fields(cls) if f.init}
    extras = get_type_hints(cls, include_extras=True)
    result = {}
    for key, value in values.items():
        path = f"{at}.{key}" if at else key
        if key not in defaults:
            near, valid = did_you_mean(str(key), defaults, f"{at}."), ", ".join(sorted(defaults))
            raise ConfigError(f"unknown key '{path}'{near}; valid under {at}: {valid}")
        if _holds_another(extras[key]):
            result[key] = build(*_found(algorithm_class, value, path, defaults[key]), path)
        else:
            result[key] = _written_out(value, hints[key], defaults[key], path)
    return result


def _written_out(value: Any, hint: Any, default: Any, path: str) -> Any:
    inner = nested(hint)
    if isinstance(value, bool) and _is_number(hint):  # else it would be taken for 1 or 0
        raise ConfigError(f"{format_setting(path, value)}: expected a number")
    if inner is None and isinstance(default, Mapping) and "name" in default:
        value = _with_name(value, default)
    elif inner is not None and isinstance(value, str) and any(f.name == "name" for f in fields(inner)):
        value = {"name": value}
    if inner is not None and isinstance(value, Mapping):
        return _checked(inner, value, path)
    if (each := _values_of(hint)) is not None and isinstance(value, Mapping):
        return {k: _checked(each, v, f"{path}.{k}") if isinstance(v, Mapping) else v for k, v in value.items()}
    return value


def _holds_another(hint: Any) -> bool:
    return get_origin(hint) is Annotated and NESTED_ALGORITHM in get_args(hint)


def _values_of(hint: Any) -> Any:
    """The dataclass that a mapping's values are, if it is a mapping of such."""
    return nested(get_args(hint)[1]) if get_origin(hint) in (Mapping, dict) else None


def _with_name(value: Any, default: Mapping[str, Any]) -> Any:
    """A thing of a library by name: another name drops the default's arguments, which are not for it."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and value.get("name", default["name"]) == default["name"]:
        return {**default, **value}
    return value


def _is_number(hint: Any) -> bool:
    return hint in (int, float) or any(part in (int, float) for part in get_args(hint))
