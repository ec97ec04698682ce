"""FedRoD: a generic head for all sites is trained with balanced classes, and a personal head per site is added to it.

Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022, Algorithm 1.
https://arxiv.org/abs/2107.00778

    generic:   (theta, psi) minimises  loss(psi f_theta(x) + gamma log q_k, y),  q_k the class frequencies of site k
    personal:  phi_k minimises  loss(psi f_theta(x) + phi_k f_theta(x), y),  theta and psi fixed
    server:    (theta, psi) <- sum_k (n_k / n) (theta_k, psi_k);  phi_k stays at the site

The first line is the balanced softmax of Ren et al., NeurIPS 2020, https://arxiv.org/abs/2007.10740. Our reading: both
heads are the network's last layer, which is linear, so psi + phi_k are the weights of one layer. phi_k starts at 0 and
is trained after theta and psi in the same call; in the paper, on the same batches. Classes of pixels count as classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from raysim import (
    UNCHANGED,
    Fleet,
    LocalTraining,
    Metrics,
    Model,
    Predictor,
    Reply,
    Site,
    Task,
    combine,
    load,
    mean,
    weights,
)
from raysim.training import head_layer, require_classes, within

GROUP = "personal"
RAREST = 1e-8  # added to the frequencies, so that a class that the site lacks has a finite logarithm


@dataclass(frozen=True)
class ServerState:
    """The global model (theta, psi), and the name of its last layer."""

    model: Model
    layer: str


@dataclass(frozen=True)
class ClientState:
    """The personal head phi_k as the difference from the generic head, and the site's buffers if they are local."""

    head: Model
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class FedRoD(LocalTraining):
    gamma: Annotated[float, Ge(0), "weight of the class frequencies; 0: the global model is that of FedAvg"] = 1.0

    def init(self, task: Task) -> ServerState:
        require_classes(task, "algorithm=fedrod", "balances the softmax by class frequencies")
        net = task.network()
        return ServerState(self.make_update(net)[0], head_layer(net, task.shape))

    # at each site
    def client(self, site: Site[ClientState], broadcast: ServerState) -> Reply[Model]:
        net = self.load_global(site, broadcast.model)
        loss = self.fit(net, balanced(site, self.gamma))
        update, buffers = self.make_update(net)
        generic = update.only(name for name in update.parameters if within(name, broadcast.layer))
        if site.client_state is not None:
            load(net, weights(net) | combine([generic, site.client_state.head], [1, 1]))
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in generic)
        metrics = {"loss": loss, "personal_loss": self.fit(net, site)}
        head = combine([weights(net).only(generic), generic], [1, -1])
        client_state = ClientState(head, None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(site.data.train), metrics=metrics, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state)), state.layer), {}

    def predictor(self, site: Site[ClientState], state: ServerState) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, state.model)
        head = site.client_state.head
        return self.predict_module(site, state.model | combine([state.model.only(head), head], [1, 1]))


def balanced(site: Site[Any], gamma: float) -> Site[Any]:
    """The site with the balanced softmax: its loss adds `gamma log q_k` to the logits."""
    frequencies = torch.from_numpy(class_frequencies(site.data.train.labels, site.task.classes))
    shift = gamma * (frequencies + RAREST).log().float().to(site.device)
    return replace(site, task=replace(site.task, loss=partial(shifted_loss, site.task.loss, shift)))


def class_frequencies(labels: Any, classes: int) -> Any:
    """The fraction of the `labels` (N, 1, *space) in each class (K,); other values, which are ignored, do not count."""
    counts = np.zeros(classes)
    for label in () if labels is None else labels:
        counts += np.bincount(label.reshape(-1), minlength=classes)[:classes]
    return counts / max(counts.sum(), 1)


def shifted_loss(loss: Callable[[Any, Tensor], Tensor], shift: Tensor, outputs: Any, labels: Tensor) -> Tensor:
    """`loss` with `shift` (K,) added to the logits, of all resolutions if there are several."""
    shift = shift.view(-1, *[1] * (labels.ndim - 2))
    shifted = outputs + shift if isinstance(outputs, Tensor) else [output + shift for output in outputs]
    return loss(shifted, labels)
