"""FCLOpt: pre-training without negatives, towards a target network that the sites predict instead of downloading.

Wu, Zeng, Wang, Shi, Hu, "Distributed Contrastive Learning for Medical Image Segmentation", Medical Image Analysis 81,
2022, https://arxiv.org/abs/2208.03808. Our reading: we know FCLOpt, the predictive target network update (PTNU) and
distance prediction (DP) only from the abstract. The formulas below are ours, not those of the paper.

    theta: encoder, projector, predictor; xi: encoder, projector; xi <- m xi + (1 - m) theta after each step
    q = predictor(projector(encoder(x))), z = xi(x') of the other view, unit vectors, levels as in FCL
    L = mean over q and over the z of slices of q's level (including q's slice) of 2 - 2 q.z; mean of both view orders
    exchange:  up theta_c, xi_c;  down theta, xi: their means
    ptnu:      up theta_c, xi_c;  down theta and d = ||theta - xi||, of each tensor;  at the site
               xi = theta + min(1, d / ||xi_old - theta||) (xi_old - theta),  xi_old: previous target, same at all sites
    DP:        up xi_c in anchor rounds only; in other rounds d is extrapolated by a line through the last distances
    ema:       no target is sent: xi <- m_r xi_c + (1 - m_r) theta at the site, once per round
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn.functional import normalize

from raysim import UNCHANGED, Array, ConfigError, Fleet, Metrics, Model, Reply, Site, Task, combine, load, mean, weights
from raysim.training import (
    ImagePool,
    SelfSupervised,
    check_levels,
    ema_update,
    extrapolate_distance,
    mlp,
    move_to_distance,
    pool_levels,
    sample_batches,
    tensor_distances,
    total_distance,
)

GROUP = "self-supervised"


@dataclass(frozen=True)
class ServerState:
    """Both networks, the distances between them, and the measured distances by round."""

    model: Model
    target: Model  # at the start of the next round
    distance: Array
    measured: tuple[tuple[int, Array], ...] = ()
    round: int = 0


@dataclass(frozen=True)
class ClientState:
    """The target from which the site continues if no target is sent, and the buffers if they are local."""

    target: Model | None
    buffers: Model | None = None


@dataclass(frozen=True)
class Broadcast:
    """The global model, the target or its distance if the site needs it, and whether the site uploads its target."""

    model: Model
    target: Model | None
    distance: Array | None
    upload: bool


@dataclass(frozen=True)
class Update:
    """The site's trained networks. The target is None if it is not uploaded."""

    model: Model
    target: Model | None


@dataclass(frozen=True, kw_only=True)
class FCLOpt(SelfSupervised[ServerState]):
    features: Annotated[int, Gt(0), "dimensions of a feature"] = 128
    encoder_momentum: Annotated[float, Ge(0), Le(1), "m: momentum of the target per step"] = 0.99
    target: Annotated[
        Literal["exchange", "ptnu", "ema"],
        "target of a round. exchange: sent by the server; ptnu: predicted at the site; ema: averaged at the site",
    ] = "ptnu"
    anchor: Annotated[int | None, Gt(0), "ptnu: rounds between two uploads of targets; null: only the first round"] = 5
    threshold: Annotated[float | None, Ge(0), "predicted relative change of distance that triggers an upload"] = None
    history: Annotated[int, Gt(0), "number of measured distances for predicting the next distance"] = 3
    distances: Annotated[Literal["tensor", "network"], "whether distances are per tensor or of the whole network"] = (
        "tensor"
    )
    round_momentum: Annotated[float, Ge(0), Le(1), "m_r: momentum of the target per round, with target=ema"] = 0.5

    def init(self, task: Task) -> Any:
        if self.threshold is not None and self.history == 1:
            raise ConfigError(
                "algorithm.history=1 cannot predict a change, which algorithm.threshold needs; set algorithm.history=2 "
                "or more"
            )
        return super().init(task)

    def check_data(self, task: Task) -> None:
        check_levels(task)

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        # Without the last normalisation layer, features collapse within a few rounds.
        projector = nn.Sequential(mlp(channels, self.features), nn.BatchNorm1d(self.features, affine=False))
        return [projector, mlp(self.features, self.features)]

    def init_pretraining(self, net: nn.Module) -> ServerState:
        model = self.make_update(net)[0]
        target = target_part(model)
        return ServerState(model, target, tensor_distances(target, target, self.distances == "tensor"))

    def pretrained_weights(self, state: ServerState) -> Model:
        return state.model

    # at each site
    def client(self, site: Site[ClientState], broadcast: Broadcast) -> Reply[Update]:
        site, pool = self.pretraining_view(site)
        net = self.load_pretraining_network(site, broadcast.model)
        target = self.build_network(site.load(), site.task)[:1]  # the same tensor names
        start = self.start_target(site.client_state, broadcast)
        load(target, weights(net).only(weights(target)) | start)
        spreads = list[Tensor]()
        loss = self.optimize(net, site, self.losses(net, target.train(), site, pool, spreads))
        (update, buffers), end = self.make_update(net), weights(target).parameters
        next_target = {"ptnu": start, "ema": end, "exchange": None}[self.target]
        client_state = ClientState(next_target, None if buffers is UNCHANGED else buffers)
        metrics = {"loss": loss, "spread": torch.stack(spreads).mean().item()}
        return Reply(Update(update, end if broadcast.upload else None), len(pool), metrics, client_state)

    def start_target(self, client_state: ClientState | None, broadcast: Broadcast) -> Model:
        """The target at the start of the round. A site without a target uses that part of the global model."""
        if broadcast.target is not None:
            return broadcast.target
        global_target = target_part(broadcast.model)
        if client_state is None or client_state.target is None:
            return global_target
        if broadcast.distance is None:
            return combine([client_state.target, global_target], [self.round_momentum, 1 - self.round_momentum])
        return move_to_distance(global_target, client_state.target, broadcast.distance)

    def losses(
        self, net: nn.Module, target: nn.Module, site: Site[Any], pool: ImagePool, spreads: list[Tensor]
    ) -> Iterator[Tensor]:
        """Yields the loss of each step of a round, and appends the spread of its features to `spreads`."""
        image_levels, body = pool_levels(site.data, self.levels), net.get_submodule("0")
        for index in sample_batches(image_levels, self.batch_size, self.count_steps(pool, self.batch_size)):
            images, levels = pool.take(index, site.device), image_levels[index].to(site.device)
            one, two = self.views(images), self.views(images)
            with self.precision(site):
                q = net(torch.cat([one, two]))
                with torch.no_grad():
                    z = target(torch.cat([two, one]))
            (q_one, q_two), (z_two, z_one) = (normalize(features.float()).chunk(2) for features in (q, z))
            spreads.append(spread(q_one.detach()))
            yield (alignment_loss(q_one, z_two, levels) + alignment_loss(q_two, z_one, levels)) / 2
            ema_update(target.get_submodule("0"), body, self.encoder_momentum)

    # at the server
    def pretrain_round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        upload = self.target == "exchange" or (self.target == "ptnu" and self.is_anchor(state))
        target = state.target if self.target == "exchange" else None
        distance = state.distance if self.target == "ptnu" else None
        replies = fleet.map(self.client, Broadcast(state.model, target, distance, upload))
        model, number = mean(replies, attrgetter("model")), state.round
        part, metrics = target_part(model), {"uploads_skipped": 0.0 if upload else float(len(replies))}
        measured, distance = state.measured, state.distance
        if self.target == "ptnu" and measured:
            distance = extrapolate_distance(measured, number)
            metrics["predicted_distance"] = total_distance(distance)
        if upload:
            uploaded = mean(replies, attrgetter("target"))
            distance = tensor_distances(part, uploaded, self.distances == "tensor")
            measured = (*measured, (number, distance))[-self.history :]
            metrics["distance"] = total_distance(distance)
        after = move_to_distance(part, state.target, distance) if self.target == "ptnu" else part
        if upload and self.target == "ptnu":
            metrics["prediction_error"] = total_distance(tensor_distances(after, uploaded))
        next_target = uploaded if self.target == "exchange" else after
        return ServerState(model, next_target, distance, measured, number + 1), metrics

    def is_anchor(self, state: ServerState) -> bool:
        """Whether sites upload their targets in the next round."""
        too_few = len(state.measured) < (1 if self.threshold is None else 2)  # a change needs two
        if too_few or (self.anchor is not None and state.round % self.anchor == 0):
            return True
        last = total_distance(state.measured[-1][1])
        predicted = total_distance(extrapolate_distance(state.measured, state.round))
        return self.threshold is not None and abs(predicted - last) >= self.threshold * last


def alignment_loss(q: Tensor, z: Tensor, levels: Tensor) -> Tensor:
    """Mean over queries (B, d) of the mean of 2 - 2 q.z over the z (B, d) of the query's level; in [0, 4]."""
    same_level = (levels[:, None] == levels).float()
    return ((2 - 2 * q @ z.T) * same_level / same_level.sum(1, keepdim=True)).sum() / len(q)


def spread(z: Tensor) -> Tensor:
    """Mean standard deviation of unit vectors (B, d) along the axes, times sqrt(d): about 1; 0 means collapse."""
    return z.std(0, correction=0).mean().mul(z.shape[1] ** 0.5)


def target_part(model: Model) -> Model:
    """The tensors of the main network that a target also has, without predictor and buffers."""
    return model.parameters.only(name for name in model.parameters if name.startswith("0."))
