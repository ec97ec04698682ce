"""Two-stage training: encoders are pre-trained without labels, then another algorithm fine-tunes the whole network.

The method defines the first stage. The second stage runs any other algorithm, with separate server state, client
states and zero-based rounds. It starts from the learned encoder; the other weights are those of the run's seed.
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
from raysim.training.contrastive_views import ImagePool, Views, check_images, check_levels
from raysim.training.encoders import PooledEncoder, encoder, encoder_weights, feature_channels
from raysim.training.linear_probe import level_accuracy
from raysim.training.local_training import LocalTraining

L = TypeVar("L")
P = TypeVar("P")


@dataclass(frozen=True)
class Pretraining(Generic[L]):
    """The server state of the first stage: the state of the method, and the first weights of the network."""

    state: L
    start: Model
    rounds_done: int = 0
    model: None = None


@dataclass(frozen=True)
class Finetuning:
    """The server state of the second stage: the fine-tuning algorithm's state, and the sites that have the encoder."""

    state: Any
    encoder: Model  # with the names of the full network
    sites_with_encoder: tuple[str, ...] = ()

    @property
    def model(self) -> Model | None:
        model: Model | None = self.state.model
        return model


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(LocalTraining, ABC, Generic[L]):
    """Base class of methods with pre-training. A method defines the first stage; this class has init, round, predictor.

    The inherited fields of `LocalTraining` configure pre-training. The fields of `finetune` configure fine-tuning.
    """

    can_compile = False  # pre-training has its own losses

    pretrain_rounds: Annotated[
        Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)],
        "rounds of pre-training: a number, or a fraction of the run's rounds; 0: no pre-training",
    ] = 0.5
    finetune: Annotated[Any, NESTED_ALGORITHM, "algorithm of the rounds after pre-training"] = "fedavg"
    batch_size: Annotated[int, Gt(1), "images in a batch of pre-training"] = 32
    levels: Annotated[int, Gt(1), "parts of a volume along its axis; levels in the table take precedence"] = 4
    probe_every: Annotated[
        int | None, Gt(0), "rounds of pre-training between two linear probes for the level (level_accuracy); null: none"
    ] = None
    views: Annotated[Views, "random changes that create a view of an image"] = field(default_factory=Views)

    def __post_init__(self) -> None:
        if isinstance(self.finetune, str):
            object.__setattr__(self, "finetune", algorithm_class(self.finetune)())
        if isinstance(self.finetune, SelfSupervised):
            raise ConfigError(
                "algorithm.finetune: a method with pre-training cannot fine-tune; set for example "
                "algorithm.finetune=fedavg"
            )
        if getattr(self.finetune, "trainable", None) is not None:
            raise ConfigError("algorithm.finetune.trainable: set algorithm.trainable, which holds for both stages")

    # defined by a method
    @abstractmethod
    def heads(self, channels: int, task: Task) -> Sequence[nn.Module]:
        """New heads. The first takes the pooled features (B, channels), each other the output of the previous one."""

    @abstractmethod
    def init_pretraining(self, net: nn.Module) -> L:
        """The first state of pre-training, from the network that `build_network` returns."""

    @abstractmethod
    def pretrain_round(self, fleet: Fleet, state: L) -> tuple[L, Metrics]:
        """One round of pre-training."""

    @abstractmethod
    def pretrained_weights(self, state: L) -> Model:
        """The weights of the pre-trained network, heads included."""

    def check_data(self, task: Task) -> None:
        """Raises ConfigError if the method cannot pre-train on the task's examples."""
        check_images(task)

    # at each site
    def build_network(self, net: nn.Module, task: Task) -> nn.Sequential:
        """The network to pre-train: the encoder of `net` (shared layers) with the first head, then the other heads."""
        body = encoder(net)
        device = next(body.parameters()).device
        head, *others = (head.to(device) for head in self.heads(feature_channels(body, task.shape), task))
        return nn.Sequential(PooledEncoder(body, head), *others)

    def load_pretraining_network(self, site: Site[Any], model: Model) -> nn.Sequential:
        """The network to pre-train, with the weights `model` and this site's buffers according to `buffers`."""
        net = self.build_network(site.load(), site.task)
        self.load_site_buffers(net, site, model)
        return net

    def pretraining_view(self, site: Site[Any]) -> tuple[Site[Any], ImagePool]:
        """The site with the round numbers of the first stage, and its images."""
        return site.stage_view(0, self.pretraining_rounds(site.rounds)), ImagePool.of(site.data)

    def pretraining_rounds(self, rounds: int) -> int:
        """The number of rounds of the first stage in a run of `rounds` rounds."""
        share = self.pretrain_rounds
        if not (isinstance(share, float) and share):
            return int(share)
        return max(1, int(share * rounds + 1e-9))  # in floating point 0.29 * 100 is slightly less than 29

    def keep_stages(self, before: int, after: int) -> SelfSupervised[L]:
        """A copy that pre-trains for as many rounds in a run of `after` rounds as in a run of `before`."""
        pretraining = self.pretraining_rounds(before)
        return self if pretraining == self.pretraining_rounds(after) else replace(self, pretrain_rounds=pretraining)

    def probe(self, site: Site[Any], model: Model) -> Reply[None]:
        """The level accuracy of the pre-trained encoder on the site's validation images, as a metric."""
        net = self.load_pretraining_network(site, model).eval()
        accuracy = level_accuracy(net.get_submodule("0.encoder"), site.data, self.levels, site.device)
        return Reply(None, metrics={} if accuracy is None else {"level_accuracy": accuracy})

    # at the server
    def init(self, task: Task) -> Any:
        """The first state. Without rounds of pre-training it is the state of the fine-tuning algorithm."""
        if self.outside.name != "global":
            raise ConfigError(
                f"algorithm.outside={self.outside.name}: pre-training makes no predictions; set it for the fine-tuning "
                f"algorithm: algorithm.finetune.outside={self.outside.name}"
            )
        if self.pretrain_rounds == 0:
            return self._init_finetuning(task)
        self.check_data(task)
        if self.probe_every is not None:
            check_levels(task)
        start = weights(net := task.network())
        state = Pretraining(self.init_pretraining(self.build_network(net, task)), start)
        self._init_finetuning(task)  # raises its errors before any round runs
        return state

    def _init_finetuning(self, task: Task) -> Any:
        with finetune_key_names():
            return self.finetune.init(task)

    def check_rounds(self, rounds: int) -> None:
        """Raises ConfigError if pre-training takes all of `rounds` rounds."""
        if self.pretraining_rounds(rounds) >= rounds:
            raise ConfigError(
                f"algorithm.pretrain_rounds={self.pretrain_rounds} leaves no round for fine-tuning in a run of "
                f"rounds={rounds}; set fewer, or a fraction such as algorithm.pretrain_rounds=0.5, or more rounds"
            )

    def round(self, fleet: Fleet, state: Any) -> tuple[Any, Metrics]:
        """One round of the current stage."""
        self.check_rounds(fleet.rounds)
        rounds = self.pretraining_rounds(fleet.rounds)
        if isinstance(state, Pretraining) and state.rounds_done < rounds:
            pretrained, metrics = self.pretrain_round(fleet, state.state)
            done = state.rounds_done + 1
            if self.probe_every is not None and (done % self.probe_every == 0 or done == rounds):
                fleet.map(self.probe, self.pretrained_weights(pretrained))
            return replace(state, state=pretrained, rounds_done=done), metrics
        if isinstance(state, Pretraining):
            state = self.start_finetuning(state, fleet.task)
        if not isinstance(state, Finetuning):
            with finetune_key_names():
                result: tuple[Any, Metrics] = self.finetune.round(fleet, state)
            return result
        stage = StageFleet(fleet, rounds, state.encoder, set(state.sites_with_encoder))
        with finetune_key_names():
            inner, metrics = self.finetune.round(stage, state.state)
        return Finetuning(inner, state.encoder, tuple(sorted(stage.sites_with_encoder))), metrics

    def start_finetuning(self, state: Pretraining[L], task: Task) -> Finetuning:
        """The first state of the second stage: the network with the run's first weights and the learned encoder."""
        load(net := task.network(), state.start)
        load(self.build_network(net, task), self.pretrained_weights(state.state))
        return Finetuning(self._init_finetuning(replace(task, network=partial(deepcopy, net))), encoder_weights(net))

    def predictor(self, site: Site[Any], state: Any) -> Predictor | PredictionSet | None:
        """The predictor of the fine-tuning algorithm; None during pre-training."""
        if isinstance(state, Pretraining):
            return None
        if isinstance(state, Finetuning):
            rounds = self.pretraining_rounds(site.rounds)
            client_state = site.client_state if site.name in state.sites_with_encoder else None
            site = replace(site.stage_view(rounds, site.rounds - rounds), client_state=client_state)
            state = state.state
        with finetune_key_names():
            predictor: Predictor | PredictionSet | None = self.finetune.predictor(site, state)
        return predictor


@contextmanager
def finetune_key_names() -> Iterator[None]:
    """Rewrite `algorithm.KEY` in errors of the fine-tuning algorithm to `algorithm.finetune.KEY`, the user's key."""
    try:
        yield
    except SiteError as error:
        raise SiteError(error.site, error.round, _with_finetune_keys(error.cause), error.remote) from error
    except (ConfigError, RunError) as error:
        if type(error) not in (ConfigError, RunError):
            raise
        raise type(error)(_with_finetune_keys(str(error))) from error


def _with_finetune_keys(text: str) -> str:
    return re.sub(r"\balgorithm\.(?!finetune\b)", "algorithm.finetune.", text)


class StageFleet:
    """The fleet of the second stage. Rounds count from its start, and the first call to a site sends the encoder.

    `site.load()` returns the encoder only in that call. An algorithm that needs it later must keep it in the client
    state or send it from the server.
    """

    def __init__(self, fleet: Fleet, start: int, encoder: Model, sites_with_encoder: set[str]) -> None:
        self.fleet, self.start, self.encoder, self.sites_with_encoder = fleet, start, encoder, sites_with_encoder
        self.task, self.rounds, self.sites = fleet.task, fleet.rounds - start, fleet.sites

    def at(self, sites: Sequence[str]) -> StageFleet:
        return StageFleet(self.fleet.at(sites), self.start, self.encoder, self.sites_with_encoder)

    def map(
        self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None
    ) -> Mapping[str, Reply[P]]:
        replies = self.fleet.map(partial(run_in_stage, client, self.start), broadcast, self._with_encoder(per_site))
        self.sites_with_encoder |= set(replies)
        return replies

    def exchange(self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None) -> Exchange[P]:
        run = partial(run_in_stage, client, self.start)
        exchange = self.fleet.exchange(run, broadcast, self._with_encoder(per_site))
        self.sites_with_encoder |= set(exchange.sites)
        return exchange

    def _with_encoder(self, per_site: PerSite) -> dict[str, tuple[Any, ...]]:
        """For each site: the encoder (None if the site has it already), and its value in `per_site` if given."""
        encoders = {site: None if site in self.sites_with_encoder else self.encoder for site in self.sites}
        return {site: (encoders[site], *(() if per_site is None else (per_site[site],))) for site in self.sites}


def run_in_stage(
    client: Callable[..., Reply[P]], start: int, site: Site[Any], broadcast: Any, per_site: Sequence[Any]
) -> Reply[P]:
    """The reply of `client`, called with rounds counted from round `start` of the run.

    If `per_site` has an encoder, the site has no client state, and its new networks have the encoder's weights.
    """
    encoder, *rest = per_site
    site = site.stage_view(start, site.rounds - start)
    if encoder is None:
        with finetune_key_names():
            return client(site, broadcast, *rest)
    template = copy_module(site.template)
    load(template, weights(template) | encoder)
    with finetune_key_names():
        reply = client(replace(site, client_state=None, template=template), broadcast, *rest)
    return replace(reply, client_state=None) if reply.client_state is UNCHANGED else reply
