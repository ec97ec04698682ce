"""The wait: its deadline, and its increasingly rare notices."""

from __future__ import annotations

import pytest

from raysim.distributed.waiter import Waiter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, set by the test."""
    now = [100.0]
    monkeypatch.setattr("raysim.distributed.waiter.time.monotonic", lambda: now[0])
    return now


def test_notices_are_due_at_20_40_and_80_seconds(clock: list[float]) -> None:
    waiter, due = Waiter(notify_after_s=20), list[float]()
    for second in range(100):
        clock[0] = 100.0 + second
        due += [waiter.elapsed_s] if waiter.notice_due() else []
    assert due == [20, 40, 80]
    assert not waiter.expired


def test_a_reset_starts_the_deadline_and_the_notices_again(clock: list[float]) -> None:
    waiter = Waiter(timeout_s=30, notify_after_s=10)
    clock[0] += 30
    assert (waiter.expired, waiter.notice_due()) == (False, True)
    clock[0] += 1
    assert waiter.expired
    waiter.reset()
    assert (waiter.elapsed_s, waiter.expired, waiter.notice_due()) == (0, False, False)
    clock[0] += 10
    assert waiter.notice_due()


def test_a_single_notice(clock: list[float]) -> None:
    waiter = Waiter(notify_after_s=5, backoff=float("inf"))
    clock[0] += 6
    assert waiter.notice_due()
    clock[0] += 10_000
    assert not waiter.notice_due()
