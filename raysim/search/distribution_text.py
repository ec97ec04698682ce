"""Reads distributions from text. Imports neither Ray nor torch, so a typo is reported within a second."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from raysim.config.merge import SHORT_KEYS
from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean

RANGES = {  # name in the text -> number of its arguments
    **dict.fromkeys(("uniform", "loguniform", "randint", "lograndint"), 2),
    **dict.fromkeys(("quniform", "qloguniform", "qrandint", "qlograndint"), 3),
}
CHOICES = ("choice", "grid")
EXAMPLES = "uniform(0, 1), loguniform(1e-4, 1e-1), quniform(0, 1, 0.1), randint(1, 9), choice(a, b) or grid(a, b)"
LITERALS = {"true": True, "false": False, "none": None, "null": None}


class ParsedDistribution(NamedTuple):
    """The name of a distribution and its arguments: the numbers of a range, or the values of a choice or a grid."""

    name: str
    arguments: list[Any]


def parse_text(text: str, key: str) -> ParsedDistribution:
    """The distribution that `text` describes, such as `uniform(0.2, 1)`.

    The text is parsed as syntax and never evaluated. Raises ConfigError, with `key`, if it is not a distribution.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _parse_error(text, key) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
        raise _parse_error(text, key)
    name, values = call.func.id, [_argument(node, text, key) for node in call.args]
    if name in CHOICES:
        listed = list(values[0]) if len(values) == 1 and isinstance(values[0], tuple) else values
        if not listed:
            raise empty_choice(key, name)
        return ParsedDistribution(name, listed)
    if name not in RANGES:
        raise _parse_error(text, key, did_you_mean(name, [*RANGES, *CHOICES]))
    if len(values) != RANGES[name]:
        raise _parse_error(text, key)
    _check_range(name, values, text, key)
    return ParsedDistribution(name, values)


def empty_choice(key: str, name: str) -> ConfigError:
    """The error of a choice or a grid without values."""
    return ConfigError(f"{key}: a {name} needs at least one value")


def _check_range(name: str, values: list[Any], text: str, key: str) -> None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values) or not all(map(math.isfinite, numbers)):
        example = f"{name}({', '.join(['1', '9', '2'][: len(values)])})"
        raise ConfigError(f"{key}: {text}: expected numbers, such as {example}")
    if "int" in name and not all(float(value).is_integer() for value in values):
        other = name.replace("randint", "uniform")
        raise ConfigError(f"{key}: {text}: expected whole numbers; for other numbers use {other}(...)")
    if values[0] >= values[1]:
        raise ConfigError(f"{key}: {text} is an empty range: the lower bound must be below the upper bound")
    if "log" in name and values[0] <= 0:
        raise ConfigError(f"{key}: {text}: the lower bound of a logarithmic range must be above 0")
    if name.startswith("q") and values[2] <= 0:
        raise ConfigError(f"{key}: {text}: the last number is the step and must be above 0")


def parse_arguments(arguments: Iterable[str]) -> dict[str, ParsedDistribution]:
    """The distributions of `KEY=uniform(0.2, 1)` arguments, by long keys. Raises ConfigError."""
    parsed: dict[str, ParsedDistribution] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read --space {argument!r}: expected KEY=DISTRIBUTION, such as algorithm.lr={EXAMPLES}"
            )
        key = long_key(key)
        if key in parsed:
            raise ConfigError(f"--space {key} is given twice; keep one of them")
        parsed[key] = parse_text(text, key)
    return parsed


def long_key(key: str) -> str:
    """The full key of a run: `task.network.norm` for `network.norm`."""
    if key in ("algorithm.name", "task.name"):
        return key.removesuffix(".name")
    first, dot, rest = key.partition(".")
    return "cohort.size" if key == "cohort" else f"{SHORT_KEYS.get(first, first)}{dot}{rest}"


def _parse_error(text: str, key: str, suggestion: str = "") -> ConfigError:
    return ConfigError(f"{key}: cannot read {text!r}{suggestion}: expected {EXAMPLES}")


def _argument(node: ast.expr, text: str, key: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Name):
        return LITERALS.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_argument(item, text, key) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _argument(node.operand, text, key)
        if isinstance(number, int | float):
            return -number
    raise _parse_error(text, key)
