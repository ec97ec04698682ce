"""The executor: seeds of calls, failures as text, and payloads that only sites can read."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

from raysim import UNCHANGED, Reply, Site
from raysim.federation.site_executor import CallKey, CallResult, ExchangeHandle, SiteExecutor
from tests.support.toy import two_sites

CALL = CallKey(seed=3, round=1, rounds=4, index=0)


@pytest.fixture
def executor() -> SiteExecutor:
    return SiteExecutor(two_sites(), seed=3, device="cpu", threads=1)


def numbers(site: Site[Any], _: Any) -> Reply[float]:
    return Reply(torch.rand(()).item())


def drawn_number(executor: SiteExecutor, call: CallKey = CALL, site: str = "a") -> float:
    return executor.execute(numbers, site, call, None).payload


def test_random_numbers_depend_on_seed_round_index_and_site(executor: SiteExecutor) -> None:
    first = drawn_number(executor)
    assert drawn_number(executor) == first
    others = [
        drawn_number(executor, site="b"),
        drawn_number(executor, CallKey(4, 1, 4, 0)),
        drawn_number(executor, CallKey(3, 2, 4, 0)),
        drawn_number(executor, CallKey(3, 1, 4, 1)),
        drawn_number(executor, CallKey(3, 1, 4, "judge")),
    ]
    assert len({first, *others}) == 6
    assert drawn_number(executor, CallKey(3, 1, 9, 0)) == first  # the number of rounds has no effect


def test_arguments_of_a_client_function(executor: SiteExecutor) -> None:
    def client(site: Site[Any], broadcast: Any, own: Any) -> Reply[Any]:
        assert (site.name, site.round, site.rounds, site.seed, site.client_state) == ("b", 1, 4, 3, "kept")
        assert len(site.data.train) == 3
        return Reply([broadcast, own], weight=5, metrics={"loss": 2.0}, client_state="new")

    answer = executor.execute(client, "b", CALL, "shared", "own", "kept")
    assert answer.failure is None
    assert (answer.payload, answer.weight, answer.metrics, answer.client_state) == (
        ["shared", "own"],
        5,
        {"loss": 2.0},
        "new",
    )
    assert answer.seconds > 0


def test_data_are_opened_once(executor: SiteExecutor) -> None:
    def client(site: Site[Any], _: Any) -> Reply[int]:
        return Reply(id(site.data))

    assert len({executor.execute(client, "a", CALL, None).payload for _ in range(3)}) == 1


def test_none_is_a_valid_per_site_value(executor: SiteExecutor) -> None:
    def client(site: Site[Any], broadcast: Any, own: Any) -> Reply[bool]:
        return Reply(own is None)

    assert executor.execute(client, "a", CALL, None, per_site=None).payload


def failing(site: Site[Any], broadcast: Any) -> Reply[Any]:
    raise broadcast


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("bad batch"), "ValueError: bad batch"),
        (KeyError("w"), "KeyError: 'w'"),
        (AssertionError(), "AssertionError: no message"),
    ],
)
def test_an_exception_is_returned_as_text_with_its_traceback(
    executor: SiteExecutor, error: Exception, cause: str
) -> None:
    failure = executor.execute(failing, "a", CALL, error).failure
    assert failure is not None
    assert re.fullmatch(rf"{re.escape(cause)} \(.*test_site_executor\.py, line \d+, in failing\)", failure.cause)
    assert "in failing" in failure.traceback
    assert "in _call" not in failure.traceback
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_data_that_cannot_be_opened_fail_their_site(executor: SiteExecutor) -> None:
    failure = executor.execute(numbers, "c", CALL, None).failure
    assert failure is not None
    assert failure.cause.startswith("KeyError: 'c' (")


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Reply(torch.zeros(1, requires_grad=True)), "TypeError: a tensor that requires gradients cannot be sent"),
        (Reply({1, 2}), "TypeError: a set cannot be sent"),
        (Reply(None, client_state=torch.zeros(1, requires_grad=True)), "TypeError: a tensor that requires gradients"),
    ],
)
def test_a_reply_that_cannot_be_sent_fails_its_site(executor: SiteExecutor, reply: Any, cause: str) -> None:
    failure = executor.execute(lambda site, broadcast: reply, "a", CALL, None).failure
    assert failure is not None
    assert failure.cause.startswith(cause)


@pytest.mark.parametrize(
    ("client", "cause"),
    [
        (
            lambda site, _: Reply(torch.nn.Linear(1, 1)),
            "must not send a network; write Reply(weights(net), ...), a Model",
        ),
        (lambda site, _: None, "must return a Reply, not NoneType; write return Reply(...)"),
    ],
)
def test_a_wrong_reply_names_the_client_function(executor: SiteExecutor, client: Any, cause: str) -> None:
    failure = executor.execute(client, "a", CALL, None).failure
    assert failure is not None
    line = client.__code__.co_firstlineno
    assert re.fullmatch(
        rf"a client function \(.*test_site_executor\.py, line {line}\) {re.escape(cause)}", failure.cause
    )


def test_a_client_function_with_wrong_arguments_is_named(executor: SiteExecutor) -> None:
    failure = executor.execute(lambda site: Reply(None), "a", CALL, None).failure
    assert failure is not None
    assert re.search(
        r"takes 1 positional argument but 2 were given \(.*test_site_executor\.py, line \d+\)$", failure.cause
    )


def test_an_interrupt_is_no_failure_of_the_site(executor: SiteExecutor) -> None:
    with pytest.raises(KeyboardInterrupt):
        executor.execute(failing, "a", CALL, KeyboardInterrupt())


def exchanged() -> ExchangeHandle[Any]:
    return ExchangeHandle({"a": np.zeros(2), "b": np.zeros(5)}, {"a": {}, "b": {"loss": 1.0}}, lambda held: held)


def test_the_server_cannot_read_an_exchange() -> None:
    with pytest.raises(RuntimeError, match="the server cannot read an exchange"):
        exchanged()["a"]
    assert exchanged().sites == ("a", "b")
    assert exchanged().metrics["b"] == {"loss": 1.0}


def test_an_exchange_counts_payloads_of_other_sites(executor: SiteExecutor) -> None:
    def client(site: Site[Any], broadcast: ExchangeHandle[Any]) -> Reply[float]:
        return Reply(float(sum(len(broadcast[other]) for other in broadcast.sites)))

    answer = executor.execute(client, "a", CALL, exchanged())
    assert (answer.payload, answer.between) == (7, 40)  # five float64 of b; the site's own two are not counted


def test_a_payload_read_twice_is_counted_once(executor: SiteExecutor) -> None:
    def client(site: Site[Any], broadcast: ExchangeHandle[Any]) -> Reply[float]:
        return Reply(broadcast["b"].sum() + broadcast["b"].sum())

    assert executor.execute(client, "a", CALL, exchanged()).between == 40


def test_an_exchange_cannot_be_read_after_the_call(executor: SiteExecutor) -> None:
    executor.execute(failing, "a", CALL, ValueError())
    with pytest.raises(RuntimeError, match="the server cannot read an exchange"):
        exchanged()["a"]


def test_unchanged_is_the_same_object_after_pickling() -> None:
    assert pickle.loads(pickle.dumps(UNCHANGED)) is UNCHANGED
    assert pickle.loads(pickle.dumps(CallResult(None))).client_state is UNCHANGED


def test_old_data_are_dropped_when_the_cache_is_full(executor: SiteExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_number(executor, site="a")
    assert executor.data_cache.held == sum(
        a.nbytes for split in ("train", "test") for a in vars(executor.data_cache["a"][split]).values() if a is not None
    )
    monkeypatch.setattr("raysim.federation.site_data.DATA_CACHE_BYTES", executor.data_cache.held)
    alone = executor.data_cache.held
    drawn_number(executor, site="b")
    assert list(executor.data_cache) == ["b"]
    drawn_number(executor, site="a")
    assert (list(executor.data_cache), executor.data_cache.held) == (["a"], alone)
