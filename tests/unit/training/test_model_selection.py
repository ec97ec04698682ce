"""The best models by validation scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysim import Model, Reply
from raysim.training import BestModels
from tests.support import toy

TASK = toy.two_sites()


def of(value: float) -> Model:
    return Model.of({"w": np.float32([value])})


def replies(**metrics: dict[str, float]) -> dict[str, Reply[Any]]:
    weight = {"a": 1, "b": 3}
    return {site: Reply(None, weight=weight[site], metrics=found) for site, found in metrics.items()}


def update(best: BestModels, value: float, found: dict[str, Reply[Any]]) -> BestModels:
    return best.update(TASK, found, of(value), {"a": of(value), "b": of(value)}, of(value))


def test_the_model_with_the_highest_score_is_kept_and_of_equal_ones_the_later() -> None:
    scores = {"val_global": 1.0, "val_personal": 1.0, "val_selector": 0.5}
    best = update(BestModels(), 1, replies(a=scores, b=scores))
    worse = {name: value - 0.1 for name, value in scores.items()}
    assert update(best, 2, replies(a=worse, b=worse)) == best
    equal = update(best, 3, replies(a=scores, b=scores))
    assert equal.or_latest(of(0), {"a": of(0), "b": of(0)}, of(0)) == (of(3), {"a": of(3), "b": of(3)}, of(3))


def test_scores_of_all_sites_are_weighted_and_personal_models_have_scores_of_their_own() -> None:
    first = update(BestModels(), 1, replies(a={"val_global": 0.0, "val_personal": 1}, b={"val_global": 1.0}))
    assert first.model is not None
    assert first.model.score == 0.75
    assert first.personal.keys() == {"a"}
    assert first.selector is None
    assert first.or_latest(of(9), {"a": of(9), "b": of(9)}, of(9)) == (of(1), {"a": of(1), "b": of(9)}, of(9))


def test_without_a_reply_of_each_site_only_personal_models_are_scored() -> None:
    first = update(BestModels(), 1, replies(a={"val_global": 1.0, "val_personal": 1.0, "val_selector": 1.0}))
    assert (first.model, first.selector, first.personal.keys()) == (None, None, {"a"})
