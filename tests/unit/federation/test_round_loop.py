"""The round loop: sampled sites, evaluation, and continuing from a resume point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import raysim
from algorithms.fedavg import FedAvg
from algorithms.localonly import LocalOnly
from raysim import (
    Fleet,
    LocalFleet,
    Metrics,
    Model,
    Predictor,
    Reply,
    ResumePoint,
    Site,
    Split,
    Task,
    federate,
    weights,
)
from raysim.core.errors import SiteError
from raysim.federation.cohort import sample_cohort
from tests.support import toy

NAMES = tuple(f"s{i}" for i in range(10))
FEDAVG = FedAvg(optimizer="sgd", lr=0.1)


def run(algorithm: Any, rounds: int = 4, **options: Any) -> list[Any]:
    task = options.pop("task", toy.task({"a": toy.A, "b": toy.B, "c": ((3, 1),), "d": ((1, 1),)}))
    fleet = LocalFleet(task, seed=options.get("seed", 0), rounds=rounds)
    return list(federate(algorithm, task, fleet, rounds=rounds, **options))


def test_federate_is_the_function_for_every_import() -> None:
    # A module named `federate` in the package would replace the function.
    assert raysim.federate is federate
    assert callable(federate)


@pytest.mark.parametrize(
    ("cohort", "number"), [(1.0, 10), (0.5, 5), (0.31, 3), (0.01, 1), (1, 1), (4, 4), (10, 10), (99, 10)]
)
def test_a_cohort_is_a_fraction_or_a_number(cohort: float | int, number: int) -> None:
    drawn = sample_cohort(NAMES, cohort, 0, 0)
    assert len(set(drawn)) == len(drawn) == number
    assert drawn == sorted(drawn)


def test_cohorts_follow_seed_and_round() -> None:
    drawn = [tuple(sample_cohort(NAMES, 3, seed, index)) for seed in range(2) for index in range(10)]
    assert drawn == [tuple(sample_cohort(NAMES, 3, seed, index)) for seed in range(2) for index in range(10)]
    assert len(set(drawn)) > 10


def test_every_site_is_sampled() -> None:
    assert {site for index in range(30) for site in sample_cohort(NAMES, 2, 0, index)} == set(NAMES)


def test_rounds_are_numbered_from_one_and_have_their_cohort() -> None:
    rounds = run(FEDAVG, cohort=2)
    assert [r.number for r in rounds] == [1, 2, 3, 4]
    assert all(set(r.cohort) == set(r.traffic.up) and len(r.cohort) == 2 for r in rounds)
    assert all(r.seconds > 0 for r in rounds)


def test_sites_are_evaluated_when_due_and_at_the_end() -> None:
    evaluated = [any(s.split == "test" for s in r.scores) for r in run(FEDAVG, rounds=5, evaluate_every=2)]
    assert evaluated == [False, True, False, True, True]


@dataclass(frozen=True)
class TextScore:
    """A scorer that returns text."""

    better: Mapping[str, Any]

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Any:
        return {"distance": "0.5"}


def test_a_text_as_metric_of_a_scorer_is_refused() -> None:
    task = replace(toy.two_sites(), score=TextScore({"distance": "lower"}))
    with pytest.raises(SiteError, match=r"the metrics of a split\['distance'\] is '0.5': expected a single number"):
        run(FEDAVG, task=task)


def test_evaluation_changes_no_result() -> None:
    often, seldom = run(FEDAVG, evaluate_every=1), run(FEDAVG, evaluate_every=4)
    assert often[-1].state == seldom[-1].state


def test_the_consumer_decides_when_to_stop() -> None:
    task = toy.two_sites()
    rounds = federate(FEDAVG, task, LocalFleet(task, rounds=100), rounds=100)
    assert next(iter(rounds)).number == 1


@pytest.mark.parametrize("algorithm", [FEDAVG, LocalOnly(optimizer="sgd", lr=0.1)])
def test_a_run_continues_from_a_resume_point(algorithm: Any) -> None:
    task = toy.two_sites()
    whole = LocalFleet(task, rounds=4)
    *_, end = federate(algorithm, task, whole, rounds=4, cohort=1)
    first, second = LocalFleet(task, rounds=4), LocalFleet(task, rounds=4)
    half = [r for _, r in zip(range(2), federate(algorithm, task, first, rounds=4, cohort=1), strict=False)][-1]
    start = ResumePoint(2, half.state, dict(first.client_states.held))
    later = list(federate(algorithm, task, second, rounds=4, cohort=1, start=start))
    assert [r.number for r in later] == [3, 4]
    assert later[-1].state == end.state
    assert second.client_states.held == whole.client_states.held


class Random(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)


@dataclass(frozen=True)
class Drawing:
    """Draws a random number at the server, and compares the sites' first weights with the server's."""

    def init(self, task: Task) -> Model:
        return weights(task.network())

    def client(self, site: Site[Any], model: Model) -> Reply[bool]:
        return Reply(weights(site.load()) == model)

    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        replies: Mapping[str, Reply[bool]] = fleet.map(self.client, model)
        return model, {"drawn": torch.rand(()).item(), "same": float(all(r.payload for r in replies.values()))}

    def predictor(self, site: Site[Any], model: Model) -> Predictor | None:
        return None


def test_server_and_sites_have_the_first_weights_of_the_seed() -> None:
    task = toy.task({"a": toy.A, "b": toy.B}, network=Random)
    states = [run(Drawing(), task=task, seed=seed)[0] for seed in (0, 0, 1)]
    assert [r.metrics["same"] for r in states] == [1, 1, 1]
    assert states[0].state == states[1].state != states[2].state


def test_random_numbers_of_the_server_depend_on_seed_and_round() -> None:
    drawn = [r.metrics["drawn"] for seed in (0, 1) for r in run(Drawing(), seed=seed)]
    assert len(set(drawn)) == 8
    assert drawn[:4] == [r.metrics["drawn"] for r in run(Drawing())]


def test_without_predictor_only_the_global_model_is_evaluated() -> None:
    scores = run(Drawing())[-1].scores
    assert {s.metric for s in scores} == {"distance@global"}
    assert run(Drawing())[-1].loss is None


def test_a_failure_during_evaluation_names_the_site() -> None:
    @dataclass(frozen=True)
    class Broken(Drawing):
        def predictor(self, site: Site[Any], model: Model) -> Predictor | None:
            raise LookupError("no head for this site")

    with pytest.raises(SiteError, match="site 'a' failed in round 1: LookupError: no head for this site"):
        run(Broken())


class ModeDependent(toy.Line):
    """A line whose output is doubled in training mode."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) * (2 if self.training else 1)


def test_global_weights_in_another_mode_are_evaluated_separately() -> None:
    @dataclass(frozen=True)
    class Training(Drawing):
        def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
            return Model.of({name: np.ones_like(array) for name, array in model.items()}), {}

        def predictor(self, site: Site[Any], model: Model) -> Predictor | None:
            return site.load(model)

    # w = b = 1 at (1, 2): 1 + 1 is correct, and twice that differs by 2.
    task = toy.task({"a": toy.A}, network=ModeDependent)
    scores = {s.metric: s.value for s in run(Training(), task=task)[-1].scores}
    assert scores == {"distance": 2, "distance@global": 0}
