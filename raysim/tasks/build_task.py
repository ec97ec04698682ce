"""Builds a task from prepared data, after a check of the network and the loss on an example of its shape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from raysim.core.contracts import Augment, CaseName, Data, Sampling, Scorer, Task
from raysim.core.targets import Target
from raysim.tasks.initial_weights import with_initial_weights
from raysim.tasks.lora import with_lora
from raysim.tasks.losses import Loss, check_loss
from raysim.tasks.networks import check_network, network_factory


class TaskOptions(Protocol):
    """The keys that the configurations of all tasks have."""

    @property
    def name(self) -> str: ...
    @property
    def network(self) -> Mapping[str, Any]: ...
    @property
    def batch_size(self) -> int: ...


def build_task(
    config: TaskOptions,
    *,
    open: Callable[[str], Data],
    sizes: Mapping[str, Mapping[str, int]],
    outside: Collection[str],
    shape: Sequence[int],
    classes: int,
    loss: Loss,
    score: Scorer,
    augment: Augment | None,
    per_voxel: bool,
    sampling: Sampling = "uniform",
    summary: str = "",
    case_names: Callable[[str, str], Sequence[CaseName]] | None = None,
    class_values: Mapping[str, int | str],
    computed: Mapping[str, Any] | None = None,
    target: Target = Target.CLASS,
) -> Task:
    """The task for examples of `shape`, (C, *space) or (F,); `sizes` as in Task, sorted by site.

    Raises ConfigError if the network, its initial weights or the loss do not fit.
    """
    channels, *size = shape
    factory = network_factory(
        config.network, spatial_dims=len(size), in_channels=channels, out_channels=classes, size=size
    )
    check_network(factory, channels, size, classes, per_voxel)
    check_loss(loss, classes, size if per_voxel else (), target)
    return Task(
        name=config.name,
        inside=tuple(site for site in sizes if site not in outside),
        outside=tuple(site for site in sizes if site in outside),
        sizes=sizes,
        shape=tuple(shape),
        classes=classes,
        open=open,
        network=with_lora(with_initial_weights(factory, config.network), config.network),
        loss=loss,
        score=score,
        batch_size=config.batch_size,
        augment=augment,
        sampling=sampling,
        summary=summary,
        case_names=case_names,
        class_values=class_values,
        computed=computed or {},
        target=target,
    )
