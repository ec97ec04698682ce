"""Evaluation of every site with the method's model and with the plain global model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from raysim.core.contracts import (
    EVALUATED_SPLITS,
    Algorithm,
    Metrics,
    PredictionSet,
    Predictor,
    Reply,
    S,
    Site,
    Split,
    State,
)
from raysim.core.model import BatchNorm, weights
from raysim.core.results import Score
from raysim.federation.answer_checks import check_metrics, check_predictor
from raysim.federation.fleet import BaseFleet


def evaluate_sites(algorithm: Algorithm[S], state: S, fleet: BaseFleet) -> tuple[Score, ...]:
    """The scores of all inside and outside sites.

    Metrics with the suffix `@global` score the global model. The others score the method's predictor.
    """
    replies = fleet.evaluate(_evaluate_site, (algorithm, state))
    return tuple(score for reply in replies.values() for score in reply.payload)


def _evaluate_site(site: Site[Any], broadcast: tuple[Algorithm[S], S]) -> Reply[tuple[Score, ...]]:
    algorithm, state = broadcast
    predictor = algorithm.predictor(site, state)
    check_predictor(predictor, type(algorithm).__name__)
    single = None if predictor is None or isinstance(predictor, PredictionSet) else PredictionSet(predictor)
    predictions = predictor if isinstance(predictor, PredictionSet) else single
    scores = [] if predictions is None else _scores(site, predictions.main, "")
    if state.model is not None:
        if predictions is not None and _is_global(predictions.main, site, state):
            scores += [replace(score, metric=f"{score.metric}@global") for score in scores]
        else:
            scores += _scores(site, site.predict_module(state.model), "@global")
    if predictions is not None:
        for name, predict in predictions.others.items():
            scores += _scores(site, predict, f"@{name}")
        if predictions.notes is not None:
            scores += _note_scores(site, predictions.notes)
    return Reply(tuple(scores))


def describe_predictor(predict: Predictor, site: Site[Any], state: State) -> str:
    """`global` for the global model, `own` for another network, else the name of the function or of its class."""
    if not isinstance(predict, nn.Module):
        return str(getattr(predict, "__name__", type(predict).__name__))
    return "global" if _is_global(predict, site, state) else "own"


def has_batch_statistics(net: nn.Module) -> bool:
    """Whether BatchNorm layers of a network in evaluation mode use the statistics of each batch."""
    return any(layer.training for layer in net.modules() if isinstance(layer, BatchNorm))


def _is_global(predict: Predictor, site: Site[Any], state: State) -> bool:
    """Whether the method's predictor is the global model. In that case it is evaluated only once.

    Networks with equal weights predict differently if a layer is in another mode, for example with batch statistics.
    """
    if not isinstance(predict, nn.Module) or state.model is None:
        return False
    plain = site.predict_module(state.model)
    modes, of_plain = ([layer.training for layer in net.modules()] for net in (predict, plain))
    return modes == of_plain and weights(predict) == weights(plain)


@torch.no_grad()
def _scores(site: Site[Any], predict: Predictor, suffix: str) -> list[Score]:
    found = {split: site.task.score(predict, site.data[split], site.device) for split in _evaluated_splits(site)}
    return _as_scores(site, {split: {f"{n}{suffix}": v for n, v in of.items()} for split, of in found.items()})


@torch.no_grad()
def _note_scores(site: Site[Any], notes: Callable[[Split], Metrics]) -> list[Score]:
    return _as_scores(site, {split: notes(site.data[split]) for split in _evaluated_splits(site)})


def _evaluated_splits(site: Site[Any]) -> list[str]:
    return [split for split in EVALUATED_SPLITS if len(site.data[split])]


def _as_scores(site: Site[Any], found: Mapping[str, Metrics]) -> list[Score]:
    role: Literal["inside", "outside"] = "inside" if site.name in site.task.inside else "outside"
    cases = {split: len(set(site.data[split].cases.tolist())) for split in found}
    for metrics in found.values():
        check_metrics(metrics, "the metrics of a split")
    return [
        Score(site.name, role, split, metric, float(value), cases[split])
        for split, metrics in found.items()
        for metric, value in metrics.items()
    ]
