"""Builds checked configuration dataclasses from nested mappings, and writes them back as plain values.

Imports neither torch nor Ray. The module of a task or an algorithm is imported when its fields are needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raysim.config.introspection import default_value, field_docs, format_setting, nested_dataclass, to_plain
from raysim.config.key_hints import key_hint
from raysim.config.merge import SHORT_KEYS, expand_dotted_keys, expand_short_keys
from raysim.config.schema import RunConfig
from raysim.core.errors import ConfigError
from raysim.core.fault_injection import parse_faults
from raysim.core.registry import NESTED_ALGORITHM, algorithm_class, declared_algorithm_fields, name_of, task_class
from raysim.core.suggestions import did_you_mean, squash

# The keys of a run that name a class: the function that finds the class, and the default name.
COMPONENTS = {"task": (task_class, "synthetic"), "algorithm": (algorithm_class, "fedavg")}

EXPECTED_BY_ERROR_TYPE = {  # the messages of pydantic name Python types
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number; write a large number with all its digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number such as 0.5"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "tuple_type": "a list, as in [a,b]",
    **dict.fromkeys(("dict_type", "dataclass_type"), "keys and values, as in '{key: value}'"),
}

NUMBER_LIMITS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """The run configuration, every key and value checked. Raises ConfigError for unknown keys and invalid values."""
    values = expand_short_keys(values)
    run = _resolve_run_keys(values)
    return _checked_for_yaml(replace(run, **{key: build(*_component(values, key), key) for key in COMPONENTS}))


def resolve_without_algorithm(values: Mapping[str, Any]) -> RunConfig:
    """The run configuration with `algorithm=None`, because the module of an algorithm imports torch.

    Raises ConfigError as `resolve` does, but not for the values of the algorithm's keys.
    """
    values = expand_short_keys(values)
    run = _resolve_run_keys(values)
    return replace(run, task=build(*_component(values, "task"), "task"))


def _resolve_run_keys(values: Mapping[str, Any]) -> RunConfig:
    """The run without task and algorithm. Raises ConfigError for unknown keys, also of a built-in algorithm."""
    _check_run_keys(values)
    run: RunConfig = build(RunConfig, {**values, "task": None, "algorithm": None}, "")
    parse_faults(run.chaos)
    default = COMPONENTS["algorithm"][1]
    algorithm = _with_name(values.get("algorithm", default), "algorithm", default)
    if names := declared_algorithm_fields(algorithm["name"]):
        for key in algorithm:
            if key not in ("name", *names):
                raise _unknown_key(str(key), names, "algorithm")
    return run


def _checked_for_yaml(run: RunConfig) -> RunConfig:
    """`run`. Raises ConfigError for a value that config.yaml cannot contain, because the run could not be repeated.

    Also raises ConfigError for a default that is NaN or infinite, which pydantic does not check.
    """
    for path, value in _plain_values("", to_mapping(run)):
        if type(value) is float and not math.isfinite(value):
            raise ConfigError(f"{path}={value}: expected a finite number; give a value, or correct the default")
        if value is not None and type(value) not in (bool, int, float, str):
            raise ConfigError(
                f"{path}={value!r:.80}: config.yaml cannot store a {type(value).__name__}; expected a number, text, "
                "true, false, or a list or mapping of these (for a function: its name as text, module:name)"
            )
    return run


def _plain_values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value in nested lists and mappings, with its dotted key."""
    if type(value) is dict:
        for key, item in value.items():
            yield from _plain_values(f"{path}.{key}" if path else key, item)
    elif type(value) is list:
        for item in value:
            yield from _plain_values(path, item)
    else:
        yield path, value


def load_config(source: RunConfig | Mapping[str, Any]) -> RunConfig:
    """The run configuration of `source`: unchanged, or resolved from its keys, which may be dotted or nested.

    Raises ConfigError for unknown keys and invalid values.
    """
    if isinstance(source, RunConfig):
        return _checked_for_yaml(source)
    return resolve(expand_dotted_keys(source, "the configuration"))


def to_mapping(run: RunConfig) -> dict[str, Any]:
    """The run as plain values with every default: the content of config.yaml, which `raysim run -c` reads."""
    names = {key: {"name": name_of(type(getattr(run, key)))} for key in ("task", "algorithm")}
    # The name is merged twice: it comes first, and it overrides a field called `name` in a user-defined task.
    return {key: names[key] | value | names[key] if key in names else value for key, value in to_plain(run).items()}


def build(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """An instance of the dataclass `cls`; `values` are the keys under the dotted key `prefix`.

    Raises ConfigError for unknown keys and invalid values.
    """
    checked = _check_fields(cls, values, prefix)
    try:
        return _adapter(cls).validate_python({prefix: checked})[prefix]
    except ValidationError as error:
        raise ConfigError(_format_errors(error.errors())) from None


@lru_cache(maxsize=64)
def _adapter(cls: Any) -> TypeAdapter[dict[str, Any]]:
    """The validator of a mapping to `cls`. Cached, because a search resolves hundreds of configurations."""
    return TypeAdapter(dict[str, cls], config=ConfigDict(allow_inf_nan=False))


def _check_run_keys(values: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown top-level key, with the nearest key of the run, the task or the algorithm."""
    run_keys = {squash(f.name): f.name for f in fields(RunConfig)}
    for key in (key for key in values if key not in run_keys.values()):
        candidates = run_keys | {squash(short): short for short in SHORT_KEYS}
        for component in COMPONENTS:
            for name in _field_names(values, component):
                candidates.setdefault(squash(name.rpartition(".")[2]), f"{component}.{name}")
        close = get_close_matches(squash(str(key)), candidates, n=1)
        suggestion = key_hint(str(key)) or (f" (did you mean '{candidates[close[0]]}'?)" if close else "")
        raise ConfigError(
            f"unknown key '{key}'{suggestion}; valid keys of a run: {', '.join(sorted(run_keys.values()))}; "
            "keys of the task begin with task., keys of the algorithm with algorithm."
        )


def _field_names(values: Mapping[str, Any], component: str) -> Sequence[str]:
    """The names of the keys of the run's task or algorithm, without an import of the algorithm if it is built in."""
    default = COMPONENTS[component][1]
    name = _with_name(values.get(component, default), component, default)["name"]
    declared = declared_algorithm_fields(name) if component == "algorithm" else ()
    return declared or [row.name for row in field_docs(_component(values, component)[0])]


def _component(values: Mapping[str, Any], key: str) -> tuple[Any, dict[str, Any]]:
    """The class of the run's task or algorithm, and the values of its fields."""
    find_class, default = COMPONENTS[key]
    return _class_and_fields(find_class, values.get(key, default), key, default)


def _class_and_fields(find_class: Any, value: Any, key: str, default: str) -> tuple[Any, dict[str, Any]]:
    """The class named by `value`, and the values of its fields."""
    values = _with_name(value, key, default)
    return find_class(values["name"]), {key: value for key, value in values.items() if key != "name"}


def _with_name(value: Any, key: str, default: str) -> dict[str, Any]:
    """`value`, a name or a mapping of fields, as a mapping that has a name."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{format_setting(key, value)}: expected a name, or keys such as {key}.name={default}")
    name = value.get("name", default)
    if not isinstance(name, str):
        raise ConfigError(f"{format_setting(f'{key}.name', name)}: expected a name such as {default}")
    return {**value, "name": name}


def _check_fields(cls: Any, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`values` with short forms expanded. Raises ConfigError for a key that is not a field of `cls`."""
    hints, defaults = get_type_hints(cls), {f.name: default_value(f) for f in fields(cls) if f.init}
    annotated_hints = get_type_hints(cls, include_extras=True)
    result = {}
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        if key not in defaults:
            raise _unknown_key(str(key), defaults, prefix)
        if _is_nested_algorithm(annotated_hints[key]):
            result[key] = build(*_class_and_fields(algorithm_class, value, path, defaults[key]), path)
        else:
            result[key] = _expand_value(value, hints[key], defaults[key], path)
    return result


def _unknown_key(key: str, valid: Iterable[str], prefix: str) -> ConfigError:
    start = f"{prefix}."
    suggestion = did_you_mean(key, valid, start, cutoff=0.8) or key_hint(key) or did_you_mean(key, valid, start)
    return ConfigError(f"unknown key '{prefix}.{key}'{suggestion}; valid under {prefix}: {', '.join(sorted(valid))}")


def _expand_value(value: Any, hint: Any, default: Any, path: str) -> Any:
    """`value` of the field at `path` with short forms expanded, also within nested dataclasses."""
    inner = nested_dataclass(hint)
    if isinstance(value, bool) and _is_number(hint):  # pydantic would convert it to 1 or 0
        raise ConfigError(f"{format_setting(path, value)}: expected a number")
    if inner is None and isinstance(default, Mapping) and "name" in default:
        value = _with_default_arguments(value, default)
    elif inner is not None and isinstance(value, str) and any(f.name == "name" for f in fields(inner)):
        value = {"name": value}
    if inner is not None and isinstance(value, Mapping):
        return _check_fields(inner, value, path)
    if (item_class := mapping_item_class(hint)) is not None and isinstance(value, Mapping):
        return {
            key: _check_fields(item_class, item, f"{path}.{key}") if isinstance(item, Mapping) else item
            for key, item in value.items()
        }
    return value


def _is_nested_algorithm(hint: Any) -> bool:
    return get_origin(hint) is Annotated and NESTED_ALGORITHM in get_args(hint)


def mapping_item_class(hint: Any) -> Any:
    """The dataclass of a mapping's values; None for any other type."""
    return nested_dataclass(get_args(hint)[1]) if get_origin(hint) in (Mapping, dict) else None


def _with_default_arguments(value: Any, default: Mapping[str, Any]) -> Any:
    """A library class by name: the default arguments are added only if the name is the default one."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and value.get("name", default["name"]) == default["name"]:
        return {**default, **value}
    return value


def _is_number(hint: Any) -> bool:
    return hint in (int, float) or any(part in (int, float) for part in get_args(hint))


def _format_errors(errors: Iterable[Any]) -> str:
    """The validation errors of pydantic: a phrase for each key, with its value and everything that was expected."""
    located = [(_key_path(error["loc"]), error) for error in errors]
    # An error in an item of a list also makes the list too short. Only the error of the item is shown.
    parents = {path[:depth] for path, _ in located for depth in range(len(path))}
    expected: dict[str, dict[str, None]] = {}  # a union has one expectation for each of its members
    for path, error in located:
        if path not in parents:
            expected.setdefault(_format_subject(path, error), {})[_expectation(error)] = None
    return "; ".join(f"{subject}: expected {', or '.join(options)}" for subject, options in expected.items())


def _key_path(loc: Sequence[int | str]) -> tuple[str, ...]:
    """The parts of an error's dotted key, without the type names that pydantic adds for the members of a union."""
    parts = (str(p) for p in loc if not (isinstance(p, str) and re.search(r"[\[\]()]|^constrained-", p)))
    return tuple(p for p in parts if p not in ("", "int", "float", "str", "bool", "none"))


def _format_subject(path: Sequence[str], error: Any) -> str:
    if error["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    if error["loc"][-1] == "[key]":
        return f"the key {error['input']!r} of {'.'.join(path[:-1])}"
    return format_setting(".".join(path), error["input"])


def _expectation(error: Any) -> str:
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "a value"
    if kind in ("too_short", "too_long"):
        bound, limit = ("least", limits["min_length"]) if kind == "too_short" else ("most", limits["max_length"])
        return f"at {bound} {limit} item{'s' * (limit != 1)}, not {limits['actual_length']}"
    if kind == "string_type" and isinstance(error["input"], bool):
        return "text; for the text 'true' write '\"true\"'"
    message: str = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return EXPECTED_BY_ERROR_TYPE.get(kind, f"a number {message}" if kind in NUMBER_LIMITS else message)
