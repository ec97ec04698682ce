"""Tasks in memory, and the scores of a short federation in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysim import Data, Metrics, Predictor, Score, Split, Task, federate
from raysim.core.contracts import SPLITS, Scorer
from raysim.federation.fleet import LocalFleet

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Accuracy:
    """The percentage of examples whose class has the largest logit."""

    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=lambda: {"accuracy": "higher"})

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        if not len(split) or split.labels is None:
            return {}
        with torch.no_grad():
            predicted = predict(torch.tensor(split.inputs)).argmax(1).numpy()
        return {"accuracy": 100 * float((predicted == split.labels[:, 0]).mean())}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy for labels (B, 1) or (B, 1, *space)."""
    return nn.functional.cross_entropy(logits, labels[:, 0].long())


def as_split(inputs: Array, labels: Array | None) -> Split:
    """The examples as a split; each example is a case, with a spacing of 1."""
    spacing = np.ones((len(inputs), max(inputs.ndim - 2, 1)))
    return Split(inputs=inputs, labels=labels, cases=np.arange(len(inputs)), spacing=spacing)


def build_task(
    sites: Mapping[str, Data],
    network: Callable[[], nn.Module],
    *,
    classes: int,
    batch_size: int,
    outside: Sequence[str] = (),
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    score: Scorer | None = None,
) -> Task:
    """A task of these sites; those named in `outside` are only evaluated."""
    first = next(iter(sites.values()))
    return Task(
        name="claim",
        inside=tuple(sorted(set(sites) - set(outside))),
        outside=tuple(sorted(outside)),
        sizes={name: {split: len(data[split]) for split in SPLITS} for name, data in sites.items()},
        shape=first.test.inputs.shape[1:],
        classes=classes,
        open=dict(sites).__getitem__,
        network=network,
        loss=loss,
        score=score or Accuracy(),
        batch_size=batch_size,
    )


def final_scores(algorithm: Any, task: Task, rounds: int, seed: int) -> tuple[Score, ...]:
    """The scores after the last of `rounds` rounds in this process."""
    fleet = LocalFleet(task, seed=seed, rounds=rounds)
    *_, last = federate(algorithm, task, fleet, rounds=rounds, seed=seed, evaluate_every=rounds)
    return last.scores


def mean_score(scores: Sequence[Score], role: str, metric: str, split: str = "test") -> float:
    """The mean of a metric over the sites with this role."""
    values = [s.value for s in scores if (s.role, s.split, s.metric) == (role, split, metric)]
    assert values, f"no {role}/{split}/{metric} among {sorted({(s.role, s.split, s.metric) for s in scores})}"
    return fmean(values)
