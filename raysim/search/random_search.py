"""The values of the trials of a random search: spread evenly over the space, without repetition.

They are a function of the space and the seed, so the values of trial N are the same in every session.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical

from raysim.core.seeding import numpy_generator, stable_seed
from raysim.search import distributions
from raysim.search.samplers import TrialValues
from raysim.search.space import Space

ATTEMPTS = 64  # to find a block of new values, before the remaining configurations are listed
MAX_LISTED = 100_000  # configurations of a space up to which they are listed


def random_trials(space: Space, seed: int, samples: int, *, repeated: bool = False) -> Iterator[TrialValues]:
    """The values of the trials in order: up to `samples` for each combination of the grid keys.

    The points of the space come first. A combination whose configurations have all been drawn has no further trials,
    or, if `repeated`, is drawn again.
    """
    rows = {index: _row_trials(space, row, seed, repeated) for index, row in enumerate(space.grid(all_keys=False))}
    for _ in range(samples):
        for index in list(rows):
            if (values := next(rows[index], None)) is None:
                del rows[index]
            else:
                yield values


def _row_trials(space: Space, row: TrialValues, seed: int, repeated: bool) -> Iterator[TrialValues]:
    """The values of the trials for one combination `row` of the grid keys."""
    drawn = set[str]()
    for number in range(1, len(space.points) + 1):
        values = space.sample(seed, number, row)
        if repr(values) not in drawn:
            drawn.add(repr(values))
            yield values
    samplers = _algorithm_samplers(space, row, seed)
    turns, open_samplers = numpy_generator(seed, "algorithms"), list(range(len(samplers)))
    while open_samplers:
        for index in turns.permutation(open_samplers):  # each algorithm once in a block
            if (sampled := samplers[index].draw(drawn)) is None:
                open_samplers.remove(index)
            else:
                drawn.add(repr(sampled))
                yield sampled
        if repeated and not open_samplers:
            drawn.clear()
            open_samplers = list(range(len(samplers)))


def _algorithm_samplers(space: Space, row: TrialValues, seed: int) -> list[EvenSampler]:
    """A sampler for each algorithm that the space samples, or a single one."""
    sampled = "algorithm" in space.domains and "algorithm" not in row
    fixed = [{"algorithm": name} | row for name in space.algorithm_names] if sampled else [row]
    return [EvenSampler(space, values, stable_seed(seed, "even", str(values.get("algorithm")))) for values in fixed]


class EvenSampler:
    """Samples the keys of a space that are not in `fixed` and are active with these values.

    The ranges follow one scrambled Sobol sequence. For a choice, every value is drawn once before a value is
    drawn again, except for the last configurations of a finite space.
    """

    def __init__(self, space: Space, fixed: TrialValues, seed: int) -> None:
        self.fixed, self.order, self.rng = fixed, list(space.domains), np.random.default_rng(seed)
        domains = {
            key: domain for key, domain in space.domains.items() if key not in fixed and space.is_active(key, fixed)
        }
        self.choices = {key: domain.categories for key, domain in domains.items() if isinstance(domain, Categorical)}
        self.counts = {key: np.zeros(len(values), int) for key, values in self.choices.items()}
        self.ranges = {key: domain for key, domain in domains.items() if key not in self.choices}
        self.points = _sobol_points(len(self.ranges), seed)
        size = math.prod(distributions.count_values(domain) for domain in domains.values())
        self.listed = Space(domains) if size <= MAX_LISTED else None
        self.block = deque[TrialValues]()  # the next values

    def draw(self, drawn: set[str]) -> TrialValues | None:
        """The next values; None if all are drawn. Values whose text is in `drawn` are not repeated."""
        if not self.block:
            self.block.extend(self._even_block(drawn) or self._rest(drawn))
        return self.block.popleft() if self.block else None

    def _even_block(self, drawn: set[str]) -> list[TrialValues]:
        """New values with each value of the largest choice once; empty if every attempt repeats a configuration."""
        counts = {key: count.copy() for key, count in self.counts.items()}
        for _ in range(ATTEMPTS):
            block = [self._candidate() for _ in range(max((len(count) for count in counts.values()), default=1))]
            texts = set(map(repr, block))
            if len(texts) == len(block) and not texts & drawn:
                return block
            self.counts = {key: count.copy() for key, count in counts.items()}
        return []

    def _rest(self, drawn: set[str]) -> list[TrialValues]:
        """The remaining configuration that keeps the choices most balanced; empty if there is none."""
        if self.listed is None:
            return [self._candidate()]
        left = [values for row in self.listed.grid() if repr(values := self._ordered(row)) not in drawn]
        if not left:
            return []
        self.rng.shuffle(left)
        values = min(left, key=self._excess)
        for key, count in self.counts.items():
            count[self._position(key, values[key])] += 1
        return [values]

    def _candidate(self) -> TrialValues:
        values = {}
        for key, count in self.counts.items():
            index = int(self.rng.choice(np.flatnonzero(count == count.min())))
            values[key] = self.choices[key][index]
            count[index] += 1
        for (key, domain), probability in zip(self.ranges.items(), next(self.points), strict=True):
            values[key] = distributions.quantile(domain, float(probability))
        return self._ordered(values)

    def _ordered(self, values: Mapping[str, Any]) -> TrialValues:
        values = {**values, **self.fixed}
        return {key: values[key] for key in self.order if key in values}

    def _position(self, key: str, value: Any) -> int:
        return next(i for i, each in enumerate(self.choices[key]) if repr(each) == repr(value))

    def _excess(self, values: TrialValues) -> tuple[int, int]:
        """How much more often each value was drawn than the rarest one of its key: the largest excess, and the sum."""
        excess = [int(count[self._position(key, values[key])] - count.min()) for key, count in self.counts.items()]
        return max(excess, default=0), sum(excess)


def _sobol_points(dimensions: int, seed: int) -> Iterator[Sequence[float]]:
    """The points of a scrambled Sobol sequence (Owen 1998), which fill the unit cube evenly."""
    if not dimensions:
        while True:
            yield ()
    from scipy.stats import qmc  # here, because the import takes a second

    sequence = qmc.Sobol(dimensions, rng=np.random.default_rng(seed))
    yield from sequence.random_base2(0)
    for power in range(31):  # the number of points doubles, because the sequence is balanced at powers of 2
        yield from sequence.random_base2(power)
