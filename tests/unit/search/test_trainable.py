"""The process of a trial."""

from __future__ import annotations

from raysim.search.trainable import too_small_share

GIB = 2**30


def test_a_share_of_a_gpu_that_is_too_small_for_the_network_is_refused():
    assert too_small_share(0.25, 16 * GIB, GIB) == ""
    assert too_small_share(4, 16 * GIB, 5 * GIB) == ""  # at most the whole GPU
    reason = too_small_share(0.125, 16 * GIB, GIB)
    assert reason.startswith("a node cannot run trials: a trial has 0.125 of a GPU of 17.2 GB, which is 2.1 GB")
    assert reason.endswith("set a larger resources.gpus_per_client")
