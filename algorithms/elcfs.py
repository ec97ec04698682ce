"""ELCFS (FedDG): sites exchange amplitude spectra of images, and train on images with the spectra of other sites.

Liu, Chen, Qin, Dou, Heng, "FedDG: Federated Domain Generalization on Medical Image Segmentation via Episodic Learning
in Continuous Frequency Space", CVPR 2021. https://arxiv.org/abs/2103.06030

    image x with amplitude A and phase P; A' of an image of another site; lambda uniform in [0, 1], for each image
    t has the phase P and the amplitude  (1 - lambda) A + lambda A'  at low frequencies,  A at the others
    step:  theta' = theta - meta_lr grad L(x; theta)      minimise  L(x; theta) + L(t; theta')      w <- sum (n_k/n) w_k

The episode has the first-order gradient of the authors' code. Not included is the boundary loss, which needs contours
and features of one network. Our reading: in each round each site of the cohort sends the low frequencies of random
images, instead of all spectra once; t follows the augmentation; high frequencies are as in the code, not as printed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.fft import fftn, fftshift, ifftn, ifftshift
from torch.func import functional_call

from raysim import ConfigError, Exchange, Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean

GROUP = "domain generalisation"


@dataclass(frozen=True)
class Broadcast:
    """The global model, and the amplitudes of images of each site at low frequencies."""

    model: Model
    amplitudes: Exchange[Any]


@dataclass(frozen=True, kw_only=True)
class ELCFS(LocalTraining):
    can_compile = False  # its training loop is not `fit`

    spectra: Annotated[int, Gt(0), "images of which a site sends the amplitudes, in each round"] = 8
    window: Annotated[float, Ge(0), Lt(0.5), "highest exchanged frequency / shortest side; 0: the mean alone"] = 0.05
    meta_lr: Annotated[float, Ge(0), "step size of the episode; 0 trains on x and t alike"] = 1e-3

    def init(self, task: Task) -> Model:
        if len(task.shape) < 3:
            raise ConfigError(
                f"algorithm=elcfs exchanges spectra of images, but an example has the shape {task.shape}; expected "
                "(C, *space); use a task with images, or another algorithm"
            )
        return self.make_update(task.network())[0]

    # at each site
    def publish(self, site: Site[Any], _: None) -> Reply[Any]:
        """Amplitudes (n, C, *window) of random training images, as payload for the other sites."""
        index = torch.randperm(len(site.data.train))[: self.spectra].sort().values.numpy()
        images = torch.from_numpy(np.array(site.data.train.inputs[index])).to(site.device)
        return Reply(low_frequencies(spectrum(images), self.window).abs().cpu().numpy())

    def client(self, site: Site[Any], broadcast: Broadcast) -> Reply[Model]:
        site.rewind()  # the random numbers must not depend on the exchange, which is an additional call
        net, received = self.load_global(site, broadcast.model), broadcast.amplitudes
        others = [torch.from_numpy(np.array(received[name])) for name in received.sites if name != site.name]
        amplitudes = torch.cat(others).to(site.device) if others else torch.empty(0)
        loss = self.optimize(net, site, self.losses(net, site, amplitudes))
        update, client_state = self.make_update(net)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    def losses(self, net: nn.Module, site: Site[Any], amplitudes: Tensor) -> Iterator[Tensor]:
        """Yields the loss of each step; without amplitudes of other sites it is that of x alone."""
        for inputs, labels in self.training_batches(site):
            with self.precision(site):
                loss = site.task.loss(net(inputs), labels)
            if len(amplitudes):
                chosen = amplitudes[torch.randint(len(amplitudes), (len(inputs),)).to(site.device)]
                images = interpolate(inputs, chosen, torch.rand(len(inputs)).to(site.device), self.window)
                ahead = step_ahead(net, loss, self.meta_lr)
                with self.precision(site):
                    loss = loss + site.task.loss(functional_call(net, ahead, (images,)), labels)
            yield loss

    # at the server
    def round(self, fleet: Fleet, model: Model) -> tuple[Model, Metrics]:
        return mean(fleet.map(self.client, Broadcast(model, fleet.exchange(self.publish)))), {}

    def predictor(self, site: Site[Any], model: Model) -> Predictor:
        return self.predict_module(site, model)


def step_ahead(net: nn.Module, loss: Tensor, lr: float) -> dict[str, Tensor]:
    """theta' = theta - lr g, where the gradient g of `loss` is a constant."""
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, materialize_grads=True)
    return {name: p - lr * gradient for (name, p), gradient in zip(trained.items(), gradients, strict=True)}


def spectrum(images: Tensor) -> Tensor:
    """The Fourier transform of images (B, C, *space) along space, with frequency 0 in the centre."""
    axes = tuple(range(2, images.ndim))
    centred: Tensor = fftshift(fftn(images.float(), dim=axes), dim=axes)
    return centred


def low_frequencies(centred: Tensor, window: float) -> Tensor:
    """The view (B, C, *window) of a centred spectrum with frequencies up to `window` times the shortest side."""
    reach = math.floor(window * min(centred.shape[2:]))
    for axis, side in enumerate(centred.shape[2:], start=2):
        centred = centred.narrow(axis, side // 2 - reach, 2 * reach + 1)
    return centred


def interpolate(images: Tensor, amplitudes: Tensor, lam: Tensor, window: float) -> Tensor:
    """The images (B, C, *space) with the low frequencies' amplitudes moved by lam (B,) to those in `amplitudes`."""
    centred, axes = spectrum(images), tuple(range(2, images.ndim))
    low, lam = low_frequencies(centred, window), lam.view(-1, *[1] * (images.ndim - 1))
    low.copy_(torch.polar(low.abs().lerp(amplitudes, lam), low.angle()))
    return torch.real(ifftn(ifftshift(centred, dim=axes), dim=axes)).to(images.dtype)
