"""The JSON schema of a configuration file, made from the dataclasses: for editors, and to check files without a run.

It accepts the short forms of a file: a name instead of keys, dotted keys, `data` and `network` instead of `task.data`
and `task.network`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from raysim.config.introspection import default_value, nested_dataclass, to_plain
from raysim.config.merge import FIELD_MAPPINGS
from raysim.config.resolve import COMPONENTS, mapping_item_class
from raysim.config.schema import RunConfig
from raysim.core import registry

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOTTED_KEYS: Schema = {r"^[\w-]+(\.[\w-]+)+$": True}  # their values are checked by raysim only
LIBRARY_CLASS: Schema = {  # its arguments are those of the class
    "type": ["string", "object"],
    "properties": {"name": {"type": "string"}},
}


def run_schema(task: str | None = None, algorithm: str | None = None) -> Schema:
    """The schema of a configuration with this task and algorithm; by default with any of those that raysim has.

    Keys of other tasks and algorithms, such as `module:Class`, are accepted without a check. Raises ConfigError for an
    unknown name.
    """
    names = {
        "task": [task] if task else sorted(registry.tasks()),
        "algorithm": [algorithm] if algorithm else sorted(registry.algorithms()),
    }
    definitions, components = dict[str, Schema](), dict[str, Schema]()
    for kind, given in (("task", task), ("algorithm", algorithm)):
        find_class, default = COMPONENTS[kind]
        for name in names[kind]:
            definitions[_definition(kind, name)] = _class_schema(find_class(name), name, dotted=True)
        components[kind] = _choice(kind, names[kind], given or default)
    run = _class_schema(RunConfig, dotted=True)
    described = {
        kind: components[kind] | {"description": run["properties"][kind]["description"]} for kind in components
    }
    short = {key: {"description": f"short form of task.{key}"} for key in ("data", "network")}
    run["properties"] |= described | short
    run["properties"]["cohort"]["type"] = ["number", "object"]
    run["properties"]["early_stopping"] |= {"type": ["integer", "object", "null"], "minimum": 1}
    return {"$schema": DIALECT, "title": "Configuration of raysim run", **run, "$defs": definitions}


def _definition(kind: str, name: str) -> str:
    """The key in $defs, without characters that a JSON pointer cannot contain."""
    return re.sub(r"[^\w.]", ".", f"{kind}.{name}")


def _choice(kind: str, names: Sequence[str], default: str) -> Schema:
    """A name, or the keys of the class with this name; without a name those of the `default`."""
    name = {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": ":"}]}
    branches = [
        {
            "if": {
                "type": "object",
                "properties": {"name": {"const": each}},
                **({} if each == default else {"required": ["name"]}),
            },
            "then": {"$ref": f"#/$defs/{_definition(kind, each)}"},
        }
        for each in names
    ]
    named = {"if": {"type": "string"}, "then": name, "else": {"properties": {"name": name}}}
    return {"type": ["string", "object"], "allOf": [named, *branches]}


def _class_schema(cls: Any, name: str | None = None, *, dotted: bool = False) -> Schema:
    """The schema of the keys of a dataclass; `name` is that of a task or an algorithm. `dotted` keys may be allowed."""
    hints = get_type_hints(cls, include_extras=True)
    properties = {f.name: _field_schema(f.name, hints[f.name], default_value(f)) for f in fields(cls) if f.init}
    if name is not None:
        properties = {"name": {"const": name}} | {k: v for k, v in properties.items() if k != "name"}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | {"patternProperties": DOTTED_KEYS} if dotted else schema


def _field_schema(name: str, hint: Any, default: Any) -> Schema:
    base, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    doc = next((note for note in notes if isinstance(note, str)), "")
    schema = (
        {"$ref": "#/properties/algorithm"}
        if registry.NESTED_ALGORITHM in notes
        else _value_schema(name, hint, base, default)
    )
    described = {"description": doc, **schema} if doc else schema
    return described if default is MISSING else described | {"default": to_plain(default)}


def _value_schema(name: str, hint: Any, base: Any, default: Any) -> Schema:
    if base is Any:
        return {}
    inner, item = nested_dataclass(base), mapping_item_class(base)
    if inner is not None:
        schema = _class_schema(inner, dotted=f"task.{name}" in FIELD_MAPPINGS)
        types = ["object", *["string"] * ("name" in schema["properties"]), *["null"] * (type(None) in get_args(base))]
        return schema | {"type": types if len(types) > 1 else "object"}
    if item is not None:
        return {"type": "object", "additionalProperties": _class_schema(item)}
    if isinstance(default, Mapping) and "name" in default:
        return LIBRARY_CLASS
    return TypeAdapter(hint).json_schema()
