"""The space of a search: dotted keys with distributions, fixed values, and the points to try first.

A key such as `algorithm.fedsm.pull` is conditional: it is active in the trials whose `algorithm` is `fedsm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Domain

from raysim.config.introspection import to_python_value
from raysim.config.merge import merge, nested_keys
from raysim.core.errors import ConfigError
from raysim.core.seeding import numpy_generator
from raysim.core.suggestions import did_you_mean
from raysim.search import distributions
from raysim.search.distribution_text import long_key, parse_arguments

Values = Mapping[str, Any]  # the values of a trial, by the keys of its space


@dataclass(frozen=True)
class Space:
    """The searched keys with their distributions, the fixed keys, and the points to try first."""

    domains: Mapping[str, Domain] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Values] = ()

    @property
    def algorithm_names(self) -> tuple[str, ...]:
        """The algorithms that are searched over; empty if the algorithm is not searched."""
        domain = self.domains.get("algorithm")
        return tuple(domain.categories) if isinstance(domain, Categorical) else ()

    def is_active(self, key: str, values: Values) -> bool:
        """Whether `key` has an effect in a trial with these `values`."""
        name = self._algorithm_of(key)
        return name is None or values.get("algorithm") == name

    def _algorithm_of(self, key: str) -> str | None:
        """The algorithm that `key` is conditional on; None if it is not conditional."""
        # Compared as a prefix: the name of a user's class contains dots.
        return next((name for name in self.algorithm_names if key.startswith(f"algorithm.{name}.")), None)

    def override(self, domains: Mapping[str, Domain]) -> Space:
        """The space with these distributions added or replaced; points outside of them are dropped."""
        removed = set(self.algorithm_names) - set(Space(domains).algorithm_names) if "algorithm" in domains else set()
        kept = {key: domain for key, domain in self.domains.items() if self._algorithm_of(key) not in removed}
        points = [
            {key: value for key, value in point.items() if key not in domains or contains(domains[key], value)}
            for point in self.points
            if point.get("algorithm") not in removed
        ]
        return replace(self, domains=kept | dict(domains), points=tuple(points))

    def run_key(self, key: str) -> str:
        """The key of a run that `key` sets: `algorithm.pull` for the conditional `algorithm.fedsm.pull`."""
        name = self._algorithm_of(key)
        return key.replace(f".{name}.", ".", 1) if name else key

    def split_conditional(self, overrides: Values) -> tuple[dict[str, Any], dict[str, Domain]]:
        """`overrides` without conditional keys, and the conditional keys, each as a choice of its single value."""
        given = overrides.get("algorithm")
        algorithm = dict(given) if isinstance(given, Mapping) else {}
        conditional = {
            name: algorithm.pop(name) for name in self.algorithm_names if isinstance(algorithm.get(name), Mapping)
        }
        if not conditional:
            return dict(overrides), {}
        rest = {key: value for key, value in overrides.items() if key != "algorithm"}
        single: dict[str, Domain] = {
            (key := f"algorithm.{name}.{option}"): distributions.listed_choices([value], key, grid=False)
            for name, values in conditional.items()
            for option, value in values.items()
        }
        return rest | ({"algorithm": algorithm} if algorithm else {}), single

    def for_algorithm(self, name: str) -> Space:
        """The space with `algorithm` fixed to `name`: its conditional keys become plain ones, others are dropped."""
        if not self.algorithm_names:
            return self

        def active(values: Mapping[str, Any]) -> dict[str, Any]:
            return {self.run_key(key): v for key, v in values.items() if self.is_active(key, {"algorithm": name})}

        points = tuple(active(point) for point in self.points if point.get("algorithm", name) == name)
        return replace(self, domains=active(self.domains), points=points)

    def apply(self, base: Mapping[str, Any], values: Values) -> dict[str, Any]:
        """The configuration of a trial, for `resolve`: `base` with these `values`."""
        result = dict(base)
        for key, value in self.active_values(values).items():
            plain = list(value) if isinstance(value, tuple) else value
            result = merge(result, nested_keys(self.run_key(key), plain))
        return result

    def sample(self, seed: int, number: int, given: Values = MappingProxyType({})) -> dict[str, Any]:
        """Point `number`, or random values if there are fewer points, with the values `given`.

        Keys that are missing in the point are random. The values depend on `seed` and `number` only.
        """
        rng = numpy_generator(seed, "trial", number)
        values = {key: distributions.sample(domain, rng) for key, domain in self.domains.items()}
        point = dict(self.points[number - 1]) if number <= len(self.points) else {}
        return self.active_values(values | point | dict(given))

    def active_values(self, values: Values) -> dict[str, Any]:
        """`values` without the conditional keys of other algorithms."""
        return {key: value for key, value in values.items() if self.is_active(key, values)}

    def grid(self, *, all_keys: bool = True) -> list[dict[str, Any]]:
        """All combinations of all keys, or of the keys declared as a grid."""
        keys = [key for key, domain in self.domains.items() if all_keys or domain.is_grid()]
        rows: list[dict[str, Any]] = [{}]
        for key in keys:
            values = distributions.grid_values(self.domains[key], key)
            # An inactive key adds no combinations.
            rows = [row | {key: value} for row in rows for value in values if self.is_active(key, row)] + [
                row for row in rows if not self.is_active(key, row)
            ]
        return rows

    def boundary_points(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each key with each of its validation values, and the algorithm that it is conditional on."""
        for key, domain in self.domains.items():
            name = self._algorithm_of(key)
            searched = self.algorithm_names if key.startswith("algorithm.") and self.algorithm_names else [None]
            for algorithm in [name] if name else searched:
                for value in distributions.validation_values(domain):
                    yield key, ({"algorithm": algorithm} if algorithm else {}) | {key: value}

    def text(self, key: str) -> str:
        """The distribution of `key` as text."""
        return distributions.to_text(self.domains[key])

    def bounds(self, key: str) -> list[Any]:
        """The smallest and the largest value of `key`, or all values of a choice."""
        return distributions.bounds(self.domains[key])

    def is_choice(self, key: str) -> bool:
        """Whether the values of `key` are listed, not a range of numbers."""
        return isinstance(self.domains[key], Categorical)

    def position(self, key: str, value: Any) -> float:
        """The position of `value` between the bounds of `key`, from 0 to 1; NaN for a value outside of a choice.

        A logarithmic range is measured by its logarithm; 0 is at its lower bound.
        """
        ends = self.bounds(key)
        if self.is_choice(key):
            return ends.index(value) / max(1, len(ends) - 1) if value in ends else float("nan")
        if value is None:
            return float("nan")
        low, high = ends
        if distributions.is_logarithmic(self.domains[key]):
            low, high, value = np.log([low, high, value or low])
        return float((value - low) / (high - low)) if high > low else 0.5

    def value_at(self, key: str, position: float) -> Any:
        """The value of a range at a position between its bounds, from 0 to 1."""
        return distributions.quantile(self.domains[key], position)


def from_mapping(space: Mapping[str, Any], points: Iterable[Values] = (), name: str = "the space") -> Space:
    """The space of dotted keys with distributions of Ray Tune, or plain values, which are fixed. Raises ConfigError."""
    for key in space:
        if not isinstance(key, str):
            raise ConfigError(f"{name}: key {key!r} is not text; expected a dotted key such as algorithm.lr")
    parsed = {key: distributions.from_value(value, key) for key, value in _with_long_keys(space, name).items()}
    searched = {key: value for key, value in parsed.items() if isinstance(value, Domain)}
    fixed = {key: value for key, value in parsed.items() if key not in searched}
    return Space(searched, fixed, parse_points(points, searched, name))


def parse_points(points: Any, searched: Mapping[str, Domain], name: str) -> tuple[dict[str, Any], ...]:
    """The points to try first, by long keys. Raises ConfigError for a key that is not searched."""
    if isinstance(points, str | Mapping) or not all(isinstance(point, Mapping) for point in points):
        raise ConfigError(f"{name}: points={points!r}: expected a list of points, such as [{{'algorithm.lr': 0.01}}]")
    parsed = []
    for point in points:
        values = {key: to_python_value(value) for key, value in _with_long_keys(point, name).items()}
        for key in values:
            if key not in searched:
                raise ConfigError(f"{name}: a point sets {key}, which is not searched{did_you_mean(key, searched)}")
        parsed.append(values)
    return tuple(parsed)


def _with_long_keys(values: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """`values` by their long keys. Raises ConfigError for a key that is given in both forms."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if (long := long_key(str(key))) in result:
            raise ConfigError(f"{name}: {long} is given twice, also in its short form; keep one of them")
        result[long] = value
    return result


def from_cli(arguments: Iterable[str]) -> dict[str, Domain]:
    """The distributions of `KEY=uniform(0.2, 1)` arguments, by long keys. Raises ConfigError."""
    return {key: distributions.build_distribution(each, key) for key, each in parse_arguments(arguments).items()}


def contains(domain: Domain, value: Any) -> bool:
    """Whether a point may have `value`, as in `distributions.contains`; `value` may contain NumPy numbers."""
    return distributions.contains(domain, to_python_value(value))
