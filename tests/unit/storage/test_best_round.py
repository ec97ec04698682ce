"""The best round: the direction of the metric, ties, rounds without a value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raysim.storage.best_round import BestRoundTracker

METRIC = "inside/val/dice"


def tracked(values: list[Any], better: Any = "higher", metric: str | None = METRIC) -> BestRoundTracker:
    tracker = BestRoundTracker(metric, better)
    for number, value in enumerate(values, 1):
        tracker.add({"round": number, f"{METRIC}/mean": value, "inside/test/dice/mean": 1 - (value or 0)})
    return tracker


@pytest.mark.parametrize(("better", "expected"), [("higher", [1, 3]), ("lower", [1, 2])])
def test_the_direction_of_the_metric(better: str, expected: list[int]) -> None:
    assert tracked([0.5, 0.4, 0.7, 0.6], better).improvements == expected


def test_of_equal_rounds_the_first_is_the_best() -> None:
    assert tracked([0.5, 0.7, 0.7]).best() == 2


def test_rounds_without_a_finite_value_are_not_chosen() -> None:
    assert tracked([None, math.nan, math.inf, 0.2, None]).improvements == [4]
    assert tracked([None]).best() is None


def test_no_round_is_chosen_without_a_metric() -> None:
    assert tracked([0.5, 0.7], metric=None).best() is None


def test_the_best_round_until_another_round() -> None:
    tracker = tracked([0.5, 0.4, 0.7])
    assert [tracker.best(until) for until in (0, 1, 2, 3, 9)] == [None, 1, 1, 3, 3]
