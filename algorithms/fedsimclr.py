"""FedSimCLR: every site trains an encoder to match the two views of an image; the server averages the encoders.

Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
https://arxiv.org/abs/2002.05709, equation 1, under FedAvg: the baseline of Wu et al., MICCAI 2021.

    l(i, j) = -log exp(z_i.z_j/tau) / sum_(k != i) exp(z_i.z_k/tau)   i, j the two views of an image, k all of the batch
    theta <- sum_c n_c/n theta_c;  then fine-tuning from its encoder
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from raysim import Fleet, Metrics, Model, Reply, Site, Task, mean
from raysim.training import ImagePool, SelfSupervised, projector, sample_batches

GROUP = "self-supervised"


@dataclass(frozen=True, kw_only=True)
class FedSimCLR(SelfSupervised[Model]):
    features: Annotated[int, Gt(0), "dimensions of a feature"] = 128
    temperature: Annotated[float, Gt(0), "tau: divisor of the similarities"] = 0.1

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        return [projector(channels, self.features)]

    def init_pretraining(self, net: nn.Module) -> Model:
        return self.make_update(net)[0]

    def pretrained_weights(self, model: Model) -> Model:
        return model

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        site, pool = self.pretraining_view(site)
        net = self.load_pretraining_network(site, model)
        loss = self.optimize(net, site, self.losses(net, site, pool))
        update, client_state = self.make_update(net)
        size = min(self.batch_size, len(pool))
        metrics = {"loss": loss} | ({"relative_loss": loss / math.log(2 * size - 1)} if size > 1 else {})
        return Reply(update, weight=len(pool), metrics=metrics, client_state=client_state)

    def losses(self, net: nn.Module, site: Site[Any], pool: ImagePool) -> Iterator[Tensor]:
        """Yields the loss of each step of a round."""
        steps = self.count_steps(pool, self.batch_size)
        for index in sample_batches(torch.zeros(len(pool)), self.batch_size, steps):
            images = pool.take(index, site.device)
            with self.precision(site):
                features = net(torch.cat([self.views(images), self.views(images)]))
            yield self.loss(normalize(features.float()))

    def loss(self, z: Tensor) -> Tensor:
        """Mean of l over unit vectors (2B, d): first the first views of all images, then the second views."""
        similarity = (z @ z.T / self.temperature).fill_diagonal_(-torch.inf)
        return cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z) // 2))

    # at the server
    def pretrain_round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}
