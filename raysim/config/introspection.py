"""The fields of configuration dataclasses: types, defaults, documentation, and their values as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt

from raysim.core.registry import NESTED_ALGORITHM, is_algorithm, name_of

PlainValue = bool | int | float | str | None | tuple[Any, ...]
LIMIT_FORMATS: Mapping[type, str] = {
    Gt: "> {0.gt}",
    Ge: ">= {0.ge}",
    Lt: "< {0.lt}",
    Le: "<= {0.le}",
    Len: "({0.min_length} to {0.max_length})",
}


def to_python_value(value: Any) -> PlainValue:
    """`value` with numpy scalars as Python numbers, and lists (as JSON returns them) as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    converted: PlainValue = tuple(map(to_python_value, value)) if isinstance(value, list | tuple) else value
    return converted


def to_plain(value: Any) -> Any:
    """`value` as YAML data: dataclasses and mappings as dictionaries, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        name = {"name": name_of(type(value))} if is_algorithm(value) else {}
        return name | {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def format_setting(key: str, value: Any) -> str:
    """`key=value` as a user would write it."""
    if value is None:
        return f"{key} has no value"
    return f"{key}={str(value).lower() if isinstance(value, bool) else repr(value)}"


def nested_dataclass(hint: Any) -> Any:
    """The dataclass in a field's type, which may be a union; None if there is none."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := nested_dataclass(part))), None)
    return None


def default_value(item: Any) -> Any:
    """The default of a dataclass field; MISSING if it has none."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


@dataclass(frozen=True)
class FieldDoc:
    """One row of `raysim list KIND NAME`: dotted name, type with limits, default, help text."""

    name: str
    kind: str
    default: str
    doc: str


def field_docs(cls: Any) -> list[FieldDoc]:
    """The documentation of a dataclass's fields, inherited fields last; nested fields have dotted names."""
    hints, rows = get_type_hints(cls, include_extras=True), []
    for item in sorted(fields(cls), key=lambda f: f.name not in cls.__annotations__):
        if not item.init:
            continue
        hint = hints[item.name]
        base, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        inner = nested_dataclass(base)
        doc = next((note for note in notes if isinstance(note, str)), "")
        if inner is not None:
            rows += [FieldDoc(f"{item.name}.{r.name}", r.kind, r.default, r.doc) for r in field_docs(inner)]
            continue
        rows.append(FieldDoc(item.name, _describe_type(base, notes), _format_default(default_value(item)), doc))
    return rows


def _describe_type(hint: Any, notes: Sequence[Any]) -> str:
    """The type with its limits, such as `int > 0`."""
    if NESTED_ALGORITHM in notes:
        return "an algorithm and its keys"
    return " ".join([_type_name(hint), *(_format_limit(note) for note in notes if type(note) in LIMIT_FORMATS)])


def _format_limit(note: Any) -> str:
    if isinstance(note, Len) and note.max_length is None:
        return f"({note.min_length} or more)"
    return LIMIT_FORMATS[type(note)].format(note)


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe_type(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (Union, UnionType):
        return " | ".join("none" if part is type(None) else _type_name(part) for part in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}" if arguments else "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "keys and values"
    return getattr(hint, "__name__", str(hint))


def _format_default(default: Any) -> str:
    if default is MISSING:
        return "required"
    text: str = yaml.safe_dump(to_plain(default), default_flow_style=True, width=1000)
    return text.replace("\n...\n", "").strip()
