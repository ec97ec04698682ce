"""FedRotation: every site trains an encoder to predict the rotation of an image; the server averages.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018,
https://arxiv.org/abs/1803.07728, under FedAvg: the baseline of Wu et al., MICCAI 2021.

    cross-entropy of the rotation of an image, by 0, 90, 180 or 270 degrees
    theta <- sum_c n_c/n theta_c;  then fine-tuning from its encoder

Our reading: each image of a batch is rotated once, at random; the paper uses all four rotations of each image. An
image that is not square is rotated by 0 or 180 degrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raysim import Fleet, Metrics, Model, Reply, Site, Task, mean
from raysim.training import ImagePool, SelfSupervised, Views, sample_batches

GROUP = "self-supervised"


@dataclass(frozen=True, kw_only=True)
class UprightViews(Views):
    """Views that are neither rotated nor mirrored by default."""

    flip: Annotated[float, Ge(0), Le(1), "probability that a view is mirrored, for each axis"] = 0.0
    turn: Annotated[float, Ge(0), Le(180), "largest rotation, in degrees"] = 0.0


@dataclass(frozen=True, kw_only=True)
class FedRotation(SelfSupervised[Model]):
    views: Annotated[UprightViews, "random changes that create a view of an image, before its rotation"] = field(
        default_factory=UprightViews
    )

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        return [nn.Linear(channels, rotations(task.shape))]

    def init_pretraining(self, net: nn.Module) -> Model:
        return self.make_update(net)[0]

    def pretrained_weights(self, model: Model) -> Model:
        return model

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        site, pool = self.pretraining_view(site)
        net, correct = self.load_pretraining_network(site, model), list[Tensor]()
        loss = self.optimize(net, site, self.losses(net, site, pool, correct))
        update, client_state = self.make_update(net)
        metrics = {"loss": loss, "turn_accuracy": torch.cat(correct).float().mean().item()}
        return Reply(update, weight=len(pool), metrics=metrics, client_state=client_state)

    def losses(self, net: nn.Module, site: Site[Any], pool: ImagePool, correct: list[Tensor]) -> Iterator[Tensor]:
        """Yields the loss of each step of a round; appends to `correct` whether each prediction is correct (B,)."""
        steps, count = self.count_steps(pool, self.batch_size), rotations(site.task.shape)
        for index in sample_batches(torch.zeros(len(pool)), self.batch_size, steps):
            labels = torch.randint(count, (len(index),))
            images = rotate(self.views(pool.take(index, site.device)), labels * (4 // count))
            with self.precision(site):
                logits = net(images).float()
            labels = labels.to(site.device)
            correct.append(logits.argmax(1) == labels)
            yield cross_entropy(logits, labels)

    # at the server
    def pretrain_round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}


def rotations(shape: Sequence[int]) -> int:
    """The number of rotations by a multiple of 90 degrees that keep the shape (C, H, W) of an image."""
    return 4 if shape[1] == shape[2] else 2


def rotate(images: Tensor, quarters: Tensor) -> Tensor:
    """Each image (B, C, H, W) rotated by its number of quarter turns (B,)."""
    return torch.stack([image.rot90(k, (1, 2)) for image, k in zip(images, quarters.tolist(), strict=True)])
