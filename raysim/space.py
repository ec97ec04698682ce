"""The space of a search: dotted keys with distributions, where they come from, and the look at all of them before it.

A key such as `algorithm.fedsm.pull` counts where `algorithm` is searched too, in the trials that draw `fedsm`.
"""

from __future__ import annotations

import ast
import pkgutil
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray.tune.search.sample import Categorical, Domain

from raysim import domains
from raysim.config import SHORT, merge, nested_keys, resolve
from raysim.errors import ConfigError
from raysim.fields import said
from raysim.naming import nearest
from raysim.registry import algorithms
from raysim.seeding import generator

PACKAGE = "search_spaces"
UNSEARCHED = {  # keys that a search does not vary, and why
    **dict.fromkeys(("resources", "fleet", "address"), "it changes no result"),
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

    def counts(self, key: str, values: Values) -> bool:
        """Whether `key` means something in a trial of these `values`."""
        of = self._owner(key)
        return of is None or values.get("algorithm") == of

    def _owner(self, key: str) -> str | None:
        parts = key.split(".")
        return parts[1] if len(parts) > 2 and parts[0] == "algorithm" and parts[1] in self.names else None

    def narrowed(self, words: Mapping[str, Domain]) -> Space:
        """The same with these distributions over its own; of its points what still lies within."""
        gone = set(self.names) - set(Space(words).names) if "algorithm" in words else set()
        kept = {key: domain for key, domain in self.domains.items() if self._owner(key) not in gone} | dict(words)
        points = [
            {key: value for key, value in point.items() if key not in words or _holds(words[key], value)}
            for point in self.points
            if point.get("algorithm") not in gone
        ]
        return replace(self, domains=kept, points=tuple(points))

    def of_one(self, name: str) -> Space:
        """What is left where the algorithm is given: its own keys without its name, and those of all."""
        if not self.names:
            return self

        def own(values: Mapping[str, Any]) -> dict[str, Any]:
            short = {key: key.replace(f"algorithm.{name}.", "algorithm.", 1) for key in values}
            return {short[key]: value for key, value in values.items() if self.counts(key, {"algorithm": name})}

        points = tuple(own(point) for point in self.points if point.get("algorithm", name) == name)
        return replace(self, domains=own(self.domains), points=points)

    def dotted(self, values: Values) -> dict[str, Any]:
        """The keys of a run that these `values` give."""
        found = {}
        for key, value in values.items():
            if self.counts(key, values):
                owner = self._owner(key)
                found[key.replace(f".{owner}.", ".", 1) if owner else key] = value
        return found

    def given(self, base: Mapping[str, Any], values: Values) -> dict[str, Any]:
        """What a trial gives to `resolve`: `base` with the fixed keys and these `values`."""
        result = dict(base)
        for key, value in self.dotted(values).items():
            result = merge(result, nested_keys(key, list(value) if isinstance(value, tuple) else value))
        return result

    def drawn(self, seed: int, number: int) -> dict[str, Any]:
        """The values of trial `number`, drawn by (seed, number) alone: whatever ran before it, and where."""
        rng = generator(seed, "trial", number)
        values = {key: domains.drawn(domain, rng) for key, domain in self.domains.items()}
        return self.counted(values | (dict(self.points[number - 1]) if number <= len(self.points) else {}))

    def counted(self, values: Values) -> dict[str, Any]:
        """Those of `values` that mean something together."""
        return {key: value for key, value in values.items() if self.counts(key, values)}

    def grid(self, only: bool = True) -> list[dict[str, Any]]:
        """Every combination of all keys, or of those alone that are a grid (`only` False)."""
        keys = [key for key, domain in self.domains.items() if only or domain.is_grid()]
        rows: list[dict[str, Any]] = [{}]
        for key in keys:
            values = domains.grid_of(self.domains[key], key)
            # A key that means nothing in a row makes no more rows of it.
            rows = [row | {key: v} for row in rows for v in values if self.counts(key, row)] + [
                row for row in rows if not self.counts(key, row)
            ]
        return rows

    def corners(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each end of each key, alone, with the algorithm that it is for."""
        for key, domain in self.domains.items():
            owner = self._owner(key)
            names = [owner] if owner else self.names if key.startswith("algorithm.") and self.names else [None]
            for name in names:
                for value in domains.samples(domain):
                    yield key, ({"algorithm": name} if name else {}) | {key: value}


def read_space(name: str) -> Space:
    """The space in a Python file (`my_space.py`), or of this short name in `search_spaces`.

    Raises ConfigError where there is none.
    """
    path = Path(name) if name.endswith(".py") else _shipped(name)
    try:
        found = runpy.run_path(str(path))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no search space {name}; see `raysim list spaces`, or give a file of yours"
        ) from error
    except Exception as error:  # whatever is wrong with it, it is the user's to mend
        raise ConfigError(f"the search space {name} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found.get("SPACE"), Mapping):
        raise ConfigError(
            f"the search space {name} has no SPACE: expected SPACE = {{'algorithm.lr': tune.loguniform(...)}}"
        )
    return of_mapping(found["SPACE"], found.get("POINTS", ()), name)


def of_mapping(space: Mapping[str, Any], points: Iterable[Values] = (), name: str = "the space") -> Space:
    """The space of dotted keys with Tune's distributions, texts of them, or plain values, which stay as they are."""
    taken = {}
    for key, value in space.items():
        if not isinstance(key, str):
            raise ConfigError(f"{name}: key {key!r} is not text; expected a dotted key such as algorithm.lr")
        taken[_long(key)] = domains.taken(value, key)
    searched = {key: value for key, value in taken.items() if isinstance(value, Domain)}
    fixed = {key: value for key, value in taken.items() if key not in searched}
    named = tuple({_long(key): value for key, value in point.items()} for point in points)
    return Space(searched, fixed, named)


def _long(key: str) -> str:
    """A key as it stands in a run: `network.norm` is `task.network.norm`."""
    first, dot, rest = key.partition(".")
    return "cohort.size" if key == "cohort" else f"{SHORT.get(first, first)}{dot}{rest}"


def of_words(words: Iterable[str]) -> dict[str, Domain]:
    """The distributions of `KEY=uniform(0.2, 1)` words."""
    found: dict[str, Domain] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(
                f"cannot read --space {word!r}: expected KEY=DISTRIBUTION, as in algorithm.lr={domains.SHAPES}"
            )
        key = _long(key)
        if key in found:
            raise ConfigError(f"--space {key} is given twice; keep one of them")
        found[key] = domains.read(text, key)
    return found


def shipped() -> dict[str, str]:
    """The short names of the spaces that come along, each with its first line."""
    folder = _folder()
    return {module.name: _first_line(folder / f"{module.name}.py") for module in pkgutil.iter_modules([str(folder)])}


def _first_line(path: Path) -> str:
    return _said(path).split("\n")[0]


def _said(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def text_of(name: str) -> str:
    """What the space of this short name, or in this file, says of itself."""
    return _said(Path(name) if name.endswith(".py") else _shipped(name))


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE!r} is not installed; install raysim whole (`pip install .`)")
    return Path(next(iter(spec.submodule_search_locations)))


def _shipped(name: str) -> Path:
    known = shipped()
    if name not in known:
        raise ConfigError(
            f"unknown search space '{name}'{nearest(name, known)}; valid: {', '.join(sorted(known))}, "
            "or a file of yours that ends with .py"
        )
    return _folder() / f"{name}.py"


def check(space: Space, base: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that no run has, for an end that it cannot take, and for a point out of range."""
    for key in space.domains:
        why = UNSEARCHED.get(key.split(".")[0])
        if why:
            raise ConfigError(f"{key} cannot be searched: {why}")
    _check_names(space)
    for key, values in space.corners():
        _tried(space, base, values, f"{key} is {domains.written(space.domains[key])}")
    for number, point in enumerate(space.points, 1):
        for key, value in point.items():
            _check_point(space, key, value)
        whole = space.drawn(0, number)
        _tried(space, base, whole, f"point {number}")


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
        raise ConfigError(f"a point gives {key}, which is not searched{nearest(key, space.domains)}")
    if not _holds(space.domains[key], value):
        raise ConfigError(f"a point gives {said(key, value)}, outside of {domains.written(space.domains[key])}")


def _holds(domain: Domain, value: Any) -> bool:
    return domains.holds(domain, tuple(value) if isinstance(value, list) else value)


def _tried(space: Space, base: Mapping[str, Any], values: Values, what: str) -> None:
    try:
        resolve(space.given(base, values))
    except ConfigError as error:
        raise ConfigError(f"the search space: {what}: {error}") from error
