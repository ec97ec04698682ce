"""FedSM with SoftPull: a global model, a personal model per site, and a selector that chooses a model for each image.

Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the Generalization Gap of Cross-silo Federated
Medical Image Segmentation", CVPR 2022, https://arxiv.org/abs/2203.10144; follows the authors' implementation.

    at site k: train w_k from the global w, then v_k from the personal w_p^k, then s_k from the selector s, which learns
    to predict the site (label k for all images of site k), with Adam
    w <- sum_k n_k/n w_k, likewise s and the moments of its Adam
    SoftPull: w_p^k <- pull v_k + (1 - pull)/(K-1) sum_(j != k) v_j
                    = v + mu (v_k - v)  with the plain mean v and mu = (K pull - 1)/(K-1)
    an image x is routed to w_p^k, k = argmax softmax(s(x)), if that softmax is above `threshold`, otherwise to w

With keep=best, predictions use the models with the best validation scores; each is chosen separately. A site scores the
models that it receives, at the start of the next round, so the models of the last round are not candidates. The latest
model is used until there is a score. w and s are scored only in rounds in which all inside sites reply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from raysim import (
    UNCHANGED,
    ConfigError,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    PredictionSet,
    Reply,
    Site,
    Split,
    Task,
    combine,
    load,
    mean,
    weights,
)
from raysim.training import (
    BestModels,
    OptimizerState,
    RoutedPredictor,
    SelectorKind,
    fit_selector,
    relative_distance,
    selector_batches,
    selector_metrics,
    selector_network,
    validation_score,
)

SELECTOR_STEPS = 200  # of the selector over all rounds, at least, by default

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The global model, each site's personal model, the selector, the moments of its Adam, and the best models."""

    model: Model
    personal: Mapping[str, Model]
    selector: Model
    moments: Model | None = None
    best: BestModels = field(default_factory=BestModels)


@dataclass(frozen=True)
class ClientState:
    """The buffers of the global and of the personal model if they are local, and the moments of the optimisers."""

    buffers: Model | None = None
    personal_buffers: Model | None = None
    model_moments: OptimizerState = field(default_factory=dict)
    personal_moments: OptimizerState = field(default_factory=dict)
    selector_moments: Model | None = None


@dataclass(frozen=True)
class Broadcast:
    """The global model, the selector, and the moments of the selector's Adam if they are averaged."""

    model: Model
    selector: Model
    moments: Model | None


@dataclass(frozen=True)
class Update:
    """The site's three trained models, and the moments of the selector's Adam if they are averaged."""

    model: Model
    personal: Model
    selector: Model
    moments: Model | None


@dataclass(frozen=True, kw_only=True)
class SoftPullTraining(LocalTraining):
    """Base class of FedSM and FedSM-extra: training of a global and a personal model and of the selector."""

    uses_rounds = "the selector takes 200 / rounds steps in a round by default"
    pull: Annotated[float, Gt(0), Le(1), "weight of the site's own model in its personal model; 1 / sites: mean"] = 0.7
    keep: Annotated[Literal["best", "last"], "models that predict: the best on validation data, or the last"] = "best"
    keep_moments: Annotated[bool, "whether the optimisers of both models keep their moments between rounds"] = True
    selector: Annotated[SelectorKind, "selector; small: four convolutions, 0.1 M parameters"] = "small"
    selector_size: Annotated[
        int | None, Gt(0), "the selector's images are averaged to at most this many pixels per side; null: full size"
    ] = 32
    selector_lr: Annotated[float, Gt(0), "learning rate of the selector's Adam"] = 3e-3
    selector_steps: Annotated[
        int | None, Gt(0), "steps of the selector per round; default: 200 / rounds in which it is trained"
    ] = None
    selector_batch: Annotated[
        int | None, Gt(0), "random images of the site in each step of the selector; null: all its images"
    ] = 8
    lr_floor: Annotated[float, Ge(0), Le(1), "lowest learning rate of the schedule, as a fraction of lr"] = 0.1

    def check_pull(self, task: Task) -> None:
        if len(task.inside) > 1 and self.pull * len(task.inside) < 1 - 1e-6:
            least = f"{1 / len(task.inside):g} (the plain mean of {len(task.inside)} inside sites)"
            raise ConfigError(f"algorithm.pull={self.pull:g}: expected {least} to 1; less would overshoot the mean")

    def train_models(self, site: Site[Any], model: Model, personal: Model) -> tuple[Model, Model, ClientState, Metrics]:
        """The trained global and personal model, the site's client state, and the metrics of the training."""
        before = site.client_state or ClientState()
        model_moments, personal_moments = dict(before.model_moments), dict(before.personal_moments)
        net = self.load_global(site, model)
        # The global model is trained first, so that it uses the same random numbers as FedAvg.
        loss = self.fit(net, site, optimizer_state=model_moments if self.keep_moments else None)
        update, buffers = self.make_update(net)
        personal_net = self.load_global(replace(site, client_state=before.personal_buffers), personal)
        personal_loss = self.fit(personal_net, site, optimizer_state=personal_moments if self.keep_moments else None)
        personal_update, personal_buffers = self.make_update(personal_net)
        client_state = ClientState(
            None if buffers is UNCHANGED else buffers,
            None if personal_buffers is UNCHANGED else personal_buffers,
            model_moments,
            personal_moments,
        )
        metrics = {"loss": loss, "personal_loss": personal_loss}
        metrics["personal_distance"] = relative_distance(personal_update, model)
        return update, personal_update, client_state, metrics

    def score_models(self, site: Site[Any], model: Model, personal: Model) -> Metrics:
        """The validation scores of the models that the site receives; none in its first call."""
        if self.keep == "last" or site.client_state is None:
            return {}
        nets = {
            "val_global": self.predict_module(site, model),
            "val_personal": site.predict_module(personal_model(site, personal)),
        }
        scores = {name: validation_score(site, net) for name, net in nets.items()}
        return {name: score for name, score in scores.items() if score is not None}

    def routed_predictions(
        self,
        site: Site[Any],
        selector: nn.Module,
        model: Model,
        personal: Mapping[str, Model],
        threshold: float,
        notes: Callable[[Split], Metrics],
    ) -> PredictionSet:
        """Routed predictions and, at an inside site, those of its personal model; `notes` and the routed fractions."""
        models = [personal_model(site, personal[name]) for name in site.task.inside]
        own = site.task.inside.index(site.name) if site.name in site.task.inside else None
        nets = self.predict_module(site, model), site.predict_module(models[0])
        routed = RoutedPredictor(selector, models, *nets, threshold)
        others = {} if own is None else {"personal": site.predict_module(models[own])}

        def split_notes(split: Split) -> Metrics:
            return routed.shares(selector_batches(site, split, self.selector_size), own) | notes(split)

        return PredictionSet(routed, others, split_notes)

    def load_selector(self, site: Site[Any], model: Model, classes: int) -> nn.Module:
        """The selector on the site's device; the next call loads its weights into the same module."""
        net = selector_network(site.task, self.selector, self.selector_size, classes).to(site.device)
        load(net, model)
        return net

    def train_selector(
        self, net: nn.Module, site: Site[Any], labels: Mapping[str, Tensor], moments: Model | None, rounds: int
    ) -> Model:
        """The moments of Adam after the steps of one round. `net` is trained in place, in `rounds` rounds in total."""
        steps = self.selector_steps or math.ceil(SELECTOR_STEPS / rounds)
        batch, lr, size = self.selector_batch, self.selector_lr, self.selector_size
        return fit_selector(net, site, labels, moments, lr=lr, size=size, steps=steps, batch=batch)


@dataclass(frozen=True, kw_only=True)
class FedSM(SoftPullTraining):
    threshold: Annotated[float, Ge(0), Le(1), "confidence above which an image is routed to a personal model"] = 0.9
    average_moments: Annotated[bool, "whether the moments of the selector's Adam are also averaged"] = True

    def init(self, task: Task) -> ServerState:
        self.check_pull(task)
        model = self.make_update(task.network())[0]
        selector = selector_network.__wrapped__(task, self.selector, self.selector_size, len(task.inside))
        return ServerState(model, dict.fromkeys(task.inside, model), weights(selector))

    def check_rounds(self, rounds: int) -> None:
        """Warns if the schedule ends with a rate at which personal models are no longer renewed."""
        self.warn_of_small_rate(rounds)

    # at each site
    def client(self, site: Site[ClientState], broadcast: Broadcast, personal: Model) -> Reply[Update]:
        scores = self.score_models(site, broadcast.model, personal)
        update, personal_update, client_state, metrics = self.train_models(site, broadcast.model, personal)
        before = site.client_state.selector_moments if site.client_state else None
        net = self.load_selector(site, broadcast.selector, len(site.task.inside)).eval()
        if scores:
            scores["val_selector"] = self._selector_accuracy(net, site, site.data.val)
        labels = {"train": torch.full((len(site.data.train),), site.task.inside.index(site.name))}
        of_selector = selector_metrics(net, site, labels, self.selector_size)
        moments = broadcast.moments if self.average_moments else before
        moments = self.train_selector(net, site, labels, moments, site.rounds)
        payload = Update(update, personal_update, weights(net), moments if self.average_moments else None)
        if not self.average_moments:
            client_state = replace(client_state, selector_moments=moments)
        metrics |= of_selector | scores
        return Reply(payload, len(site.data.train), metrics, client_state)

    @torch.no_grad()
    def _selector_accuracy(self, net: nn.Module, site: Site[Any], split: Split) -> float:
        """The fraction of the images of an inside site for which the selector predicts this site."""
        predicted = torch.cat([net(inputs).argmax(1) for inputs in selector_batches(site, split, self.selector_size)])
        return float((predicted == site.task.inside.index(site.name)).float().mean())

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        broadcast = Broadcast(state.model, state.selector, state.moments)
        replies = fleet.map(self.client, broadcast, {site: state.personal[site] for site in fleet.sites})
        best = state.best.update(fleet.task, replies, state.model, state.personal, state.selector)
        pulled = softpull({site: reply.payload.personal for site, reply in replies.items()}, self.pull)
        model, selector = (mean(replies, attrgetter(name)) for name in ("model", "selector"))
        moments = mean(replies, attrgetter("moments")) if self.average_moments else None
        return ServerState(model, {**state.personal, **pulled}, selector, moments, best), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> PredictionSet:
        model, personal, selector = state.best.or_latest(state.model, state.personal, state.selector)
        net = deepcopy(self.load_selector(site, selector, len(personal))).eval()
        notes = partial(self._notes, net, site)
        return self.routed_predictions(site, net, model, personal, self.threshold, notes)

    def _notes(self, net: nn.Module, site: Site[Any], split: Split) -> Metrics:
        inside = site.name in site.task.inside
        return {"selector_accuracy": self._selector_accuracy(net, site, split)} if inside else {}


def personal_model(site: Site[Any], model: Model) -> Model:
    """A personal model; with local buffers, it has those of the site's own personal model."""
    buffers = site.client_state.personal_buffers if site.client_state else None
    return model if buffers is None else model | buffers


def softpull(models: Mapping[str, Model], pull: float) -> dict[str, Model]:
    """v + mu (v_k - v) with the plain mean v: each deviation is multiplied by mu = (K pull - 1) / (K - 1).

    With fewer than 1/pull models, mu is 0, so that no model overshoots the mean. Integer counters are not changed.
    """
    count = len(models)
    if count == 1 or pull == 1:
        return dict(models)
    mu, average = max(0.0, (count * pull - 1) / (count - 1)), combine(models.values(), [1 / count] * count)
    floats = [name for name in average if average[name].dtype.kind == "f"]
    return {site: model | combine([average, model], [1 - mu, mu]).only(floats) for site, model in models.items()}
