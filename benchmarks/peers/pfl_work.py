"""The work on pfl-research: torch, in processes of torchrun that share the sites of a round.

torchrun --standalone --nnodes=1 --nproc_per_node=2 pfl_work.py FOLDER, with the data written by work.py.
It follows pfl's guide to fast simulations: data in memory, one network per process, no evaluation between rounds.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import work
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor


class Network(work.Network):
    """The U-Net with the methods that pfl requires: the loss and the metrics of a batch."""

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        loss = work.loss_of(self(inputs), labels.long())
        self.losses.append(loss.detach().clone())  # pfl changes the loss in place
        return loss

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """The metrics of a batch. pfl always evaluates in its first round."""
        with torch.no_grad():
            return {"loss": Weighted(work.loss_of(self(inputs), labels.long()).item() * len(inputs), len(inputs))}


class RoundEnd(TrainingProcessCallback):
    """Prints the end of a round in one of the processes, and records the mean loss of its sites."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        net = model.pytorch_model
        self.losses.append(torch.stack(net.losses).mean().item())
        net.losses.clear()
        if rank() == 0:
            work.say(central_iteration + 1)
        return False, Metrics()


def rank() -> int:
    return get_framework_module().distributed.global_rank


def sites(folder: str) -> FederatedDataset:
    """All sites, with their data in memory; each trains once per round."""
    data = {site: Dataset(work.data_of(folder, site), user_id=str(site)) for site in range(work.SITES)}
    return FederatedDataset(data.__getitem__, get_user_sampler("minimize_reuse", range(work.SITES)))


def model() -> PyTorchModel:
    """pfl's model: fused Adam at the sites; the server adds the mean of their changes."""
    net = Network()
    net.losses = []
    server = torch.optim.SGD(net.parameters(), lr=1.0)
    return PyTorchModel(net, lambda parameters, lr: torch.optim.Adam(parameters, lr, fused=True), server)


def main(folder: str) -> None:
    work.settle()
    net, end = model(), RoundEnd()  # the model first, because it makes pfl use torch
    data = sites(folder)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.ROUNDS,
            evaluation_frequency=work.ROUNDS,
            train_cohort_size=work.SITES,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        net,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.LR, local_batch_size=work.BATCH),
        callbacks=[end],
        send_metrics_to_platform=False,
    )
    if rank() == 0:
        work.check(end.losses)


if __name__ == "__main__":
    main(sys.argv[1])
