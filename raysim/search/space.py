"""The space of a search: dotted keys with distributions, where they come from, and the look at all of them before it.

A key such as `algorithm.fedsm.pull` counts where `algorithm` is searched too, in the trials that draw `fedsm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.search.sample import Categorical, Domain

from raysim.config.introspection import format_setting, to_python_value
from raysim.config.merge import SHORT_KEYS, merge, nested_keys
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms
from raysim.core.seeding import numpy_generator
from raysim.core.suggestions import did_you_mean
from raysim.search import distributions

UNSEARCHABLE = {  # keys that a search does not vary, and why
    **dict.fromkeys(("resources", "backend", "ray_address"), "it changes no result"),
    **dict.fromkeys(
        ("metric", "evaluate_every", "checkpoint_every"), "it says how trials are judged, not what they do"
    ),
    "chaos": "it makes trouble, which is the same for all trials",
}
Values = Mapping[str, Any]  # by the space's own keys


@dataclass(frozen=True)
class Space:
    """What is searched, what is fixed, and the points to look at first."""

    domains: Mapping[str, Domain] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Values] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The algorithms that are searched over; none if there is one."""
        found = self.domains.get("algorithm")
        return tuple(found.categories) if isinstance(found, Categorical) else ()

    def is_active(self, key: str, values: Values) -> bool:
        """Whether `key` means something in a trial of these `values`."""
        of = self._owner(key)
        return of is None or values.get("algorithm") == of

    def _owner(self, key: str) -> str | None:
        # By its whole name: that of a class of the user's own has dots in it.
        return next((name for name in self.names if key.startswith(f"algorithm.{name}.")), None)

    def override(self, words: Mapping[str, Domain]) -> Space:
        """The same with these distributions over its own; of its points what still lies within."""
        gone = set(self.names) - set(Space(words).names) if "algorithm" in words else set()
        kept = {key: domain for key, domain in self.domains.items() if self._owner(key) not in gone} | dict(words)
        points = [
            {key: value for key, value in point.items() if key not in words or _contains(words[key], value)}
            for point in self.points
            if point.get("algorithm") not in gone
        ]
        return replace(self, domains=kept, points=tuple(points))

    def short(self, key: str) -> str:
        """The key of a run that `key` gives: `algorithm.pull` for `algorithm.fedsm.pull`, where it counts."""
        owner = self._owner(key)
        return key.replace(f".{owner}.", ".", 1) if owner else key

    def conditional(self, words: Values) -> tuple[dict[str, Any], dict[str, Domain]]:
        """`words` without the keys of one algorithm among several, and those, each with the one value given."""
        given = words.get("algorithm")
        algorithm = dict(given) if isinstance(given, Mapping) else {}
        own = {name: algorithm.pop(name) for name in self.names if isinstance(algorithm.get(name), Mapping)}
        if not own:
            return dict(words), {}
        kept = {key: value for key, value in words.items() if key != "algorithm"}
        fixed = {f"algorithm.{name}.{key}": value for name, values in own.items() for key, value in values.items()}
        single: dict[str, Domain] = {
            key: distributions.listed_choices([value], key, grid=False) for key, value in fixed.items()
        }
        return kept | ({"algorithm": algorithm} if algorithm else {}), single

    def of_one(self, name: str) -> Space:
        """What is left where the algorithm is given: its own keys without its name, and those of all."""
        if not self.names:
            return self

        def own(values: Mapping[str, Any]) -> dict[str, Any]:
            return {self.short(key): v for key, v in values.items() if self.is_active(key, {"algorithm": name})}

        points = tuple(own(point) for point in self.points if point.get("algorithm", name) == name)
        return replace(self, domains=own(self.domains), points=points)

    def dotted(self, values: Values) -> dict[str, Any]:
        """The keys of a run that these `values` give."""
        found = {}
        for key, value in values.items():
            if self.is_active(key, values):
                found[self.short(key)] = value
        return found

    def given(self, base: Mapping[str, Any], values: Values) -> dict[str, Any]:
        """What a trial gives to `resolve`: `base` with the fixed keys and these `values`."""
        result = dict(base)
        for key, value in self.dotted(values).items():
            result = merge(result, nested_keys(key, list(value) if isinstance(value, tuple) else value))
        return result

    def sample(self, seed: int, number: int) -> dict[str, Any]:
        """The values of trial `number`, drawn by (seed, number) alone: whatever ran before it, and where."""
        rng = numpy_generator(seed, "trial", number)
        values = {key: distributions.sample(domain, rng) for key, domain in self.domains.items()}
        return self.counted(values | (dict(self.points[number - 1]) if number <= len(self.points) else {}))

    def counted(self, values: Values) -> dict[str, Any]:
        """Those of `values` that mean something together."""
        return {key: value for key, value in values.items() if self.is_active(key, values)}

    def grid(self, only: bool = True) -> list[dict[str, Any]]:
        """Every combination of all keys, or of those alone that are a grid (`only` False)."""
        keys = [key for key, domain in self.domains.items() if only or domain.is_grid()]
        rows: list[dict[str, Any]] = [{}]
        for key in keys:
            values = distributions.grid_of(self.domains[key], key)
            # A key that means nothing in a row makes no more rows of it.
            rows = [row | {key: v} for row in rows for v in values if self.is_active(key, row)] + [
                row for row in rows if not self.is_active(key, row)
            ]
        return rows

    def boundary_points(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each end of each key, alone, with the algorithm that it is for."""
        for key, domain in self.domains.items():
            owner = self._owner(key)
            names = [owner] if owner else self.names if key.startswith("algorithm.") and self.names else [None]
            for name in names:
                for value in distributions.samples(domain):
                    yield key, ({"algorithm": name} if name else {}) | {key: value}


def from_mapping(space: Mapping[str, Any], points: Iterable[Values] = (), name: str = "the space") -> Space:
    """The space of dotted keys with Tune's distributions, texts of them, or plain values, which stay as they are."""
    for key in space:
        if not isinstance(key, str):
            raise ConfigError(f"{name}: key {key!r} is not text; expected a dotted key such as algorithm.lr")
    taken = {key: distributions.taken(value, key) for key, value in _in_full(space, name).items()}
    searched = {key: value for key, value in taken.items() if isinstance(value, Domain)}
    fixed = {key: value for key, value in taken.items() if key not in searched}
    return Space(searched, fixed, points_of(points, searched, name))


def points_of(points: Any, searched: Mapping[str, Domain], name: str) -> tuple[dict[str, Any], ...]:
    """The points, each of keys that are searched. Raises ConfigError."""
    if isinstance(points, str | Mapping) or not all(isinstance(point, Mapping) for point in points):
        raise ConfigError(f"{name}: its points are {points!r}; expected a list of them: [{{'algorithm.lr': 0.01}}]")
    found = []
    for point in points:
        values = {key: to_python_value(value) for key, value in _in_full(point, name).items()}
        for key in values:
            if key not in searched:
                raise ConfigError(f"{name}: a point gives {key}, which is not searched{did_you_mean(key, searched)}")
        found.append(values)
    return tuple(found)


def _in_full(values: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """The same by long keys. Raises ConfigError for one that is given by its short key too."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if (long := _long(str(key))) in found:
            raise ConfigError(f"{name}: {long} is given twice, in its short form too; keep one of them")
        found[long] = value
    return found


def _long(key: str) -> str:
    """A key as it stands in a run: `network.norm` is `task.network.norm`."""
    if key in ("algorithm.name", "task.name"):
        return key.removesuffix(".name")
    first, dot, rest = key.partition(".")
    return "cohort.size" if key == "cohort" else f"{SHORT_KEYS.get(first, first)}{dot}{rest}"


def from_cli(words: Iterable[str]) -> dict[str, Domain]:
    """The distributions of `KEY=uniform(0.2, 1)` words."""
    found: dict[str, Domain] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read --space {word!r}: expected KEY=DISTRIBUTION, as in algorithm.lr={distributions.EXAMPLES}"
            )
        key = _long(key)
        if key in found:
            raise ConfigError(f"--space {key} is given twice; keep one of them")
        found[key] = distributions.parse_distribution(text, key)
    return found


def check(space: Space, base: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that no run has, for an end that it cannot take, and for a point out of range."""
    for key in space.domains:
        why = UNSEARCHABLE.get(key.split(".")[0])
        if why:
            raise ConfigError(f"{key} cannot be searched: {why}")
    _check_names(space)
    for key, values in space.boundary_points():
        _try_resolve(space, base, values, f"{key} is {distributions.to_text(space.domains[key])}")
    for number, point in enumerate(space.points, 1):
        for key, value in point.items():
            _check_point(space, key, value)
        whole = space.sample(0, number)
        _try_resolve(space, base, whole, f"point {number}")


def _check_names(space: Space) -> None:
    domain = space.domains.get("algorithm")
    if domain is not None and not all(isinstance(name, str) for name in space.names or [None]):
        raise ConfigError("algorithm is searched by name: expected choice(fedprox, fedsm)")
    known = {} if space.names else algorithms()
    for key in space.domains:
        name = key.split(".")[1] if key.startswith("algorithm.") else ""
        if name in known:
            raise ConfigError(
                f"{key}: a key of one algorithm among several needs algorithm=choice({name}, ...) beside it; "
                f"else write algorithm.{key.split('.', 2)[2]}"
            )


def _check_point(space: Space, key: str, value: Any) -> None:
    if key not in space.domains:
        raise ConfigError(f"a point gives {key}, which is not searched{did_you_mean(key, space.domains)}")
    if not _contains(space.domains[key], value):
        raise ConfigError(
            f"a point gives {format_setting(key, value)}, outside of {distributions.to_text(space.domains[key])}"
        )


def _contains(domain: Domain, value: Any) -> bool:
    return distributions.contains(domain, to_python_value(value))


def _try_resolve(space: Space, base: Mapping[str, Any], values: Values, what: str) -> None:
    try:
        resolve(space.given(base, values))
    except ConfigError as error:
        raise ConfigError(f"the search space: {what}: {error}") from error
