"""The local work of a federation without an engine: one process, one thread, the sites one after the other.

python benchmarks/plain_loop.py [--fused] [-c FILE] [key=value ...], with the arguments of `raysim run`.

Prints a line after each pass over all sites, as `raysim run` does after each round, so that a benchmark measures both
in the same manner. The line also has the seconds of each site, as JSON. Every site always starts from the first model,
because nothing is averaged. The optimiser is torch's default one, or with --fused the fused one, as in raysim. The
learning rate is constant, because a schedule does not change the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve
from raysim.config.schema import RunConfig
from raysim.core.contracts import Batch, Task
from raysim.training.batching import seeded_state

Data = tuple[Tensor, Tensor]


def main(argv: Sequence[str]) -> None:
    """Train at every site of the run that `argv` describes, in each of its rounds."""
    parser = argparse.ArgumentParser(description="the local work of a federation, in one process")
    parser.add_argument("--fused", action="store_true", help="the fused optimiser")
    parser.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys")
    parser.add_argument("pairs", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    # Ray gives its workers this priority. On a busy machine, a loop with a higher priority would be faster.
    os.setpriority(os.PRIO_PROCESS, 0, int(os.environ.get("RAY_worker_niceness", "15")))  # noqa: SIM112 - Ray's spelling
    torch.set_num_threads(1)
    loop(resolve(merge(read_file(args.config) if args.config else {}, parse_pairs(args.pairs))), args.fused)


def loop(run: RunConfig, fused: bool) -> None:
    """Train at all sites in each round, and print a line per round."""
    task = run.task.build()
    splits = {site: task.open(site).train for site in task.inside}
    data = {site: (torch.from_numpy(split.inputs), torch.from_numpy(split.labels)) for site, split in splits.items()}
    net = task.start(run.seed)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for number in range(1, run.rounds + 1):
        seconds = {}
        for site, examples in data.items():
            start = time.perf_counter()
            net.load_state_dict(model)
            losses = train(net, task, examples, run.algorithm.lr, fused)
            sent = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            assert len(sent) == len(model)
            assert sum(losses) / len(losses) > 0
            seconds[site] = time.perf_counter() - start
        print(f"round {number}/{run.rounds} {json.dumps(seconds)}", flush=True)


def train(net: nn.Module, task: Task, data: Data, lr: float, fused: bool) -> list[float]:
    """The loss of each step of one pass over `data`."""
    optimizer, losses = torch.optim.Adam(net.parameters(), lr, fused=fused or None), []
    for inputs, labels in batches(task, data):
        optimizer.zero_grad()
        loss = task.loss(net(inputs), labels.long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def batches(task: Task, data: Data) -> Iterator[Batch]:
    """One pass over `data`, shuffled, and augmented if the task has an augmentation."""
    inputs, labels = data
    chance = seeded_state(0) if task.augment else None
    for index in torch.randperm(len(inputs)).split(task.batch_size):
        batch = inputs[index], labels[index]
        yield batch if task.augment is None else task.augment(*batch, chance)


if __name__ == "__main__":
    main(sys.argv[1:])
