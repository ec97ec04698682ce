"""The YAML loader for configuration files and for the values of command-line overrides."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from raysim.core.errors import ConfigError

_WrittenLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a build of PyYAML may lack libyaml
MAX_NODES = 1_000_000  # values of a document with its aliases replaced by their contents


# OmegaConf's loader also refuses duplicate keys and reads 1e-3 as a number, but it is private (omegaconf._utils) and
# accepts {a:1}, which YAML reads as the key 'a:1' without a value.
class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, and refuses duplicate keys and a colon without a space, as in {a:1}."""

    def get_single_node(self) -> Any:
        """The document, after the check of its aliases. The interface of PyYAML."""
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):  # PyYAML reports it
                continue
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} is given twice; keep one", key.start_mark)
            seen.add(key.value)
            if node.flow_style and value.value == "" and ":" in key.value and not key.style:
                cure = f"expected a space after ':', as in {key.value.replace(':', ': ', 1)}"
                raise ConstructorError(None, None, f"{key.value!r} has no value; {cure}", key.start_mark)
        return super().construct_mapping(node, deep)


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """The number of values below `node` when each alias is replaced by its content; `counts` has those found so far.

    Raises ConstructorError for more than MAX_NODES, and for an alias that contains itself.
    """
    if id(node) not in counts:
        counts[id(node)] = MAX_NODES  # while it is counted: an alias below it would contain it
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = () if isinstance(node, yaml.ScalarNode) else parts
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in inner)
    if counts[id(node)] > MAX_NODES:
        problem = f"its aliases unfold to more than {MAX_NODES:,} values, or an alias contains itself"
        raise ConstructorError(None, None, f"{problem}; write the values without aliases", node.start_mark)
    return counts[id(node)]


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


def load_yaml(text: str, source: str) -> Any:
    """The value of the YAML document `text`. Raises ConfigError, naming `source`, for invalid YAML."""
    try:
        return yaml.load(text, _StrictLoader)
    except ConstructorError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise ConfigError(f"cannot read {source}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        reason = " ".join(str(error).split())
        cure = "put text in quotes; on a command line, quote the whole argument: 'key=[a, b]'"
        raise ConfigError(f"cannot read {source}: it is not valid YAML ({reason}); {cure}") from error


def load_written_yaml(text: str, source: str) -> Any:
    """The value of a YAML file that raysim wrote. Five times as fast as `load_yaml`, which checks a user's input.

    Raises ConfigError, naming `source`, for invalid YAML and for aliases, which raysim does not write.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _WrittenLoader)):
            raise ConfigError(f"cannot read {source}: it has an alias; write the values without aliases")
        return yaml.load(text, _WrittenLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {source}: it is not valid YAML ({reason}); correct or remove it") from error
