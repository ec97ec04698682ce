"""Batches of labelled examples on a device, shuffled and augmented as the engine's seed has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from raysim.core.contracts import Augment, Batch, Split
from raysim.core.errors import RunError
from raysim.core.seeding import stable_seed

RESIDENT = 0.25  # a split stays on the GPU if it takes at most this part of the memory that is free


def batches(
    split: Split, batch: int, steps: int, device: torch.device, augment: Augment | None = None
) -> Iterator[Batch]:
    """`steps` batches of labelled examples on `device`, shuffled in each pass, the last of a pass smaller.

    Order and augmentation follow torch's global generator, which the engine seeds for each call at a site.
    """
    if not len(split) or split.labels is None:
        raise RunError("there is nothing to train on: the split has no labelled example")
    random = torch.randint(2**31, ()).item()
    chance = seeded_state(int(random)) if augment else None
    inputs, labels = on_device(split, device)
    done = 0
    while done < steps:
        # One copy in a pass, and none that is waited for: in each step it would make the CPU wait for the GPU.
        order = torch.randperm(len(split)).to(inputs.device, non_blocking=True)
        for index in torch.split(order, batch)[: steps - done]:
            x, y = (t[index].to(device, non_blocking=True) for t in (inputs, labels))
            if augment is not None and chance is not None:
                x, y = augment(x, y, chance)
            yield x, y.long()
            done += 1


def seeded_state(seed: int) -> Any:
    """MONAI's transforms draw from the older kind of numpy generator."""
    from numpy.random import RandomState

    return RandomState(stable_seed(seed) % 2**32)


_resident: WeakKeyDictionary[Split, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The split's inputs and labels as tensors: on a GPU if they fit, and then kept as long as the split."""
    if split in _resident:
        return _resident[split]
    tensors = torch.from_numpy(split.inputs), torch.from_numpy(split.labels)
    if device.type == "cuda" and sum(t.nbytes for t in tensors) <= RESIDENT * _free(device):
        tensors = _resident[split] = (tensors[0].to(device), tensors[1].to(device))
    return tensors


def _free(device: torch.device) -> float:
    """Bytes that this process may still take on the GPU: what is free there, within the process's own share."""
    free, total = torch.cuda.mem_get_info(device)
    share = total * torch.cuda.get_per_process_memory_fraction() - torch.cuda.memory_reserved()
    return min(free, share)
