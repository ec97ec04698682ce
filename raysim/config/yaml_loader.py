"""The YAML loader for configuration files and for the values of command-line overrides."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from raysim.core.errors import ConfigError


# OmegaConf's loader also refuses duplicate keys and reads 1e-3 as a number, but it is private (omegaconf._utils) and
# accepts {a:1}, which YAML reads as the key 'a:1' without a value.
class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, and refuses duplicate keys and a colon without a space, as in {a:1}."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for index, (key, value) in enumerate(node.value):
            if key.value in [other.value for other, _ in node.value[:index]]:
                raise ConstructorError(None, None, f"key {key.value!r} is given twice; keep one", key.start_mark)
            if node.flow_style and value.value == "" and ":" in key.value and not key.style:
                cure = f"expected a space after ':', as in {key.value.replace(':', ': ', 1)}"
                raise ConstructorError(None, None, f"{key.value!r} has no value; {cure}", key.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
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
