"""The local work of a federation with nothing around it: one process, one thread, the sites one after the other.

Prints a line after each pass over all the sites, as `raysim run` does after each round: whoever reads the lines takes
the time of both with the same clock. What every site starts from stays the first model, for nothing is averaged.
The optimiser is as torch makes it by default; with --fused as the first word it is the fused one that raysim takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from raysim.config import parse, resolve


def main(words: Sequence[str]) -> None:
    """Train at every site of the run that `words` describe, for as many rounds."""
    fused = True if words[0] == "--fused" else None
    words = words[1:] if fused else words
    # Ray gives its workers this priority: on a busy machine a loop of higher priority would look faster than it is.
    os.setpriority(os.PRIO_PROCESS, 0, int(os.environ.get("RAY_worker_niceness", "15")))  # noqa: SIM112 - so spelled
    torch.set_num_threads(1)
    run = resolve(parse(words))
    task = run.task.build()
    splits = [task.open(site).train for site in task.inside]
    data = [(torch.from_numpy(split.inputs), torch.from_numpy(split.labels)) for split in splits]
    net = task.start(run.seed)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for number in range(1, run.rounds + 1):
        for inputs, labels in data:
            net.load_state_dict(model)
            optimizer, losses = torch.optim.Adam(net.parameters(), run.algorithm.lr, fused=fused), []
            for index in torch.randperm(len(inputs)).split(task.batch_size):
                optimizer.zero_grad()
                loss = task.loss(net(inputs[index]), labels[index].long())
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            sent = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            assert len(sent) == len(model)
            assert sum(losses) / len(losses) > 0
        print(f"round {number}/{run.rounds}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
