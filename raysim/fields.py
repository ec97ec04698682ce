"""The fields of a configuration dataclass: what is nested in them, their defaults, and how they are documented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt


def nested(hint: Any) -> Any:
    """The dataclass inside a field's type, if there is one."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    if get_origin(hint) in (Union, UnionType):
        return next((found for part in get_args(hint) if (found := nested(part))), None)
    return None


def describe(value: Any) -> Any:
    """`value` as plain values: dataclasses and mappings as dictionaries, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return value


@dataclass(frozen=True)
class FieldDoc:
    """One field as `raysim list` shows it."""

    name: str
    kind: str
    default: str
    doc: str


def documented(cls: Any) -> list[FieldDoc]:
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
            rows += [FieldDoc(f"{item.name}.{r.name}", r.kind, r.default, r.doc) for r in documented(inner)]
            continue
        rows.append(FieldDoc(item.name, _kind(base, notes), _shown(default_of(item)), doc))
    return rows


def _kind(hint: Any, notes: Sequence[Any]) -> str:
    limits = {
        Gt: "> {0.gt}",
        Ge: ">= {0.ge}",
        Lt: "< {0.lt}",
        Le: "<= {0.le}",
        Len: "({0.min_length} to {0.max_length})",
    }
    return " ".join([_type_name(hint), *(limits[type(note)].format(note) for note in notes if type(note) in limits)])


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
    text: str = yaml.safe_dump(describe(default), default_flow_style=True, width=1000)
    return text.replace("\n...\n", "").strip()
