"""FedRotation: every site trains an encoder to tell how an image was turned; the server takes the mean.

Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018,
https://arxiv.org/abs/1803.07728, under FedAvg: the baseline of Wu et al., MICCAI 2021.

    cross-entropy of the turn of an image, by 0, 90, 180 or 270 degrees
    theta <- sum_c n_c/n theta_c;  then fine-tuning from its encoder

Our reading: each image of a batch takes one of the turns, drawn, where the paper takes all four of each; an image that
is not square is turned by 0 or 180 degrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raysim import Fleet, Metrics, Model, Predictor, Reply, Site, Task, mean
from raysim.core.contracts import PredictionSet
from raysim.training.augmentations import Pool, Views, sample_batches
from raysim.training.self_supervised import SelfSupervised


@dataclass(frozen=True, kw_only=True)
class Upright(Views):
    """A view that is neither turned nor mirrored, unless one asks for it."""

    flip: Annotated[float, Ge(0), Le(1), "chance that a view is mirrored, along each axis"] = 0.0
    turn: Annotated[float, Ge(0), Le(180), "largest turn, in degrees"] = 0.0


@dataclass(frozen=True, kw_only=True)
class FedRotation(SelfSupervised[Model]):
    views: Annotated[Upright, "how a view differs from its image, before it is turned"] = field(default_factory=Upright)

    def init(self, task: Task) -> object:
        return self.init_state(task)

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        return [nn.Linear(channels, turns(task.shape))]

    def initial(self, net: nn.Module) -> Model:
        return self.make_update(net)[0]

    def network_weights(self, learned: Model) -> Model:
        return learned

    # at each site
    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        site, pool = self.pretraining_view(site)
        net, right = self.load_pretraining_network(site, model), list[Tensor]()
        loss = self.optimize(net, site, self.losses(net, site, pool, right))
        sent, kept = self.make_update(net)
        said = {"loss": loss, "turn_accuracy": torch.cat(right).float().mean().item()}
        return Reply(sent, weight=len(pool), metrics=said, client_state=kept)

    def losses(self, net: nn.Module, site: Site[Any], pool: Pool, right: list[Tensor]) -> Iterator[Tensor]:
        """That of each step of a round; `right` gets which turns were told."""
        steps, count = self.count_steps(pool, self.batch_size), turns(site.task.shape)
        for index in sample_batches(torch.zeros(len(pool)), self.batch_size, steps):
            drawn_turns = torch.randint(count, (len(index),))
            images = turned(self.views(pool.take(index, site.device)), drawn_turns * (4 // count))
            with self.precision(site):
                logits = net(images).float()
            answers = drawn_turns.to(site.device)
            right.append(logits.argmax(1) == answers)
            yield cross_entropy(logits, answers)

    # at the server
    def pretrain_round(self, fleet: Fleet, learned: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, learned)), {}

    def round(self, fleet: Fleet, state: object) -> tuple[object, Metrics]:
        return self.step(fleet, state)

    def predictor(self, site: Site[Any], state: object) -> Predictor | PredictionSet | None:
        return self.predict(site, state)


def turns(shape: Sequence[int]) -> int:
    """How many ways an image of this shape (C, H, W) can be turned and keep it."""
    return 4 if shape[1] == shape[2] else 2


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Each of the images (B, C, H, W) turned by so many quarters."""
    return torch.stack([image.rot90(k, (1, 2)) for image, k in zip(images, quarters.tolist(), strict=True)])
