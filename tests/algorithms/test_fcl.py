"""FCL: the loss term by term and in closed form, the bank, the momentum encoder, bytes, and MoCo as a special case."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from algorithms.fcl import FCL, Bank, Broadcast, Features
from raysim import LocalFleet, Model, Task, federate, load, weights
from raysim.core.seeding import seed_all, seeded
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.contrastive_views import pool_levels, sample_batches
from tests.support.by_hand import POOLS, assert_close, at, averaged, first_stage, uneven

CPU = torch.device("cpu")


SWITCHES = [{"matching": m, "exclude_positives": e, "both_views": b} for b in (0, 1) for m in (0, 1) for e in (0, 1)]


def unit(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def by_the_paper(mine: FCL, q: Tensor, k: Tensor, levels: Tensor, others: Tensor, theirs: Tensor) -> Tensor:
    """The mean of L_q as printed in the paper, computed term by term."""

    def exp(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / mine.temperature).exp()

    total = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        negatives = sum(
            exp(q[i], n) for n, level in zip(others, theirs, strict=True) if is_in_denominator(mine, level, levels[i])
        )
        own = [k[j] for j in range(len(k)) if levels[j] == levels[i] and not (mine.both_views and i == j)]
        matched = [n for n, level in zip(others, theirs, strict=True) if level == levels[i]]
        for positives in (own, matched if mine.matching else []):
            terms = [(exp(q[i], p) / (exp(q[i], p) + negatives)).log() for p in positives]
            total = total - (sum(terms) / len(terms) if terms else 0.0)
    return total / len(q)


def is_in_denominator(mine: FCL, level: Tensor, own: Tensor) -> bool:
    return not (mine.exclude_positives and level == own)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_loss_equals_the_formula_of_the_paper(switches: dict[str, bool]) -> None:
    mine = FCL(temperature=0.3, **switches)
    q, k, others = unit(6, 5), unit(6, 5), unit(11, 5)
    levels = torch.tensor([1, 1, 2, 4, 4, 3])  # level 3 occurs once
    theirs = torch.tensor([1, 2, 2, 1, 4, 4, 4, 1, 2, 1, 4])  # level 3 does not occur
    expected = by_the_paper(mine, q, k, levels, others, theirs).item()
    assert mine.loss(q, k, levels, others, theirs).item() == pytest.approx(expected, rel=1e-6)
    assert expected >= 0


def aligned(count: int, **switches: Any) -> float:
    """The loss of a query that equals its key and `count` features of its level."""
    q = torch.tensor([[1.0, 0.0]])
    one = torch.ones(1, dtype=torch.int64)
    return FCL(**switches).loss(q, q, one, q.repeat(count, 1), one.repeat(count)).item()


def test_the_loss_in_closed_form() -> None:
    assert aligned(1, matching=False) == pytest.approx(math.log(2))
    assert aligned(1) == pytest.approx(2 * math.log(2))
    assert aligned(8) - aligned(8, matching=False) == pytest.approx(math.log(9), rel=1e-5)
    assert aligned(1, exclude_positives=True) == 0
    assert aligned(8, exclude_positives=True) == 0


def test_the_loss_relative_to_its_bounds() -> None:
    # Queries of levels 1 and 2; Q' has three features of level 1, none of level 2, and one of level 3. Query 1 has both
    # losses, with 3 positives and 1 negative in the denominator; query 2 has the first loss alone, with 4 negatives.
    levels, theirs = torch.tensor([1, 2]), torch.tensor([1, 1, 1, 3])
    log = math.log
    assert FCL().loss_bounds(levels, theirs).tolist() == pytest.approx([(2 * log(4)) / 2, (2 * log(5) + log(5)) / 2])
    alone = FCL(matching=False).loss_bounds(levels, theirs).tolist()
    assert alone == pytest.approx([log(4) / 2, log(5)])
    excluded = FCL(exclude_positives=True).loss_bounds(levels, theirs).tolist()
    assert excluded == pytest.approx([0, (2 * log(2) + log(5)) / 2])
    assert FCL().loss_bounds(levels, theirs[:0]).tolist() == [0, 0]


@pytest.mark.parametrize("switches", SWITCHES[:4], ids=str)
def test_the_bounds_are_losses_of_perfect_and_of_equal_features(switches: dict[str, bool]) -> None:
    mine, levels = FCL(temperature=0.01, **switches), torch.tensor([1, 2, 3, 3])
    theirs = torch.tensor([3, 1, 2, 1, 1])
    axes, (best, equal) = torch.eye(4), mine.loss_bounds(levels, theirs).tolist()
    assert mine.loss(axes[levels], axes[levels], levels, axes[theirs], theirs).item() == pytest.approx(best, abs=1e-4)
    one = torch.ones(5, 4) / 2
    assert mine.loss(one[:4], one[:4], levels, one, theirs).item() == pytest.approx(equal, abs=1e-4)


def test_the_relative_loss_is_logged_and_near_one_at_first() -> None:
    rounds, _ = ended(FCL(lr=1e-9, batch_size=4), 2)
    values = [score.value for score in rounds[-1].scores if score.metric == "relative_loss"]
    assert len(values) == 3
    assert values == pytest.approx([1.0] * 3, abs=0.2)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("exclude", [False, True])
def test_without_positives_or_features_there_is_no_loss_and_no_nan(count: int, exclude: bool) -> None:
    mine = FCL(exclude_positives=exclude, both_views=True)
    q = unit(2, 4).requires_grad_()
    levels, theirs = torch.tensor([1, 2]), torch.full((count,), 1 if exclude else 3)
    loss = mine.loss(q, unit(2, 4), levels, unit(count, 4), theirs)
    loss.backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()
    if not exclude:
        assert loss.item() == 0  # neither query has another slice of its level


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_order_and_rotation_of_features_are_irrelevant(switches: dict[str, bool]) -> None:
    mine, q, k, others = FCL(**switches), unit(4, 6), unit(4, 6), unit(9, 6)
    levels, theirs = torch.tensor([1, 2, 1, 2]), torch.tensor([1, 2, 3] * 3)
    loss, order = mine.loss(q, k, levels, others, theirs), torch.randperm(9)
    torch.testing.assert_close(mine.loss(q, k, levels, others[order], theirs[order]), loss)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    torch.testing.assert_close(mine.loss(q @ turn, k @ turn, levels, others @ turn, theirs), loss)


def features(*numbers: int) -> Features:
    return Features(np.array([[n, -n] for n in numbers], np.float32).reshape(-1, 2), np.array(numbers, np.int32) + 100)


def numbers(found: Features) -> list[int]:
    assert (found.levels - 100).tolist() == found.vectors[:, 0].tolist()  # levels match their vectors
    return [int(n) for n in found.vectors[:, 0]]


def pushed(bank: Bank, *added: int) -> Bank:
    more = features(*added)
    bank.push(torch.from_numpy(more.vectors), torch.from_numpy(more.levels).long())
    return bank


def test_a_bank_drops_the_oldest_and_keeps_its_order() -> None:
    bank = Bank(4, 2, [features(50, 51)], None, CPU)
    assert numbers(bank.own()) == []
    assert numbers(pushed(bank, 1, 2, 3).own()) == [1, 2, 3]
    assert numbers(pushed(bank, 4, 5).own()) == [2, 3, 4, 5]
    again = Bank(4, 2, [], bank.own(), CPU)
    assert numbers(pushed(again, 6).own()) == [3, 4, 5, 6] == numbers(pushed(bank, 6).own())
    assert numbers(pushed(bank, 7, 8, 9, 10, 11, 12).own()) == [9, 10, 11, 12]
    assert numbers(Bank(4, 2, [], features(1, 2), CPU).own()) == [1, 2]
    assert sorted(bank.sample(99)[0][:, 0].tolist()) == [9, 10, 11, 12, 50, 51]


def test_samples_are_without_replacement_or_all_features() -> None:
    bank = pushed(Bank(8, 2, [features(10, 11), features(12)], None, CPU), 1, 2, 3)
    vectors, levels = bank.sample(6)
    assert vectors[:, 0].tolist() == [10, 11, 12, 1, 2, 3]
    counts = dict.fromkeys(vectors[:, 0].tolist(), 0)
    for _ in range(300):
        vectors, levels = bank.sample(2)
        assert (levels - 100).tolist() == vectors[:, 0].tolist()
        assert len(set(vectors[:, 0].tolist())) == 2
        for value in vectors[:, 0].tolist():
            counts[value] += 1
    assert all(60 < count < 140 for count in counts.values())  # 100 each on average


@cache
def task(sites: int = 3) -> Task:
    data = SyntheticData(sites=sites, outside=(), cases=5, val=0, test=1, unlabelled=6, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}
    return Synthetic(data=data, network=network, batch_size=2).build()


def ended(mine: FCL, rounds: int = 2, sites: int = 3) -> tuple[list[Any], LocalFleet]:
    """`rounds` rounds of the first stage of a run, and the fleet."""
    mine, fleet = replace(mine, pretrain_rounds=rounds), LocalFleet(task(sites), rounds=rounds + 1)
    found = federate(mine, task(sites), fleet, rounds=rounds + 1)
    return [next(found) for _ in range(rounds)], fleet


def test_bytes_equal_the_formulas() -> None:
    mine = FCL(features=8, bank=16, batch_size=4)
    rounds, _ = ended(mine, 3)
    size = mine.build_network(task().network(), task())
    p_e = weights(size).nbytes
    # 11 images in batches of 4 take three steps: 12 features in the first round; the bank is full after the second.
    for r, bank_size in zip(rounds, (0, 12, 16), strict=True):
        assert r.traffic.up == dict.fromkeys(task().inside, p_e)
        assert r.traffic.down == dict.fromkeys(task().inside, p_e)
        # C (C - 1) B_f (d + 1) floats, counted at the receiving sites only.
        assert sum(r.traffic.between.values()) == 3 * 2 * bank_size * (8 + 1) * 4
        assert set(r.traffic.between.values()) in ({2 * bank_size * 9 * 4}, set())


def test_without_exchange_nothing_is_sent_between_sites() -> None:
    rounds, _ = ended(FCL(exchange=False))
    assert all(sum(r.traffic.between.values()) == 0 for r in rounds)


def test_a_single_site_has_only_its_own_bank() -> None:
    rounds, fleet = ended(FCL(), 3, sites=1)
    assert all(np.isfinite(r.loss) and sum(r.traffic.between.values()) == 0 for r in rounds)
    assert len(fleet.client_state("site-01").bank.levels) == 3 * 11


def test_features_are_unit_vectors_with_levels_and_the_bank_is_bounded() -> None:
    _, fleet = ended(FCL(bank=12, features=8), 3)
    for site in task().inside:
        bank = fleet.client_state(site).bank
        assert bank.vectors.shape == (12, 8)
        assert np.linalg.norm(bank.vectors, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
        assert set(bank.levels.tolist()) <= {1, 2, 3, 4}


def test_a_site_does_not_read_its_own_bank() -> None:
    class Banks:
        sites = task().inside
        read: ClassVar[list[str]] = []

        def __getitem__(self, site: str) -> Features:
            self.read.append(site)
            return Features(np.zeros((2, 128), np.float32), np.ones(2, np.int32))

    mine, fleet = FCL(pretrain_rounds=1), LocalFleet(task(), rounds=2)
    site = fleet.executor._site("site-02", call(), None)
    reply = mine.client(site, Broadcast(mine.init(task()).state, Banks()))  # type: ignore[arg-type]
    assert Banks.read == ["site-01", "site-03"]
    assert len(reply.client_state.bank.levels) == 11  # none of the other sites' features is stored


def call() -> Any:
    from raysim.federation.site_executor import CallKey

    return CallKey(0, 0, 2, 0)


@pytest.mark.parametrize("both", [False, True])
def test_the_momentum_encoder_with_momentum_one_and_zero(both: bool) -> None:
    for momentum in (0.0, 1.0):
        mine = FCL(encoder_momentum=momentum, pretrain_rounds=1, both_views=both, batch_size=4)
        fleet = LocalFleet(task(), rounds=2)
        start = mine.init(task()).state
        replies = fleet.map(mine.client, Broadcast(start, None))
        for site, reply in replies.items():
            momentum_encoder, update = fleet.client_state(site).momentum, reply.payload
            assert momentum_encoder.parameters == (start if momentum else update).parameters
            assert update.parameters != start.parameters


def test_the_momentum_encoder_continues_or_restarts() -> None:
    with seeded(0, "init"):
        start = FCL().init(task()).state
    for again in (False, True):
        mine = FCL(encoder_momentum=1.0, pretrain_rounds=3, restart=again, batch_size=4)
        fleet = LocalFleet(task(), rounds=4)
        rounds = federate(mine, task(), fleet, rounds=4)
        first, _ = next(rounds), next(rounds)
        assert first.state.state.parameters != start.parameters
        momentum_encoder = fleet.client_state("site-01").momentum.parameters
        assert momentum_encoder == (first.state.state if again else start).parameters


def test_without_exchange_and_matching_it_is_moco_with_levels() -> None:
    """Compares one round of one site with a loop of queries, a queue, and a cross-entropy for each positive."""
    mine = FCL(exchange=False, matching=False, pretrain_rounds=1, optimizer="sgd", lr=0.1, batch_size=4, bank=8)
    found = next(federate(mine, task(1), LocalFleet(task(1), rounds=2), rounds=2)).state.state
    with seeded(0, "init"):
        start = mine.init(task(1)).state
    site = LocalFleet(task(1), rounds=2).executor._site("site-01", call(), None)
    seed_all(0, 0, 0, "site-01")
    site, pool = mine.pretraining_view(site)
    net, target = mine.load_pretraining_network(site, start), mine.build_network(site.load(), site.task)
    load(target, start)
    sgd, queue, kinds = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), list[Tensor](), pool_levels(site.data, 4)
    for index in sample_batches(kinds, 4, 3):
        images = pool.take(index, CPU)
        q = normalize(net(mine.views(images)))
        with torch.no_grad():
            k = normalize(target(mine.views(images)))
        sgd.zero_grad()
        moco(q, k, kinds[index].tolist(), queue).backward()
        sgd.step()
        with torch.no_grad():
            for xi, theta in zip(target.parameters(), net.parameters(), strict=True):
                xi.copy_(0.99 * xi + 0.01 * theta)
        queue = [*queue, *k][-8:]
    for name, expected in weights(net).items():
        assert found[name] == pytest.approx(expected, abs=2e-5), name


def moco(q: Tensor, k: Tensor, levels: list[int], queue: list[Tensor]) -> Tensor:
    losses = []
    for i in range(len(q)):
        same = [j for j, level in enumerate(levels) if level == levels[i]]
        rows = torch.stack([torch.stack([q[i] @ k[j], *(q[i] @ n for n in queue)]) / 0.1 for j in same])
        losses.append(torch.nn.functional.cross_entropy(rows, torch.zeros(len(same), dtype=torch.int64)))
    return torch.stack(losses).mean()


Queue = list[tuple[Tensor, int]]


def site_round_by_hand(
    mine: FCL, site: Any, start: Model, xi: Model, queue: Queue, far: Queue
) -> tuple[Model, Model, Queue]:
    """The main network, the momentum encoder and the queue after a round, computed step by step."""
    site, pool = mine.pretraining_view(site)
    net, target = mine.load_pretraining_network(site, start), mine.build_network(site.load(), site.task)
    load(target, xi)
    ring, place = list(queue), len(queue) % mine.bank  # the samples depend on the order
    sgd, kinds = torch.optim.SGD(net.parameters(), mine.lr, momentum=0.9), pool_levels(site.data, mine.levels)
    for index in sample_batches(kinds, mine.batch_size, math.ceil(len(pool) / mine.batch_size)):
        images, levels = pool.take(index, CPU), kinds[index]
        views = [mine.views(images), mine.views(images)]
        first, second = (torch.cat(views),) * 2 if mine.both_views else views
        levels = torch.cat([levels, levels]) if mine.both_views else levels
        q = normalize(net(first))
        with torch.no_grad():
            k = normalize(target(second))
        shown = [*far, *ring]
        if mine.sampled < len(shown):
            shown = [shown[i] for i in torch.randperm(len(shown))[: mine.sampled].tolist()]
        vectors = torch.stack([v for v, _ in shown]) if shown else torch.zeros(0, mine.features)
        sgd.zero_grad()
        by_the_paper(mine, q, k, levels, vectors, torch.tensor([level for _, level in shown])).backward()
        sgd.step()
        with torch.no_grad():
            for old, theta in zip(target.parameters(), net.parameters(), strict=True):
                old.copy_(mine.encoder_momentum * old + (1 - mine.encoder_momentum) * theta)
        for each in zip(k, levels.tolist(), strict=True):
            ring[place : place + 1] = [each]
            place = (place + 1) % mine.bank
    return weights(net), weights(target), ring[place:] + ring[:place]


@pytest.mark.parametrize("switches", [{}, {"both_views": True}, {"restart": True}, {"exchange": False}], ids=str)
def test_two_rounds_of_three_sites_by_hand(switches: dict[str, bool]) -> None:
    mine = FCL(optimizer="sgd", lr=0.1, batch_size=4, bank=8, sampled=11, features=8, encoder_momentum=0.9, **switches)
    rounds, fleet = first_stage(mine, 2)
    with seeded(0, "init"):
        theta = mine.init(uneven()).state
    xi, queues = dict[str, Model](), {site: Queue() for site in POOLS}
    for number in (0, 1):
        before, found = dict(queues), dict[str, Model]()
        for name in POOLS:
            far = [each for other in POOLS if other != name for each in before[other]] if mine.exchange else []
            own = theta if mine.restart else xi.get(name, theta)
            with at(name, number, 2) as site:
                found[name], xi[name], queues[name] = site_round_by_hand(mine, site, theta, own, before[name], far)
        theta = averaged(found)
        assert_close(rounds[number].state.state, theta)
    for name, queue in queues.items():
        client_state = fleet.client_state(name)
        assert client_state.bank.levels.tolist() == [level for _, level in queue]
        assert client_state.bank.vectors == pytest.approx(torch.stack([v for v, _ in queue]).numpy(), abs=1e-4)
        assert_close(client_state.momentum, xi[name])


def test_with_one_site_the_exchange_does_not_change_a_bit() -> None:
    one, other = (first_stage(FCL(exchange=exchange), 3, sites=1) for exchange in (True, False))
    assert one[0][-1].state.state == other[0][-1].state.state
    assert (
        one[1].client_state("site-01").bank.vectors.tolist() == other[1].client_state("site-01").bank.vectors.tolist()
    )


@pytest.mark.parametrize("switch", [{"exchange": False}, {"matching": False}, {"exclude_positives": True}])
def test_each_switch_changes_what_is_learned(switch: dict[str, bool]) -> None:
    plain, other = (ended(FCL(**each))[0][-1].state.state for each in ({}, switch))
    assert plain != other
