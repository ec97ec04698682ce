"""FedSM-extra: stage 1 equals FedSM, labels of the lowest loss, a selector among all models, resume across stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.fedsm import FedSM
from algorithms.fedsm_extra import AllModels, ClientState, FedSMExtra, SelectionState, Selector
from raysim import ConfigError, LocalFleet, Model, ResumePoint, Site, Task, combine, federate, weights
from raysim.storage.checkpoint import read, write
from raysim.storage.digest import digest
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training import example_losses, routing_ceiling
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}


def small_task(norm: Any = "instance") -> Task:
    data = SyntheticData(sites=3, outside=("far",), cases=6, val=2, test=4, size=(16, 16), severity=1)
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": norm}
    return Synthetic(data=data, network=network, batch_size=4).build()


def place(task: Task, site: str, client_state: Any = None) -> Site[Any]:
    return Site(site, task, task.open(site), client_state, torch.device("cpu"), 0, 0, 4, task.start(0))


def rounds_of(algorithm: Any, task: Task, rounds: int, **options: Any) -> tuple[list[Any], LocalFleet]:
    fleet = LocalFleet(task, rounds=rounds)
    return list(federate(algorithm, task, fleet, rounds=rounds, **options)), fleet


@pytest.mark.parametrize(("buffers", "keep"), [("average", "best"), ("average", "last"), ("local", "best")])
def test_the_models_of_stage_one_are_those_of_fedsm(buffers: Any, keep: Any) -> None:
    task, fields = small_task("batch"), {"keep": keep, "buffers": buffers, "lr": 0.01, "schedule": "cosine"}
    found, _ = rounds_of(FedSMExtra(selector_rounds=1, selector_steps=1, **fields), task, 4, evaluate_every=4)
    plain, _ = rounds_of(FedSM(selector_steps=1, **fields), task, 3, evaluate_every=3)
    for mine, fedsm in zip(found[:3], plain, strict=True):
        assert (mine.state.model, mine.state.personal) == (fedsm.state.model, fedsm.state.personal)
        assert (mine.state.best.model, mine.state.best.personal) == (fedsm.state.best.model, fedsm.state.best.personal)
    kept = plain[2].state.best.or_latest(plain[2].state.model, plain[2].state.personal, plain[2].state.selector)
    assert (found[3].state.model, found[3].state.personal) == kept[:2]


def test_equal_models_label_every_image_with_the_global_model() -> None:
    task, mine = small_task(), FedSMExtra(label_on="both")
    model = mine.init(task).model
    labels = mine.label(place(task, "site-02"), AllModels(model, dict.fromkeys(task.inside, model)))
    assert {name: z.tolist() for name, z in labels.items()} == {"train": [3] * 6, "val": [3] * 2}


def test_labels_are_the_models_with_the_lowest_loss() -> None:
    # Predictions are w x with w = 0 (global), 1 (a) and 2 (b); targets 0, 1, 2 and 5 at x = 1.
    points = ((1, 0), (1, 1), (1, 2), (1, 5))
    task = toy.task({"a": points, "b": points})
    line = [Model.of({"weight": np.float32([[w]]), "bias": np.float32([0])}) for w in (0, 1, 2)]
    models = AllModels(line[0], {"a": line[1], "b": line[2]})
    assert FedSMExtra().label(place(task, "a"), models)["train"].tolist() == [2, 0, 1, 1]


def test_no_single_model_is_better_than_the_ceiling() -> None:
    task, mine = small_task(), FedSMExtra(selector_rounds=1, selector_steps=1, lr=0.05, pull=1.0)
    end = rounds_of(mine, task, 4, evaluate_every=4)[0][-1]
    site = place(task, "far")
    nets = mine.experts(site, end.state.model, end.state.personal)
    losses = example_losses(site, site.data.test, nets)
    assert losses.shape == (4, 4)
    assert len(set(losses.argmin(1))) > 1
    image, label = (torch.from_numpy(part[2:3].copy()) for part in (site.data.test.inputs, site.data.test.labels))
    with torch.no_grad():
        assert losses[2, 1] == pytest.approx(task.loss(nets[1](image), label.long()).item(), rel=1e-5)
    dice = [[task.score(net, one(site, row), site.device)["dice"] for net in nets] for row in range(4)]
    expected = np.max(dice, 1).mean()
    assert expected > np.mean(dice, 0).max()
    assert routing_ceiling(site, site.data.test, nets)["routing_ceiling"] == pytest.approx(expected)
    logged = {s.metric: s.value for s in end.scores if (s.site, s.split) == ("far", "test")}
    assert logged["routing_ceiling"] == pytest.approx(expected)
    assert routing_ceiling(site, replace(site.data.test, labels=None), nets) == {}


def one(site: Site[Any], row: int) -> Any:
    split, rows = site.data.test, slice(row, row + 1)
    parts = {name: getattr(split, name)[rows] for name in ("inputs", "labels", "cases", "spacing")}
    return replace(split, **parts)


def test_a_selector_fixed_to_the_last_class_is_the_global_model() -> None:
    task, mine = small_task(), FedSMExtra()
    start = mine.init(task)
    last = max(start.selector, key=lambda name: int(name.partition(".")[0])).partition(".")[0]
    fixed = combine([start.selector], [0.0]) | Model.of({f"{last}.bias": np.float32([0, 0, 0, 5])})
    personal = {site: weights(task.network()) for site in task.inside}
    predictions: Any = mine.predictor(place(task, "far"), SelectionState(start.model, personal, Selector(fixed)))
    site = place(task, "far")
    x = torch.from_numpy(site.data.test.inputs.copy())
    with torch.no_grad():
        assert torch.equal(predictions.main(x), site.predict_module(start.model)(x))
    assert predictions.notes(site.data.test)["routed_global"] == 1


def test_models_are_sent_once_and_labels_stay_at_the_site() -> None:
    task = small_task()
    rounds, fleet = rounds_of(FedSMExtra(selector_rounds=2, selector_steps=1), task, 4, evaluate_every=4)
    state = rounds[-1].state
    p, s, moments = state.model.nbytes, state.selector.model.nbytes, state.selector.moments.nbytes
    assert [set(r.traffic.down.values()) for r in rounds] == [{2 * p}, {2 * p}, {4 * p + s}, {s + moments}]
    assert [set(r.traffic.up.values()) for r in rounds] == [{2 * p}, {2 * p}, {s + moments}, {s + moments}]
    held: ClientState = fleet.client_state("site-01")
    assert held.labels["train"].shape == (6,)
    assert state.labelled_sites == task.inside
    assert rounds[1].state.model == state.model or rounds[1].state.best.model.model == state.model


def test_the_selector_has_200_steps_over_its_rounds_by_default() -> None:
    task, mine = small_task(), FedSMExtra(selector_rounds=0.5)
    start, site = mine.init(task), replace(place(task, "site-02"), rounds=100)
    reply = mine.select(site, Selector(start.selector), AllModels(start.model, start.personal))
    assert reply.payload.moments is not None
    assert reply.payload.moments["0/step"] == 4


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumes_across_the_stages(after: int, tmp_path: Path) -> None:
    task, mine = small_task("batch"), FedSMExtra(selector_rounds=2, selector_steps=2, buffers="local")
    options: dict[str, Any] = {"rounds": 4, "cohort": 2, "evaluate_every": 4}
    fleet = LocalFleet(task, rounds=4)
    *_, end = federate(mine, task, fleet, **options)
    first = LocalFleet(task, rounds=4)
    half = [r for _, r in zip(range(after), federate(mine, task, first, **options), strict=False)][-1]
    start = read(write(tmp_path, after, half.state, dict(first.client_states)))
    assert isinstance(start, ResumePoint)
    second = LocalFleet(task, rounds=4)
    *_, resumed = federate(mine, task, second, start=start, **options)
    assert digest(resumed.state, dict(second.client_states)) == digest(end.state, dict(fleet.client_states))


def test_the_names_of_the_sites_are_irrelevant() -> None:
    points = {"a": toy.A, "b": toy.B, "c": ((3, 1), (1, 0))}
    renamed = {"a": points["c"], "b": points["a"], "c": points["b"]}
    mine = FedSMExtra(selector_rounds=1, selector_steps=1, **SGD)
    one, other = (rounds_of(mine, toy.task(sites), 4)[0][2].state.personal for sites in (points, renamed))
    assert [toy.line(one[s]) for s in "abc"] == [pytest.approx(toy.line(other[s])) for s in "bca"]


@pytest.mark.parametrize(("rounds", "fraction", "expected"), [(10, 0.2, 8), (10, 3, 7), (3, 0.2, 2)])
def test_rounds_of_the_models(rounds: int, fraction: float, expected: int) -> None:
    assert FedSMExtra(selector_rounds=fraction).model_rounds(rounds) == expected


def test_a_selector_without_rounds_for_the_models_and_without_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.selector_rounds=4 leaves no round for the models"):
        FedSMExtra(selector_rounds=4).check_rounds(4)
    with pytest.raises(ConfigError, match=r"algorithm\.label_on=val: no such images at a, b; set algorithm\.label_on"):
        FedSMExtra(label_on="val").init(toy.two_sites())
