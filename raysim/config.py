"""The one grammar: dotted keys from a file and from the command line, checked against dataclass fields.

Imports neither torch nor Ray; a task's or an algorithm's own module is imported when its fields are needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError

from raysim.errors import ConfigError
from raysim.fields import default_of, describe, nested
from raysim.naming import nearest
from raysim.registry import algorithm_class, name_of, task_class

SHORT = {"data": "task.data", "network": "task.network"}
WHOLE = ("classes",)  # a mapping of the user's own names: another one replaces it, as a list would
WANTED = {  # pydantic speaks of Python's types
    "tuple_type": "a list, as in [a, b]",
    "dict_type": "keys and values, as in {key: value}",
    "dataclass_type": "keys and values, as in {key: value}",
    "too_short": "at least %(min_length)s items, not %(actual_length)s",
    "too_long": "at most %(max_length)s items, not %(actual_length)s",
}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each client actor gets, and how many there are."""

    gpus_per_client: Annotated[float, Ge(0), "GPUs of a client actor; a fraction shares one"] = 0.0
    cpus_per_client: Annotated[float, Gt(0), "CPUs of a client actor, and its torch threads"] = 1.0
    clients: Annotated[
        Literal["auto", "per_site"] | Annotated[int, Gt(0)],
        "client actors: as many as fit up to one per site, one per site, or a number",
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One federation."""

    task: Annotated[Any, "what is learned: `raysim list tasks`"]
    algorithm: Annotated[Any, "how it is learned: `raysim list algorithms`"]
    rounds: Annotated[int, Gt(0), "rounds of the run; schedules follow this number"] = 20
    cohort: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0)],
        "sites of a round: a fraction of the inside sites (1.0 is all), or a whole number of them",
    ] = 1.0
    min_replies: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0), Le(1)],
        "how many sites must answer a call: a fraction (1.0 is all), or a whole number; the others are left out",
    ] = 1.0
    seed: Annotated[int, Ge(0), "seed of everything random but the data's own choices (task.data.seed)"] = 0
    evaluate_every: Annotated[int, Gt(0), "rounds between two evaluations; the last round always has one"] = 1
    checkpoint_every: Annotated[int, Gt(0), "rounds between two checkpoints; the last round always has one"] = 1
    metric: Annotated[
        str | None, "the metric to show and to judge by, e.g. inside/val/dice; the task's first where not given"
    ] = None
    fleet: Annotated[Literal["ray", "local"], "where sites run: on Ray, or in this process, one by one"] = "ray"
    address: Annotated[
        str | None, "Ray cluster to join (auto, or HOST:PORT); where not given, RAY_ADDRESS, else a Ray of its own"
    ] = None
    resources: Annotated[Resources, "what each client actor gets"] = field(default_factory=Resources)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for twice in (key for key in keys if keys.count(key) > 1):
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


def read_file(path: str) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{path} must hold keys and values, such as `rounds: 20`; it holds a {type(value).__name__}")
    return _long(value)


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """Dotted `key=value` words as a nested mapping; values are read as YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise ConfigError(f"cannot read {pair!r}: expected key=value, such as rounds=20 or algorithm.lr=1e-3")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read the value of {key}: {text!r} is not YAML; quote it") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, _long(value))
    return result


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
        if isinstance(old, Mapping) and isinstance(value, Mapping) and key not in WHOLE:
            renamed = "name" in old and "name" in value and old["name"] != value["name"]
            value = dict(value) if renamed and not top else merge(old, value, top=False)
        result[key] = value
    return result


def resolve(given: Mapping[str, Any]) -> RunConfig:
    """The run that `given` describes, every key and value checked. Raises ConfigError for the first wrong ones."""
    given = _long(given)
    # The run's own keys first: a task's or an algorithm's module takes seconds to import.
    run: RunConfig = build(RunConfig, {**given, "task": None, "algorithm": None}, "")
    parts = {}
    for part, find, default in (("task", task_class, "synthetic"), ("algorithm", algorithm_class, "fedavg")):
        values = _named(given.get(part, default), part, default)
        cls = find(values["name"])
        parts[part] = build(cls, {k: v for k, v in values.items() if k != "name"}, part)
    return replace(run, **parts)


def plain(run: RunConfig) -> dict[str, Any]:
    """The run as plain values, every default written out: what config.yaml holds and `raysim run -c` repeats."""
    named = {part: {"name": name_of(type(getattr(run, part)))} for part in ("task", "algorithm")}
    # The name twice: it stands first, and wins over a field of that name in a user's own task.
    return {key: named[key] | value | named[key] if key in named else value for key, value in describe(run).items()}


def _long(given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(given)
    for short, path in SHORT.items():
        if short in result:
            value = result.pop(short)
            for part in reversed(path.split(".")):
                value = {part: value}
            result = merge(result, value)
    return result


def _named(value: Any, key: str, default: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value!r}: expected a name, or keys such as {key}.name={default}")
    name = value.get("name", default)
    if not isinstance(name, str):
        raise ConfigError(f"{key}.name={name!r}: expected a name such as {default}")
    return {**value, "name": name}


def build(cls: Any, values: Mapping[str, Any], at: str) -> Any:
    """An instance of the dataclass `cls` from `values`, which stand under the dotted key `at`."""
    checked = _checked(cls, values, at)
    try:
        return TypeAdapter(cls).validate_python(checked)
    except ValidationError as error:
        found = error.errors()
        # What is wrong with a list's items is said of the items: not that the list, without them, is too short.
        within = {e["loc"][:depth] for e in found for depth in range(len(e["loc"]))}
        wishes: dict[str, dict[str, None]] = {}  # of each key; a union wishes for each of its members
        for key, wish in (_explained(e, at) for e in found if e["loc"] not in within):
            wishes.setdefault(key, {})[wish] = None
        lines = (f"{key}: expected {', or '.join(wanted)}" for key, wanted in wishes.items())
        raise ConfigError("\n".join(lines)) from None


def _checked(cls: Any, values: Mapping[str, Any], at: str) -> dict[str, Any]:
    """`values` with short forms written out, after a look at every key."""
    hints, defaults = get_type_hints(cls), {f.name: default_of(f) for f in fields(cls) if f.init}
    result = {}
    for key, value in values.items():
        path, prefix = (f"{at}.{key}", f"{at}.") if at else (key, "")
        if key not in defaults:
            near, valid = nearest(key, defaults, prefix), ", ".join(sorted(defaults))
            deeper = "" if at else "; the task's keys begin with task., the algorithm's with algorithm."
            raise ConfigError(f"unknown key '{path}'{near}; valid under {at or 'a run'}: {valid}{deeper}")
        inner, default = nested(hints[key]), defaults[key]
        if isinstance(value, bool) and _is_number(hints[key]):  # else it would be taken for 1 or 0
            raise ConfigError(f"{path}={str(value).lower()}: expected a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}={value}: expected a finite number")
        if inner is None and isinstance(default, Mapping) and "name" in default:
            value = _with_name(value, default)
        elif inner is not None and isinstance(value, str) and any(f.name == "name" for f in fields(inner)):
            value = {"name": value}
        if inner is not None and isinstance(value, Mapping):
            value = _checked(inner, value, path)
        result[key] = value
    return result


def _with_name(value: Any, default: Mapping[str, Any]) -> Any:
    """A thing of a library by name: another name drops the default's arguments, which are not for it."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and value.get("name", default["name"]) == default["name"]:
        return {**default, **value}
    return value


def _is_number(hint: Any) -> bool:
    return hint in (int, float) or any(part in (int, float) for part in get_args(hint))


def _explained(error: Any, at: str) -> tuple[str, str]:
    """The key with its value, and what was expected of it."""
    places = [str(p) for p in error["loc"] if not (isinstance(p, str) and re.search(r"[\[\]()]|^constrained-", p))]
    # Members of a union are named in the path by their type; the user only knows the key.
    places = [p for p in places if p not in ("int", "float", "str", "bool", "none")]
    key = ".".join([at, *places] if at else places)
    if error["type"] == "missing":
        return f"{key} is missing", f"{key}=..."
    value = "null" if error["input"] is None else repr(error["input"])
    if error["type"] in WANTED:
        return f"{key}={value}", WANTED[error["type"]] % error.get("ctx", {})
    return f"{key}={value}", error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
