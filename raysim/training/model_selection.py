"""Selection of models by their validation scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from raysim.core.contracts import Predictor, Reply, Site, Task
from raysim.core.model import Model


@dataclass(frozen=True)
class ScoredModel:
    """A model and its score, of which higher is better."""

    model: Model
    score: float


@dataclass(frozen=True)
class BestModels:
    """The models with the best validation scores so far. A model without a score is None or has no entry."""

    model: ScoredModel | None = None
    personal: Mapping[str, ScoredModel] = field(default_factory=dict)
    selector: ScoredModel | None = None

    def update(
        self,
        task: Task,
        replies: Mapping[str, Reply[Any]],
        model: Model,
        personal: Mapping[str, Model],
        selector: Model | None = None,
    ) -> BestModels:
        """The best of these and of the models that the sites received, by the scores in the metrics of their replies.

        The metrics are `val_personal` for the personal model, and `val_global` and `val_selector` for the other models,
        which have a score only if all inside sites reply: means over different sites cannot be compared.
        """
        scored = dict(self.personal)
        for site, reply in replies.items():
            if found := _better(scored.get(site), personal[site], reply.metrics.get("val_personal")):
                scored[site] = found
        of_all = replies if set(replies) == set(task.inside) else {}
        best_model = _better(self.model, model, _mean(of_all, "val_global"))
        if selector is None:
            return BestModels(best_model, scored)
        return BestModels(best_model, scored, _better(self.selector, selector, _mean(of_all, "val_selector")))

    def or_latest(
        self, model: Model, personal: Mapping[str, Model], selector: Model
    ) -> tuple[Model, dict[str, Model], Model]:
        """The best models; the given ones, the latest, where there is no score."""
        best = {site: scored.model for site, scored in self.personal.items()}
        return (
            self.model.model if self.model else model,
            {**personal, **best},
            self.selector.model if self.selector else selector,
        )


@torch.no_grad()
def validation_score(site: Site[Any], predict: Predictor) -> float | None:
    """The task's main metric on the site's validation data, signed so that higher is better; None if undefined."""
    (name, direction), *_ = site.task.score.better.items()
    scores = site.task.score(predict, site.data.val, site.device) if len(site.data.val) else {}
    return scores[name] * (1 if direction == "higher" else -1) if name in scores else None


def _better(before: ScoredModel | None, model: Model, score: float | None) -> ScoredModel | None:
    """The model with the higher score, of equal ones the later; `before` if there is no score."""
    if score is None or (before is not None and score < before.score):
        return before
    return ScoredModel(model, score)


def _mean(replies: Mapping[str, Reply[Any]], name: str) -> float | None:
    pairs = [(reply.metrics[name], reply.weight) for _, reply in sorted(replies.items()) if name in reply.metrics]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total > 0 else None
