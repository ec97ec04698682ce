"""FCLOpt: encoders learn without negatives, towards a target network that sites predict rather than download.

Wu, Zeng, Wang, Shi, Hu, "Distributed Contrastive Learning for Medical Image Segmentation", Medical Image Analysis 81,
2022, https://arxiv.org/abs/2208.03808. Our reading: of FCLOpt, of the predictive target network update (PTNU) and of
distance prediction (DP) we know the abstract alone; the formulas below are not the paper's.

    theta: encoder, projector, predictor; xi: encoder, projector; xi <- m xi + (1 - m) theta after each step
    q = predictor(projector(encoder(x))), z = xi(x') of the other view, unit vectors, levels as in FCL
    L = mean over q, over the z of slices of q's level (its own among them), of 2 - 2 q.z; the mean of both ways round
    exchange:  up theta_c, xi_c;  down theta, xi: their means
    ptnu:      up theta_c, xi_c;  down theta and d = ||theta - xi||, of each tensor;  at the site
               xi = theta + min(1, d / ||xi_old - theta||) (xi_old - theta),  xi_old the one before, the same everywhere
    DP:        up xi_c in anchor rounds only; in the others d is what a line through the last distances foretells
    ema:       no target travels: xi <- m_r xi_c + (1 - m_r) theta at the site, once a round
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

from raysim import UNCHANGED, Fleet, Metrics, Model, Predictor, Reply, Site, Task, combine, load, mean, weights
from raysim.core.contracts import Array, PredictionSet
from raysim.core.errors import ConfigError
from raysim.training.augmentations import Pool, check_levels, pool_levels, sample_batches
from raysim.training.model_geometry import at_distance, distance_between, extrapolated_distance, length
from raysim.training.self_supervised import SelfSupervised, ema_update, mlp


@dataclass(frozen=True)
class ServerState:
    """What the server knows: the networks, how far they are apart, and distances that were measured, by round."""

    model: Model
    target: Model  # what sites begin the next round with
    distance: Array
    measured: tuple[tuple[int, Array], ...] = ()
    round: int = 0


@dataclass(frozen=True)
class Broadcast:
    """What a site is sent: the target or its distance, where it needs one, and whether it is to send its own."""

    model: Model
    target: Model | None
    distance: Array | None
    upload: bool


@dataclass(frozen=True)
class Update:
    """What a site sends."""

    model: Model
    target: Model | None


@dataclass(frozen=True)
class ClientState:
    """What stays at a site: the target that it goes on from, unless one is sent; its buffers where they are local."""

    target: Model | None
    buffers: Model | None = None


@dataclass(frozen=True, kw_only=True)
class FCLOpt(SelfSupervised[ServerState]):
    levels: Annotated[int, Gt(1), "parts of a volume along its axis; where the table has levels, those count"] = 4
    features: Annotated[int, Gt(0), "dimensions of a feature"] = 128
    encoder_momentum: Annotated[float, Ge(0), Le(1), "m: what of itself the target keeps in a step"] = 0.99
    target: Annotated[Literal["exchange", "ptnu", "ema"], "how a round's target comes to a site"] = "ptnu"
    anchor: Annotated[int | None, Gt(0), "of ptnu: rounds from one upload of targets to the next; none: one is all"] = 5
    threshold: Annotated[float | None, Ge(0), "foretold relative change of distance that calls for an upload"] = None
    history: Annotated[int, Gt(0), "measured distances that the next one is foretold from"] = 3
    distances: Annotated[Literal["tensor", "network"], "what a distance is of"] = "tensor"
    round_momentum: Annotated[float, Ge(0), Le(1), "m_r of ema"] = 0.5

    def init(self, task: Task) -> object:
        if self.threshold is not None and self.history == 1:
            raise ConfigError("algorithm.history=1 foretells no change for algorithm.threshold to meet; give 2 or more")
        if self.pretrain_rounds:
            check_levels(task)
        return self.init_state(task)

    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        # Normalised at its end, without which features collapse within a few rounds.
        projector = nn.Sequential(mlp(channels, self.features), nn.BatchNorm1d(self.features, affine=False))
        return [projector, mlp(self.features, self.features)]

    def initial(self, net: nn.Module) -> ServerState:
        model = self.make_update(net)[0]
        return ServerState(
            model, part := without_predictor(model), distance_between(part, part, self.distances == "tensor")
        )

    def network_weights(self, learned: ServerState) -> Model:
        return learned.model

    # at each site
    def client(self, site: Site[ClientState], asked: Broadcast) -> Reply[Update]:
        site, pool = self.pretraining_view(site)
        net = self.load_pretraining_network(site, asked.model)
        target = self.build_network(site.load(), site.task)[:1]  # of the same names
        began = self.begun(site.client_state, asked)
        load(target, weights(net).only(weights(target)) | began)
        widths = list[Tensor]()
        loss = self.optimize(net, site, self.losses(net, target.train(), site, pool, widths))
        (sent, kept), ended = self.make_update(net), weights(target).parameters
        goes_on = {"ptnu": began, "ema": ended, "exchange": None}[self.target]
        client_state = ClientState(goes_on, None if kept is UNCHANGED else kept)
        said = {"loss": loss, "spread": torch.stack(widths).mean().item()}
        return Reply(Update(sent, ended if asked.upload else None), len(pool), said, client_state)

    def begun(self, client_state: ClientState | None, asked: Broadcast) -> Model:
        """The target that the site begins the round with; a site that has none begins with the global model's part."""
        if asked.target is not None:
            return asked.target
        part = without_predictor(asked.model)
        if client_state is None or client_state.target is None:
            return part
        if asked.distance is None:
            return combine([client_state.target, part], [self.round_momentum, 1 - self.round_momentum])
        return at_distance(part, client_state.target, asked.distance)

    def losses(
        self, net: nn.Module, target: nn.Module, site: Site[Any], pool: Pool, widths: list[Tensor]
    ) -> Iterator[Tensor]:
        """That of each step of a round; `widths` gets how far features are from having collapsed."""
        kinds, body = pool_levels(site.data, self.levels), net.get_submodule("0")
        for index in sample_batches(kinds, self.batch_size, self.count_steps(pool, self.batch_size)):
            images, levels = pool.take(index, site.device), kinds[index].to(site.device)
            one, two = self.views(images), self.views(images)
            with self.precision(site):
                q = net(torch.cat([one, two]))
                with torch.no_grad():
                    z = target(torch.cat([two, one]))
            (a, b), (c, d) = (normalize(each.float()).chunk(2) for each in (q, z))
            widths.append(spread(a.detach()))
            yield (aligned(a, c, levels) + aligned(b, d, levels)) / 2
            ema_update(target.get_submodule("0"), body, self.encoder_momentum)

    # at the server
    def pretrain_round(self, fleet: Fleet, learned: ServerState) -> tuple[ServerState, Metrics]:
        upload = self.target == "exchange" or (self.target == "ptnu" and self.is_anchor(learned))
        target = learned.target if self.target == "exchange" else None
        distance = learned.distance if self.target == "ptnu" else None
        replies = fleet.map(self.client, Broadcast(learned.model, target, distance, upload))
        model, number = mean(replies, attrgetter("model")), learned.round
        part, said = without_predictor(model), {"uploads_skipped": 0.0 if upload else float(len(replies))}
        measured, distance = learned.measured, learned.distance
        if self.target == "ptnu" and measured:
            distance = extrapolated_distance(measured, number)
            said["predicted_distance"] = length(distance)
        if upload:
            true = mean(replies, attrgetter("target"))
            distance = distance_between(part, true, self.distances == "tensor")
            measured, said["distance"] = (*measured, (number, distance))[-self.history :], length(distance)
        after = at_distance(part, learned.target, distance) if self.target == "ptnu" else part
        if upload and self.target == "ptnu":
            said["prediction_error"] = length(distance_between(after, true))
        return ServerState(model, true if self.target == "exchange" else after, distance, measured, number + 1), said

    def is_anchor(self, known: ServerState) -> bool:
        """Whether targets are uploaded in the next round."""
        few = len(known.measured) < (1 if self.threshold is None else 2)  # a change takes two
        if few or (self.anchor is not None and known.round % self.anchor == 0):
            return True
        last, then = length(known.measured[-1][1]), length(extrapolated_distance(known.measured, known.round))
        return self.threshold is not None and abs(then - last) >= self.threshold * last

    def round(self, fleet: Fleet, state: object) -> tuple[object, Metrics]:
        return self.step(fleet, state)

    def predictor(self, site: Site[Any], state: object) -> Predictor | PredictionSet | None:
        return self.predict(site, state)


def aligned(q: Tensor, z: Tensor, levels: Tensor) -> Tensor:
    """Mean over queries (B, d) of the mean of 2 - 2 q.z over the z (B, d) of their level; from 0 to 4."""
    same = (levels[:, None] == levels).float()
    return ((2 - 2 * q @ z.T) * same / same.sum(1, keepdim=True)).sum() / len(q)


def spread(z: Tensor) -> Tensor:
    """Deviation of unit vectors (B, d) along each axis over 1/sqrt(d): about 1, and 0 where they have collapsed."""
    return z.std(0, correction=0).mean().mul(z.shape[1] ** 0.5)


def without_predictor(model: Model) -> Model:
    """The part of the main network that a target has: no predictor, no buffers."""
    return model.parameters.only(name for name in model.parameters if name.startswith("0."))
