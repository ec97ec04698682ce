"""A task that can be computed by hand: w x + b, from w = b = 0, is fitted to one or a few points at each site.

The loss of a batch is half the mean squared residual: d/dw = mean(r x) and d/db = mean(r) with r = w x + b - y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysim import Data, Metrics, Model, Predictor, Site, Split, Task
from raysim.core.contracts import SPLITS

Points = tuple[tuple[float, int], ...]  # (x, y) each

# One point at a, three times the same one at b: weights 1 and 3.
A: Points = ((1, 2),)
B: Points = ((2, 2), (2, 2), (2, 2))


def split(points: Points) -> Split:
    """The points as examples; each example is a case."""
    x, y = ([point[axis] for point in points] for axis in (0, 1))
    return Split(
        inputs=np.array(x, np.float32).reshape(-1, 1),
        labels=np.array(y, np.int64).reshape(-1, 1),
        cases=np.arange(len(points)),
        spacing=np.ones((len(points), 1)),
    )


def data(points: Points, test: Points | None = None, val: Points = ()) -> Data:
    """The data of a site that trains on `points`, and is tested on `test`, by default the same points."""
    test = points if test is None else test
    return Data(train=split(points), val=split(val), test=split(test), unlabelled=split(()))


def half_squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * (outputs - labels).square().mean()


class Line(nn.Linear):
    """w x + b from zero."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Scaled(nn.Sequential):
    """A batch normalisation before a line: three buffers, one of them an integer scalar."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(1), Line())


@dataclass(frozen=True)
class Distance:
    """Mean distance from y."""

    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=lambda: {"distance": "lower"})

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        outputs = predict(torch.from_numpy(split.inputs))
        return {"distance": float((outputs - torch.from_numpy(split.labels)).abs().mean())}


def opened(points: Mapping[str, Points], val: Mapping[str, Points], site: str) -> Data:
    return data(points[site], val=val.get(site, ()))


def counts(points: Points, trains: bool) -> dict[str, int]:
    return dict(zip(SPLITS, (len(points) * trains, 0, len(points), 0), strict=True))


def task(
    points: Mapping[str, Points],
    outside: Sequence[str] = (),
    network: type[nn.Module] = Line,
    batch_size: int = 8,
    val: Mapping[str, Points] | None = None,
) -> Task:
    """The task of these sites; sites in `outside` are only evaluated. `val` has the validation points of some."""
    val = dict(val or {})
    return Task(
        name="toy",
        inside=tuple(sorted(set(points) - set(outside))),
        outside=tuple(sorted(outside)),
        sizes={
            s: dict(zip(SPLITS, (len(p) * (s not in outside), len(val.get(s, ())), len(p), 0), strict=True))
            for s, p in points.items()
        },
        shape=(1,),
        classes=1,
        open=partial(opened, dict(points), val),
        network=network,
        loss=half_squares,
        score=Distance(),
        batch_size=batch_size,
    )


def two_sites(network: type[nn.Module] = Line) -> Task:
    """Site a has one point, site b three."""
    return task({"a": A, "b": B}, network=network)


def site(
    points: Points = A,
    *,
    network: type[nn.Module] = Line,
    batch_size: int = 8,
    client_state: Model | None = None,
    round: int = 0,
    rounds: int = 1,
) -> Site[Model]:
    """A site as in a call, without a fleet."""
    toy = task({"a": points}, network=network, batch_size=batch_size)
    return Site("a", toy, data(points), client_state, torch.device("cpu"), 0, round, rounds, toy.start(0))


def line(model: Model) -> tuple[float, float]:
    """The values of w and b, for any names of the tensors."""
    w, b = (next(a for n, a in model.items() if n.endswith(kind) and "0." not in n) for kind in ("weight", "bias"))
    return w.item(), b.item()
