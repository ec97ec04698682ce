"""Chooses the best round by the mean of a metric over the sites on val cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raysim.core.numeric import is_finite_number


@dataclass
class BestRoundTracker:
    """The best round by `metric` (role/val/metric). Without a metric, no round is chosen.

    values: the mean over the sites in each evaluated round.
    improvements: the rounds, in order, that were better than all rounds before them.
    """

    metric: str | None
    better: Literal["higher", "lower"] | None
    values: dict[int, float] = field(default_factory=dict)
    improvements: list[int] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Add a row of rounds.parquet. Returns whether its round is the best so far."""
        value = row.get(f"{self.metric}/mean")
        if self.metric is None or not is_finite_number(value):
            return False
        is_best = not self.improvements or self._gain(value, self.values[self.improvements[-1]]) > 0
        self.values[row["round"]] = value
        if is_best:
            self.improvements.append(row["round"])
        return is_best

    def best(self, until: int | None = None) -> int | None:
        """The best round, or the best of the rounds up to `until`; None if no round has a value."""
        rounds = (number for number in reversed(self.improvements) if until is None or number <= until)
        return next(rounds, None)

    def evaluations_without_gain(self, min_gain: float) -> int:
        """The number of evaluations since the last gain.

        A gain is an improvement of more than `min_gain` over the value of the previous gain, so small ones add up.
        """
        reference, count = None, 0
        for value in self.values.values():
            count += 1
            if reference is None or self._gain(value, reference) > min_gain:
                reference, count = value, 0
        return count

    def clear(self) -> None:
        """Remove all rounds."""
        self.values.clear()
        self.improvements.clear()

    def _gain(self, value: float, other: float) -> float:
        return value - other if self.better == "higher" else other - value
