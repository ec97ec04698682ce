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

from raysim import UNCHANGED, Exchange, Fleet, Metrics, Model, Reply, Site, Task, load, mean, weights
from raysim.training import (
    Bank,
    Features,
    ImagePool,
    SelfSupervised,
    check_levels,
    ema_update,
    pool_levels,
    projector,
    sample_batches,
)

GROUP = "self-supervised"

MASKED = -1e30  # a logit with no effect; minus infinity would give NaN gradients


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
        bounds = list[Tensor]()
        loss = self.optimize(net, site, self.losses(net, target.train(), site, pool, bank, bounds))
        update, buffers = self.make_update(net)
        best, equal = torch.stack(bounds).mean(0).tolist()
        metrics = {"loss": loss} | ({"relative_loss": (loss - best) / (equal - best)} if equal > best else {})
        client_state = ClientState(weights(target), bank.own(), None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(pool), metrics=metrics, client_state=client_state)

    def losses(
        self,
        net: nn.Module,
        target: nn.Module,
        site: Site[ClientState],
        pool: ImagePool,
        bank: Bank,
        bounds: list[Tensor],
    ) -> Iterator[Tensor]:
        """Yields the loss of each step of a round, and appends its bounds to `bounds`."""
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
            sampled, sampled_levels = bank.sample(self.sampled)
            bounds.append(self.loss_bounds(levels, sampled_levels))
            yield self.loss(q, k, levels, sampled, sampled_levels)
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

    def loss_bounds(self, levels: Tensor, sampled_levels: Tensor) -> Tensor:
        """The loss (2,) if features of a level are equal and those of other levels far away, and if all are equal.

        For the levels (B,) of the queries and (K,) of Q': |L| log(1 + p) and |L| log(1 + p + n), with |L| losses of a
        query, p features of its level and n of other levels in the denominator.
        """
        same_level = levels[:, None] == sampled_levels
        positives, others = same_level.sum(1), (~same_level).sum(1)
        losses = 1 + (positives > 0) * self.matching  # a query always has its own key
        if self.exclude_positives:
            positives = torch.zeros_like(positives)
        return torch.stack([(losses * count.float().log1p()).mean() for count in (positives, positives + others)])

    # at the server
    def pretrain_round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        banks = fleet.exchange(self.publish) if self.exchange else None
        return mean(fleet.map(self.client, Broadcast(model, banks))), {}
