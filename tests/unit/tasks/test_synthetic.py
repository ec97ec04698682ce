"""The synthetic task: sites are deterministic, opened on demand, and can be learned."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from raysim.core.errors import ConfigError
from raysim.tasks.synthetic import Synthetic, SyntheticData

SMALL = {"sites": 3, "cases": 4, "val": 1, "test": 2, "size": (16, 16)}


def task(**data):
    return Synthetic(data=SyntheticData(**SMALL | data)).build()


def test_sites_sizes_and_shapes():
    built = task(unlabelled=2, channels=3)
    assert (built.inside, built.outside) == (("site-01", "site-02", "site-03"), ("outside-1",))
    assert built.sizes["site-02"] == {"train": 4, "val": 1, "test": 2, "unlabelled": 2}
    assert built.sizes["outside-1"] == {"train": 0, "val": 1, "test": 2, "unlabelled": 0}
    for site, sizes in built.sizes.items():
        data = built.open(site)
        assert {split: len(data[split]) for split in sizes} == sizes
    train = built.open("site-01").train
    assert (train.inputs.shape, train.inputs.dtype) == ((4, 3, 16, 16), np.float32)
    assert (train.labels.shape, set(np.unique(train.labels))) == ((4, 1, 16, 16), {0, 1})
    assert built.open("site-01").unlabelled.labels is None


def test_a_split_does_not_depend_on_other_sites_or_other_splits():
    one, other = task().open("site-02"), task(sites=300, test=5, val=3).open("site-002")
    assert np.array_equal(one.train.inputs, other.train.inputs)
    assert np.array_equal(one.train.labels, other.train.labels)


def test_sites_splits_and_seeds_differ():
    data = task(test=4).open("site-01")
    for other in (task().open("site-02").train, task(seed=1).open("site-01").train, data.test):
        assert not np.array_equal(data.train.labels, other.labels)


def test_without_severity_scanners_do_not_differ():
    assert np.array_equal(task(severity=0.0).open("site-01").train.labels, task().open("site-01").train.labels)
    assert task(severity=0.0).open("site-01").train.inputs.min() >= 0


def test_volumes():
    built = task(size=(16, 16, 16))
    assert built.open("site-01").train.labels.shape == (4, 1, 16, 16, 16)
    assert 0.005 < built.open("site-01").train.labels.mean() < 0.3
    assert built.open("site-01").train.spacing.tolist() == [[1.0] * 3] * 4


def test_the_task_is_small_and_can_be_sent_to_another_process():
    sent = pickle.dumps(task(sites=1000))
    assert len(sent) < 200_000
    again = pickle.loads(sent)
    assert np.array_equal(again.open("site-0001").train.inputs, task().open("site-01").train.inputs)
    assert 20_000 < sum(p.numel() for p in again.start(0).parameters()) < 100_000


@pytest.mark.parametrize("outside", [("site-02",), ("a", "a")])
def test_names_of_sites_must_be_distinct(outside):
    with pytest.raises(ConfigError, match=r"task\.data\.outside"):
        task(outside=outside)


@pytest.mark.parametrize("wrong", [{"data": {"sites": 0}}, {"data": {"size": [8]}}, {"data": {"severity": 2}}])
def test_values_are_checked_by_the_annotations(wrong):
    with pytest.raises(ValueError, match="validation error"):
        TypeAdapter(Synthetic).validate_python(wrong)
    assert TypeAdapter(Synthetic).validate_python({"data": {"size": [16, 16, 16]}}).data.size == (16, 16, 16)


def test_a_small_network_learns_the_task():
    data = SyntheticData(cases=24, test=8, size=(32, 32), sites=1)
    built = Synthetic(data=data, network={"name": "unet", "channels": (8, 16), "num_res_units": 1}).build()
    data, net = built.open("site-01"), built.start(0)

    def dice():
        return built.score(net.eval(), data.test, torch.device("cpu"))["dice"]

    before, optimizer = dice(), torch.optim.Adam(net.parameters(), 1e-2)
    inputs, labels = torch.from_numpy(data.train.inputs), torch.from_numpy(data.train.labels)
    for step in range(60):
        batch = slice(step % 6 * 4, step % 6 * 4 + 4)
        optimizer.zero_grad()
        built.loss(net.train()(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    assert before < 0.4
    assert dice() > 0.7
