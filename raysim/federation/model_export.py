"""Writes models/: the global model, and the personal models with which inside sites predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysim.core.contracts import Algorithm, Predictor, Reply, S, Site, State
from raysim.core.formatting import join_names
from raysim.core.model import Model, weights
from raysim.core.network_factories import with_all_tensors
from raysim.federation.evaluation import as_prediction_set, describe_predictor, has_batch_statistics
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.storage.model_files import GLOBAL_FILE, ModelFiles

EXPORT_PHASE = "models"
ENCODER_FILE = "encoder.safetensors"  # of a state with the attribute `encoder`, the result of pre-training
BATCH_STATISTICS = (
    "BatchNorm layers have no running statistics, and were evaluated with the statistics of each batch. To do the "
    'same: `for layer in network.modules(): layer.train("BatchNorm" in type(layer).__name__)`'
)


@dataclass(frozen=True)
class SiteModel:
    """A predictor of a site. `name` is empty for the predictor of the method, else a name of `PredictionSet.others`.

    model: the weights; None if the predictor is the global model, or has other layers than the task's network.
    predictor: see `describe_predictor`.
    batch_statistics: whether BatchNorm layers use the statistics of each batch.
    """

    name: str
    model: Model | None
    predictor: str
    batch_statistics: bool = False


def export_models(plan: Plan, fleet: BaseFleet, state: State, best: Mapping[str, Any]) -> None:
    """Write models/ with the models of `state` and of the client states of the fleet.

    `best` is the best round, as in summary.json. A predictor that is not one network has no file; README.md lists it.
    """
    files, other = ModelFiles(plan.directory), dict[str, list[str]]()
    complete = weights(with_all_tensors(plan.task).start(plan.config.seed))  # for tensors that are not trained
    notes = _add_global_model(files, plan, state, complete)
    for site, models in site_models(plan.config.algorithm, state, fleet):
        for each in models:
            file = f"sites/{site}@{each.name}.safetensors" if each.name else f"sites/{site}.safetensors"
            if each.model is not None:
                files.add(file, complete | each.model, f"the {each.name or 'personal'} model of {site}")
                notes += [f"`{file}`: {BATCH_STATISTICS}"] * each.batch_statistics
            elif each.predictor != "global":
                other.setdefault(each.predictor, []).append(site)
    for kind, sites in other.items():
        notes.append(f"The predictor of {join_names(sites)} has no file: a {kind} is not one network.")
    if (encoder := getattr(state, "encoder", None)) is not None:
        files.add(ENCODER_FILE, encoder, "the encoder after pre-training, without the other layers")
    files.close(plan.task, _describe_round(fleet.accounting.number, best), notes)


def _add_global_model(files: ModelFiles, plan: Plan, state: State, complete: Model) -> list[str]:
    """Write the global model, if it is a model of the task's network. Returns the notes for README.md."""
    initial = weights(plan.task.start(plan.config.seed))  # for buffers that stay at the sites
    if state.model is None or (initial | state.model).schema.specs != initial.schema.specs:
        return []
    files.add(GLOBAL_FILE, complete | state.model, "the global model")
    return [f"`{GLOBAL_FILE}`: {BATCH_STATISTICS}"] * (len(state.model) < len(initial))


def _describe_round(number: int, best: Mapping[str, Any]) -> str:
    if best["round"] is None:
        return f"After round {number}, the last one; no best round was chosen: {best['reason']}"
    return f"After round {number}, the best by {best['metric']}: {best['value']:.4f}"


def site_models(algorithm: Algorithm[S], state: S, fleet: BaseFleet) -> Iterator[tuple[str, tuple[SiteModel, ...]]]:
    """Yields each inside site with its predictors. The models of the sites are fetched one site at a time."""
    replies = fleet.evaluate(_site_models, (algorithm, state), EXPORT_PHASE)
    yield from ((site, replies[site].payload) for site in replies if site in fleet.task.inside)


def _site_models(site: Site[Any], broadcast: tuple[Algorithm[S], S]) -> Reply[tuple[SiteModel, ...]]:
    algorithm, state = broadcast
    predictions = as_prediction_set(algorithm.predictor(site, state)) if site.name in site.task.inside else None
    if predictions is None:
        return Reply(())
    named: dict[str, Predictor] = {"": predictions.main, **predictions.others}
    return Reply(tuple(_site_model(name, predict, site, state) for name, predict in named.items()))


def _site_model(name: str, predict: Predictor, site: Site[Any], state: Any) -> SiteModel:
    kind = describe_predictor(predict, site, state)
    if kind == "global" or not isinstance(predict, nn.Module):
        return SiteModel(name, None, kind)
    model = weights(predict)
    if model.schema.specs != weights(site.template).schema.specs:
        return SiteModel(name, None, type(predict).__name__)
    return SiteModel(name, model, kind, has_batch_statistics(predict))
