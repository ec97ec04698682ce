"""The fields of a configuration dataclass: what is nested in them, their defaults, how they are documented, and what
is said of a wrong value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt

from raysim.core.registry import NESTED_ALGORITHM, is_algorithm, name_of

WANTED = {  # pydantic speaks of Python's types
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number, written in digits if it is so large",
    **dict.fromkeys(("float_type", "float_parsing"), "a number such as 0.5"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "tuple_type": "a list, as in [a, b]",
    **dict.fromkeys(("dict_type", "dataclass_type"), "keys and values, as in {key: value}"),
}

Value = bool | int | float | str | None | tuple[Any, ...]
LIMITS: Mapping[type, str] = {
    Gt: "> {0.gt}",
    Ge: ">= {0.ge}",
    Lt: "< {0.lt}",
    Le: "<= {0.le}",
    Len: "({0.min_length} to {0.max_length})",
}


def as_value(value: Any) -> Value:
    """The same in Python's own: numpy's numbers as Python's, and lists, which JSON brings back, as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    found: Value = tuple(map(as_value, value)) if isinstance(value, list | tuple) else value
    return found


def nested(hint: Any) -> Any:
    """The dataclass inside a field's type, if there is one."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := nested(part))), None)
    return None


def to_plain(value: Any) -> Any:
    """`value` as plain values: dataclasses and mappings as dictionaries, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {"name": name_of(type(value))} if is_algorithm(value) else {}
        return named | {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class FieldDoc:
    """One field as `raysim list` shows it."""

    name: str
    kind: str
    default: str
    doc: str


def field_docs(cls: Any) -> list[FieldDoc]:
    """The fields of a configuration dataclass, its own before inherited ones, nested ones with dotted names."""
    hints, rows = get_type_hints(cls, include_extras=True), []
    for item in sorted(fields(cls), key=lambda f: f.name not in cls.__annotations__):
        if not item.init:
            continue
        hint = hints[item.name]
        base, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        inner = nested(base)
        doc = next((note for note in notes if isinstance(note, str)), "")
        if inner is not None:
            rows += [FieldDoc(f"{item.name}.{r.name}", r.kind, r.default, r.doc) for r in field_docs(inner)]
            continue
        rows.append(FieldDoc(item.name, _kind(base, notes), _shown(default_of(item)), doc))
    return rows


def _kind(hint: Any, notes: Sequence[Any]) -> str:
    if NESTED_ALGORITHM in notes:
        return "an algorithm, with its keys"
    return " ".join([_type_name(hint), *(_limit(note) for note in notes if type(note) in LIMITS)])


def _limit(note: Any) -> str:
    if isinstance(note, Len) and note.max_length is None:
        return f"({note.min_length} or more)"
    return LIMITS[type(note)].format(note)


def _type_name(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(inner[0], inner[1:])
    if origin is Literal:
        return " | ".join(str(choice) for choice in inner)
    if origin in (Union, UnionType):
        return " | ".join("none" if part is type(None) else _type_name(part) for part in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0])}" if inner else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "keys and values"
    return getattr(hint, "__name__", str(hint))


def default_of(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _shown(default: Any) -> str:
    if default is MISSING:
        return "required"
    text: str = yaml.safe_dump(to_plain(default), default_flow_style=True, width=1000)
    return text.replace("\n...\n", "").strip()


def format_setting(key: str, value: Any) -> str:
    """`value` under `key`, as a user would write it."""
    if value is None:
        return f"{key} has no value"
    return f"{key}={str(value).lower() if isinstance(value, bool) else repr(value)}"


def explain_errors(errors: Iterable[Any]) -> str:
    """What pydantic found wrong: a line for each key, with its value and all that was expected of it."""
    found = [(_place(error["loc"]), error) for error in errors]
    # What is wrong with a list's items is said of the items: not that the list, without them, is too short.
    within = {place[:depth] for place, _ in found for depth in range(len(place))}
    wishes: dict[str, dict[str, None]] = {}  # a union wishes for each of its members
    for place, error in found:
        if place not in within:
            wishes.setdefault(_subject(place, error), {})[_wish(error)] = None
    return "\n".join(f"{subject}: expected {', or '.join(wanted)}" for subject, wanted in wishes.items())


def _place(loc: Sequence[int | str]) -> tuple[str, ...]:
    """The dotted key of an error. Members of a union are named in `loc` by their type; the user only knows the key."""
    places = (str(p) for p in loc if not (isinstance(p, str) and re.search(r"[\[\]()]|^constrained-", p)))
    return tuple(p for p in places if p not in ("", "int", "float", "str", "bool", "none"))


def _subject(place: Sequence[str], error: Any) -> str:
    if error["type"] == "missing":
        return f"{'.'.join(place)} is missing"
    if error["loc"][-1] == "[key]":
        return f"the key {error['input']!r} of {'.'.join(place[:-1])}"
    return format_setting(".".join(place), error["input"])


def _wish(error: Any) -> str:
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "a value"
    if kind in ("too_short", "too_long"):
        word, limit = ("least", limits["min_length"]) if kind == "too_short" else ("most", limits["max_length"])
        return f"at {word} {limit} item{'s' * (limit != 1)}, not {limits['actual_length']}"
    if kind == "string_type" and isinstance(error["input"], bool):
        return "text, in quotes"
    message: str = error["msg"]
    return WANTED.get(kind, message.removeprefix("Input should be ").removeprefix("Value error, "))
