"""Evaluation of every site with the method's model and with the plain global model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from raysim.core.contracts import (
    EVALUATED_SPLITS,
    CaseScorer,
    Metrics,
    PredictionSet,
    Predictor,
    Reply,
    S,
    Site,
    Split,
    State,
)
from raysim.core.errors import RunError
from raysim.core.model import BatchNorm, lacks_statistics, weights
from raysim.core.results import CaseScores, Score, role_of
from raysim.federation.fleet import BaseFleet
from raysim.federation.return_checks import check_metrics, check_predictor

S_contra = TypeVar("S_contra", contravariant=True)


class Method(Protocol[S_contra]):
    """The part of an algorithm that an evaluation needs."""

    def predictor(self, site: Site[Any], state: S_contra) -> Predictor | PredictionSet | None:
        """The predictor at the site, as in `Algorithm.predictor`."""
        ...


@dataclass(frozen=True)
class SiteEvaluation:
    """The scores of one or several sites, and the values of each case."""

    scores: tuple[Score, ...] = ()
    cases: tuple[CaseScores, ...] = ()

    def __add__(self, other: SiteEvaluation) -> SiteEvaluation:
        return SiteEvaluation(self.scores + other.scores, self.cases + other.cases)

    def with_suffix(self, suffix: str) -> SiteEvaluation:
        """The same with `suffix` at the end of the name of each metric."""
        return SiteEvaluation(
            tuple(replace(score, metric=f"{score.metric}{suffix}") for score in self.scores),
            tuple(replace(each, metrics=tuple(f"{name}{suffix}" for name in each.metrics)) for each in self.cases),
        )


def evaluate_sites(algorithm: Method[S], state: S, fleet: BaseFleet) -> SiteEvaluation:
    """The scores of all inside and outside sites.

    Metrics with the suffix `@global` score the global model. The others score the method's predictor.
    """
    found = [reply.payload for reply in fleet.evaluate(_evaluate_site, (algorithm, state)).values()]
    return SiteEvaluation(
        tuple(score for each in found for score in each.scores), tuple(case for each in found for case in each.cases)
    )


def _evaluate_site(site: Site[Any], broadcast: tuple[Method[S], S]) -> Reply[SiteEvaluation]:
    algorithm, state = broadcast
    predictor = algorithm.predictor(site, state)
    check_predictor(predictor, type(algorithm).__name__)
    predictions = as_prediction_set(predictor)
    kind = "" if predictions is None else describe_predictor(predictions.main, site, state)
    found = SiteEvaluation() if predictions is None else _evaluate(site, predictions.main, kind)
    if kind == "global":
        found += found.with_suffix("@global")
    elif state.model is not None:
        found += _evaluate(site, site.predict_module(state.model), "global").with_suffix("@global")
    if predictions is not None:
        for name, predict in predictions.others.items():
            found += _evaluate(site, predict, describe_predictor(predict, site, state)).with_suffix(f"@{name}")
        if predictions.notes is not None:
            found += SiteEvaluation(_note_scores(site, predictions.notes, type(algorithm).__name__))
    return Reply(found)


def as_prediction_set(predictor: Predictor | PredictionSet | None) -> PredictionSet | None:
    """The set of what `Algorithm.predictor` returned; None if the method has no predictor."""
    return predictor if predictor is None or isinstance(predictor, PredictionSet) else PredictionSet(predictor)


def describe_predictor(predict: Predictor, site: Site[Any], state: State) -> str:
    """The kind of a predictor: `global` (the global model), `own` (another network), or its function or class name."""
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
    model, modes = state.model, [layer.training for layer in predict.modules()]
    if modes != [lacks_statistics(model, name, layer) for name, layer in site.template.named_modules()]:
        return False
    found = weights(predict)
    return found == (model if len(model) == len(found) else weights(site.template) | model)


@torch.no_grad()
def _evaluate(site: Site[Any], predict: Predictor, kind: str) -> SiteEvaluation:
    found, cases = dict[str, Metrics](), list[CaseScores]()
    for split in _evaluated_splits(site):
        data, score = site.data[split], site.task.score
        if isinstance(score, CaseScorer):
            found[split], values = score.score_cases(predict, data, site.device)
            if values:
                numbers, stacked = np.unique(data.cases), np.stack([*values.values()]).astype(np.float64)
                cases.append(CaseScores(site.name, split, kind, numbers, tuple(values), stacked))
        else:
            found[split] = score(predict, data, site.device)
    return SiteEvaluation(_as_scores(site, found), tuple(cases))


@torch.no_grad()
def _note_scores(site: Site[Any], notes: Callable[[Split], Metrics], name: str) -> tuple[Score, ...]:
    scores = _as_scores(site, {split: notes(site.data[split]) for split in _evaluated_splits(site)})
    for score in scores:
        if score.metric.partition("@")[0] in site.task.score.better:
            raise RunError(
                f"the notes in the PredictionSet of {name}.predictor have '{score.metric}', the name of a metric of "
                "the task; use another name"
            )
    return scores


def _evaluated_splits(site: Site[Any]) -> list[str]:
    return [split for split in EVALUATED_SPLITS if len(site.data[split])]


def _as_scores(site: Site[Any], found: Mapping[str, Metrics]) -> tuple[Score, ...]:
    role = role_of(site.name, site.task.inside)
    cases = {split: len(set(site.data[split].cases.tolist())) for split in found}
    for metrics in found.values():
        check_metrics(metrics, "the metrics of a split")
    return tuple(
        Score(site.name, role, split, metric, float(value), cases[split])
        for split, metrics in found.items()
        for metric, value in metrics.items()
    )
