"""FedALA: each site starts a round from a mixture of its own and the global model, with a learned weight per parameter.

Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI
2023, Algorithm 1. https://arxiv.org/abs/2212.01197

    start of site k:  theta_k + W_k (w - theta_k) in the last `layers` layers,  w in the others
    W_k <- clip(W_k - weight_lr grad_W F_k(start), 0, 1),  on a random part of the data; then theta_k is trained
    server:  w <- sum_k (n_k / n) theta_k;  W_k stays at the site

W_k starts at 1, which is the global model, and continues in the next round. In its first round a site starts from w. In
its second it trains W_k for start_epochs epochs, later for one epoch. Our reading: start_epochs replaces the authors'
test of convergence; layers are in the order in which the network defines them; inside sites predict with theta_k after
training, and running statistics follow `buffers`. Outside sites, and sites that were never sampled, predict with w.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.func import functional_call

from raysim import UNCHANGED, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Split, Task, mean, weights

GROUP = "personal"


@dataclass(frozen=True)
class ClientState:
    """The site's model theta_k, the weights W_k (None after its first round), and its buffers if they are local."""

    personal: Model
    mixing: Model | None
    buffers: Model | None


@dataclass(frozen=True, kw_only=True)
class FedALA(LocalTraining):
    layers: Annotated[int, Gt(0), "last layers of the network whose weights are mixed; the others are global"] = 1
    weight_lr: Annotated[float, Ge(0), "step size of the mixing weights; 0 is FedAvg"] = 1.0
    part: Annotated[float, Gt(0), Le(1), "fraction of the training data that trains the mixing weights"] = 0.8
    start_epochs: Annotated[int, Gt(0), "epochs of the mixing weights in the second round of a site"] = 10

    def init(self, task: Task) -> Model:
        return self.make_update(task.network())[0]

    # at each site
    def client(self, site: Site[ClientState], model: Model) -> Reply[Model]:
        mixing = None
        if site.client_state is not None:
            model, mixing = self.mix(site, model, site.client_state)
            site.rewind()  # the batches must not depend on the training of the mixing weights
        net = self.load_global(site, model)
        loss = self.fit(net, site)
        update, buffers = self.make_update(net)
        client_state = ClientState(weights(net), mixing, None if buffers is UNCHANGED else buffers)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    def mix(self, site: Site[ClientState], model: Model, state: ClientState) -> tuple[Model, Model]:
        """The start of the round, and the new W_k."""
        net = self.load_global(site, model)
        names = last_parameters(net, self.layers)
        w, theta = [net.get_parameter(name).detach() for name in names], tensors(state.personal, names, site.device)
        mixing = [torch.ones_like(p) for p in w] if state.mixing is None else tensors(state.mixing, names, site.device)
        part, epochs = random_part(site.data.train, self.part), self.start_epochs if state.mixing is None else 1
        for inputs, labels in self.training_batches(site, split=part, epochs=epochs):
            start = map(torch.lerp, theta, w, [m.requires_grad_() for m in mixing])
            net.train(len(inputs) > 1)  # a single example may have no batch statistics
            with self.precision(site):
                outputs = functional_call(net, dict(zip(names, start, strict=True)), (inputs,))
                loss = site.task.loss(outputs, labels)
            gradients = torch.autograd.grad(loss, mixing, materialize_grads=True)
            steps = zip(mixing, gradients, strict=True)
            mixing = [(m.detach() - self.weight_lr * gradient).clamp(0, 1) for m, gradient in steps]
        return model | as_model(names, map(torch.lerp, theta, w, mixing)), as_model(names, mixing)

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site: Site[ClientState], model: Model) -> Predictor:
        if site.client_state is None:
            return self.predict_module(site, model)
        return site.predict_module(site.client_state.personal)


def last_parameters(net: nn.Module, layers: int) -> list[str]:
    """The names of the trained parameters of the last layers, in the order of `named_modules`."""
    own = (layer.named_parameters(name, recurse=False) for name, layer in net.named_modules())
    named = [[key for key, parameter in parameters if parameter.requires_grad] for parameters in own]
    return [key for keys in [keys for keys in named if keys][-layers:] for key in keys]


def random_part(split: Split, fraction: float) -> Split:
    """A random part of the examples, at least one."""
    return split.take(torch.randperm(len(split))[: max(1, math.floor(fraction * len(split)))].sort().values.numpy())


def tensors(model: Model, names: Iterable[str], device: torch.device) -> list[Tensor]:
    return [torch.from_numpy(model[name].copy()).to(device) for name in names]


def as_model(names: Iterable[str], values: Iterable[Tensor]) -> Model:
    return Model.of({name: value.cpu().numpy() for name, value in zip(names, values, strict=True)})
