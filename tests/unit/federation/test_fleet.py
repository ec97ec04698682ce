"""The local fleet: values that sites receive and keep, byte counts, and errors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from raysim import UNCHANGED, LocalFleet, Model, Reply, Site
from raysim.core.errors import Interrupted, SiteError
from raysim.core.seeding import seeded
from tests.support.toy import A, B, task, two_sites


def fleet(rounds: int = 3) -> LocalFleet:
    return LocalFleet(task({"a": A, "b": B, "c": A, "x": B}, outside=["x"]), rounds=rounds)


def name(site: Site[Any], *_: Any) -> Reply[str]:
    return Reply(site.name)


def count(site: Site[int], _: Any) -> Reply[int]:
    seen = (site.client_state or 0) + 1
    return Reply(seen, client_state=seen)


def test_replies_are_in_site_order_and_only_from_inside_sites() -> None:
    replies = fleet().map(name)
    assert list(replies) == ["a", "b", "c"]
    assert [reply.payload for reply in replies.values()] == ["a", "b", "c"]


def test_at_orders_sites_and_includes_outside_sites() -> None:
    assert list(fleet().at(["x", "a"]).map(name)) == ["a", "x"]
    assert fleet().at([]).map(name) == {}


def test_at_refuses_an_unknown_site() -> None:
    with pytest.raises(ValueError, match="no such site: 'z'"):
        fleet().at(["a", "z"])


def test_a_site_named_twice_is_called_once() -> None:
    part = fleet().at(["b", "a", "b"])
    assert list(part.sites) == ["a", "b"]
    part.map(count)
    assert part.client_states.held == {"a": 1, "b": 1}


def test_each_site_gets_its_own_per_site_value() -> None:
    replies = fleet().map(
        lambda site, broadcast, per_site: Reply((broadcast, per_site)), "all", per_site={"a": 1, "b": 2, "c": 3}
    )
    assert [reply.payload for reply in replies.values()] == [("all", 1), ("all", 2), ("all", 3)]


def test_the_generators_of_the_server_are_not_changed() -> None:
    with seeded(1):
        expected = torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002
    with seeded(1):
        fleet().map(lambda site, _: Reply(torch.rand(()).item() + np.random.rand() + random.random()))  # noqa: NPY002
        assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected  # noqa: NPY002


def test_client_states_stay_at_their_site() -> None:
    here = fleet()
    here.at(["a"]).map(count)
    assert [reply.payload for reply in here.map(count).values()] == [2, 1, 1]
    assert (here.client_state("a"), here.client_state("b"), here.client_state("x")) == (2, 1, None)
    assert here.map(count)["a"].client_state is UNCHANGED  # it is not sent to the server


def test_unchanged_keeps_the_client_state_and_none_clears_it() -> None:
    here = fleet()
    here.map(count)
    here.map(name)
    assert here.client_state("a") == 1
    here.map(lambda site, broadcast: Reply(None, client_state=None))
    assert here.client_state("a") is None


def test_restore_sets_client_states() -> None:
    here = fleet()
    here.client_states.restore({"b": 41})
    assert here.map(count)["b"].payload == 42


def test_bytes_are_counted_by_site() -> None:
    here = fleet()
    model = Model.of({"w": np.zeros(3, np.float32)})
    here.at(["a", "b"]).map(lambda site, broadcast, per_site: Reply(model), [model, 1], per_site={"a": "xyz", "b": ""})
    here.at(["a"]).map(lambda site, broadcast: Reply("12345"), None)
    traffic = here.accounting.traffic()
    assert traffic.down == {"a": 12 + 8 + 3, "b": 12 + 8}
    assert traffic.up == {"a": 12 + 5, "b": 12}
    here.accounting.open_round(1)
    assert here.accounting.traffic().up == {}


def test_exchanged_payloads_are_counted_between_sites() -> None:
    here = fleet()
    given = here.exchange(lambda site, _: Reply(np.zeros(2 if site.name == "a" else 5), metrics={"loss": 1.0}))
    with pytest.raises(RuntimeError, match="the server cannot read an exchange"):
        given["a"]
    assert given.metrics == {"a": {"loss": 1.0}, "b": {"loss": 1.0}, "c": {"loss": 1.0}}

    def client(site: Site[Any], broadcast: Any) -> Reply[int]:
        found = [broadcast[other] for other in broadcast.sites]
        assert not any(array.flags.writeable for array in found)
        return Reply(sum(map(len, found)))

    replies = here.map(client, given)
    assert [reply.payload for reply in replies.values()] == [12, 12, 12]
    traffic = here.accounting.traffic()
    assert traffic.between == {"a": 80, "b": 56, "c": 56}
    assert sum(traffic.up.values()) == 3 * 8  # three sums of eight bytes, without the exchange
    assert sum(traffic.down.values()) == 0


def test_evaluation_is_not_accounted() -> None:
    here = fleet()
    replies = here.evaluate(count, "shared")
    assert list(replies) == ["a", "b", "c", "x"]
    assert here.accounting.traffic().down == {}
    assert (here.client_states.held, here.accounting.calls, here.accounting.metrics) == ({}, 0, {})


def test_an_evaluation_has_a_value_for_each_site() -> None:
    replies = fleet().evaluate(
        lambda site, broadcast, value: Reply(broadcast + value), 10, sites=["a", "x"], per_site={"a": 1, "x": 2}
    )
    assert [reply.payload for reply in replies.values()] == [11, 12]


def test_values_sent_and_received_are_read_only() -> None:
    broadcast, per_site = np.zeros(1), {"a": [np.zeros(1)]}

    def client(site: Site[Any], broadcast: np.ndarray, per_site: list[np.ndarray]) -> Reply[Any]:
        assert not broadcast.flags.writeable
        assert not per_site[0].flags.writeable
        assert site.client_state is None or not site.client_state.flags.writeable
        return Reply({"w": np.zeros(1)}, client_state=np.zeros(1))

    part = fleet().at(["a"])
    part.map(client, broadcast, per_site)
    assert not part.map(client, broadcast, per_site)["a"].payload["w"].flags.writeable


def test_a_failure_names_site_and_round_and_keeps_the_traceback() -> None:
    def client(site: Site[Any], _: Any) -> Reply[Any]:
        return Reply(1 / (site.name != "b"))

    here = fleet()
    here.accounting.open_round(6)
    with pytest.raises(SiteError, match=r"site 'b' failed in round 7: ZeroDivisionError: division by zero") as caught:
        here.map(client)
    assert (caught.value.site, caught.value.round) == ("b", 7)
    assert "1 / (site.name" in caught.value.remote


def test_each_call_of_a_round_has_new_random_numbers() -> None:
    import torch

    def client(site: Site[Any], _: Any) -> Reply[float]:
        return Reply(torch.rand(()).item())

    here = fleet()
    drawn = [reply.payload for _ in range(2) for reply in here.map(client).values()]
    assert len(set(drawn)) == 6
    assert [r.payload for r in fleet().at(["b", "c"]).map(client).values()] == drawn[1:3]  # without a


def test_stop_ends_the_run_at_the_next_reply() -> None:
    here = fleet()
    here.stop_requested.set()
    with pytest.raises(Interrupted, match="stopped in round 1"):
        here.map(name)


def test_progress_has_round_phase_and_count() -> None:
    here = fleet()
    here.accounting.open_round(2)
    here.map(name)
    progress = here.progress
    assert (progress.round, progress.phase, progress.done, progress.total) == (2, "call 1", 3, 3)


def test_a_loss_is_kept_with_its_weight() -> None:
    here = LocalFleet(two_sites())
    here.map(lambda site, _: Reply(None, weight=len(site.data.train), metrics={"loss": 0.5}))
    here.map(lambda site, _: Reply(None, metrics={"cosine": 0.25}))
    assert here.accounting.metrics == {site: {"loss": 0.5, "cosine": 0.25} for site in "ab"}
    assert here.accounting.weights == {"a": 1, "b": 3}  # of the call with a loss
