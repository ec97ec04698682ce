"""Client functions cannot change what they receive: numpy refuses the write, and a write through torch is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysim import Model, Reply, Site
from raysim.core.errors import SiteError
from raysim.data.cache import load_or_create
from raysim.federation.site_data import fingerprint
from raysim.federation.site_executor import CallKey, CallResult, SiteExecutor
from tests.support.toy import two_sites

CALL = CallKey(seed=3, round=1, rounds=4, index=0)
Client = Callable[..., Reply[Any]]


def execute(client: Client, *arguments: Any) -> CallResult[Any]:
    executor = SiteExecutor(two_sites(), seed=3, device="cpu", threads=1)
    return executor.execute(client, "a", CALL, *arguments)


def test_the_arrays_of_a_site_are_read_only() -> None:
    def client(site: Site[Any], _: Any) -> Reply[None]:
        inputs = site.data.train.inputs
        inputs -= 0.3
        return Reply(None)

    failure = execute(client, None).failure
    assert failure is not None
    assert "read-only" in failure.cause


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_write_through_a_tensor_is_found_and_the_next_call_has_the_data_as_prepared() -> None:
    executor = SiteExecutor(two_sites(), seed=3, device="cpu", threads=1)

    def change(site: Site[Any], _: Any) -> Reply[None]:
        torch.from_numpy(site.data.train.labels).add_(1)
        return Reply(None)

    def read(site: Site[Any], _: Any) -> Reply[float]:
        return Reply(float(site.data.train.labels.sum()))

    failure = executor.execute(change, "a", CALL, None).failure
    assert failure is not None
    assert failure.cause.startswith("the client function has changed site.data.train.labels in place")
    assert executor.execute(read, "a", CALL, None).payload == 2  # the only point of a is (1, 2)


def change_broadcast(site: Site[Any], broadcast: Any) -> Reply[None]:
    broadcast = broadcast if isinstance(broadcast, torch.Tensor) else torch.from_numpy(broadcast["w"])
    broadcast.add_(1)
    return Reply(None)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("broadcast", [torch.zeros(2), Model.of({"w": np.zeros(2)}), {"w": np.zeros(2)}])
def test_a_changed_broadcast_ends_the_run_because_other_sites_receive_it_too(broadcast: Any) -> None:
    with pytest.raises(SiteError, match="site 'a' failed in round 2: the client function has changed the broadcast"):
        execute(change_broadcast, broadcast)


def append(site: Site[Any], broadcast: Any) -> Reply[None]:
    broadcast["seen"].append(site.name)
    return Reply(None)


def write_without_count(site: Site[Any], broadcast: Any) -> Reply[None]:
    broadcast.data.numpy()[0] = 1
    return Reply(None)


@pytest.mark.parametrize(("client", "broadcast"), [(append, {"seen": []}), (write_without_count, torch.zeros(2))])
def test_changes_of_lists_and_uncounted_writes_to_tensors_are_found(client: Client, broadcast: Any) -> None:
    with pytest.raises(SiteError, match="has changed the broadcast in place"):
        execute(client, broadcast)


def test_a_changed_number_in_the_client_state_is_found() -> None:
    def count(site: Site[Any], _: Any, __: Any) -> Reply[None]:
        site.client_state["calls"] += 1
        return Reply(None)

    executor = SiteExecutor(two_sites(), seed=3, device="cpu", threads=1)
    with pytest.raises(SiteError, match=r"has changed site\.client_state in place"):
        executor.execute(count, "a", CALL, None, None, {"calls": 1})


def test_a_change_of_the_network_that_all_calls_share_is_found() -> None:
    def train(site: Site[Any], _: Any) -> Reply[None]:
        with torch.no_grad():
            next(site.template.parameters()).add_(1)
        return Reply(None)

    with pytest.raises(SiteError, match=r"has changed site\.template in place.*net = site\.load\(\)"):
        execute(train, None)


@pytest.mark.parametrize("state", [{1, 2}, torch.zeros(2, dtype=torch.bfloat16), np.array([None])])
def test_a_client_state_that_no_checkpoint_can_store_is_refused_in_its_call(state: Any) -> None:
    failure = execute(lambda site, _: Reply(None, client_state=state), None).failure
    assert failure is not None
    assert failure.cause.startswith("the client state of a reply: a checkpoint cannot store the ")
    assert not failure.traceback


def test_one_changed_byte_of_a_memory_mapped_array_is_found(tmp_path: Path) -> None:
    array = load_or_create(tmp_path, "key", lambda: {"x": np.zeros((3, 5000))})["x"]
    before = fingerprint(array)
    assert array.sum() == 0
    assert fingerprint(array) == before  # reading changes nothing
    array[2, 4999] = 1
    assert fingerprint(array) != before
