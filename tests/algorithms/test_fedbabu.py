"""FedBABU by hand: the output is w (u x) + b; u, from 1, is trained, and the head (w, b), from (1, 0), is not."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.fedbabu import FedBABU
from algorithms.fedsimclr import FedSimCLR
from raysim import ConfigError, LocalFleet, federate, weights
from raysim.storage.digest import digest
from tests.support import toy
from tests.support.contract import task as contract_task

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
PAIRS: dict[str, toy.Points] = {"a": ((1, 0), (3, 1)), "b": ((5, 0), (7, 1))}
POINTS: dict[str, toy.Points] = {"a": ((1, 2),), "b": ((2, 4),) * 3, "x": ((2, 2),)}


class Two(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False), toy.Line())
        nn.init.ones_(self[0].weight)
        nn.init.ones_(self[1].weight)


class Normed(Two):
    def __init__(self) -> None:
        super().__init__()
        self.insert(0, nn.BatchNorm1d(1))


def run(
    rounds: int = 1, network: Any = Two, algorithm: Any = None, points: Any = POINTS, **fields: Any
) -> tuple[Any, LocalFleet]:
    task = toy.task(points, outside={"x"} & points.keys(), network=network)
    fleet = LocalFleet(task, rounds=rounds)
    *_, end = federate(algorithm or FedBABU(**SGD | fields), task, fleet, rounds=rounds)
    return end, fleet


def scores(end: Any) -> dict[tuple[str, str], float]:
    return {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}


def test_only_the_body_is_trained_and_averaged_by_examples() -> None:
    # a: r = 1 - 2, du = -1. b: r = 2 - 4, du = -2 * 2.
    end, _ = run()
    assert end.state.shared["0.weight"].item() == pytest.approx((1.1 + 3 * 1.4) / 4)
    assert toy.line(end.state.head) == (1, 0)
    assert end.traffic.up == end.traffic.down == {"a": 4, "b": 4}


def test_the_head_is_fixed_in_all_local_steps() -> None:
    # a: u = 1.1, r = -0.9. b: u = 1.4, r = -1.2, du = -1.2 * 2.
    end, _ = run(steps=2)
    assert end.state.shared["0.weight"].item() == pytest.approx((1.19 + 3 * 1.64) / 4)


def test_an_inside_site_is_evaluated_after_fine_tuning_of_all_layers() -> None:
    # u = 1.325. a: r = -0.675, du = r, dw = r u, db = r.
    end, _ = run(finetune_epochs=1)
    u, r = 1.325, -0.675
    output = (1 - 0.1 * r * u) * (u - 0.1 * r) - 0.1 * r
    found = scores(end)
    assert found["a", "distance"] == pytest.approx(2 - output)
    assert found["a", "distance@global"] == pytest.approx(0.675)


def test_fine_tuning_does_not_change_the_federation() -> None:
    tuned, plain = (run(rounds=3, finetune_epochs=epochs)[0] for epochs in (4, 0))
    assert digest(tuned.state) == digest(plain.state)
    assert scores(plain)["a", "distance"] == scores(plain)["a", "distance@global"]


def test_fine_tuning_does_not_follow_the_schedule() -> None:
    constant, linear = (run(finetune_epochs=2, schedule=name)[0] for name in ("constant", "linear"))
    assert scores(constant) == scores(linear)  # the first round has the full rate
    constant, linear = (
        FedBABU(**SGD, finetune_epochs=2, schedule=name).predictor(toy.site(network=Two, round=3, rounds=4), state)
        for name in ("constant", "linear")
        for state in [FedBABU().init(toy.two_sites(Two))]
    )
    assert all(p.equal(q) for p, q in zip(constant.parameters(), linear.parameters(), strict=True))


def test_an_outside_site_is_evaluated_with_the_global_model() -> None:
    found = scores(run(finetune_epochs=3)[0])
    assert found["x", "distance"] == found["x", "distance@global"] == pytest.approx(2 * 1.325 - 2)


def test_a_head_of_frozen_layers_is_refused() -> None:
    class Frozen(Two):
        def __init__(self) -> None:
            super().__init__()
            self[1].requires_grad_(False)

    with pytest.raises(ConfigError, match=r"algorithm.head=1: expected a name that matches some layers"):
        run(network=Frozen, head="1")


def test_if_the_head_has_no_gradient_it_is_bit_identical_to_fedavg() -> None:
    class Unused(Two):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    end, _ = run(rounds=3, network=Unused, head="unused")
    assert end.state.model == run(rounds=3, network=Unused, algorithm=FedAvg(**SGD))[0].state


@pytest.mark.parametrize("buffers", ["average", "local", "reset"])
def test_buffers_follow_the_policy(buffers: str) -> None:
    end, fleet = run(rounds=2, network=Normed, points=PAIRS, buffers=buffers, finetune_epochs=1)
    kept = fleet.client_state("a") if buffers == "local" else end.state.shared
    assert kept["0.num_batches_tracked"] == (1 if buffers == "reset" else 2)
    assert set(end.state.head) == {"2.weight", "2.bias"}


def test_buffers_of_the_head_are_shared() -> None:
    end, _ = run(network=Normed, points=PAIRS, head="0")
    assert set(end.state.head) == {"0.weight", "0.bias"}
    assert end.state.shared["0.num_batches_tracked"] == 1


def test_after_pretraining_the_head_is_that_of_the_runs_seed() -> None:
    mine = FedSimCLR(pretrain_rounds=1, finetune=FedBABU(lr=1e-3, finetune_epochs=0))
    fleet = LocalFleet(contract_task(), rounds=2)
    *_, end = federate(mine, contract_task(), fleet, rounds=2)
    assert len(end.state.state.head) == 2
    assert end.state.state.head == weights(contract_task().start(0)).only(end.state.state.head)
