"""Training on patches of volumes against a plain MONAI loop, and the memory of preparation, training and evaluation.

python benchmarks/patches.py [--large] [--classes K] [--repeats N] [--json FILE]

Four sites with two training volumes and a test volume each, made here: noise in CT units with bright ellipsoids, int16
NIfTI, 160 x 160 x 96 voxels and patches of 48 voxels per side. With --large, one training volume and a test volume at
each site, 512 x 512 x 300 voxels and patches of 96. The network is a small U-Net.

Speed: raysim in one process (LocalFleet) and a plain loop train the same steps at each site, alternately, with one
thread. The loop has MONAI's CacheDataset and DataLoader with the same preparation and RandCropByPosNegLabeld on cached
indices. Memory is the highest private memory (RssAnon) of a new process for one site, without mapped files.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from measuring import machine, missed, parser, publish, spread, spread_table
from pydantic import TypeAdapter

from algorithms.fedavg import FedAvg
from raysim import LocalFleet, Task, federate
from raysim.tasks.segmentation import Segmentation

SITES, STEPS, BATCH, CLIP = ("a", "b", "c", "d"), 4, 2, (-100.0, 300.0)
SMALL = {"space": (160, 160, 96), "patch": 48, "training": 2}
LARGE = {"space": (512, 512, 300), "patch": 96, "training": 1}
NETWORK = {"name": "unet", "channels": [8, 16, 32], "strides": [2, 2], "num_res_units": 0}
ROWS = {
    "plain": "plain MONAI loop: seconds per step",
    "raysim": "raysim: seconds per step",
    "ratio": "raysim / plain loop",
    "prepare_seconds": "preparation of a volume: seconds",
    "prepare_gb": "preparation: highest memory, GB",
    "train_gb": "training: highest memory, GB",
    "evaluate_seconds": "evaluation of a volume: seconds",
    "evaluate_gb": "evaluation: highest memory, GB",
}
LIMITS = {"ratio": 1.1, "train_gb": 3.0, "evaluate_gb": 3.0}


def make_volumes(folder: Path, space: tuple[int, ...], training: int, classes: int) -> None:
    """Write a table and its volumes: an ellipsoid of each class but the background."""
    random, lines = np.random.default_rng(0), ["site,split,image,label"]
    radius = np.array(space) // 6
    for site in SITES:
        for number, split in enumerate([*["train"] * training, "test"]):
            label = np.zeros(space, np.uint8)
            for index in range(1, classes):
                corner = [int(random.integers(n - 2 * r)) for n, r in zip(space, radius, strict=True)]
                grid = np.ogrid[tuple(slice(-1, 1, 2j * r) for r in radius)]  # type: ignore[misc]
                box = label[tuple(slice(start, start + 2 * r) for start, r in zip(corner, radius, strict=True))]
                box[sum(axis**2 for axis in grid) < 1] = index
            image = random.normal(-50, 30, space).astype(np.int16) + 40 * label.astype(np.int16)
            for name, array in (("image", image), ("label", label)):
                nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{site}{number}{name}.nii")
            lines.append(f"{site},{split},{site}{number}image.nii,{site}{number}label.nii")
    (folder / "table.csv").write_text("\n".join(lines))


def build(folder: Path, patch: int, classes: int, sites: tuple[str, ...] = SITES) -> Task:
    data = {
        "table": str(folder / "table.csv"),
        "cache": str(folder / "cache"),
        "patch": [patch] * 3,
        "patches_per_image": 1,
        "positive": 0.5,
        "intensity": "window",
        "clip": CLIP,
        "classes": [f"class {index}" for index in range(classes)],
        "exclude_sites": [site for site in SITES if site not in sites],
    }
    keys = {"data": data, "network": NETWORK, "batch_size": BATCH, "window": {"overlap": 0.25}}
    return TypeAdapter(Segmentation).validate_python(keys).build()


def raysim_rounds(task: Task, rounds: int) -> Iterator[float]:
    """Seconds per step of each round, without evaluation; the last round is evaluated and left out."""
    running = federate(
        FedAvg(steps=STEPS), task, LocalFleet(task, rounds=rounds + 1), rounds=rounds + 1, evaluate_every=rounds + 1
    )
    for _ in range(rounds):
        start = time.perf_counter()
        next(running)
        yield (time.perf_counter() - start) / (STEPS * len(task.inside))


def plain_rounds(folder: Path, task: Task, patch: int, training: int) -> Iterator[float]:
    """Yields, without end, the seconds per step of a pass of the plain loop over all sites."""
    from monai import transforms
    from monai.data import CacheDataset, DataLoader

    keys, random = ["image", "label"], {"num_samples": 1, "pos": 1, "neg": 1, "allow_smaller": True}
    steps = transforms.Compose(
        [
            transforms.LoadImaged(keys, ensure_channel_first=True),
            transforms.Orientationd(keys, "RAS", labels=None),
            transforms.ScaleIntensityRanged(["image"], *CLIP, 0.0, 1.0, clip=True),
            transforms.SpatialPadd(keys, patch),
            transforms.FgBgToIndicesd("label"),
            transforms.RandCropByPosNegLabeld(
                keys, "label", patch, **random, fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices"
            ),
        ]
    )
    cases = {
        site: [{key: str(folder / f"{site}{n}{key}.nii") for key in keys} for n in range(training)] for site in SITES
    }
    cached = {site: CacheDataset(files, steps, progress=False, copy_cache=False) for site, files in cases.items()}
    loaders = {site: DataLoader(found, batch_size=BATCH, shuffle=True) for site, found in cached.items()}
    while True:
        start = time.perf_counter()
        for loader in loaders.values():
            network = task.start(0)
            optimizer = torch.optim.Adam(network.parameters(), 1e-3)
            batches = endless(loader)
            for _ in range(STEPS):
                batch = next(batches)
                optimizer.zero_grad()
                loss = task.loss(network(batch["image"].as_tensor()), batch["label"].as_tensor().long())
                loss.backward()
                optimizer.step()
        yield (time.perf_counter() - start) / (STEPS * len(SITES))


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def speed(folder: Path, task: Task, sizes: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Figures of each repeat, measured alternately after a warm-up."""
    ours, plain = raysim_rounds(task, repeats + 1), plain_rounds(folder, task, sizes["patch"], sizes["training"])
    pairs = [(next(plain), next(ours)) for _ in range(repeats + 1)][1:]
    return {
        "plain": [loop for loop, _ in pairs],
        "raysim": [own for _, own in pairs],
        "ratio": [own / loop for loop, own in pairs],
    }


def highest_memory(work: Callable[[], Any]) -> float:
    """The highest private memory of this process during `work`, in GB."""
    highest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.02):
            found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            highest = max(highest, int(found.group(1)) if found else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return highest * 1024 / 1e9


def prepare(folder: Path, patch: int, classes: int) -> dict[str, float]:
    start = time.perf_counter()
    memory = highest_memory(lambda: build(folder, patch, classes))
    volumes = len((folder / "table.csv").read_text().splitlines()) - 1
    return {"prepare_gb": memory, "prepare_seconds": (time.perf_counter() - start) / volumes}


def train_and_evaluate(folder: Path, patch: int, classes: int) -> dict[str, float]:
    """Memory of both, and the seconds of an evaluation, at one site."""
    torch.set_num_threads(1)
    task = build(folder, patch, classes, SITES[:1])
    trained = highest_memory(lambda: list(raysim_rounds(task, 1)))
    predict, test = task.start(0).eval(), task.open(SITES[0]).test
    start = time.perf_counter()
    evaluated = highest_memory(lambda: task.score(predict, test, torch.device("cpu")))
    return {"train_gb": trained, "evaluate_gb": evaluated, "evaluate_seconds": time.perf_counter() - start}


def in_new_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> int:
    """Measure, print, and write JSON if requested; 1 if a limit is missed."""
    options = parser("patches of volumes: speed and memory")
    options.add_argument("--repeats", type=int, default=5, help="measured repeats of the speed (default: 5)")
    options.add_argument("--large", action="store_true", help="volumes of 512 x 512 x 300 voxels")
    options.add_argument("--classes", type=int, default=3, help="classes with the background (default: 3)")
    args = options.parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, Any] = LARGE if args.large else SMALL
    found = machine() | {"repeats": args.repeats, "space": sizes["space"], "classes": args.classes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_volumes(folder, sizes["space"], sizes["training"], args.classes)
        figures = {
            **in_new_process(prepare, folder, sizes["patch"], args.classes),
            **in_new_process(train_and_evaluate, folder, sizes["patch"], args.classes),
        }
        task = build(folder, sizes["patch"], args.classes)
        measured = speed(folder, task, sizes, args.repeats) | {key: [value] for key, value in figures.items()}
    found["figures"] = {name: spread(measured[name]) for name in ROWS}
    publish(found, spread_table("patches of volumes", ROWS, found["figures"], LIMITS), args.json)
    return int(missed(found["figures"], LIMITS))


if __name__ == "__main__":
    sys.exit(main())
