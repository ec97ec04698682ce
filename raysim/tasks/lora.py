"""Adds low-rank adapters (LoRA) to the linear layers of a network, with the optional package peft.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.core.network_factories import NetworkFactory
from raysim.core.seeding import seeded
from raysim.tasks.network_keys import LORA


@dataclass(frozen=True, eq=False)
class LoraNetwork:
    """Creates the network of `factory` and adds adapters of rank `rank` to the layers `targets`.

    W x becomes W x + B A x, with A (rank, inputs) random and B (outputs, rank) zero, so the initial outputs are equal.
    """

    factory: NetworkFactory
    rank: int
    targets: tuple[str, ...]

    def __call__(self) -> nn.Module:
        from peft import LoraConfig, inject_adapter_in_model

        # alpha = rank: the product B A is not scaled.
        adapters = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=list(self.targets))
        net: nn.Module = inject_adapter_in_model(adapters, self.factory())
        return net.requires_grad_(True)  # algorithm.trainable decides what is trained


def merge_adapters(net: nn.Module) -> nn.Module:
    """`net` with the weights W + B A in its layers, without adapters. `net` itself is changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    return net


def with_lora(factory: NetworkFactory, spec: Mapping[str, Any]) -> NetworkFactory:
    """The factory of the network with the adapters that `spec` describes; without adapters, `factory`.

    Raises ConfigError if peft is missing, or if a target is not a linear layer of the network.
    """
    lora = spec.get(LORA)
    if lora is None:
        return factory
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "task.network.lora needs the package peft; install it on every node: pip install 'raysim[lora]'"
        ) from error
    with seeded("lora"):
        layers = [name for name, layer in factory().named_modules() if isinstance(layer, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdigit()})
    for target in lora["targets"]:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ConfigError(
                f"task.network.lora.targets: the network has no linear layer '{target}'; expected the last part of a "
                f"name, one of {join_names(kinds) or '(it has none: use a transformer, such as UNETR or ViT)'}"
            )
    return LoraNetwork(factory, lora["rank"], tuple(lora["targets"]))
