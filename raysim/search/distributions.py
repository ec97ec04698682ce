"""The distributions of a search: those of Ray Tune, from and as text, and their bounds, values and quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from raysim.config.introspection import PlainValue, to_python_value
from raysim.core.errors import ConfigError
from raysim.search.distribution_text import CHOICES, EXAMPLES, ParsedDistribution, empty_choice, parse_text

CHOICE_TYPES = (bool, int, float, str, type(None))  # and tuples of them


def parse_distribution(text: str, key: str) -> Domain:
    """The distribution that `text` describes, such as `uniform(0.2, 1)`. Raises ConfigError, with `key`."""
    return build_distribution(parse_text(text, key), key)


def build_distribution(parsed: ParsedDistribution, key: str) -> Domain:
    """The distribution of Ray Tune. Raises ConfigError for values that it refuses."""
    name, arguments = parsed
    if name in CHOICES:
        return listed_choices(arguments, key, grid=name == "grid")
    try:
        domain: Domain = getattr(tune, name)(*arguments)
    except ValueError as error:  # bounds that are not multiples of the step
        raise ConfigError(f"{key}: {name}({', '.join(map(str, arguments))}): {error}") from error
    return domain


def listed_choices(values: list[Any], key: str, *, grid: bool) -> Categorical:
    """A choice among `values`, or a grid over them. Raises ConfigError for values that cannot be written as text."""
    if not values:
        raise empty_choice(key, "grid" if grid else "choice")
    domain = Categorical([_checked_choice(to_python_value(value), key) for value in values])
    sampled: Categorical = domain.grid() if grid else domain.uniform()
    return sampled


def _checked_choice(value: PlainValue, key: str) -> PlainValue:
    """`value`, unchanged. Raises ConfigError for a value that cannot be parsed again from its text."""
    if isinstance(value, tuple):
        return tuple(_checked_choice(item, key) for item in value)
    if type(value) not in CHOICE_TYPES or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f"{key}: {value!r} ({type(value).__name__}) cannot be a value of a choice: expected finite numbers, text, "
            "True, False, None, or lists of them"
        )
    return value


def from_value(value: Any, key: str) -> Domain | PlainValue:
    """The entry of a space under `key`: a distribution of Ray Tune, or a plain value that is not searched.

    Raises ConfigError for a distribution without known bounds, because bounds are checked before the first trial.
    """
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return listed_choices(list(value["grid_search"]), key, grid=True)
    if not isinstance(value, Domain):
        return to_python_value(value)
    if isinstance(value, Categorical):
        return listed_choices(list(value.categories), key, grid=value.is_grid())
    if not isinstance(value, Float | Integer) or not isinstance(_base_sampler(value), Uniform | LogUniform):
        raise ConfigError(f"{key}: {type(value).__name__} has no bounds to check; use {EXAMPLES}")
    return parse_distribution(to_text(value), key)  # so that a range from Python passes the same checks as text


def _base_sampler(domain: Domain) -> Any:
    """The sampler of a range, without the rounding to its step."""
    sampler = domain.get_sampler()
    return sampler.get_sampler() if isinstance(sampler, Quantized) else sampler


def to_text(domain: Any) -> str:
    """The distribution as text, which `parse_distribution` parses to the same distribution."""
    if isinstance(domain, Categorical):
        listed = ", ".join(map(_literal, domain.categories))
        if len(domain.categories) == 1 and isinstance(domain.categories[0], tuple):
            listed = f"[{listed}]"  # a single list would be read as the list of choices
        return f"{'grid' if domain.is_grid() else 'choice'}({listed})"
    step = step_of(domain)
    name = "randint" if isinstance(domain, Integer) else "uniform"
    log = "log" if is_logarithmic(domain) else ""
    numbers = [domain.lower, domain.upper, *([step] if step is not None else [])]
    arguments = ", ".join(repr(to_python_value(number)) for number in numbers)
    return f"{'q' if step is not None else ''}{log}{name}({arguments})"


def bounds(domain: Any) -> list[Any]:
    """The smallest and the largest value of a range, or all values of a choice."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    step = step_of(domain)
    if isinstance(domain, Integer):
        # Tune excludes the upper bound, except where the range has a step.
        last = domain.upper - 1 if step in (None, 1) else domain.upper
        return [domain.lower, last] if step is None else [_round_up(domain.lower, step), _round_down(last, step)]
    if step is None:
        return [float(domain.lower), float(domain.upper)]
    return [to_python(_round_up(domain.lower, step)), to_python(_round_down(domain.upper, step))]


def validation_values(domain: Any) -> list[Any]:
    """The values to validate before a search: all values of a choice, or the bounds of a range and a value between.

    The value between the bounds detects a key that accepts whole numbers only.
    """
    ends = bounds(domain)
    return ends if isinstance(domain, Categorical) else [*ends, clip(domain, ends[0] + 0.37 * (ends[1] - ends[0]))]


def grid_values(domain: Domain, key: str) -> list[Any]:
    """All values of a distribution. Raises ConfigError for a continuous range without a step."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    step = step_size(domain)
    if step is None:
        raise ConfigError(
            f"{key}: {to_text(domain)} is continuous, but a grid needs single values: "
            f"use choice(...) or quniform(low, high, step), or another --searcher"
        )
    first, _ = bounds(domain)
    return [type(first)(to_python(first + index * step)) for index in range(int(count_values(domain)))]


def sample(domain: Domain, rng: Any) -> Any:
    """A random value, from a numpy generator."""
    if isinstance(domain, Categorical):
        return domain.categories[int(rng.integers(len(domain.categories)))]
    return quantile(domain, float(rng.random()))


def quantile(domain: Domain, probability: float) -> Any:
    """The value of a range below which a random value lies with this probability, from 0 to 1.

    A value of a range with steps has the probability of the interval within half a step around it.
    """
    low, high = bounds(domain)
    step = step_size(domain)
    margin = step / 2 if step else 0.0
    if is_logarithmic(domain):
        first, last = math.log(low - margin), math.log(high + margin)
        value = math.exp(first + probability * (last - first))
    else:
        value = low - margin + probability * (high - low + 2 * margin)
    return clip(domain, low + math.floor((value - low + margin) / step) * step if step else value)


def count_values(domain: Domain) -> float:
    """The number of values; infinite for a continuous range."""
    if isinstance(domain, Categorical):
        return len(domain.categories)
    step, (first, last) = step_size(domain), bounds(domain)
    return round((last - first) / step) + 1 if step else math.inf


def clip(domain: Domain, value: Any) -> Any:
    """`value` moved into the bounds of a range and onto its steps; unchanged for a choice."""
    if isinstance(domain, Categorical) or not isinstance(value, int | float):
        return value
    first, last = bounds(domain)
    step = step_of(domain)
    nearest = first + round((value - first) / step) * step if step else value
    return to_python(type(first)(min(max(nearest, first), last)))


def contains(domain: Domain, value: Any) -> bool:
    """Whether a point may have `value`: a value of the distribution, or 0 for a logarithmic range.

    With 0, the term with this weight is left out, so that other trials can be compared with a trial without the term.
    """
    if isinstance(domain, Categorical):
        return value in domain.categories
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value == 0 and is_logarithmic(domain):
        return True
    first, last = bounds(domain)
    return number and first <= value <= last and (isinstance(value, int) or not isinstance(domain, Integer))


def step_of(domain: Domain) -> Any:
    """The step of a range; None for a range without one."""
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None


def step_size(domain: Domain) -> Any:
    """The distance between two values of a range; None for a continuous range."""
    return step_of(domain) or (1 if isinstance(domain, Integer) else None)


def is_logarithmic(domain: Domain) -> bool:
    """Whether the logarithm of a range is sampled uniformly."""
    return isinstance(_base_sampler(domain), LogUniform)


def to_python(value: Any) -> Any:
    """A Python number without the rounding error of sums: 0.3, not 0.30000000000000004."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if hasattr(value, "item"):
        return to_python(value.item())
    return value


def _round_up(number: Any, step: Any) -> Any:
    return math.ceil(number / step - 1e-9) * step


def _round_down(number: Any, step: Any) -> Any:
    return math.floor(number / step + 1e-9) * step


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)
