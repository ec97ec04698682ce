"""FedSM: SoftPull by hand, routing, the selector's labels and steps, and a global model that equals FedAvg."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.fedavg import FedAvg
from algorithms.fedsm import Broadcast, FedSM, Update, softpull
from algorithms.localonly import LocalOnly
from raysim import ConfigError, LocalFleet, Model, Task, federate, load, weights
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training import RoutedPredictor, selector_network
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
THREE = {"a": toy.A, "b": toy.B, "c": ((3, 1), (1, 0))}


def of(*values: float) -> Model:
    return Model.of({"w": np.float32(values)})


def ended(algorithm: Any, task: Task, rounds: int = 2, **options: Any) -> Any:
    *_, end = federate(algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds, **options)
    return end


def test_two_sites_are_pulled_by_hand() -> None:
    pulled = softpull({"a": of(1, 10), "b": of(3, -10)}, 0.7)
    assert pulled["a"]["w"] == pytest.approx([0.7 * 1 + 0.3 * 3, 0.7 * 10 - 0.3 * 10])
    assert pulled["b"]["w"] == pytest.approx([0.3 * 1 + 0.7 * 3, 0.3 * 10 - 0.7 * 10])


@pytest.mark.parametrize("pull", [0.25, 0.4, 0.7, 1.0])
def test_the_mean_stays_and_deviations_shrink(pull: float) -> None:
    rng = np.random.default_rng(0)
    models = {site: Model.of({"w": rng.normal(size=5).astype(np.float32)}) for site in "abcd"}
    pulled, mu = softpull(models, pull), (4 * pull - 1) / 3
    before, after = (np.stack([m["w"] for m in of_.values()]) for of_ in (models, pulled))
    assert after.mean(0) == pytest.approx(before.mean(0), abs=1e-6)
    assert after - after.mean(0) == pytest.approx(mu * (before - before.mean(0)), abs=1e-6)
    # the definition, term by term
    others = (before.sum(0) - before) / 3
    assert after == pytest.approx(pull * before + (1 - pull) * others, abs=1e-6)


def test_pull_one_changes_no_bit_and_a_single_model_is_returned() -> None:
    models = {"a": of(0.1, -0.0), "b": of(0.3, 7)}
    assert softpull(models, 1.0) == models
    assert softpull({"a": of(0.1)}, 0.7) == {"a": of(0.1)}


def test_pull_of_equal_models_is_that_model_and_names_are_irrelevant() -> None:
    assert softpull(dict.fromkeys("abc", of(1, 2)), 0.5)["b"]["w"] == pytest.approx([1, 2])
    one = softpull({"a": of(1), "b": of(2), "c": of(4)}, 0.5)
    other = softpull({"a": of(4), "b": of(1), "c": of(2)}, 0.5)
    assert [one[site]["w"].item() for site in "abc"] == pytest.approx([other[site]["w"].item() for site in "bca"])


def test_few_replies_do_not_overshoot_their_mean() -> None:
    pulled = softpull({"a": of(1), "b": of(3)}, 0.3)  # allowed for four sites, too small for two
    assert [model["w"].item() for model in pulled.values()] == [2, 2]


def test_counters_are_not_changed() -> None:
    models = {s: Model.of({"w": np.float32([n]), "seen": np.array(n)}, ["w"]) for s, n in (("a", 1), ("b", 4))}
    assert [model["seen"].item() for model in softpull(models, 0.5).values()] == [1, 4]


@pytest.mark.parametrize("pull", [0.2, 0.33])
def test_a_pull_below_one_over_the_sites_is_refused(pull: float) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.pull=0\.\d+: expected 0\.333333 \(the plain mean of 3"):
        FedSM(pull=pull).init(toy.task(THREE))


@pytest.mark.parametrize("buffers", ["average", "local", "reset"])
def test_the_global_branch_is_fedavg(buffers: Any) -> None:
    points = {"a": ((1, 2), (2, 1)), "b": ((2, 2), (0, 1), (1, 1), (3, 2)), "c": ((3, 1), (1, 0))}
    task = toy.task(points, network=toy.Scaled, batch_size=2)
    mine = FedSM(keep_moments=False, buffers=buffers)
    assert ended(mine, task, 3).state.model == ended(FedAvg(buffers=buffers), task, 3).state.model


def test_without_pull_personal_models_are_local_training() -> None:
    task = toy.task(THREE)
    alone = LocalFleet(task, rounds=2)
    list(federate(LocalOnly(**SGD), task, alone, rounds=2))
    found = ended(FedSM(pull=1.0, **SGD), task).state.personal
    for site in task.inside:
        assert toy.line(found[site]) == pytest.approx(toy.line(alone.client_state(site)))


def test_full_pull_makes_personal_models_the_plain_mean() -> None:
    task = toy.task({"a": ((1, 2),), "b": ((2, 2),), "c": ((3, 1),)})  # equal n_k: FedAvg has the plain mean
    state = ended(FedSM(pull=1 / 3, **SGD), task).state
    for model in state.personal.values():
        assert toy.line(model) == pytest.approx(toy.line(state.model))


def test_moments_are_kept_between_rounds() -> None:
    # With one site and one batch, two rounds of Adam with kept moments are two steps of one Adam.
    task = toy.task({"a": toy.A})
    state = ended(FedSM(lr=0.1), task).state
    net = toy.Line()
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        toy.half_squares(net(torch.tensor([[1.0]])), torch.tensor([[2]])).backward()
        optimizer.step()
    assert toy.line(state.model) == pytest.approx(toy.line(weights(net)))
    assert toy.line(ended(FedSM(lr=0.1, keep_moments=False), task).state.model) != pytest.approx(toy.line(state.model))


def test_a_single_site_works() -> None:
    state = ended(FedSM(**SGD), toy.task({"a": toy.A})).state
    assert toy.line(state.personal["a"]) == pytest.approx(toy.line(state.model))


def test_an_absent_site_keeps_its_personal_model() -> None:
    task = toy.task(THREE)
    rounds = federate(FedSM(**SGD), task, LocalFleet(task, rounds=3), rounds=3, cohort=1)
    before = FedSM(**SGD).init(task).personal
    for each in rounds:
        assert [site for site in task.inside if each.state.personal[site] != before[site]] == list(each.cohort)
        before = each.state.personal


def small_task(sites: int = 3, norm: str = "instance") -> Task:
    data = SyntheticData(sites=sites, outside=("far",), cases=6, val=2, test=4, size=(16, 16), severity=3)
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": norm}
    return Synthetic(data=data, network=network, batch_size=4).build()


def test_the_selector_takes_adam_steps_on_the_images_of_its_site() -> None:
    task, mine = small_task(), FedSM(selector_steps=3)
    fleet = LocalFleet(task, rounds=1)
    start = mine.init(task)
    fleet.accounting.open_round(0)
    replies = fleet.map(mine.client, Broadcast(start.model, start.selector, None), start.personal)
    steps = [reply.payload.moments["0/step"].item() for reply in replies.values()]
    assert steps == [3, 3, 3]
    # Adam's first step is lr times the sign of the gradient of the mean cross-entropy with the site's index as label.
    net = site_selector(task, start.selector)
    inputs = torch.from_numpy(task.open("site-02").train.inputs)
    loss = nn.functional.cross_entropy(net(inputs), torch.full((len(inputs),), 1))
    loss.backward()
    once = FedSM(selector_steps=1, selector_lr=0.01)
    one = fleet.map(once.client, Broadcast(start.model, start.selector, None), start.personal)
    after, metrics = one["site-02"].payload.selector, one["site-02"].metrics
    assert metrics["selector_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        large = parameter.grad.abs() > 1e-4
        assert large.any()
        expected = (parameter - 0.01 * parameter.grad.sign())[large].detach()
        assert torch.from_numpy(after[name].copy())[large].numpy() == pytest.approx(expected.numpy(), abs=2e-5)


def test_a_step_of_the_selector_uses_some_images_or_all() -> None:
    task = small_task()
    start = FedSM().init(task)

    def first_moment(batch: int | None) -> Tensor:
        mine, fleet = FedSM(selector_steps=1, selector_batch=batch, steps=1), LocalFleet(task, rounds=1)
        fleet.accounting.open_round(0)
        replies = fleet.map(mine.client, Broadcast(start.model, start.selector, None), start.personal)
        return torch.from_numpy(replies["site-02"].payload.moments["0/exp_avg"].copy())

    assert first_moment(None).equal(first_moment(6))
    # The first moment after one step is a tenth of the gradient, which is that of one image with a batch of one.
    gradients = []
    for image in torch.from_numpy(task.open("site-02").train.inputs).split(1):
        net = site_selector(task, start.selector)
        nn.functional.cross_entropy(net(image), torch.tensor([1])).backward()
        gradients.append(next(net.parameters()).grad)
    of_one = first_moment(1)
    assert sum(torch.allclose(0.1 * gradient, of_one, rtol=1e-3, atol=1e-7) for gradient in gradients) == 1


def site_selector(task: Task, model: Model) -> nn.Module:
    load(net := selector_network.__wrapped__(task, "small", 32, 3), model)
    return net


def test_shared_moments_are_equal_at_all_sites_and_are_sent() -> None:
    task = small_task()
    rounds = list(federate(FedSM(selector_steps=1), task, LocalFleet(task, rounds=2), rounds=2))
    state = rounds[-1].state
    assert state.moments["0/step"].item() == 2
    assert state.moments["0/exp_avg"].shape == state.selector[first_parameter_name(state.selector)].shape
    p, s = state.model.nbytes, state.selector.nbytes
    steps = 4 * sum(name.endswith("/step") for name in state.moments)
    assert set(rounds[0].traffic.down.values()) == {2 * p + s}
    assert set(rounds[1].traffic.down.values()) == {2 * p + 3 * s + steps}
    assert set(rounds[1].traffic.up.values()) == {2 * p + 3 * s + steps}
    apart = ended(FedSM(selector_steps=1, average_moments=False), task)
    assert apart.state.moments is None
    assert set(apart.traffic.up.values()) == {2 * p + s}


def first_parameter_name(model: Model) -> str:
    return next(iter(name for name, _ in site_selector(small_task(), model).named_parameters()))


class Constant(nn.Module):
    """Fixed logits for all images, or one row of logits for each image, selected by the image's value."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits[inputs[:, 0].long()]


def routed(logits: Any, threshold: float) -> RoutedPredictor:
    models = [Model.of({"weight": np.float32([[n]]), "bias": np.float32([0])}) for n in (1, 2, 3)]
    plain = toy.Line()
    nn.init.constant_(plain.weight, 10)
    return RoutedPredictor(Constant(torch.tensor(logits)), models, plain, toy.Line(), threshold)


def test_every_image_is_routed_by_the_confidence_of_the_selector() -> None:
    logits = [[9.0, 0, 0], [0, 9.0, 0], [1, 1.1, 1.2], [0, 0, 9.0]]
    inputs = torch.tensor([[3.0], [0.0], [2.0], [1.0], [3.0]])
    with torch.no_grad():
        assert routed(logits, 0.9)(inputs)[:, 0].tolist() == [9, 0, 20, 2, 9]
        assert routed(logits, 1.0)(inputs)[:, 0].tolist() == [30, 0, 20, 10, 30]  # no confidence is above 1
        assert routed(logits, 0.0)(inputs)[:, 0].tolist() == [9, 0, 6, 2, 9]
        one = [routed(logits, 0.9)(inputs[n : n + 1]).item() for n in range(5)]
    assert routed(logits, 0.9)(inputs)[:, 0].tolist() == one


class Several(nn.Module):
    """A network with two output resolutions, whose output depends on the whole batch."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x - x.mean(), x]


def test_the_global_model_gets_the_whole_batch_and_may_have_several_resolutions() -> None:
    mine = replace(routed([[9.0, 0, 0], [0.0, 0, 0]], 0.9), global_net=Several())
    with torch.no_grad():
        assert mine(torch.tensor([[1.0], [0.0], [1.0]]))[:, 0].tolist() == pytest.approx([1 / 3, 0, 1 / 3])


@pytest.mark.parametrize("sites", [3, 49, 107])
def test_a_pull_to_the_plain_mean_is_allowed(sites: int) -> None:
    task = toy.task({f"s{n:03}": toy.A for n in range(sites)})
    assert FedSM(pull=1 / sites).init(task).personal


def test_inside_sites_have_scores_of_routed_personal_and_global_models() -> None:
    end = ended(FedSM(selector_steps=1), small_task())
    found = {(s.site, s.metric) for s in end.scores if s.split == "test"}
    for site in ("site-01", "site-02", "site-03"):
        names = ("dice", "dice@global", "dice@personal", "selector_accuracy", "routed_own", "routed_other")
        assert {(site, name) for name in names} <= found
    assert ("far", "dice@personal") not in found
    assert ("far", "routed_global") in found
    shares: dict[str, float] = {}
    for score in end.scores:
        if score.split == "test" and score.metric.startswith("routed_"):
            shares[score.site] = shares.get(score.site, 0) + score.value
    assert set(shares.values()) == {1.0}


def test_a_selector_below_the_threshold_predicts_with_the_global_model() -> None:
    scores = {
        (s.site, s.split, s.metric): s.value
        for s in ended(FedSM(threshold=1.0, keep="last", selector_steps=1), small_task()).scores
    }
    plain = {key: value for key, value in scores.items() if key[2] == "dice"}
    assert plain == {(a, b, "dice"): scores[a, b, "dice@global"] for a, b, _ in plain}


def test_the_selector_learns_the_sites() -> None:
    # One batch per pass, and one step of the other two models, which are not tested here.
    task, mine = replace(small_task(), batch_size=8), FedSM(selector_steps=5, steps=1)
    end = ended(mine, task, rounds=40, evaluate_every=40)
    right = [s.value for s in end.scores if (s.split, s.metric) == ("test", "selector_accuracy")]
    assert np.mean(right) > 0.6


def test_the_selector_has_200_steps_over_the_rounds_by_default() -> None:
    task, mine = toy.two_sites(), FedSM(**SGD)
    assert ended(mine, task, 4).state.moments["0/step"].item() == 200
    assert ended(mine, task, 3).state.moments["0/step"].item() == 3 * 67


def test_local_statistics_are_not_sent() -> None:
    task = small_task(norm="batch")
    fleet = LocalFleet(task, rounds=2)
    *_, end = federate(FedSM(buffers="local", keep="last", selector_steps=1), task, fleet, rounds=2)
    held = [end.state.model, *end.state.personal.values()]
    assert all("running" not in name for model in held for name in model)
    p, s, moments = end.state.model.nbytes, end.state.selector.nbytes, end.state.moments.nbytes
    assert set(end.traffic.up.values()) == {2 * p + s + moments}
    one, other = (fleet.client_state(site) for site in ("site-01", "site-02"))
    assert any("running_mean" in name for name in one.personal_buffers)
    assert one.personal_buffers != other.personal_buffers
    assert one.personal_buffers != one.buffers


def test_the_models_with_the_best_validation_scores_predict() -> None:
    # The learning rate is so high that each round is worse than the previous one: the models after round 1 are the best
    # of those that later rounds score, and those after round 3 have no score.
    points = {"a": toy.B, "b": toy.B}
    task = replace(toy.task(points), open=lambda site: replace(toy.data(toy.B), val=toy.split(toy.B)))
    fields = SGD | {"lr": 0.5, "selector_steps": 1}
    first, end = (ended(FedSM(**fields), task, rounds).state for rounds in (1, 3))
    assert end.best.model.model == first.model != end.model
    assert end.best.model.score == -abs(2 * toy.line(first.model)[0] + toy.line(first.model)[1] - 2)
    assert {site: found.model for site, found in end.best.personal.items()} == first.personal
    assert first.best.model is None
    assert ended(FedSM(keep="last", **fields), task, 3).state.best.model is None


def test_the_distance_of_a_personal_model_is_logged() -> None:
    # Both sites take a step of 0.1: to (0.2, 0.2) and (0.4, 0.2); the first global model is zero.
    end = ended(FedSM(**SGD), toy.two_sites(), 1)
    found = {s.site: s.value for s in end.scores if s.metric == "personal_distance"}
    assert found == {"a": pytest.approx(np.hypot(0.2, 0.2)), "b": pytest.approx(np.hypot(0.4, 0.2))}


def test_a_schedule_that_ends_near_zero_warns() -> None:
    FedSM(schedule="cosine").check_rounds(30)
    with pytest.warns(UserWarning, match=r"personal models approach the global one; set algorithm\.lr_floor=0\.1"):
        FedSM(schedule="cosine", lr_floor=0).check_rounds(30)


def test_one_step_and_softpull_converge_to_the_minimum_of_the_penalised_loss() -> None:
    # f_k(w) = (w - c_k)^2 / 2, step eta, mu = (K pull - 1)/(K - 1), penalty (1 - mu)/(2 eta mu) sum (w_k - mean)^2:
    # its stationary points are w_k = (c_k + rho m) / (1 + rho) with rho = (1 - mu)/(eta mu) and m the mean of c.
    eta, pull, centres = 0.2, 0.6, {"a": 1.0, "b": 4.0, "c": -2.0}
    models = dict.fromkeys(centres, of(0.0))
    for _ in range(300):
        stepped = {s: of(m["w"].item() - eta * (m["w"].item() - centres[s])) for s, m in models.items()}
        models = softpull(stepped, pull)
    mu = (3 * pull - 1) / 2
    rho = (1 - mu) / (eta * mu)
    expected = [(c + rho * 1.0) / (1 + rho) for c in centres.values()]
    assert [m["w"].item() for m in models.values()] == pytest.approx(expected, rel=1e-4)


def test_bytes_are_three_models_and_moments() -> None:
    assert [*Update.__dataclass_fields__] == ["model", "personal", "selector", "moments"]
