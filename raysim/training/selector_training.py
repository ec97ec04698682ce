"""Training of a selector at a site, on images at the selector's resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raysim.core.contracts import Metrics, Site, Split
from raysim.core.model import Model
from raysim.training.optimizers import dump_optimizer_state, load_optimizer_state
from raysim.training.selector_networks import pooled_inputs

POOLED_BATCH = 256  # images at the selector's resolution, computed at a time


def selector_batches(site: Site[Any], split: Split, size: int | None, rows: Tensor | None = None) -> Iterator[Tensor]:
    """The inputs of the split in these rows (default: all, in order), each averaged to at most `size` pixels per side.

    They are on the site's device, in batches that fit into memory.
    """
    inputs, batch = pooled_inputs(split, size, site.device), site.task.batch_size if size is None else POOLED_BATCH
    if rows is not None:
        inputs = inputs[rows.to(inputs.device)]
    for part in inputs.split(batch):
        yield part.to(site.device)


def fit_selector(
    net: nn.Module,
    site: Site[Any],
    labels: Mapping[str, Tensor],
    moments: Model | None,
    *,
    lr: float,
    size: int | None,
    steps: int,
    batch: int | None = None,
) -> Model:
    """The new moments of Adam. Trains the selector in place on the splits in `labels`, which has a label per image.

    Each step uses `batch` random images of each split; all its images if it has fewer, or if `batch` is None.
    """
    load_optimizer_state(optimizer := torch.optim.Adam(net.parameters(), lr, fused=True), moments)
    net.train()
    for _ in range(steps):
        rows = {name: _rows(len(of_split), batch) for name, of_split in labels.items()}
        optimizer.zero_grad()
        for inputs, label in _labelled_batches(site, labels, size, rows):
            loss = nn.functional.cross_entropy(net(inputs), label, reduction="sum")
            (loss / sum(map(len, rows.values()))).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Model.of(dump_optimizer_state(optimizer))


@torch.no_grad()
def selector_metrics(net: nn.Module, site: Site[Any], labels: Mapping[str, Tensor], size: int | None) -> Metrics:
    """The mean cross-entropy of the selector and its accuracy on all images of the splits in `labels`."""
    loss, correct, count = 0.0, 0, sum(map(len, labels.values()))
    net.eval()
    for inputs, label in _labelled_batches(
        site, labels, size, {name: _rows(len(y), None) for name, y in labels.items()}
    ):
        loss += nn.functional.cross_entropy(logits := net(inputs), label, reduction="sum").item() / count
        correct += int((logits.argmax(1) == label).sum())
    return {"selector_loss": loss, "selector_accuracy": correct / count}


def _rows(count: int, batch: int | None) -> Tensor:
    return torch.arange(count) if batch is None or batch >= count else torch.randperm(count)[:batch]


def _labelled_batches(
    site: Site[Any], labels: Mapping[str, Tensor], size: int | None, rows: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    for name, of_split in labels.items():
        start = 0
        for inputs in selector_batches(site, site.data[name], size, rows[name]):
            yield inputs, of_split[rows[name][start : start + len(inputs)]].to(site.device)
            start += len(inputs)
