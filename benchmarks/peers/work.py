"""The work of every engine in this folder: the data of a site, the network, one local epoch.

python work.py FOLDER writes the data, a file for each site, for all engines. Needs only torch, numpy and MONAI.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

SITES, CASES, SIZE = 64, 16, 32
BATCH, LR, ROUNDS = 8, 1e-3, int(os.environ.get("WORK_ROUNDS", "12"))
ACTORS = 2  # processes of 1 CPU that train
loss_of = DiceCELoss(softmax=True, to_onehot_y=True)


def write(folder: Path) -> None:
    """Write the images and labels of every site: bright discs with noise, always the same."""
    for site in range(SITES):
        rng = np.random.default_rng([site, SIZE])
        labels = np.stack([disc(rng) for _ in range(CASES)])[:, None]
        inputs = labels + rng.normal(0, 0.5, labels.shape)
        np.savez(folder / f"{site}.npz", inputs=inputs.astype(np.float32), labels=labels)


def disc(rng: np.random.Generator) -> np.ndarray:
    """A mask (SIZE, SIZE), uint8: 1 inside a disc with random centre and radius."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    row, column = rng.uniform(SIZE / 4, 3 * SIZE / 4, 2)
    return ((rows - row) ** 2 + (columns - column) ** 2 < rng.uniform(4, 9) ** 2).astype(np.uint8)


@cache  # a process keeps the data of its sites, as raysim's actors do
def data_of(folder: str, site: int) -> tuple[Tensor, Tensor]:
    """Images (CASES, 1, SIZE, SIZE) and labels of the same shape with class indices."""
    with np.load(Path(folder) / f"{site}.npz") as arrays:
        return torch.from_numpy(arrays["inputs"]), torch.from_numpy(arrays["labels"])


class Network(UNet):
    """The U-Net of all engines. It has no arguments, because NVFlare's job file would lose spatial_dims."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            spatial_dims=2, in_channels=1, out_channels=2, channels=(7, 14, 28), strides=(2, 2), num_res_units=0
        )


@cache
def resident() -> Network:
    """The network of this process, which is loaded again for each site."""
    return Network()


def train(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Mean loss of one local epoch; trains `net` in place."""
    optimizer, losses = torch.optim.Adam(net.parameters(), LR, fused=True), []
    for index in torch.randperm(len(inputs)).split(BATCH):
        optimizer.zero_grad()
        loss = loss_of(net(inputs[index]), labels[index].long())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def settle() -> None:
    """Set one torch thread, and the priority of Ray's workers: a higher one would be faster on a busy machine."""
    torch.set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), 15))


def say(number: int, rounds: int = ROUNDS) -> None:
    """Print the end of round `number` (one-based) at once, because peers.py measures the time of the line."""
    print(f"round {number}/{rounds}", flush=True)


def check(losses: list[float], rounds: int = ROUNDS) -> None:
    """Exit with an error unless every round has a loss and the loss decreases, because only then the seconds count."""
    print(f"loss {losses[0]:.4f} in the first round, {losses[-1]:.4f} in the last", flush=True)
    if len(losses) != rounds or not losses[-1] < losses[0]:
        sys.exit(f"expected {rounds} rounds with a falling loss, got {losses}")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
