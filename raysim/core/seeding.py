"""Random seeds and generators: one seed per (run, round, call, site), the same in every process and every retry."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def stable_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else (process, platform)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A new numpy generator, seeded from `key`."""
    return np.random.default_rng(stable_seed(*key))


def seed_all(*key: int | str) -> None:
    """Seed the global generators of torch, CUDA, numpy and random from `key`."""
    import torch  # not at the top: the data package works without it

    seed = stable_seed(*key)
    # Without an initialised GPU, torch.manual_seed records the call stack for later, which takes 0.5 ms.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - users' transforms may draw from it
    random.seed(seed)


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Restore the global generators of torch, numpy and random after the block.

    CUDA's generators are not restored, since their states are on the device.
    """
    before = get_generators()
    try:
        yield
    finally:
        set_generators(before)


def get_generators() -> Any:
    """The states of the global generators of torch, numpy and random, for `set_generators`."""
    import torch

    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - saved


def set_generators(states: Any, torch_only: bool = False) -> None:
    """Restore states that `get_generators` returned, or only that of torch."""
    import torch

    torch.set_rng_state(states[0])
    if not torch_only:
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the global generators from `key` within the block, and restore them after it."""
    with preserve_rng():
        seed_all(*key)
        yield
