"""YAML as a run's files and words write it."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from raysim.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else, no key stands twice, and {a:1} is a slip."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for number, (key, value) in enumerate(node.value):
            if key.value in [other.value for other, _ in node.value[:number]]:
                raise ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            if node.flow_style and value.value == "" and ":" in key.value and not key.style:
                cure = f"a space is needed after ':', as in {key.value.replace(':', ': ', 1)}"
                raise ConstructorError(None, None, f"{key.value!r} is one word; {cure}", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


def load_yaml(text: str, source: str) -> Any:
    """The value that `text` holds. Raises ConfigError, naming `source`, for what is no YAML."""
    try:
        return yaml.load(text, _Loader)
    except ConstructorError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise ConfigError(f"cannot read {source}{where}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {source}: it is not YAML ({reason}); quote text") from error
