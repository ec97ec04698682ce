"""Batches of labelled examples on a device, shuffled and augmented with the engine's seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from raysim.core.arrays import shared_tensor
from raysim.core.contracts import Augment, Batch, Sampling, Split
from raysim.core.errors import RunError
from raysim.core.seeding import numpy_generator, stable_seed

RESIDENT_FRACTION = 0.25  # a split stays on the GPU if it takes at most this fraction of the free memory


def batches(
    split: Split,
    batch: int,
    steps: int,
    device: torch.device,
    augment: Augment | None = None,
    sampling: Sampling = "uniform",
) -> Iterator[Batch]:
    """`steps` batches of labelled examples on `device`, sampled for each epoch; the last of an epoch may be smaller.

    If the examples are patches, each is drawn anew from its image.
    Order and augmentation follow torch's global generator, which the engine seeds for each call at a site. Raises
    RunError for a split without labelled examples.
    """
    if not len(split) or split.labels is None:
        raise RunError(
            "the split has no labelled examples, so the site cannot train; add rows with labels and split train"
        )
    seed = torch.randint(2**31, ()).item()
    random_state = seeded_state(int(seed)) if augment else None
    drawn = _examples(split, batch, device, sampling) if split.images is None else _patches(split, batch, int(seed))
    for x, y in islice(drawn, steps):
        x, y = (t.to(device, non_blocking=True) for t in (x, y))
        if augment is not None and random_state is not None:
            x, y = augment(x, y, random_state)
        yield x, y if y.is_floating_point() else y.long()


def _examples(split: Split, batch: int, device: torch.device, sampling: Sampling) -> Iterator[Batch]:
    """Batches of examples, epoch after epoch."""
    inputs, labels = on_device(split, device)
    while True:
        # One asynchronous copy per epoch: a copy in each step would make the CPU wait for the GPU.
        order = epoch_order(labels, sampling).to(inputs.device, non_blocking=True)
        for index in torch.split(order, batch):
            yield inputs[index], labels[index]


def _patches(split: Split, batch: int, seed: int) -> Iterator[Batch]:
    """Batches of new patches, epoch after epoch; an epoch has as many patches as the split has examples."""
    assert split.images is not None
    assert split.sources is not None
    random = numpy_generator("patches", seed)
    while True:
        order = torch.randperm(len(split)).numpy()
        for start in range(0, len(order), batch):
            inputs, labels = split.images.draw(split.sources[order[start : start + batch]], random)
            assert labels is not None
            yield torch.from_numpy(inputs), torch.from_numpy(labels)


def epoch_order(labels: Tensor, sampling: Sampling) -> Tensor:
    """Indices (N,) of the examples of one epoch, for labels (N, 1) if `sampling` is not uniform.

    uniform: each example once, in random order. balanced, sqrt: drawn with replacement, so that the expected share of
    a class is equal for all classes of the split, or proportional to the square root of its number of examples.
    """
    if sampling == "uniform":
        return torch.randperm(len(labels))
    _, class_index, counts = labels[:, 0].unique(return_inverse=True, return_counts=True)
    share = {"balanced": 1.0, "sqrt": 0.5}[sampling]
    probability = counts.double().pow(-share)[class_index].cpu()
    return torch.multinomial(probability, len(labels), replacement=True)


def seeded_state(seed: int) -> Any:
    """A legacy numpy generator, as expected by MONAI's transforms."""
    from numpy.random import RandomState

    return RandomState(stable_seed(seed) % 2**32)


_resident: WeakKeyDictionary[Split, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The inputs and labels of the split as tensors. On a GPU, if they fit, they stay there as long as the split."""
    if split in _resident:
        return _resident[split]
    assert split.labels is not None
    tensors = shared_tensor(split.inputs), shared_tensor(split.labels)
    if device.type == "cuda" and sum(t.nbytes for t in tensors) <= RESIDENT_FRACTION * _free_memory(device):
        tensors = _resident[split] = (tensors[0].to(device), tensors[1].to(device))
    return tensors


def _free_memory(device: torch.device) -> float:
    """Bytes that this process may still allocate on the GPU: the free memory, limited by the share of the process."""
    free, total = torch.cuda.mem_get_info(device)
    share = total * torch.cuda.get_per_process_memory_fraction() - torch.cuda.memory_reserved()
    return min(free, share)
