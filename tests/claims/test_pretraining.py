"""Pre-training of an encoder on slices whose level shows in the texture, then segmentation with one labelled volume.

A slice has a disc with a grating in noise. The wavelength of the grating is that of the slice's level; direction, phase
and contrast are random. Each level is a class of its own, so a network must recognise wavelengths. Each site has one
labelled volume, whose few slices show each wavelength in few directions, and many unlabelled volumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet

from algorithms.fcl import FCL
from algorithms.fclopt import FCLOpt
from algorithms.fedavg import FedAvg
from raysim import Data, LocalFleet, Metrics, Predictor, Split, Task, federate
from raysim.training import Views
from tests.claims.federations import build_task, mean_score

SIDE, DEPTH, RADIUS = 16, 8, 5.5
WAVELENGTHS = np.array([2.6, 4.2, 6.8, 11.0])  # pixels, by level
LEVELS = (0, 1, 2, 3)
PRETRAIN_ROUNDS, FINETUNE_ROUNDS = 8, 10
FINETUNE = FedAvg(lr=3e-3, steps=20)
PRETRAIN: dict[str, Any] = {
    "pretrain_rounds": PRETRAIN_ROUNDS,
    "finetune": FINETUNE,
    "lr": 1e-2,
    "schedule": "cosine",
    "steps": 10,
    "views": Views(zoom=0.1, noise=0.1),  # a larger change of scale would change the level
}
BANK: dict[str, Any] = {"bank": 128, "sampled": 256}


@dataclass(frozen=True)
class VoxelDice:
    """The mean over the levels' classes of Dice, in percent, each over all voxels of a split."""

    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=lambda: {"dice": "higher"})

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics:
        if not len(split) or split.labels is None:
            return {}
        with torch.no_grad():
            predicted = predict(torch.tensor(split.inputs)).argmax(1).numpy()
        pairs = [(predicted == level + 1, split.labels[:, 0] == level + 1) for level in LEVELS]
        return {"dice": 100 * float(np.mean([2 * (p & t).sum() / max(p.sum() + t.sum(), 1) for p, t in pairs]))}


def volumes(count: int, levels: Sequence[int], rng: np.random.Generator) -> Split:
    """`count` volumes of DEPTH slices, in which each of `levels` has the same number of consecutive slices."""
    n, level = count * DEPTH, np.tile(np.repeat(levels, DEPTH // len(levels)), count)
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, phase, contrast = (rng.uniform(*limits, (n, 1, 1)) for limits in ((0, math.pi), (0, 2 * math.pi), (0.5, 1)))
    waves = np.cos(angle) * x + np.sin(angle) * y
    grating = contrast * np.sin(2 * math.pi * waves / WAVELENGTHS[level][:, None, None] + phase)
    centre_y, centre_x = rng.uniform(6, SIDE - 7, (2, n, 1, 1))
    disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < RADIUS**2
    images = grating * disc + rng.normal(0, 0.3, disc.shape)
    return Split(
        inputs=images[:, None].astype(np.float32),
        labels=(disc * (1 + level)[:, None, None])[:, None].astype(np.uint8),
        cases=np.repeat(np.arange(count), DEPTH),
        spacing=np.ones((n, 3)),
        levels=(level + 1).astype(np.int32),
    )


@cache
def task(seed: int, levels_of_sites: tuple[tuple[int, ...], ...]) -> Task:
    """Each site has one labelled volume and 12 without labels, with its levels, and 10 test volumes with all levels."""
    rng, sites = np.random.default_rng(seed), {}
    for number, levels in enumerate(levels_of_sites):
        train, unlabelled, test = volumes(1, levels, rng), volumes(12, levels, rng), volumes(10, LEVELS, rng)
        sites[f"site-{number}"] = Data(
            train=train, val=volumes(0, LEVELS, rng), test=test, unlabelled=replace(unlabelled, labels=None)
        )
    network = partial(UNet, 2, 1, len(LEVELS) + 1, (8, 16, 32), (2, 2), num_res_units=0, norm="batch")
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    return build_task(sites, network, classes=len(LEVELS) + 1, batch_size=8, loss=loss, score=VoxelDice())


def dice_and_bytes(algorithm: Any, task: Task, seed: int) -> tuple[float, int]:
    """The mean test Dice after fine-tuning, and the bytes of all rounds."""
    rounds = FINETUNE_ROUNDS + algorithm.pretrain_rounds
    fleet, total = LocalFleet(task, seed=seed, rounds=rounds), 0
    for last in federate(algorithm, task, fleet, rounds=rounds, seed=seed, evaluate_every=rounds):
        traffic = last.traffic
        total += sum(sum(part.values()) for part in (traffic.up, traffic.down, traffic.between))
    return mean_score(last.scores, "inside", "dice"), total


def test_pretraining_reduces_the_need_for_labels(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        slices = task(seed, (LEVELS,) * 3)
        dice, _ = dice_and_bytes(FCL(**PRETRAIN, **BANK), slices, seed)
        return dice, dice_and_bytes(FCL(pretrain_rounds=0, finetune=FINETUNE), slices, seed)[0]

    claim("FCL: Dice with one labelled volume per site, over a random start", measure, margin=10)


def test_exchange_helps_where_levels_are_missing(claim: Callable[..., None]) -> None:
    # Neighbouring levels are at different sites: only features of other sites show the difference.
    def measure(seed: int) -> tuple[float, float]:
        slices = task(seed, ((0, 2), (1, 3)) * 2)
        exchange, alone = (FCL(exchange=each, exclude_positives=True, **PRETRAIN, **BANK) for each in (True, False))
        return dice_and_bytes(exchange, slices, seed)[0], dice_and_bytes(alone, slices, seed)[0]

    claim("FCL: Dice with exchange where each site lacks levels, over no exchange", measure, margin=3)


def test_predicted_targets_are_as_good_as_sent_ones_for_fewer_bytes(claim: Callable[..., None]) -> None:
    def measure(seed: int) -> tuple[float, float]:
        slices = task(seed, (LEVELS,) * 3)
        predicted, bytes_predicted = dice_and_bytes(FCLOpt(target="ptnu", **PRETRAIN), slices, seed)
        sent, bytes_sent = dice_and_bytes(FCLOpt(target="exchange", **PRETRAIN), slices, seed)
        assert bytes_predicted < bytes_sent
        return predicted, sent

    claim("FCLOpt: Dice with PTNU and distance prediction, compared with sent targets", measure, margin=-1)
