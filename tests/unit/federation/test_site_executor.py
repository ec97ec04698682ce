"""The worker: seeds of calls, failures as text, and payloads that only sites read."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from raysim import KEEP, Reply, Site
from raysim.federation.site_executor import Answer, Call, Exchanged, Worker
from tests.support.toy import two_sites

CALL = Call(seed=3, round=1, rounds=4, index=0)


@pytest.fixture
def worker() -> Worker:
    return Worker(two_sites(), seed=3, device="cpu", threads=1)


def numbers(site: Site[Any], _: Any) -> Reply[float]:
    return Reply(torch.rand(()).item())


def played(worker: Worker, call: Call = CALL, site: str = "a") -> float:
    return worker.play(numbers, site, call, None).payload


def test_a_call_draws_by_seed_round_index_and_site(worker: Worker) -> None:
    first = played(worker)
    assert played(worker) == first
    others = [
        played(worker, site="b"),
        played(worker, Call(4, 1, 4, 0)),
        played(worker, Call(3, 2, 4, 0)),
        played(worker, Call(3, 1, 4, 1)),
        played(worker, Call(3, 1, 4, "judge")),
    ]
    assert len({first, *others}) == 6
    assert played(worker, Call(3, 1, 9, 0)) == first  # how long the run is to be changes nothing


def test_what_a_client_function_gets(worker: Worker) -> None:
    def client(site: Site[Any], shared: Any, own: Any) -> Reply[Any]:
        assert (site.name, site.round, site.rounds, site.seed, site.memory) == ("b", 1, 4, 3, "kept")
        assert len(site.data.train) == 3
        return Reply([shared, own], weight=5, metrics={"loss": 2.0}, memory="new")

    answer = worker.play(client, "b", CALL, "shared", "own", "kept")
    assert answer.failure is None
    assert (answer.payload, answer.weight, answer.metrics, answer.memory) == (
        ["shared", "own"],
        5,
        {"loss": 2.0},
        "new",
    )
    assert answer.seconds > 0


def test_data_are_opened_once(worker: Worker) -> None:
    def client(site: Site[Any], _: Any) -> Reply[int]:
        return Reply(id(site.data))

    assert len({worker.play(client, "a", CALL, None).payload for _ in range(3)}) == 1


def test_none_may_be_a_sites_own(worker: Worker) -> None:
    def client(site: Site[Any], shared: Any, own: Any) -> Reply[bool]:
        return Reply(own is None)

    assert worker.play(client, "a", CALL, None, own=None).payload


def failing(site: Site[Any], shared: Any) -> Reply[Any]:
    raise shared


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("bad batch"), "ValueError: bad batch"),
        (KeyError("w"), "KeyError: 'w'"),
        (AssertionError(), "AssertionError: no message"),
    ],
)
def test_an_exception_comes_back_as_text_with_its_traceback(worker: Worker, error: Exception, cause: str) -> None:
    failure = worker.play(failing, "a", CALL, error).failure
    assert failure is not None
    assert failure.cause == cause
    assert "in failing" in failure.traceback
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_data_that_cannot_be_opened_fail_their_site(worker: Worker) -> None:
    failure = worker.play(numbers, "c", CALL, None).failure
    assert failure is not None
    assert failure.cause == "KeyError: 'c'"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (5, "TypeError: a client function returns a Reply, not int"),
        (Reply(torch.zeros(1, requires_grad=True)), "TypeError: a tensor that requires gradients cannot travel"),
        (Reply({1, 2}), "TypeError: a set cannot travel"),
        (Reply(None, memory=torch.zeros(1, requires_grad=True)), "TypeError: a tensor that requires gradients"),
    ],
)
def test_a_reply_that_cannot_travel_fails_its_site(worker: Worker, reply: Any, cause: str) -> None:
    failure = worker.play(lambda site, shared: reply, "a", CALL, None).failure
    assert failure is not None
    assert failure.cause.startswith(cause)


def test_an_interrupt_is_no_failure_of_the_site(worker: Worker) -> None:
    with pytest.raises(KeyboardInterrupt):
        worker.play(failing, "a", CALL, KeyboardInterrupt())


def exchanged() -> Exchanged[Any]:
    return Exchanged({"a": np.zeros(2), "b": np.zeros(5)}, {"a": {}, "b": {"loss": 1.0}}, lambda held: held)


def test_an_exchange_is_closed_to_the_server() -> None:
    with pytest.raises(RuntimeError, match="never at the server"):
        exchanged()["a"]
    assert exchanged().sites == ("a", "b")
    assert exchanged().metrics["b"] == {"loss": 1.0}


def test_an_exchange_counts_what_comes_from_others(worker: Worker) -> None:
    def client(site: Site[Any], shared: Exchanged[Any]) -> Reply[float]:
        return Reply(float(sum(len(shared[other]) for other in shared.sites)))

    answer = worker.play(client, "a", CALL, exchanged())
    assert (answer.payload, answer.between) == (7, 40)  # b's five float64; its own two are no traffic


def test_a_payload_read_twice_crosses_once(worker: Worker) -> None:
    def client(site: Site[Any], shared: Exchanged[Any]) -> Reply[float]:
        return Reply(shared["b"].sum() + shared["b"].sum())

    assert worker.play(client, "a", CALL, exchanged()).between == 40


def test_an_exchange_closes_again_after_the_call(worker: Worker) -> None:
    worker.play(failing, "a", CALL, ValueError())
    with pytest.raises(RuntimeError, match="never at the server"):
        exchanged()["a"]


def test_keep_is_one_value_in_every_process() -> None:
    assert pickle.loads(pickle.dumps(KEEP)) is KEEP
    assert pickle.loads(pickle.dumps(Answer(None))).memory is KEEP


def test_data_in_memory_are_closed_when_they_grow_too_many(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    played(worker, site="a")
    assert worker.opened.held == sum(
        a.nbytes for split in ("train", "test") for a in vars(worker.opened["a"][split]).values() if a is not None
    )
    monkeypatch.setattr("raysim.federation.site_executor.OPEN", worker.opened.held)
    alone = worker.opened.held
    played(worker, site="b")
    assert list(worker.opened) == ["b"]
    played(worker, site="a")
    assert (list(worker.opened), worker.opened.held) == (["a"], alone)
