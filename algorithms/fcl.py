"""FCL: encoders learn from slices without labels by contrast, with the features of other sites; then fine-tuning.

Wu, Zeng, Wang, Shi, Hu, "Federated Contrastive Learning for Volumetric Medical Image Segmentation", MICCAI 2021,
https://arxiv.org/abs/2204.10983, and "Distributed Contrastive Learning for Medical Image Segmentation", Medical Image
Analysis 81, 2022, https://arxiv.org/abs/2208.03808.

    q = f(x) of one view of a slice, k = f_m(x') of the other, unit vectors; xi <- m xi + (1 - m) theta after each step
    Q = the site's bank of keys  U  those of the other sites (feature exchange);  Q' = K of Q, drawn for each step
    l(q, P, Q') = -1/|P| sum_(k+ in P) log exp(q.k+/tau) / (exp(q.k+/tau) + sum_(n in Q') exp(q.n/tau))
    L_q = l(q, keys of the batch from q's level, Q')  +  l(q, Q' from q's level, Q')  (global structural matching)
    theta <- sum_c n_c/n theta_c;  the encoder of theta is where the algorithm that fine-tunes begins

A level (the paper's partition) is a quarter of a volume along its axis. Our reading: the denominator is over all of Q',
as printed; the momentum encoder stays at the site, and goes on from round to round; features travel once a round, those
of the round before; a query without a positive has no loss. Each is a field, where it is one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from raysim import UNCHANGED, Exchange, Fleet, Metrics, Model, Predictor, Reply, Site, Task, load, mean, weights
from raysim.core.contracts import Array, PredictionSet
from raysim.training.augmentations import Pool, check_levels, pool_levels, sample_batches
from raysim.training.self_supervised import SelfSupervised, ema_update, projector

NOWHERE = -1e30  # a logit that adds nothing; of minus infinity a gradient would be no number


@dataclass(frozen=True)
class Features:
    """Keys, the oldest first: unit vectors (n, d), and the level (n,) of the slice that each is of."""

    vectors: Array
    levels: Array


@dataclass(frozen=True)
class ClientState:
    """What stays at a site: its momentum encoder, its bank, and its buffers where they are local."""

    momentum: Model
    bank: Features
    buffers: Model | None = None


@dataclass(frozen=True, kw_only=True)
class FCL(SelfSupervised[Model]):
    levels: Annotated[int, Gt(1), "parts of a volume along its axis; where the table has levels, those count"] = 4
    features: Annotated[int, Gt(0), "dimensions of a feature"] = 128
    temperature: Annotated[float, Gt(0), "tau: what similarities are divided by"] = 0.1
    bank: Annotated[int, Gt(0), "features that a site keeps, and shows the others"] = 1024
    sampled: Annotated[int, Gt(0), "features drawn from all banks for a step"] = 1024
    encoder_momentum: Annotated[float, Ge(0), Le(1), "m: what of itself the momentum encoder keeps in a step"] = 0.99
    exchange: Annotated[bool, "whether sites have each other's features"] = True
    matching: Annotated[bool, "whether features of q's level in the banks are positives: the second loss"] = True
    exclude_positives: Annotated[bool, "whether features of q's level are left out of the denominator"] = False
    both_views: Annotated[bool, "whether each view is a query and a key; else the first and the second"] = False
    restart: Annotated[bool, "whether the momentum encoder starts from the global one in every round"] = False

    def init(self, task: Task) -> object:
        if self.pretrain_rounds:
            check_levels(task)
        return self.init_state(task)

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        return [projector(channels, self.features)]

    def initial(self, net: nn.Module) -> Model:
        return self.make_update(net)[0]

    def network_weights(self, learned: Model) -> Model:
        return learned

    # at each site
    def publish(self, site: Site[ClientState], _: None) -> Reply[Features]:
        """The site's bank, for the others."""
        none = Features(np.zeros((0, self.features), np.float32), np.zeros(0, np.int32))
        return Reply(none if site.client_state is None else site.client_state.bank)

    def client(self, site: Site[ClientState], shared: tuple[Model, Exchange[Features] | None]) -> Reply[Model]:
        site.rewind()  # so that with exchange, a call more, a site draws what it draws without
        site, pool = self.pretraining_view(site)
        (model, banks), before = shared, site.client_state
        net, target = self.load_pretraining_network(site, model), self.build_network(site.load(), site.task)
        load(target, weights(net) if before is None or self.restart else before.momentum)
        others = [banks[name] for name in banks.sites if name != site.name] if banks is not None else []
        bank = Bank(self.bank, self.features, others, None if before is None else before.bank, site.device)
        loss = self.optimize(net, site, self.losses(net, target.train(), site, pool, bank))
        sent, kept = self.make_update(net)
        client_state = ClientState(weights(target), bank.kept(), None if kept is UNCHANGED else kept)
        return Reply(sent, weight=len(pool), metrics={"loss": loss}, client_state=client_state)

    def losses(
        self, net: nn.Module, target: nn.Module, site: Site[ClientState], pool: Pool, bank: Bank
    ) -> Iterator[Tensor]:
        """That of each step of a round."""
        kinds = pool_levels(site.data, self.levels)
        for index in sample_batches(kinds, self.batch_size, self.count_steps(pool, self.batch_size)):
            images, levels = pool.take(index, site.device), kinds[index].to(site.device)
            x = y = self.views(images)
            if self.both_views:
                x = y = torch.cat([x, self.views(images)])
                levels = levels.repeat(2)
            else:
                y = self.views(images)
            with self.precision(site):
                q = net(x)
                with torch.no_grad():
                    k = target(y)
            q, k = normalize(q.float()), normalize(k.float())
            yield self.loss(q, k, levels, *bank.sample(self.sampled))
            ema_update(target, net, self.encoder_momentum)
            bank.push(k, levels)

    def loss(self, q: Tensor, k: Tensor, levels: Tensor, others: Tensor, their_levels: Tensor) -> Tensor:
        """Mean of L_q over queries (B, d), with keys (B, d) of the same slices and Q' (K, d); one matrix product."""
        similar = q @ torch.cat([k, others]).T / self.temperature
        same = levels[:, None] == torch.cat([levels, their_levels])
        if self.both_views:  # a slice's own view is no positive of itself
            same[:, : len(k)].fill_diagonal_(False)
        negatives = similar[:, len(k) :]
        if self.exclude_positives:
            negatives = negatives.masked_fill(same[:, len(k) :], NOWHERE)
        # log of the sum over Q'; with it -log e^s / (e^s + e^sum) is softplus(sum - s)
        spread = nn.functional.pad(negatives, (0, 1), value=NOWHERE).logsumexp(1, keepdim=True)
        parts = [same[:, : len(k)], same[:, len(k) :]]
        share = torch.cat([part / part.sum(1, keepdim=True).clamp(min=1) for part in parts], 1)
        if not self.matching:
            share = share[:, : len(k)]
        return (softplus(spread - similar[:, : share.shape[1]]) * share).sum() / len(q)

    # at the server
    def pretrain_round(self, fleet: Fleet, learned: Model) -> tuple[Model, Metrics]:
        banks = fleet.exchange(self.publish) if self.exchange else None
        return mean(fleet.map(self.client, (learned, banks))), {}

    def round(self, fleet: Fleet, state: object) -> tuple[object, Metrics]:
        return self.step(fleet, state)

    def predictor(self, site: Site[ClientState], state: object) -> Predictor | PredictionSet | None:
        return self.predict(site, state)


class Bank:
    """Features of the other sites, and behind them the site's own, of which the oldest are overwritten."""

    def __init__(
        self, size: int, features: int, others: Sequence[Features], own: Features | None, device: torch.device
    ) -> None:
        parts = [*others, *([] if own is None else [own])]
        self.size, self.far = size, sum(len(part.levels) for part in others)
        self.filled = 0 if own is None else len(own.levels)
        self.next = self.filled % size
        free = size - self.filled  # copied once, out of the object store
        vectors = np.concatenate([*(part.vectors for part in parts), np.zeros((free, features), np.float32)])
        levels = np.concatenate([*(part.levels for part in parts), np.zeros(free, np.int32)])
        self.vectors = torch.from_numpy(vectors).to(device)
        self.levels = torch.from_numpy(levels.astype(np.int64)).to(device)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """So many of all features and their levels, none twice; all if there are no more."""
        there = self.far + self.filled
        if count >= there:
            return self.vectors[:there], self.levels[:there]
        index = torch.randperm(there)[:count].to(self.vectors.device)
        return self.vectors[index], self.levels[index]

    def push(self, vectors: Tensor, levels: Tensor) -> None:
        vectors, levels = vectors[-self.size :], levels[-self.size :]
        places = self.far + (self.next + torch.arange(len(levels), device=levels.device)) % self.size
        self.vectors[places], self.levels[places] = vectors, levels
        self.filled = min(self.size, self.filled + len(levels))
        self.next = (self.next + len(levels)) % self.size

    def kept(self) -> Features:
        """The site's own, the oldest first."""
        order = torch.arange(self.filled)
        order = self.far + (order.roll(-self.next) if self.filled == self.size else order)
        vectors, levels = (part[order.to(part.device)].cpu().numpy() for part in (self.vectors, self.levels))
        return Features(vectors, levels.astype(np.int32))
