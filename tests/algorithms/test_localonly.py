"""LocalOnly: each site trains its own model, nothing is sent, and sites without training have no predictor."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms.localonly import LocalOnly
from raysim import LocalFleet, Model, federate
from tests.support import toy

ALONE = LocalOnly(optimizer="sgd", momentum=0.0, lr=0.1)


def run(points: dict[str, toy.Points], rounds: int = 2, **options: Any) -> tuple[Any, LocalFleet]:
    task = toy.task(points, outside=["x"] if "x" in points else [], network=options.pop("network", toy.Line))
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(options.pop("algorithm", ALONE), task, fleet, rounds=rounds, **options)
    return end, fleet


def test_each_site_trains_its_own_model() -> None:
    # Two rounds of one step equal two steps: a to (0.36, 0.36), b to (0.6, 0.3).
    _, fleet = run({"a": toy.A, "b": toy.B})
    assert toy.line(fleet.client_state("a")) == pytest.approx((0.36, 0.36))
    assert toy.line(fleet.client_state("b")) == pytest.approx((0.6, 0.3))


def test_a_site_does_not_depend_on_other_sites() -> None:
    _, fleet = run({"a": toy.A, "b": toy.B, "c": toy.A})
    _, alone = run({"b": toy.B})
    assert fleet.client_state("b") == alone.client_state("b")


def test_nothing_is_sent_and_there_is_no_global_model() -> None:
    end, _ = run({"a": toy.A, "b": toy.B})
    assert end.traffic.up == end.traffic.down == end.traffic.between == {"a": 0, "b": 0}
    assert end.state.model is None
    assert end.loss == pytest.approx((1.28 + 3 * 0.5) / 4)  # of the second round


def test_only_sites_with_a_model_are_evaluated() -> None:
    end, _ = run({"a": toy.A, "b": toy.B, "x": toy.B})
    scores = {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}
    assert scores == {("a", "distance"): pytest.approx(1.28), ("b", "distance"): pytest.approx(0.5)}


def test_a_site_that_was_never_sampled_has_no_scores() -> None:
    end, fleet = run({"a": toy.A, "b": toy.B}, rounds=1, cohort=1)
    (drawn,) = end.cohort
    assert {s.site for s in end.scores} == {drawn}
    assert [site for site in "ab" if fleet.client_state(site) is not None] == [drawn]


def test_reset_statistics_are_reset_in_every_round() -> None:
    pair = ((1.0, 0), (3.0, 1))
    algorithm = LocalOnly(optimizer="sgd", momentum=0.0, lr=0.1, buffers="reset")
    _, fleet = run({"a": pair}, network=toy.Scaled, algorithm=algorithm)
    client_state: Model = fleet.client_state("a")
    assert client_state["0.num_batches_tracked"] == 1
    assert client_state["0.running_mean"].item() == pytest.approx(0.2)
