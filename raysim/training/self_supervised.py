"""Learning in two stages: encoders without labels, then the whole network by any other algorithm, from that encoder.

The first stage is the method's own. The second is an algorithm of its own, with its state, its memories and its rounds,
which count from 0 as if they were a run; it begins with the weights that the run's seed gives, but for the encoder.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from raysim.core.contracts import (
    UNCHANGED,
    Exchange,
    Fleet,
    Metrics,
    PerSite,
    PredictionSet,
    Predictor,
    Reply,
    Site,
    Task,
)
from raysim.core.errors import ConfigError, RunError, SiteError
from raysim.core.model import Model, load, weights
from raysim.core.module_copy import copy_module
from raysim.core.registry import NESTED_ALGORITHM, algorithm_class
from raysim.training.augmentations import Pool, Views, check_images, pool_of
from raysim.training.encoders import Pooled, encoder, encoder_weights, width
from raysim.training.local_training import LocalTraining

L = TypeVar("L")
P = TypeVar("P")


@dataclass(frozen=True)
class Pretraining(Generic[L]):
    """What the server knows in the first stage: what was learned, and the network that every method begins with."""

    learned: L
    start: Model
    done: int = 0  # rounds
    model: None = None


@dataclass(frozen=True)
class Finetuning:
    """What it knows in the second: the state of the algorithm that fine-tunes, and who has had the encoder."""

    state: Any
    encoder: Model  # by its names in the network
    sites_with_encoder: tuple[str, ...] = ()

    @property
    def model(self) -> Model | None:
        model: Model | None = self.state.model
        return model


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(LocalTraining, ABC, Generic[L]):
    """How sites pre-train, by the fields of `LocalTraining` too, and what comes after."""

    pretrain_rounds: Annotated[
        Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)],
        "rounds of pre-training: a number, 0 for a random start, or a fraction of the run's",
    ] = 0.5
    finetune: Annotated[Any, NESTED_ALGORITHM, "what trains the network in the other rounds, from the encoder"] = (
        "fedavg"
    )
    batch_size: Annotated[int, Gt(1), "images in a batch of pre-training"] = 32
    views: Annotated[Views, "how views of an image differ"] = field(default_factory=Views)

    def __post_init__(self) -> None:
        if isinstance(self.finetune, str):
            object.__setattr__(self, "finetune", algorithm_class(self.finetune)())
        if isinstance(self.finetune, SelfSupervised):
            raise ConfigError("algorithm.finetune: a method that pre-trains cannot be what fine-tunes; fedavg can, say")

    # what a method says
    @abstractmethod
    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        """New heads: the first stands on the encoder, each other on the one before."""

    @abstractmethod
    def initial(self, net: nn.Module) -> L:
        """What the server knows first, of the network that is pre-trained."""

    @abstractmethod
    def pretrain_round(self, fleet: Fleet, learned: L) -> tuple[L, Metrics]:
        """A round of the first stage."""

    @abstractmethod
    def network_weights(self, learned: L) -> Model:
        """The weights of the network that is pre-trained."""

    # at each site
    def build_network(self, net: nn.Module, task: Task) -> nn.Sequential:
        """What is pre-trained: the encoder of `net`, its own layers, under the method's first head; then the others."""
        body = encoder(net)
        device = next(body.parameters()).device
        head, *others = (head.to(device) for head in self.heads(width(body, task.shape), task))
        return nn.Sequential(Pooled(body, head), *others)

    def load_pretraining_network(self, site: Site[Any], model: Model) -> nn.Sequential:
        """The network that is pre-trained, with these weights and the site's buffers."""
        net = self.build_network(site.load(), site.task)
        self.load_site_buffers(net, site, model)
        return net

    def pretraining_view(self, site: Site[Any]) -> tuple[Site[Any], Pool]:
        """The site as pre-training sees it, with a course of rounds of its own, and its images."""
        return site.stage_view(0, self.pretraining_rounds(site.rounds)), pool_of(site.data)

    def pretraining_rounds(self, rounds: int) -> int:
        """How many of the run's rounds are of the first stage."""
        asked = self.pretrain_rounds
        if not (isinstance(asked, float) and asked):
            return int(asked)
        return max(1, int(asked * rounds + 1e-9))  # of 0.29 of 100 the product is a little less than 29

    # at the server
    def check_rounds(self, rounds: int) -> None:
        """Raises ConfigError if so many rounds leave none to fine-tune in."""
        if self.pretraining_rounds(rounds) >= rounds:
            raise ConfigError(
                f"algorithm.pretrain_rounds={self.pretrain_rounds} leaves none of {rounds} rounds to fine-tune in; "
                "give fewer, or a fraction such as 0.5, or more rounds"
            )

    def init_state(self, task: Task) -> Any:
        """The first state; without pre-training that of the algorithm that fine-tunes, which then is all there is."""
        if self.outside != "global":
            raise ConfigError(
                f"algorithm.outside={self.outside}: an encoder alone answers nobody; say it of what fine-tunes: "
                f"algorithm.finetune.outside={self.outside}"
            )
        if self.pretrain_rounds == 0:
            return self._second(task)
        check_images(task)
        start = weights(net := task.network())
        state = Pretraining(self.initial(self.build_network(net, task)), start)
        self._second(task)  # what it refuses, it refuses now
        return state

    def _second(self, task: Task) -> Any:
        """The first state of the algorithm that fine-tunes."""
        with finetune_key_names():
            return self.finetune.init(task)

    def step(self, fleet: Fleet, state: Any) -> tuple[Any, Metrics]:
        """A round of the stage that the run is in."""
        self.check_rounds(fleet.rounds)
        rounds = self.pretraining_rounds(fleet.rounds)
        if isinstance(state, Pretraining) and state.done < rounds:
            learned, said = self.pretrain_round(fleet, state.learned)
            return replace(state, learned=learned, done=state.done + 1), said
        if isinstance(state, Pretraining):
            state = self.start_finetuning(state, fleet.task)
        if not isinstance(state, Finetuning):
            with finetune_key_names():
                found: tuple[Any, Metrics] = self.finetune.round(fleet, state)
            return found
        part = StageFleet(fleet, rounds, state.encoder, set(state.sites_with_encoder))
        with finetune_key_names():
            inner, said = self.finetune.round(part, state.state)
        return Finetuning(inner, state.encoder, tuple(sorted(part.sites_with_encoder))), said

    def start_finetuning(self, state: Pretraining[L], task: Task) -> Finetuning:
        """The first state of the second stage: a new network of the run's seed, with the encoder that was learned."""
        load(net := task.network(), state.start)
        load(self.build_network(net, task), self.network_weights(state.learned))
        return Finetuning(self._second(replace(task, network=partial(deepcopy, net))), encoder_weights(net))

    def predict(self, site: Site[Any], state: Any) -> Predictor | PredictionSet | None:
        """What the algorithm that fine-tunes answers with; before that, nothing."""
        if isinstance(state, Pretraining):
            return None
        if isinstance(state, Finetuning):
            rounds, client_state = (
                self.pretraining_rounds(site.rounds),
                site.client_state if site.name in state.sites_with_encoder else None,
            )
            site, state = replace(site.stage_view(rounds, site.rounds - rounds), client_state=client_state), state.state
        with finetune_key_names():
            answer: Predictor | PredictionSet | None = self.finetune.predictor(site, state)
        return answer


def projector(channels: int, features: int) -> nn.Module:
    """The usual head: (B, channels) -> (B, features)."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, features))


def mlp(inputs: int, features: int) -> nn.Module:
    """A head with one hidden layer, normalised: (B, inputs) -> (B, features)."""
    hidden = 2 * features
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, features))


@torch.no_grad()
def ema_update(target: nn.Module, net: nn.Module, momentum: float) -> None:
    """xi <- momentum xi + (1 - momentum) theta, of the parameters."""
    for xi, theta in zip(target.parameters(), net.parameters(), strict=True):
        xi.lerp_(theta, 1 - momentum)


@contextmanager
def finetune_key_names() -> Iterator[None]:
    """What the algorithm that fine-tunes says of a key, it says of the key as a user writes it."""
    try:
        yield
    except SiteError as error:
        raise SiteError(error.site, error.round, _renamed(error.cause), error.remote) from error
    except (ConfigError, RunError) as error:
        if type(error) not in (ConfigError, RunError):
            raise
        raise type(error)(_renamed(str(error))) from error


def _renamed(text: str) -> str:
    return re.sub(r"\balgorithm\.(?!finetune\b)", "algorithm.finetune.", text)


class StageFleet:
    """The fleet as the second stage sees it; with its first call a site is sent the encoder.

    It is in `site.load()` of that call alone: whoever needs it later keeps it, or has it from the server.
    """

    def __init__(self, fleet: Fleet, before: int, encoder: Model, told: set[str]) -> None:
        self.fleet, self.before, self.encoder, self.sites_with_encoder = fleet, before, encoder, told
        self.task, self.rounds, self.sites = fleet.task, fleet.rounds - before, fleet.sites

    def at(self, sites: Sequence[str]) -> StageFleet:
        return StageFleet(self.fleet.at(sites), self.before, self.encoder, self.sites_with_encoder)

    def map(
        self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None
    ) -> Mapping[str, Reply[P]]:
        replies = self.fleet.map(partial(run_in_stage, client, self.before), broadcast, self._per_site(per_site))
        self.sites_with_encoder |= set(replies)
        return replies

    def exchange(self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None) -> Exchange[P]:
        held = self.fleet.exchange(partial(run_in_stage, client, self.before), broadcast, self._per_site(per_site))
        self.sites_with_encoder |= set(held.sites)
        return held

    def _per_site(self, per_site: PerSite) -> dict[str, tuple[Any, ...]]:
        first = {site: None if site in self.sites_with_encoder else self.encoder for site in self.sites}
        return {site: (first[site], *(() if per_site is None else (per_site[site],))) for site in self.sites}


def run_in_stage(
    client: Callable[..., Reply[P]], before: int, site: Site[Any], broadcast: Any, per_site: Sequence[Any]
) -> Reply[P]:
    """`client` at a site after so many rounds of pre-training; given an encoder, it finds what a new run would find."""
    encoder, *rest = per_site
    site = site.stage_view(before, site.rounds - before)
    if encoder is None:
        with finetune_key_names():
            return client(site, broadcast, *rest)
    template = copy_module(site.template)
    load(template, weights(template) | encoder)
    with finetune_key_names():
        reply = client(replace(site, client_state=None, template=template), broadcast, *rest)
    return replace(reply, client_state=None) if reply.client_state is UNCHANGED else reply
