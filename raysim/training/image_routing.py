"""Routing of images: each image of a batch is predicted by one of several models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysim.core.contracts import Array, Metrics, Predictor, Site, Split
from raysim.core.model import Model, load
from raysim.core.network_outputs import full_resolution


@dataclass(frozen=True)
class RoutedPredictor:
    """The super model: the selector routes each image of a batch to a personal model or to the global model.

    A last class of the selector, after those of the personal models, also is the global model.
    """

    selector: nn.Module
    personal: Sequence[Model]
    global_net: nn.Module
    personal_net: nn.Module  # the weights of the personal models are loaded into it in turn
    threshold: float = 0.0

    def route(self, inputs: Tensor) -> Tensor:
        """The model for each image (B,): the index of a personal model, or -1 for the global model."""
        confidence, predicted = self.selector(inputs).softmax(1).max(1)
        return torch.where((confidence > self.threshold) & (predicted < len(self.personal)), predicted, -1)

    def __call__(self, inputs: Tensor) -> Tensor:
        routes, parts, order = self.route(inputs), list[Tensor](), list[Tensor]()
        for route in routes.unique().tolist():
            order.append((routes == route).nonzero()[:, 0])
            parts.append(self._predict(route, inputs, order[-1]))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _predict(self, route: int, inputs: Tensor, rows: Tensor) -> Tensor:
        """The logits of the images in `rows`; from the whole batch if the model may use batch statistics."""
        if route < 0:
            return full_resolution(self.global_net(inputs), inputs.ndim)[rows]
        load(self.personal_net, self.personal[route])
        if any(layer.training for layer in self.personal_net.modules()):
            return full_resolution(self.personal_net(inputs), inputs.ndim)[rows]
        return full_resolution(self.personal_net(inputs[rows]), inputs.ndim)

    def shares(self, batches: Iterator[Tensor], own: int | None) -> Metrics:
        """The fractions of images routed to the global model, to personal models other than `own`, and to `own`."""
        routes = torch.cat([self.route(inputs) for inputs in batches]).cpu().numpy()
        shares = {"routed_global": (routes < 0).mean(), "routed_other": ((routes >= 0) & (routes != own)).mean()}
        if own is not None:
            shares["routed_own"] = (routes == own).mean()
        return {name: float(share) for name, share in shares.items()}


@torch.no_grad()
def example_losses(site: Site[Any], split: Split, predictors: Sequence[Predictor]) -> Array:
    """The task's loss of each example of a labelled split with each of M predictors, (N, M)."""
    assert split.labels is not None
    losses, batch = np.empty((len(split), len(predictors))), site.task.batch_size
    for start in range(0, len(split), batch):
        inputs, labels = (
            torch.from_numpy(np.array(part[start : start + batch])).to(site.device)
            for part in (split.inputs, split.labels)
        )
        for column, predict in enumerate(predictors):
            logits = full_resolution(predict(inputs), split.labels.ndim)
            for row in range(len(inputs)):
                label = labels[row : row + 1]
                loss = site.task.loss(logits[row : row + 1], label if label.is_floating_point() else label.long())
                losses[start + row, column] = loss.item()
    return losses


@torch.no_grad()
def routing_ceiling(site: Site[Any], split: Split, predictors: Sequence[Predictor]) -> Metrics:
    """`routing_ceiling`: the mean over cases of the task's main metric by the best of the predictors for each case.

    No routing of cases to one of the predictors can be better. Each case is predicted alone. There is no metric without
    labels, or if it is undefined for a single case.
    """
    if split.labels is None:
        return {}
    (name, direction), *_ = site.task.score.better.items()
    best = []
    for case in np.unique(split.cases):
        part = split.take(np.flatnonzero(split.cases == case))
        scores = [site.task.score(predict, part, site.device) for predict in predictors]
        values = [found[name] for found in scores if name in found]
        if values:
            best.append(max(values) if direction == "higher" else min(values))
    return {"routing_ceiling": float(np.mean(best))} if best else {}
