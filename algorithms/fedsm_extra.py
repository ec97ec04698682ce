"""FedSM-extra: FedSM's global and personal models first, then a selector that learns which of them has the lowest loss.

Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the Generalization Gap of Cross-silo Federated
Medical Image Segmentation", CVPR 2022, https://arxiv.org/abs/2203.10144. Our reading; there is no public code.

    stage 1:  w by FedAvg and w_p^k by SoftPull, as in FedSM, without a selector
    then      at site k, once, for each image x:  z(x) = argmin over {w, w_p^1 .. w_p^K} of its loss; of equal ones, w
    stage 2:  a selector with K + 1 classes by FedAvg, with cross-entropy on z(x), and the moments of its Adam averaged
    an image is predicted by the model of the most likely class

Labels z are computed in evaluation mode without augmentation, and stay at the site. Stage 1 ends with the best or the
last models (`keep`), as in FedSM. In stage 1 inside sites predict with their personal models, outside sites with w.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import nn

from algorithms import fedsm
from algorithms.fedsm import SoftPullTraining, personal_model, softpull
from raysim import Array, ConfigError, Fleet, Metrics, Model, PredictionSet, Predictor, Reply, Site, Task, mean, weights
from raysim.training import (
    BestModels,
    example_losses,
    routing_ceiling,
    selector_metrics,
    selector_network,
)

LABELLED_SPLITS = {"train": ("train",), "val": ("val",), "both": ("train", "val")}

GROUP = "personal"


@dataclass(frozen=True)
class TrainingState:
    """Stage 1: the global and personal models, the best so far, and the first weights of the selector."""

    model: Model
    personal: Mapping[str, Model]
    selector: Model
    best: BestModels = field(default_factory=BestModels)
    rounds_done: int = 0


@dataclass(frozen=True)
class Selector:
    """The selector, and the moments of its Adam."""

    model: Model
    moments: Model | None = None


@dataclass(frozen=True)
class SelectionState:
    """Stage 2: the models of stage 1, which do not change, the selector, and the sites that have their labels z."""

    model: Model
    personal: Mapping[str, Model]
    selector: Selector
    labelled_sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClientState:
    """The client state of stage 1, and the site's labels z by split, (N,) each: a site's index, or K for w."""

    models: fedsm.ClientState | None = None
    labels: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Models:
    """The global and the personal model that a site has trained."""

    model: Model
    personal: Model


@dataclass(frozen=True)
class AllModels:
    """The global model and all personal models, which are sent to a site once."""

    model: Model
    personal: Mapping[str, Model]


@dataclass(frozen=True, kw_only=True)
class FedSMExtra(SoftPullTraining):
    selector_rounds: Annotated[
        Annotated[int, Gt(0)] | Annotated[float, Gt(0), Lt(1)],
        "rounds of the selector after those of the models: a number, or a fraction of the run's rounds",
    ] = 0.5
    label_on: Annotated[
        Literal["train", "val", "both"],
        "images that the selector learns from; on training images the site's own model has an advantage",
    ] = "train"

    def init(self, task: Task) -> TrainingState:
        self.check_pull(task)
        empty = [s for s in task.inside if not any(task.sizes[s][split] for split in LABELLED_SPLITS[self.label_on])]
        if empty:
            raise ConfigError(
                f"algorithm.label_on={self.label_on}: no such images at {', '.join(empty[:3])}; set "
                "algorithm.label_on=train"
            )
        model = self.make_update(task.network())[0]
        selector = selector_network.__wrapped__(task, self.selector, self.selector_size, len(task.inside) + 1)
        return TrainingState(model, dict.fromkeys(task.inside, model), weights(selector))

    def check_rounds(self, rounds: int) -> None:
        """Raises ConfigError if the selector takes all rounds. Warns if the rate becomes too small for SoftPull."""
        if self.model_rounds(rounds) < 1:
            cure = f"algorithm.selector_rounds={rounds // 2}, or more rounds" if rounds > 1 else "rounds=2 or more"
            raise ConfigError(
                f"algorithm.selector_rounds={self.selector_rounds} leaves no round for the models in a run of "
                f"rounds={rounds}; set {cure}"
            )
        self.warn_of_small_rate(self.model_rounds(rounds))

    def model_rounds(self, rounds: int) -> int:
        """The number of rounds of stage 1 in a run of `rounds` rounds."""
        if isinstance(self.selector_rounds, int):
            return rounds - self.selector_rounds
        return rounds - max(1, int(self.selector_rounds * rounds + 1e-9))

    def keep_stages(self, before: int, after: int) -> FedSMExtra:
        """A copy that trains the models for as many rounds in a run of `after` rounds as in a run of `before`."""
        models = self.model_rounds(before)
        return self if models == self.model_rounds(after) else replace(self, selector_rounds=after - models)

    # at each site
    def train(self, site: Site[ClientState], model: Model, personal: Model) -> Reply[Models]:
        view = models_view(site.stage_view(0, self.model_rounds(site.rounds)))
        scores = self.score_models(view, model, personal)
        update, personal_update, client_state, metrics = self.train_models(view, model, personal)
        return Reply(
            Models(update, personal_update),
            weight=len(site.data.train),
            metrics=metrics | scores,
            client_state=ClientState(client_state),
        )

    def select(self, site: Site[ClientState], broadcast: Selector, models: AllModels | None) -> Reply[Selector]:
        """Train the selector on the labels z, which are computed if the site receives `models`."""
        client_state = site.client_state or ClientState()
        if models is not None:
            client_state = replace(client_state, labels=self.label(site, models))
        labels = {name: torch.from_numpy(z.copy()) for name, z in client_state.labels.items()}
        net = self.load_selector(site, broadcast.model, len(site.task.inside) + 1)
        metrics = selector_metrics(net, site, labels, self.selector_size)
        rounds = site.rounds - self.model_rounds(site.rounds)
        moments = self.train_selector(net, site, labels, broadcast.moments, rounds)
        z = torch.cat(list(labels.values()))
        for name, label in (("own", site.task.inside.index(site.name)), ("global", len(site.task.inside))):
            metrics[f"labelled_{name}"] = float((z == label).float().mean())
        metrics["loss"] = metrics["selector_loss"]
        return Reply(Selector(weights(net), moments), weight=len(z), metrics=metrics, client_state=client_state)

    def label(self, site: Site[ClientState], models: AllModels) -> dict[str, Array]:
        """The labels z of the site's images by split."""
        nets = self.experts(site, models.model, models.personal)
        labels = {}
        for name in LABELLED_SPLITS[self.label_on]:
            if len(split := site.data[name]):
                best = example_losses(site, split, nets).argmin(1)  # of equal losses the first: the global model
                labels[name] = np.where(best == 0, len(nets) - 1, best - 1)
        return labels

    def experts(self, site: Site[ClientState], model: Model, personal: Mapping[str, Model]) -> list[nn.Module]:
        """The global model and the personal models, in evaluation mode."""
        view = models_view(site)
        nets = (view.predict_module(personal_model(view, personal[name])) for name in site.task.inside)
        return [self.predict_module(view, model), *nets]

    # at the server
    def round(self, fleet: Fleet, state: Any) -> tuple[Any, Metrics]:
        """One round of the current stage."""
        self.check_rounds(fleet.rounds)
        if isinstance(state, TrainingState):
            if state.rounds_done < self.model_rounds(fleet.rounds):
                return self._train_round(fleet, state), {}
            model, personal, first = state.best.or_latest(state.model, state.personal, state.selector)
            state = SelectionState(model, personal, Selector(first))
        models = AllModels(state.model, state.personal)
        per_site = {site: None if site in state.labelled_sites else models for site in fleet.sites}
        replies = fleet.map(self.select, state.selector, per_site)
        labelled = tuple(sorted({*state.labelled_sites, *replies}))
        selector = Selector(*(mean(replies, attrgetter(name)) for name in ("model", "moments")))
        return replace(state, selector=selector, labelled_sites=labelled), {}

    def _train_round(self, fleet: Fleet, state: TrainingState) -> TrainingState:
        replies = fleet.map(self.train, state.model, {site: state.personal[site] for site in fleet.sites})
        best = state.best.update(fleet.task, replies, state.model, state.personal)
        pulled = softpull({site: reply.payload.personal for site, reply in replies.items()}, self.pull)
        model = mean(replies, attrgetter("model"))
        return replace(
            state,
            model=model,
            personal={**state.personal, **pulled},
            best=best,
            rounds_done=state.rounds_done + 1,
        )

    def predictor(self, site: Site[ClientState], state: TrainingState | SelectionState) -> Predictor | PredictionSet:
        view = models_view(site)
        if isinstance(state, TrainingState):
            model, personal, _ = state.best.or_latest(state.model, state.personal, state.selector)
            if site.name not in site.task.inside:
                return self.predict_module(view, model)
            return site.predict_module(personal_model(view, personal[site.name]))
        net = deepcopy(self.load_selector(site, state.selector.model, len(state.personal) + 1)).eval()
        ceiling = partial(routing_ceiling, site, predictors=self.experts(site, state.model, state.personal))
        return self.routed_predictions(view, net, state.model, state.personal, 0.0, ceiling)


def models_view(site: Site[Any]) -> Site[fedsm.ClientState]:
    """The site with the client state of stage 1."""
    return replace(site, client_state=site.client_state.models if site.client_state else None)
