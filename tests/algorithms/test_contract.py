"""Properties of every algorithm in `algorithms/`, checked on the synthetic task."""

from __future__ import annotations

import atexit
import pickle
import shutil
import tempfile
from dataclasses import FrozenInstanceError, fields, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim import Data, LocalFleet, ResumePoint, Task, federate, train_only, weights
from raysim.config.introspection import field_docs
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.registry import algorithm_class, algorithms
from raysim.core.seeding import seeded
from raysim.storage.checkpoint import read, write
from raysim.storage.digest import digest
from raysim.tasks.synthetic import Synthetic, SyntheticData
from tests.support.contract import (
    NETWORK,
    ROUNDS,
    algorithm,
    client_states,
    every_algorithm,
    every_use,
    reference_run,
    run,
    task,
    whole,
)
from tests.support.slow import slow_except


@every_algorithm
def test_runs_and_evaluates_every_inside_site(name: str) -> None:
    rounds, _ = reference_run(name)
    assert [r.number for r in rounds] == [1, 2, 3, 4]
    assert {s.site for s in rounds[-1].scores if s.split == "test"} >= set(task().inside)
    assert all(np.isfinite(s.value) for r in rounds for s in r.scores)
    assert all(r.loss is None or np.isfinite(r.loss) for r in rounds)


# Resuming also tests for every algorithm that a run is reproducible.
@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedavg", "fedsm", "fcl"]))
def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(name: str) -> None:
    rounds, fleet = run(algorithm(name))
    assert digest(rounds[-1].state, client_states(fleet)) == whole(name)
    other = next(federate(algorithm(name), task(), LocalFleet(task(), seed=1, rounds=ROUNDS), rounds=ROUNDS, seed=1))
    first = reference_run(name)[0][0]
    assert (other.loss, digest(other.state)) != (first.loss, digest(first.state))


TRAINED = ("model.1.*", "model.2.*")
RESUMED_BUFFERS = [(name, "local") for name in ("fedbn", "iopfl", "scaffold")]


def resumed(algorithm: Any, folder: Path, after: int = 2) -> str:
    """The digest of a run that stopped after `after` rounds and resumed from its checkpoint in another fleet."""
    first = LocalFleet(task(), rounds=ROUNDS)
    rounds = federate(algorithm, task(), first, rounds=ROUNDS)
    half = [r for _, r in zip(range(after), rounds, strict=False)][-1]
    start = read(write(folder, after, half.state, client_states(first)))
    assert isinstance(start, ResumePoint)
    later, second = run(algorithm, start=start)
    assert [r.number for r in later] == list(range(after + 1, ROUNDS + 1))
    return digest(later[-1].state, client_states(second))


@every_algorithm
def test_stopped_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    assert resumed(algorithm(name), tmp_path) == whole(name)


@pytest.mark.parametrize(
    ("name", "buffers"),
    slow_except(product(sorted(algorithms()), ("local", "reset")), [*RESUMED_BUFFERS, ("fedavg", "reset")]),
)
def test_resumes_with_every_value_of_buffers(name: str, buffers: str, tmp_path: Path) -> None:
    if "buffers" not in {field.name for field in fields(algorithm_class(name))}:
        pytest.skip(f"{name} has no buffers to keep")
    mine = algorithm(name, buffers=buffers)
    rounds, fleet = run(mine)
    assert resumed(mine, tmp_path, after=1) == digest(rounds[-1].state, client_states(fleet))


@every_use
@pytest.mark.parametrize("cohort", slow_except([0.5, 1], [0.5]))
def test_a_cohort_below_all_sites_works(name: str, cohort: float | int) -> None:
    rounds, _ = run(algorithm(name), cohort=cohort)
    assert all(len(r.cohort) == (2 if cohort == 0.5 else 1) for r in rounds)
    assert len({r.cohort for r in rounds}) > 1
    assert all(set(r.traffic.up) <= set(r.cohort) for r in rounds)


@every_use
def test_the_order_of_sites_is_irrelevant(name: str) -> None:
    mine, states = algorithm(name), []
    for sites in (task().inside, tuple(reversed(task().inside))):
        fleet = LocalFleet(task(), rounds=ROUNDS)
        with seeded(0, "init"):
            start = mine.init(task())
        state, _ = mine.round(fleet.at(sites), start)
        states.append(digest(state, client_states(fleet)))
    assert states[0] == states[1]


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedavg", "scaffold", "fedsm"]))
def test_sites_in_one_batch_have_nearly_the_same_results(name: str) -> None:
    rounds, _ = run(algorithm(name), LocalFleet(task(), rounds=ROUNDS, batch_sites=3))
    expected, _ = reference_run(name)
    for together, alone in zip(rounds, expected, strict=True):
        assert together.loss == (alone.loss if alone.loss is None else pytest.approx(alone.loss, rel=1e-3))


@every_algorithm
def test_data_are_not_changed(name: str) -> None:
    before = {site: digest(task().open(site).train.inputs) for site in task().inside}
    _, fleet = reference_run(name)
    assert {site: digest(fleet.executor.data_cache[site].train.inputs) for site in task().inside} == before


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedavg", "ditto", "scaffold", "fedsm", "iopfl"]))
def test_only_the_trained_part_is_sent(name: str) -> None:
    part = train_only(task(), TRAINED)
    full, small = (weights(each.start(0)).nbytes for each in (task(), part))
    assert small < full
    whole, _ = reference_run(name)
    frozen = algorithm(name, trainable=TRAINED)
    rounds, _ = run(frozen, LocalFleet(part, rounds=ROUNDS), on=part)
    assert all(np.isfinite(score.value) for round in rounds for score in round.scores)
    for way in ("up", "down"):
        before, after = (sum(sum(getattr(r.traffic, way).values()) for r in each) for each in (whole, rounds))
        assert after < before or name == "localonly"
        if name in ("fedavg", "fedprox", "ditto"):  # only models are sent
            assert before * small == after * full
    state = rounds[-1].state
    if state.model is not None:
        assert not {each for each in state.model if not each.startswith(("model.1.", "model.2."))}


def with_inverted_test_labels(task: Task, site: str) -> Data:
    data = task.open(site)
    assert data.test.labels is not None
    return replace(data, test=replace(data.test, labels=1 - data.test.labels))


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedsm", "iopfl"]))
def test_labels_of_test_cases_do_not_change_the_states(name: str) -> None:
    data = SyntheticData(sites=3, outside=("far",), cases=4, val=2, test=2, unlabelled=2, size=(16, 16))
    mine = Synthetic(data=data, network=NETWORK, batch_size=2).build()
    found = []
    for each in (mine, replace(mine, open=partial(with_inverted_test_labels, mine))):
        rounds, fleet = run(algorithm(name), LocalFleet(each, rounds=ROUNDS), on=each)
        scores = {split: [s.value for s in rounds[-1].scores if s.split == split] for split in ("val", "test")}
        found.append((digest(rounds[-1].state, client_states(fleet)), scores["val"], scores["test"]))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]


@every_algorithm
def test_is_an_immutable_value(name: str) -> None:
    mine = algorithm(name)
    assert pickle.loads(pickle.dumps(mine)) == mine
    assert hash(mine) == hash(algorithm(name))
    assert all(f"{field.name}=" in repr(mine) for field in fields(mine))
    changed = replace(mine, lr=0.5)
    assert (changed.lr, changed == mine) == (0.5, False)
    with pytest.raises(FrozenInstanceError):
        mine.lr = 1.0


@every_algorithm
def test_every_field_has_a_description(name: str) -> None:
    rows = field_docs(algorithm_class(name))
    assert rows
    assert [row.name for row in rows if not row.doc] == []
    assert algorithms()[name]


@cache
def image_table() -> tuple[Path, pd.DataFrame]:
    """A folder with four images at each of three sites, and the table of the images."""
    folder, rows = Path(tempfile.mkdtemp(prefix="raysim-test-")), []
    rng = np.random.default_rng(0)
    for site in ("east", "north", "south"):
        for number, split in enumerate(("train", "train", "train", "test")):
            image, label = (f"{site}-{number}-{what}.png" for what in ("image", "label"))
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / image)
            Image.fromarray((rng.random((16, 16)) < 0.5).astype(np.uint8)).save(folder / label)
            rows.append((site, split, image, label, ("lower", "upper")[number % 2]))
    atexit.register(shutil.rmtree, folder)
    return folder, pd.DataFrame(rows, columns=["site", "split", "image", "label", "partition"])


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ["fedavg", "fcl"]))
def test_the_order_of_rows_in_the_table_is_irrelevant(name: str, tmp_path: Path) -> None:
    folder, table = image_table()
    found = []
    for seed in (None, 1):
        path = folder / f"{name}-{seed}.csv"
        (table if seed is None else table.sample(frac=1, random_state=seed)).to_csv(path, index=False)
        arguments = ["task=segmentation", f"task.data.table={path}", f"algorithm={name}", "task.batch_size=2"]
        arguments += ["task.network={name: unet, channels: [2, 4], strides: [2]}", f"task.data.cache={tmp_path}"]
        config = resolve(parse_pairs(arguments))
        mine = config.task.build()
        fleet = LocalFleet(mine, rounds=2)
        *_, end = federate(config.algorithm, mine, fleet, rounds=2)
        found.append(digest(end.state, client_states(fleet)))
    assert found[0] == found[1]
