"""The number of sites that an actor gets in one call."""

from __future__ import annotations

from collections import deque

from raysim.distributed.dispatcher import take_batch

SITES = [f"s{i}" for i in range(8)]


def test_sites_without_a_time_are_sent_one_by_one() -> None:
    assert take_batch(deque(SITES), {}) == ["s0"]


def test_sites_of_half_a_second_are_sent_one_by_one() -> None:
    assert take_batch(deque(SITES), dict.fromkeys(SITES, 0.5)) == ["s0"]


def test_quick_sites_are_batched_up_to_half_a_second() -> None:
    waiting = deque(SITES)
    # 0.2 + 0.2 is less than 0.5, the third site exceeds it
    assert take_batch(waiting, dict.fromkeys(SITES, 0.2)) == ["s0", "s1", "s2"]
    assert waiting == deque(SITES[3:])


def test_one_call_takes_at_most_two_thirds_of_the_queue() -> None:
    waiting, seconds = deque(SITES), dict.fromkeys(SITES, 0.001)
    taken = []
    while sites := take_batch(waiting, seconds):
        taken.append(sites)
    assert [len(sites) for sites in taken] == [6, 2]
    assert [site for sites in taken for site in sites] == SITES


def test_the_last_are_the_cheapest() -> None:
    assert take_batch(deque(SITES), dict.fromkeys(SITES, 0.2), last=True) == ["s7", "s6", "s5"]
    assert take_batch(deque(), {}, last=True) == []
