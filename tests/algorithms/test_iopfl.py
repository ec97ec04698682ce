"""IOP-FL: running means by hand, the terms of the loss at outside sites, and adaptation without labels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.iopfl import IOPFL, ClientState, outline_length, turn_functions
from raysim import ConfigError, Data, LocalFleet, Model, Site, Task, federate
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.routed_convolutions import RoutedConvolution, routers
from raysim.training.test_time_adaptation import norm_layers
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def rounds_of(algorithm: Any, task: Task, rounds: int) -> tuple[list[Any], LocalFleet]:
    fleet = LocalFleet(task, rounds=rounds)
    return list(federate(algorithm, task, fleet, rounds=rounds)), fleet


def sent(task: Task, site: str, rounds: int) -> list[np.ndarray]:
    """The weights of a site after the local training of each round of FedAvg."""
    mine, fleet = FedAvg(**SGD), LocalFleet(task, rounds=rounds)
    model, found = mine.init(task), []
    for index in range(rounds):
        fleet.accounting.open_round(index)
        found.append(np.array(toy.line(fleet.map(mine.client, model)[site].payload)))
        fleet.accounting.open_round(index)
        model, _ = mine.round(fleet.at(task.inside), model)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_the_personal_model_is_the_discounted_sum_of_the_sites_weights(alpha: float) -> None:
    task, rounds = toy.two_sites(), 4
    _, fleet = rounds_of(IOPFL(alpha=alpha, keep="last", **SGD), task, rounds)
    for site in task.inside:
        w, last = sent(task, site, rounds), rounds - 1
        expected = alpha**last * w[0] + (1 - alpha) * sum(alpha ** (last - t) * w[t] for t in range(1, rounds))
        assert np.array(toy.line(fleet.client_state(site).best)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.9])
@pytest.mark.parametrize("buffers", ["average", "local", "reset"])
def test_the_global_model_equals_fedavg(alpha: float, buffers: Any) -> None:
    points = {"a": ((1, 2), (2, 1)), "b": ((2, 2), (0, 1), (1, 1), (3, 2))}
    task = toy.task(points, network=toy.Scaled, batch_size=2)
    rounds, _ = rounds_of(IOPFL(alpha=alpha, buffers=buffers), task, 3)
    plain, _ = rounds_of(FedAvg(buffers=buffers), task, 3)
    assert [r.state.model for r in rounds] == [r.state for r in plain]
    assert rounds[-1].traffic == plain[-1].traffic


def test_equal_sites_have_equal_personal_models() -> None:
    task = toy.task(dict.fromkeys("abc", toy.B))
    _, fleet = rounds_of(IOPFL(**SGD), task, 3)
    assert fleet.client_state("a").running == fleet.client_state("b").running == fleet.client_state("c").running


def data_with_validation(points: toy.Points, site: str) -> Data:
    return replace(toy.data(points), val=toy.split(points))


def test_the_best_on_validation_data_is_kept() -> None:
    # With this learning rate each round is worse than the previous one, so the first model stays the best.
    task = replace(toy.two_sites(), open=partial(data_with_validation, toy.B))
    fields = SGD | {"lr": 0.5}
    _, fleet = rounds_of(IOPFL(alpha=0.0, **fields), task, 3)
    _, one = rounds_of(IOPFL(alpha=0.0, **fields), task, 1)
    client_state: ClientState = fleet.client_state("a")
    assert client_state.best == one.client_state("a").best
    assert client_state.best != client_state.running
    assert client_state.score == -abs(2 * toy.line(client_state.best)[0] + toy.line(client_state.best)[1] - 2)


def small_task(norm: Any = "batch", dims: int = 2) -> Task:
    data = SyntheticData(sites=2, outside=("far",), cases=4, val=2, test=3, size=(16,) * dims, severity=3)
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": norm}
    return Synthetic(data=data, network=network, batch_size=2).build()


def test_the_server_has_personal_models_if_there_are_outside_sites() -> None:
    task = small_task()
    rounds, fleet = rounds_of(IOPFL(alpha=0.5), task, 3)
    state = rounds[-1].state
    assert {site: model.parameters for site, model in state.best.items()} == {
        site: fleet.client_state(site).best.parameters for site in task.inside
    }
    alone, _ = rounds_of(IOPFL(), toy.two_sites(), 2)
    assert alone[-1].state.best == {}


def place(task: Task, site: str, client_state: Any = None) -> Site[Any]:
    torch.manual_seed(0)
    return Site(site, task, task.open(site), client_state, torch.device("cpu"), 0, 0, 1, task.start(0))


@pytest.mark.parametrize(("norm", "dims"), [("batch", 2), ("instance", 2), ("batch", 3)])
def test_outside_only_routers_scales_and_shifts_change_and_no_label_is_read(norm: str, dims: int) -> None:
    task = small_task(norm, dims)
    rounds, _ = rounds_of(IOPFL(passes=1), task, 1)
    state, far = rounds[-1].state, place(task, "far")
    mine = IOPFL(passes=2)
    net: Any = mine.predictor(far, state).main
    kernels = [layer.kernels for layer in net.modules() if isinstance(layer, RoutedConvolution)]
    fresh: Any = replace(mine, passes=0).predictor(place(task, "far"), state).main
    of_fresh = [layer.kernels for layer in fresh.modules() if isinstance(layer, RoutedConvolution)]
    assert all(torch.equal(one, other) for one, other in zip(kernels, of_fresh, strict=True))
    assert all(layer.shape[0] == 3 for layer in kernels)
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, fresh.get_parameter(n))}
    assert {".router." in name for name in changed} == ({True, False} if norm == "batch" else {True})
    moving = {id(p) for layer in [*routers(net), *norm_layers(net).values()] for p in layer.parameters()}
    assert all(id(net.get_parameter(name)) in moving for name in changed)
    data = far.data
    bare = replace(data, **{s: replace(data[s], labels=None) for s in ("train", "val", "test", "unlabelled")})
    torch.manual_seed(0)
    blind: Any = mine.predictor(replace(place(task, "far"), data=bare), state).main
    x = torch.from_numpy(data.test.inputs)
    assert torch.equal(blind(x), net(x))


def test_without_a_learning_rate_passes_change_nothing() -> None:
    task = small_task()
    rounds, _ = rounds_of(IOPFL(passes=1), task, 1)
    x = torch.from_numpy(task.open("far").test.inputs)
    found: list[Any] = [IOPFL(passes=n, outside_lr=0.0).predictor(place(task, "far"), rounds[-1].state) for n in (1, 3)]
    assert torch.equal(found[0].main(x), found[1].main(x))


def test_a_network_without_convolutions_is_refused_before_it_trains() -> None:
    with pytest.raises(ConfigError, match="needs convolutions for outside sites; Line has none"):
        IOPFL().init(toy.task({"a": toy.A, "x": toy.B}, outside=["x"]))


def test_a_batch_of_one_is_enough() -> None:
    task = replace(small_task(), batch_size=1)
    rounds, _ = rounds_of(IOPFL(passes=1), task, 1)
    assert any(score.site == "far" for score in rounds[-1].scores)


@pytest.mark.parametrize(("flip", "k"), list(product([False, True], range(4))))
def test_turn_back_inverts_turn(flip: bool, k: int) -> None:
    image = torch.arange(12.0 * 12).reshape(1, 1, 12, 12) ** 2
    there, back = turn_functions([(flip, k)])
    assert torch.equal(back(there(image)), image)
    assert torch.equal(there(image), image) == ((flip, k) == (False, 0))


class Pointwise(nn.Module):
    """Logits that depend on one pixel each, so they turn with the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1)


def term(images: Tensor, **weights: float) -> float:
    only = {"entropy": 0.0, "consistency": 0.0, "shape": 0.0} | weights
    torch.manual_seed(0)
    return float(IOPFL(**only).loss(Pointwise(), images))  # type: ignore[arg-type]  # numbers all


def test_consistency_is_zero_without_noise() -> None:
    images = torch.randn(5, 1, 8, 8)
    assert term(images, consistency=1.0, noise=0.0) == pytest.approx(0, abs=1e-12)
    assert term(images, consistency=1.0, noise=0.5) > 1e-3


def test_entropy_is_one_for_uniform_and_zero_for_certain_predictions() -> None:
    assert term(torch.zeros(3, 1, 8, 8), entropy=1.0) == pytest.approx(1)
    assert term(torch.full((3, 1, 8, 8), 30.0), entropy=1.0) == pytest.approx(0, abs=1e-6)
    some = torch.randn(1, 1, 8, 8)
    assert term(some, entropy=1.0) == pytest.approx(term(some.repeat(4, 1, 1, 1), entropy=1.0))  # for every batch size


def disc(centres: list[tuple[int, int]], radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    hits = [((y - a) ** 2 + (x - b) ** 2 <= radius**2) for a, b in centres]
    return torch.stack(hits).any(0).float()[None, None]


def test_outlines_of_several_discs_are_longer_than_of_one() -> None:
    assert outline_length(torch.full((2, 1, 30, 30), 0.3), 3).item() == 0
    whole, pieces = disc([(40, 40)], 12), disc([(20, 20), (20, 60), (60, 20), (60, 60)], 6)
    assert whole.sum() == pytest.approx(pieces.sum().item(), rel=0.05)
    assert outline_length(whole, 2) < outline_length(pieces, 2)
    assert outline_length(disc([(35, 44)], 12), 2) == outline_length(whole, 2)
    volume = whole[..., None].repeat(1, 1, 1, 1, 5)
    assert outline_length(volume, 2).item() == pytest.approx(outline_length(whole, 2).item() * 5**0.5)


def test_images_that_are_not_square_are_turned_by_half_turns() -> None:
    assert np.isfinite(term(torch.randn(6, 1, 8, 12), consistency=1.0))


def test_an_inside_site_that_has_not_trained_predicts_with_the_global_model() -> None:
    task = toy.two_sites()
    state = IOPFL().init(task)
    net = IOPFL().predictor(place(task, "a"), state)
    assert isinstance(net, nn.Module)
    assert Model.of({n: p.detach().numpy() for n, p in net.named_parameters()}) == state.model


def test_the_best_expert_per_image_is_logged_where_labels_are() -> None:
    task = small_task()
    rounds, _ = rounds_of(IOPFL(passes=0), task, 2)
    ceiling = {(s.site, s.split): s.value for s in rounds[-1].scores if s.metric == "routing_ceiling"}
    assert set(ceiling) == {("far", "val"), ("far", "test")}
    state, far = rounds[-1].state, place(task, "far")
    predictions: Any = IOPFL(passes=0).predictor(far, state)
    single = task.score(far.predict_module(state.model), far.data.test, far.device)["dice"]
    assert ceiling["far", "test"] >= single
    assert predictions.notes(replace(far.data.test, labels=None)) == {}


def test_the_model_of_a_single_site_predicts_outside_without_routing() -> None:
    task = small_task()
    rounds, _ = rounds_of(IOPFL(passes=0), task, 2)
    state, (site, _) = rounds[-1].state, task.inside
    untrained = replace(state, best={name: model for name, model in state.best.items() if name != site})
    for known, expected in ((state, state.best[site]), (untrained, state.model)):
        net: Any = IOPFL(single=site).predictor(place(task, "far"), known)
        assert Model.of({name: p.detach().numpy() for name, p in net.named_parameters()}) == expected.parameters


def test_a_single_site_that_is_not_inside_is_refused() -> None:
    task = small_task()
    for run in (IOPFL(single="far").init, lambda task: IOPFL(single="x").predictor(place(task, "far"), None)):
        with pytest.raises(ConfigError, match="no such inside site; expected one of site"):
            run(task)


def test_a_schedule_that_ends_near_zero_warns() -> None:
    IOPFL(schedule="cosine").check_rounds(30)
    with pytest.warns(UserWarning, match=r"set algorithm\.lr_floor=0\.1 or algorithm\.schedule=constant"):
        IOPFL(schedule="linear", lr_floor=0).check_rounds(30)
