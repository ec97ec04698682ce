"""FCL: contrastive pre-training on slices without labels, with features from other sites; then fine-tuning.

Wu, Zeng, Wang, Shi, Hu, "Federated Contrastive Learning for Volumetric Medical Image Segmentation", MICCAI 2021,
https://arxiv.org/abs/2204.10983, and "Distributed Contrastive Learning for Medical Image Segmentation", Medical Image
Analysis 81, 2022, https://arxiv.org/abs/2208.03808.

    q = f(x) of one view of a slice, k = f_m(x') of the other, unit vectors; xi <- m xi + (1 - m) theta after each step
    Q = the site's bank of keys  U  those of the other sites (feature exchange);  Q' = K of Q, drawn for each step
    l(q, P, Q') = -1/|P| sum_(k+ in P) log exp(q.k+/tau) / (exp(q.k+/tau) + sum_(n in Q') exp(q.n/tau))
    L_q = l(q, keys of the batch from q's level, Q')  +  l(q, Q' from q's level, Q')  (global structural matching)
    theta <- sum_c n_c/n theta_c;  fine-tuning starts from the encoder of theta

A level (the paper's partition) is a quarter of a volume along its axis. Our reading: the denominator is over all of Q',
as printed; the momentum encoder stays at the site and continues in the next round; features are sent once per round and
are those of the previous round; a query without positives has no loss. Some alternatives are available as fields.
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

from raysim import UNCHANGED, Array, Exchange, Fleet, Metrics, Model, Reply, Site, Task, load, mean, weights
from raysim.training import ImagePool, SelfSupervised, check_levels, ema_update, pool_levels, projector, sample_batches

GROUP = "self-supervised"

MASKED = -1e30  # a logit with no effect; minus infinity would give NaN gradients


@dataclass(frozen=True)
class Features:
    """Keys, the oldest first: unit vectors (n, d), and the levels (n,) of their slices."""

    vectors: Array
    levels: Array


@dataclass(frozen=True)
class ClientState:
    """The site's momentum encoder, its bank, and its buffers if they are local."""

    momentum: Model
    bank: Features
    buffers: Model | None = None


@dataclass(frozen=True)
class Broadcast:
    """The global model, and the banks of all sites if they are exchanged."""

    model: Model
    banks: Exchange[Features] | None


@dataclass(frozen=True, kw_only=True)
class FCL(SelfSupervised[Model]):
    levels: Annotated[int, Gt(1), "parts of a volume along its axis; levels in the table take precedence"] = 4
    features: Annotated[int, Gt(0), "dimensions of a feature"] = 128
    temperature: Annotated[float, Gt(0), "tau: divisor of the similarities"] = 0.1
    bank: Annotated[int, Gt(0), "features that a site keeps and sends to other sites"] = 1024
    sampled: Annotated[int, Gt(0), "features drawn from all banks in each step"] = 1024
    encoder_momentum: Annotated[float, Ge(0), Le(1), "m: momentum of the momentum encoder per step"] = 0.99
    exchange: Annotated[bool, "whether sites receive the features of other sites"] = True
    matching: Annotated[bool, "whether features of q's level in the banks are positives (the second loss)"] = True
    exclude_positives: Annotated[bool, "whether features of q's level are excluded from the denominator"] = False
    both_views: Annotated[
        bool, "whether each view is both query and key; otherwise the first view is the query, the second the key"
    ] = False
    restart: Annotated[bool, "whether the momentum encoder restarts from the global encoder in every round"] = False

    def check_data(self, task: Task) -> None:
        check_levels(task)

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        return [projector(channels, self.features)]

    def init_pretraining(self, net: nn.Module) -> Model:
        return self.make_update(net)[0]

    def pretrained_weights(self, model: Model) -> Model:
        return model

    # at each site
    def publish(self, site: Site[ClientState], _: None) -> Reply[Features]:
        """The site's bank, as payload for the other sites."""
        empty = Features(np.zeros((0, self.features), np.float32), np.zeros(0, np.int32))
        return Reply(empty if site.client_state is None else site.client_state.bank)

    def client(self, site: Site[ClientState], broadcast: Broadcast) -> Reply[Model]:
        site.rewind()  # the random numbers must not depend on the exchange, which is an additional call
        site, pool = self.pretraining_view(site)
        before, banks = site.client_state, broadcast.banks
        net = self.load_pretraining_network(site, broadcast.model)
        target = self.build_network(site.load(), site.task)
        load(target, weights(net) if before is None or self.restart else before.momentum)
        others = [banks[name] for name in banks.sites if name != site.name] if banks is not None else []
        bank = Bank(self.bank, self.features, others, None if before is None else before.bank, site.device)
        loss = self.optimize(net, site, self.losses(net, target.train(), site, pool, bank))
        update, buffers = self.make_update(net)
        client_state = ClientState(weights(target), bank.own(), None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(pool), metrics={"loss": loss}, client_state=client_state)

    def losses(
        self, net: nn.Module, target: nn.Module, site: Site[ClientState], pool: ImagePool, bank: Bank
    ) -> Iterator[Tensor]:
        """Yields the loss of each step of a round."""
        image_levels = pool_levels(site.data, self.levels)
        for index in sample_batches(image_levels, self.batch_size, self.count_steps(pool, self.batch_size)):
            images, levels = pool.take(index, site.device), image_levels[index].to(site.device)
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

    def loss(self, q: Tensor, k: Tensor, levels: Tensor, sampled: Tensor, sampled_levels: Tensor) -> Tensor:
        """Mean of L_q over queries (B, d), with keys (B, d) of the same slices and Q' (K, d)."""
        similarity = q @ torch.cat([k, sampled]).T / self.temperature
        same_level = levels[:, None] == torch.cat([levels, sampled_levels])
        if self.both_views:  # a view is not its own positive
            same_level[:, : len(k)].fill_diagonal_(False)
        negatives = similarity[:, len(k) :]
        if self.exclude_positives:
            negatives = negatives.masked_fill(same_level[:, len(k) :], MASKED)
        # The log of the sum over Q'. Then -log e^s / (e^s + e^log_sum) = softplus(log_sum - s).
        log_sum = nn.functional.pad(negatives, (0, 1), value=MASKED).logsumexp(1, keepdim=True)
        positives = [same_level[:, : len(k)], same_level[:, len(k) :]]
        share = torch.cat([part / part.sum(1, keepdim=True).clamp(min=1) for part in positives], 1)
        if not self.matching:
            share = share[:, : len(k)]
        return (softplus(log_sum - similarity[:, : share.shape[1]]) * share).sum() / len(q)

    # at the server
    def pretrain_round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        banks = fleet.exchange(self.publish) if self.exchange else None
        return mean(fleet.map(self.client, Broadcast(model, banks))), {}


class Bank:
    """The features of the other sites, which do not change, followed by a ring buffer of the site's own features."""

    def __init__(
        self, size: int, features: int, others: Sequence[Features], own: Features | None, device: torch.device
    ) -> None:
        parts = [*others, *([] if own is None else [own])]
        self.size, self.foreign = size, sum(len(part.levels) for part in others)
        self.filled = 0 if own is None else len(own.levels)
        self.next = self.filled % size
        free = size - self.filled
        # One copy, because arrays in the object store are read-only.
        vectors = np.concatenate([*(part.vectors for part in parts), np.zeros((free, features), np.float32)])
        levels = np.concatenate([*(part.levels for part in parts), np.zeros(free, np.int32)])
        self.vectors = torch.from_numpy(vectors).to(device)
        self.levels = torch.from_numpy(levels.astype(np.int64)).to(device)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` features, drawn without replacement, and their levels; all features if there are fewer."""
        total = self.foreign + self.filled
        if count >= total:
            return self.vectors[:total], self.levels[:total]
        index = torch.randperm(total)[:count].to(self.vectors.device)
        return self.vectors[index], self.levels[index]

    def push(self, vectors: Tensor, levels: Tensor) -> None:
        """Append features to the site's own features. If the bank is full, they replace the oldest."""
        vectors, levels = vectors[-self.size :], levels[-self.size :]
        slots = self.foreign + (self.next + torch.arange(len(levels), device=levels.device)) % self.size
        self.vectors[slots], self.levels[slots] = vectors, levels
        self.filled = min(self.size, self.filled + len(levels))
        self.next = (self.next + len(levels)) % self.size

    def own(self) -> Features:
        """The site's own features, the oldest first."""
        order = torch.arange(self.filled)
        order = self.foreign + (order.roll(-self.next) if self.filled == self.size else order)
        vectors, levels = (part[order.to(part.device)].cpu().numpy() for part in (self.vectors, self.levels))
        return Features(vectors, levels.astype(np.int32))
