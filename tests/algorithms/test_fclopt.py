"""FCLOpt: the loss by hand, predicted targets that are equal at all sites, predicted distances, and bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.fclopt import FCLOpt, alignment_loss, spread, target_part
from raysim import LocalFleet, Model, Task, federate, load, mean, weights
from raysim.core.errors import ConfigError
from raysim.core.seeding import seeded
from raysim.storage.digest import digest
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.contrastive_views import pool_levels, sample_batches
from raysim.training.model_geometry import extrapolate_distance, move_to_distance, tensor_distances, total_distance
from tests.support.by_hand import POOLS, assert_close, at, averaged, first_stage, uneven


def model(**tensors: Any) -> Model:
    return Model.of({name: np.float32(values) for name, values in tensors.items()})


def test_the_loss_by_hand() -> None:
    q, z = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    # level 1: q0 to z0 and z1: 0 and 0; q1: 2 and 2; level 2: q2 to z2: 4
    assert alignment_loss(q, z, torch.tensor([1, 1, 2])).item() == pytest.approx((0 + 2 + 4) / 3)
    assert alignment_loss(q, q, torch.tensor([1, 2, 3])).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(q, -q, torch.tensor([1, 2, 3])).item() == pytest.approx(4)


def test_the_spread_is_one_for_spread_features_and_zero_for_equal_features() -> None:
    everywhere = torch.nn.functional.normalize(torch.randn(4000, 16))
    assert spread(everywhere).item() == pytest.approx(1, abs=0.02)
    assert spread(everywhere[:1].repeat(5, 1)).item() == pytest.approx(0, abs=1e-6)
    # (1, 0) and (0, 1): a deviation of 1/2 along each axis, times sqrt(2)
    assert spread(torch.eye(2)).item() == pytest.approx(0.5 * 2**0.5)


THETA, OLD = model(a=[0, 0], b=[1]), model(a=[3, 4], b=[3])  # 5 and 2 apart


def test_a_target_is_predicted_by_hand() -> None:
    assert tensor_distances(THETA, OLD).tolist() == [5, 2]
    found = move_to_distance(THETA, OLD, np.float32([2.5, 0.5]))
    assert found["a"].tolist() == [1.5, 2]
    assert found["b"].tolist() == [1.5]
    far = float(np.sqrt(29))
    assert tensor_distances(THETA, OLD, per_tensor=False).tolist() == pytest.approx([far])
    assert move_to_distance(THETA, OLD, np.float32([far / 2]))["a"] == pytest.approx([1.5, 2])


def test_a_large_distance_gives_the_old_target_and_zero_gives_theta() -> None:
    assert move_to_distance(THETA, OLD, tensor_distances(THETA, OLD)) == OLD
    assert move_to_distance(THETA, OLD, np.float32([50, 20])) == OLD
    assert move_to_distance(THETA, OLD, np.float32([0, 0])) == THETA
    assert move_to_distance(THETA, THETA, np.float32([1, 1])) == THETA
    rng = np.random.default_rng(0)
    one, two = (model(a=rng.normal(size=(4, 5)), b=rng.normal(size=3)) for _ in range(2))
    distances = tensor_distances(one, two) * np.float32([0.3, 0.8])
    assert tensor_distances(one, move_to_distance(one, two, distances)) == pytest.approx(distances, rel=1e-5)


def test_distances_are_extrapolated_on_a_line_and_never_negative() -> None:
    measured = [(0, np.float32([1, 8])), (5, np.float32([2, 3]))]
    assert extrapolate_distance(measured, 10).tolist() == pytest.approx([3, 0])
    assert extrapolate_distance(measured, 6).tolist() == pytest.approx([2.2, 2])
    assert extrapolate_distance(measured[:1], 9).tolist() == [1, 8]
    # least squares through 0, 1, 5 at times 0, 1, 2: slope 2.5 through the mean 2 at time 1
    assert extrapolate_distance([(t, np.float32([v])) for t, v in enumerate((0, 1, 5))], 3).tolist() == pytest.approx(
        [7]
    )


@cache
def task() -> Task:
    data = SyntheticData(sites=3, outside=(), cases=5, val=0, test=1, unlabelled=6, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}
    return Synthetic(data=data, network=network, batch_size=2).build()


def pretrained(mine: FCLOpt, rounds: int, **options: Any) -> tuple[list[Any], LocalFleet]:
    """`rounds` rounds of the first stage of a run, and the fleet."""
    mine, fleet = replace(mine, pretrain_rounds=rounds), LocalFleet(task(), rounds=rounds + 1)
    found = federate(mine, task(), fleet, rounds=rounds + 1, **options)
    return [next(found) for _ in range(rounds)], fleet


def sizes() -> tuple[int, int, int]:
    """Bytes of the main network and of a target, and the number of tensors of a target."""
    mine = FCLOpt(features=8)
    net = weights(mine.build_network(task().network(), task()))
    target = target_part(net)
    assert {name.split(".")[0] for name in target} == {"0"}
    return net.nbytes, target.nbytes, len(target)


@pytest.mark.parametrize("target", ["exchange", "ptnu", "ema"])
def test_bytes_equal_the_formulas(target: Any) -> None:
    main, other, tensors = sizes()
    rounds, _ = pretrained(FCLOpt(features=8, target=target, anchor=2), 4)
    extra = {"exchange": other, "ptnu": 4 * tensors, "ema": 0}[target]
    for r in rounds:
        anchored = target == "exchange" or (target == "ptnu" and r.number in (1, 3))
        assert set(r.traffic.down.values()) == {main + extra + 8}  # and eight bytes of the flag `upload`
        assert set(r.traffic.up.values()) == {main + other * anchored}
        assert sum(r.traffic.between.values()) == 0
        assert r.metrics["uploads_skipped"] == (0 if anchored else 3)


def test_every_site_predicts_the_target_of_the_server_bit_by_bit() -> None:
    mine = replace(FCLOpt(anchor=1), pretrain_rounds=3)
    fleet, before = LocalFleet(task(), rounds=4), None
    rounds = federate(mine, task(), fleet, rounds=4)
    for _ in range(3):
        state = next(rounds).state.state
        kept = [fleet.client_state(site).target for site in task().inside]
        assert kept[0] == kept[1] == kept[2]
        assert before is None or kept[0] == before
        before = state.target


def test_prediction_error_and_distance_are_logged() -> None:
    mine = FCLOpt(anchor=1, pretrain_rounds=1)
    fleet = LocalFleet(task(), rounds=2)
    fleet.accounting.open_round(0)
    start = mine.init(task()).state
    (first,), _ = pretrained(mine, 1)
    from algorithms.fclopt import Broadcast

    with seeded(0, "init"):
        start = mine.init(task()).state
    replies = fleet.map(mine.client, Broadcast(start.model, None, start.distance, True))
    true, theta = mean(replies, lambda sent: sent.target), target_part(mean(replies, lambda sent: sent.model))
    assert first.metrics["distance"] == pytest.approx(total_distance(tensor_distances(theta, true)))
    hat = move_to_distance(theta, start.target, tensor_distances(theta, true))
    assert first.metrics["prediction_error"] == pytest.approx(total_distance(tensor_distances(hat, true)), rel=1e-5)
    assert first.state.state.target == hat
    assert first.metrics["prediction_error"] > 0


def run_digest(mine: FCLOpt, rounds: int) -> str:
    found, fleet = pretrained(mine, rounds)
    return digest(found[-1].state, dict(fleet.client_states))


def test_with_an_anchor_in_every_round_or_threshold_zero_nothing_is_predicted() -> None:
    plain = run_digest(FCLOpt(anchor=1), 4)
    assert run_digest(FCLOpt(anchor=None, threshold=0), 4) == plain
    assert run_digest(FCLOpt(anchor=3, threshold=0), 4) == plain
    assert run_digest(FCLOpt(anchor=3), 4) != plain


def test_without_anchors_only_the_first_round_uploads() -> None:
    main, other, _ = sizes()
    ups = []
    for anchor in (1, 2, 3, 5, None):
        rounds, _ = pretrained(FCLOpt(features=8, anchor=anchor), 6)
        ups.append(sum(sum(r.traffic.up.values()) for r in rounds))
    assert ups == [3 * (6 * main + n * other) for n in (6, 3, 2, 2, 1)]


def test_a_predicted_change_above_the_threshold_causes_an_upload() -> None:
    from algorithms.fclopt import ServerState

    measured = ((0, np.float32([1.0])), (1, np.float32([2.0])))  # so 3 is predicted for round 2, 1.5 times the last one
    state = ServerState(THETA, THETA, np.float32([2.0]), measured, round=2)
    for threshold, upload in ((0.4, True), (0.6, False), (None, False)):
        assert FCLOpt(anchor=None, threshold=threshold).is_anchor(state) == upload
    assert FCLOpt(anchor=2).is_anchor(state)
    assert not FCLOpt(anchor=3).is_anchor(state)


def test_a_threshold_alone_skips_uploads_after_two_distances() -> None:
    skipped = [
        [r.metrics["uploads_skipped"] for r in pretrained(FCLOpt(anchor=None, threshold=threshold), 4)[0]]
        for threshold in (1e-9, 1e9)
    ]
    assert skipped == [[0.0] * 4, [0.0, 0.0, 3.0, 3.0]]
    with pytest.raises(ConfigError, match=r"algorithm\.history=1 cannot predict a change.*set algorithm\.history=2"):
        FCLOpt(threshold=0.1, history=1).init(task())


def test_ema_needs_no_target_from_the_server() -> None:
    mine, fleet = replace(FCLOpt(target="ema", round_momentum=1.0), pretrain_rounds=2), LocalFleet(task(), rounds=3)
    rounds = federate(mine, task(), fleet, rounds=3)
    next(rounds)
    own = {site: fleet.client_state(site).target for site in task().inside}
    assert own["site-01"] != own["site-02"]
    state = next(rounds).state.state
    assert state.measured == ()
    from algorithms.fclopt import Broadcast, ClientState

    half = FCLOpt(target="ema", round_momentum=0.25)
    theta = Model.of({"0.a": np.float32([4.0]), "1.b": np.float32([9.0])})
    start = half.start_target(ClientState(Model.of({"0.a": np.float32([8.0])})), Broadcast(theta, None, None, False))
    assert start["0.a"].tolist() == [0.25 * 8 + 0.75 * 4]
    assert list(start) == ["0.a"]


@pytest.mark.parametrize("distances", ["tensor", "network"])
def test_between_anchors_the_distance_is_the_predicted_one(distances: Any) -> None:
    rounds, _ = pretrained(FCLOpt(anchor=2, history=2, distances=distances, batch_size=4), 7)
    states = [r.state.state for r in rounds]
    for number in range(1, 7):
        before, state, metrics = states[number - 1], states[number], rounds[number].metrics
        line = extrapolate_distance(before.measured, number)
        assert metrics["predicted_distance"] == pytest.approx(total_distance(line))
        assert state.distance.shape == ((1,) if distances == "network" else before.distance.shape)
        if number % 2:
            assert state.distance.tolist() == line.tolist()
            assert state.measured == before.measured
            assert "distance" not in metrics
        else:
            assert [of for of, _ in state.measured] == ([0, 2] if number == 2 else [number - 2, number])
            assert state.distance.tolist() == state.measured[-1][1].tolist()
    assert (
        extrapolate_distance(states[4].measured, 5).tolist() != states[4].measured[-1][1].tolist()
    )  # a line, not the last one


def test_a_round_by_hand() -> None:
    mine, learned, targets = FCLOpt(optimizer="sgd", lr=0.1, batch_size=4, features=8, encoder_momentum=0.9), {}, {}
    (found,), _ = first_stage(mine, 1)
    with seeded(0, "init"):
        start = mine.init(uneven()).state
    for name in POOLS:
        with at(name, 0, 1) as site:
            site, pool = mine.pretraining_view(site)
            net, target = (
                mine.load_pretraining_network(site, start.model),
                mine.build_network(site.load(), site.task)[:1],
            )
            load(target, start.model.only(weights(target)))
            sgd, kinds = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), pool_levels(site.data, 4)
            for index in sample_batches(kinds, 4, math.ceil(len(pool) / 4)):
                images, levels = pool.take(index, torch.device("cpu")), kinds[index].tolist()
                one, two = mine.views(images), mine.views(images)
                q = torch.nn.functional.normalize(net(torch.cat([one, two])))
                with torch.no_grad():
                    z = torch.nn.functional.normalize(target(torch.cat([two, one])))
                half, total = len(index), torch.zeros(())
                for i in range(2 * half):  # one view, compared with the other view of slices of its level
                    same = [j for j in range(half) if levels[j] == levels[i % half]]
                    near = [2 - 2 * q[i] @ z[j + half * (i >= half)] for j in same]
                    total = total + sum(near) / len(near) / (2 * half)
                sgd.zero_grad()
                total.backward()
                sgd.step()
                with torch.no_grad():
                    for xi, theta in zip(target.parameters(), net[0].parameters(), strict=True):
                        xi.copy_(0.9 * xi + 0.1 * theta)
            learned[name], targets[name] = weights(net), weights(target).parameters
    theta, true = averaged(learned), averaged(targets)
    assert_close(found.state.state.model, theta)
    assert found.metrics["distance"] == pytest.approx(
        total_distance(tensor_distances(target_part(theta), true)), rel=1e-3
    )


def test_features_do_not_collapse_and_the_loss_is_in_its_range() -> None:
    rounds, _ = pretrained(FCLOpt(), 5)
    found = [s.value for s in rounds[-1].scores if s.metric == "spread"]
    assert len(found) == 3
    assert min(found) > 0.3
    assert all(0 <= r.loss <= 4 for r in rounds)


def test_a_target_with_momentum_one_and_zero() -> None:
    from algorithms.fclopt import Broadcast

    for momentum in (0.0, 1.0):
        mine, fleet = FCLOpt(encoder_momentum=momentum, pretrain_rounds=1), LocalFleet(task(), rounds=2)
        start = mine.init(task()).state
        for reply in fleet.map(mine.client, Broadcast(start.model, None, start.distance, True)).values():
            expected = start.target if momentum else target_part(reply.payload.model)
            assert reply.payload.target == expected


def test_a_site_that_is_sampled_later_starts_with_the_global_model() -> None:
    rounds, fleet = pretrained(FCLOpt(anchor=2), 6, cohort=1)
    assert all(np.isfinite(r.loss) for r in rounds)
    assert len({r.cohort for r in rounds}) > 1
    assert set(fleet.client_states) == {site for r in rounds for site in r.cohort}
