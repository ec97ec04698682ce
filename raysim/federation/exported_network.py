"""Selects the network of a finished run to export: the predictor of a site, if it is a single network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysim.core.contracts import Data, Site, Split, Task
from raysim.core.errors import ConfigError, RaysimError
from raysim.core.model import load, weights
from raysim.core.network_factories import base_factory, with_all_tensors
from raysim.core.seeding import numpy_generator
from raysim.federation.evaluation import as_prediction_set, describe_predictor, has_batch_statistics
from raysim.federation.trained_run import NEW_SITE, TrainedRun
from raysim.tasks.initial_weights import with_initial_weights
from raysim.tasks.lora import LoraNetwork, merge_adapters, with_lora
from raysim.tasks.networks import network_factory


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in evaluation mode on the CPU, and the factory that creates it.

    name: used in the default file name. description: a phrase. example: inputs (2, C, *space) or (2, F).
    """

    net: nn.Module
    factory: Callable[[], nn.Module]
    name: str
    description: str
    example: Tensor


class NotOneNetworkError(ConfigError):
    """The predictor of a site is not a single network with the layers of the task's network."""


def exported_network(run: TrainedRun, site: str | None, *, use_global: bool) -> ExportedNetwork:
    """The network with which the method predicts at `site`, by default at a new outside site; or the global model.

    Raises ConfigError, with the options that can be exported, if the predictor is not a single network.
    """
    if site is not None and use_global:
        raise ConfigError("--site and --global exclude each other; use one of them")
    if site is not None:
        run.check_site(site)
    try:
        return _network(run, site, use_global=use_global)
    except NotOneNetworkError as error:
        options = list(_alternatives(run, site, use_global=use_global))
        cure = f"use {' or '.join(options)}" if options else "it can only predict: raysim predict"
        raise ConfigError(f"{error}; {cure}") from error


def _network(run: TrainedRun, site: str | None, *, use_global: bool) -> ExportedNetwork:
    factory, classes = _factory(run)
    view = _view(run, site or NEW_SITE, factory, classes)
    state, method = run.point.state, type(run.config.algorithm).__name__
    where = "new sites" if site is None else f"site '{site}'"
    if use_global:
        if state.model is None:
            raise NotOneNetworkError(f"{method} has no global model")
        net: Any = view.predict_module(state.model)
        name, description = "global", "the global model"
    else:
        net = _single_predictor(run, view, where)
        name, description = site or "new-site", f"the model of {method} for {where}"
    if has_batch_statistics(net) or weights(net).schema.specs != weights(view.template).schema.specs:
        raise NotOneNetworkError(
            f"{description} is not one network of the task with all its statistics (it uses those of each batch, or "
            "has further layers)"
        )
    complete = with_all_tensors(view.task).start(run.config.seed)
    load(complete, weights(complete) | weights(net))  # tensors that are not trained have their initial values
    if isinstance(factory, LoraNetwork):
        complete, factory = merge_adapters(complete), factory.factory
    example = torch.from_numpy(_noise((2, *run.task.shape)))
    return ExportedNetwork(complete.eval(), base_factory(factory), name, description, example)


def _single_predictor(run: TrainedRun, view: Site[Any], where: str) -> nn.Module:
    """The predictor at the site. Raises NotOneNetworkError if it is not a network, or is adapted to images."""
    method, inside = type(run.config.algorithm).__name__, view.name in run.inside
    adaptation = getattr(getattr(run.config.algorithm, "outside", None), "name", "global")
    if not inside and adaptation != "global":
        raise NotOneNetworkError(f"at {where} {method} adapts its model to the images (algorithm.outside={adaptation})")
    try:
        found = run.method.predictor(view, run.point.state)
    except (RaysimError, _NoDataError) as error:
        raise NotOneNetworkError(f"{method} needs data to predict at {where}: {error}") from error
    predictions = as_prediction_set(found)
    if predictions is None:
        raise NotOneNetworkError(f"{method} has no model for {where}")
    main = predictions.main
    kind = describe_predictor(main, view, run.point.state)
    if not isinstance(main, nn.Module) or (not inside and kind != "global"):
        what = f"a {type(main).__name__}" if isinstance(main, nn.Module) else f"a {kind}"
        raise NotOneNetworkError(
            f"{method} predicts at {where} with {what}, which is routed or adapted, not one network"
        )
    return main


def _alternatives(run: TrainedRun, site: str | None, *, use_global: bool) -> Iterator[str]:
    """The options with which an export is possible."""
    others: list[tuple[str, str | None, bool]] = [("--global", None, True)] * (not use_global)
    others += [(f"--site {name}", name, False) for name in run.inside[:1] if name != site]
    for option, name, is_global in others:
        try:
            _network(run, name, use_global=is_global)
        except NotOneNetworkError:
            continue
        yield option


def _factory(run: TrainedRun) -> tuple[Callable[[], nn.Module], int]:
    """The factory of the task's network, with initial weights and adapters, and its number of classes.

    The data of the run are needed only for a task that does not name its network and its classes.
    """
    config, (channels, *size), classes = run.task.config, run.task.shape, len(run.task.classes)
    network = getattr(config, "network", None)
    if not isinstance(network, Mapping) or not classes:
        task: Task = config.build()
        return task.network, task.classes
    factory = network_factory(network, spatial_dims=len(size), in_channels=channels, out_channels=classes, size=size)
    return with_lora(with_initial_weights(factory, network), network), classes


class _NoDataError(Exception):
    """The predictor reads data of the run, which an export does not open."""


@dataclass(frozen=True)
class _NoData:
    """Data of an inside site that cannot be read, except the empty test split: an export does not open the data."""

    test: Split

    def __getattr__(self, split: str) -> Any:
        raise _NoDataError(f"it reads the split {split} of the site")

    def __getitem__(self, split: str) -> Any:
        raise _NoDataError(f"it reads the split {split} of the site")


def _view(run: TrainedRun, name: str, factory: Callable[[], nn.Module], classes: int) -> Site[Any]:
    """The site as in an evaluation. An outside site has one image of noise, which shows whether it is routed."""
    shape = run.task.shape
    empty, one = (Split(_noise((n, *shape)), None, np.arange(n), np.ones((n, len(shape) - 1))) for n in (0, 1))
    data: Any = _NoData(empty) if name in run.inside else Data(empty, empty, one, empty)
    task = Task(
        name=run.config.task.name,
        inside=run.inside,
        outside=run.outside,
        sizes={},
        shape=shape,
        classes=classes,
        open=lambda _: data,
        network=factory,
        loss=_no_loss,
        score=Any,  # type: ignore[arg-type]  # not used by a predictor
        batch_size=getattr(run.config.task, "batch_size", 1),
    )
    task = run.with_trained_part(task)
    template = task.start(run.config.seed)
    config, state = run.config, run.point.client_states.get(name)
    device = torch.device("cpu")
    return Site(name, task, data, state, device, config.seed, run.number - 1, config.rounds, template)


def _no_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    raise _NoDataError("it trains at the site")


def _noise(shape: tuple[int, ...]) -> Any:
    return numpy_generator("export").standard_normal(shape).astype(np.float32)
