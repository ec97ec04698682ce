"""The number of groups of sites that an actor gets in one call."""

from __future__ import annotations

from collections import deque

from raysim.distributed.dispatcher import flatten, take_batch

SITES = [f"s{i}" for i in range(8)]
GROUPS = [(site,) for site in SITES]  # of one site each


def test_sites_without_a_time_are_sent_one_by_one() -> None:
    assert take_batch(deque(GROUPS), {}) == [("s0",)]


def test_sites_of_half_a_second_are_sent_one_by_one() -> None:
    assert take_batch(deque(GROUPS), dict.fromkeys(SITES, 0.5)) == [("s0",)]


def test_quick_sites_are_batched_up_to_half_a_second() -> None:
    waiting = deque(GROUPS)
    # 0.2 + 0.2 is less than 0.5, the third site exceeds it
    assert take_batch(waiting, dict.fromkeys(SITES, 0.2)) == GROUPS[:3]
    assert waiting == deque(GROUPS[3:])


def test_one_call_takes_at_most_two_thirds_of_the_queue() -> None:
    waiting, seconds = deque(GROUPS), dict.fromkeys(SITES, 0.001)
    taken = []
    while groups := take_batch(waiting, seconds):
        taken.append(groups)
    assert [len(groups) for groups in taken] == [6, 2]
    assert flatten(group for groups in taken for group in groups) == SITES


def test_the_time_of_a_group_is_that_of_its_sites() -> None:
    waiting = deque([("a", "b"), ("c", "d"), ("e", "f")])
    assert take_batch(waiting, dict.fromkeys("abcdef", 0.2)) == [("a", "b"), ("c", "d")]


def test_the_last_are_the_cheapest() -> None:
    assert take_batch(deque(GROUPS), dict.fromkeys(SITES, 0.2), last=True) == GROUPS[:4:-1]
    assert take_batch(deque(), {}, last=True) == []
