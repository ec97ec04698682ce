"""Distributions of a search: Ray Tune's own, read from text and written as text, with their ends."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import (
    Categorical,
    Domain,
    Float,
    Grid,
    Integer,
    LogUniform,
    Quantized,
    Uniform,
)

from raysim.config.introspection import PlainValue, to_python_value
from raysim.core.errors import ConfigError

RANGES = {  # name in text -> how many numbers it takes
    **dict.fromkeys(("uniform", "loguniform", "randint", "lograndint"), 2),
    **dict.fromkeys(("quniform", "qloguniform", "qrandint", "qlograndint"), 3),
}
LISTS = ("choice", "grid")
EXAMPLES = "uniform(0, 1), loguniform(1e-4, 1e-1), quniform(0, 1, 0.1), randint(1, 9), choice(a, b) or grid(a, b)"
WORDS = {"true": True, "false": False, "none": None, "null": None}
KINDS = (bool, int, float, str, type(None))  # and tuples of them


def parse_distribution(text: str, key: str) -> Domain:
    """The distribution that `text` writes, such as `uniform(0.2, 1)`. Raises ConfigError, naming `key`, if none.

    Nothing in it is run: it is taken apart as syntax.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _unread(text, key) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
        raise _unread(text, key)
    name, values = call.func.id, [_value(node, text, key) for node in call.args]
    if name in LISTS:
        inner = list(values[0]) if len(values) == 1 and isinstance(values[0], tuple) else values
        return listed_choices(inner, key, grid=name == "grid")
    if name not in RANGES or len(values) != RANGES[name]:
        raise _unread(text, key)
    return _range(name, values, text, key)


def _range(name: str, values: list[Any], text: str, key: str) -> Domain:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{key}: {text} takes numbers, as in {name}({', '.join(['1', '9', '2'][: len(values)])})")
    if "int" in name and not all(float(value).is_integer() for value in values):
        raise ConfigError(f"{key}: {text} takes whole numbers; for others: {name.replace('randint', 'uniform')}")
    if values[0] >= values[1]:
        raise ConfigError(f"{key}: {text} has no value: its first end must be below its second")
    if "log" in name and values[0] <= 0:
        raise ConfigError(f"{key}: {text}: a logarithmic range begins above 0")
    if name.startswith("q") and values[2] <= 0:
        raise ConfigError(f"{key}: {text}: the last number is a step, above 0")
    try:
        made: Domain = getattr(tune, name)(*values)
    except ValueError as error:  # ends that are no multiples of the step
        raise ConfigError(f"{key}: {text}: {error}") from error
    return made


def listed_choices(values: list[Any], key: str, *, grid: bool) -> Categorical:
    """One of `values`, or in a grid each of them in turn."""
    if not values:
        raise ConfigError(f"{key}: a {'grid' if grid else 'choice'} needs at least one value")
    made = Categorical([_kept(to_python_value(value), key) for value in values])
    made.set_sampler(Grid() if grid else Categorical._Uniform())
    return made


def _kept(value: PlainValue, key: str) -> PlainValue:
    """`value` itself. Raises ConfigError for what could not be read again from the text that is kept of it."""
    if isinstance(value, tuple):
        return tuple(_kept(item, key) for item in value)
    if type(value) not in KINDS or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f"{key}: {value!r} ({type(value).__name__}) cannot be one of a choice: expected finite numbers, text, "
            "True, False, None, or lists of them"
        )
    return value


def taken(value: Any, key: str) -> Domain | PlainValue:
    """What stands under a key of a space: a distribution of Tune's, or a plain value that is not searched.

    Raises ConfigError for one whose ends are not known: every value must be checked before the first trial.
    """
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return listed_choices(list(value["grid_search"]), key, grid=True)
    if not isinstance(value, Domain):
        return to_python_value(value)
    sampler = value.get_sampler()
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    if isinstance(value, Categorical):
        return listed_choices(list(value.categories), key, grid=value.is_grid())
    if not isinstance(value, Float | Integer) or not isinstance(inner, Uniform | LogUniform):
        raise ConfigError(f"{key}: {type(value).__name__} has no ends that could be checked; use {EXAMPLES}")
    return parse_distribution(to_text(value), key)  # as if it were text: the same checks


def to_text(domain: Any) -> str:
    """The text that `parse_distribution` understands."""
    if isinstance(domain, Categorical):
        listed = ", ".join(map(_literal, domain.categories))
        if len(domain.categories) == 1 and isinstance(domain.categories[0], tuple):
            listed = f"[{listed}]"  # a single list would be taken for the values themselves
        return f"{'grid' if domain.is_grid() else 'choice'}({listed})"
    sampler = domain.get_sampler()
    step = sampler.q if isinstance(sampler, Quantized) else None
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    name = "randint" if isinstance(domain, Integer) else "uniform"
    log = "log" if isinstance(inner, LogUniform) else ""
    numbers = [domain.lower, domain.upper, *([step] if step is not None else [])]
    arguments = ", ".join(repr(to_python_value(number)) for number in numbers)
    return f"{'q' if step is not None else ''}{log}{name}({arguments})"


def bounds(domain: Any) -> list[Any]:
    """The smallest and the largest value that it can give, or every one of a choice."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    step = step_of(domain)
    if isinstance(domain, Integer):
        # Tune leaves the upper end out, but where it has a step.
        last = domain.upper - 1 if step in (None, 1) else domain.upper
        return [domain.lower, last] if step is None else [_up(domain.lower, step), _down(last, step)]
    if step is None:
        return [float(domain.lower), float(domain.upper)]
    return [clean(_up(domain.lower, step)), clean(_down(domain.upper, step))]


def samples(domain: Any) -> list[Any]:
    """Its ends, or every value of a choice, and of a range one in between: a key may take whole numbers only."""
    found = bounds(domain)
    return found if isinstance(domain, Categorical) else [*found, clip(domain, found[0] + 0.37 * (found[1] - found[0]))]


def grid_of(domain: Domain, key: str) -> list[Any]:
    """Every value that it can give. Raises ConfigError for a range without a step."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    step = step_of(domain) or (1 if isinstance(domain, Integer) else None)
    if step is None:
        raise ConfigError(
            f"{key}: {to_text(domain)} has values without number, and a grid needs them one by one: "
            f"give choice(...) or quniform(low, high, step), or another --searcher"
        )
    first, last = bounds(domain)
    count = round((last - first) / step) + 1
    return [type(first)(clean(first + number * step)) for number in range(count)]


def sample(domain: Domain, rng: Any) -> Any:
    """A value of it, from a numpy generator."""
    if isinstance(domain, Categorical):
        return domain.categories[int(rng.integers(len(domain.categories)))]
    return clean(domain.sample(random_state=rng))


def clip(domain: Domain, value: Any) -> Any:
    """`value`, within the ends of a range and on its steps; of a choice, itself."""
    if isinstance(domain, Categorical) or not isinstance(value, int | float):
        return value
    first, last = bounds(domain)
    step = step_of(domain)
    near = first + round((value - first) / step) * step if step else value
    return clean(type(first)(min(max(near, first), last)))


def contains(domain: Domain, value: Any) -> bool:
    """Whether it can give `value`."""
    if isinstance(domain, Categorical):
        return value in domain.categories
    number = isinstance(value, int | float) and not isinstance(value, bool)
    first, last = bounds(domain)
    return number and first <= value <= last and (isinstance(value, int) or not isinstance(domain, Integer))


def step_of(domain: Domain) -> Any:
    """The step of a range; None where it has none."""
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None


def logarithmic(domain: Domain) -> bool:
    """Whether a range is drawn by its logarithm."""
    sampler = domain.get_sampler()
    return isinstance(sampler.get_sampler() if isinstance(sampler, Quantized) else sampler, LogUniform)


def clean(value: Any) -> Any:
    """Plain Python, without the dust of sums: 0.3 and not 0.30000000000000004."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if hasattr(value, "item"):
        return clean(value.item())
    return value


def _up(number: Any, step: Any) -> Any:
    return math.ceil(number / step - 1e-9) * step


def _down(number: Any, step: Any) -> Any:
    return math.floor(number / step + 1e-9) * step


def _unread(text: str, key: str) -> ConfigError:
    return ConfigError(f"{key}: cannot read {text!r}: expected {EXAMPLES}")


def _value(node: ast.expr, text: str, key: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Name):
        return WORDS.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, text, key) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand, text, key)
        if isinstance(inner, int | float):
            return -inner
    raise _unread(text, key)


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)
